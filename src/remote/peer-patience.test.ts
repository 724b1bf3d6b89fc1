import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GodwitError } from '../base/errors.ts';
import { peerPatience } from './peer-patience.ts';

test('silence doubles the patience with a peer up to eight times, each other end halves it', () => {
  const silent = new GodwitError('A_SILENT', 'silent', { retry: 'later', nextAction: 'wait' });
  const lost = new GodwitError('A_LOST', 'lost', { nextAction: 'wait' });
  const after = [silent, silent, silent, silent, lost, lost, lost, lost];
  let patience = 1;
  assert.deepEqual(
    after.map((end) => {
      patience = peerPatience(patience, end);
      return patience;
    }),
    [2, 4, 8, 8, 4, 2, 1, 1],
  );
});
