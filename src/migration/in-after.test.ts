import assert from 'node:assert/strict';
import test from 'node:test';
import { unhealthyAtLast } from './in-after.ts';

test('a move ends with what is wrong with its machine, and not with a check that failed once', () => {
  assert.equal(unhealthyAtLast(null, null), null);
  assert.equal(unhealthyAtLast('it runs and is not healthy: no answer', null), null, 'it is now');
  const flaps = { kind: 'unhealthy', message: 'runs and is not healthy: timeout' } as const;
  assert.equal(unhealthyAtLast(null, flaps), null, 'it was healthy where it arrived');
  assert.equal(unhealthyAtLast('it is not healthy', flaps), 'it runs and is not healthy: timeout');
  const ended = { kind: 'ended', message: 'ended with exit code 3' } as const;
  assert.equal(unhealthyAtLast(null, ended), 'it ended with exit code 3');
});
