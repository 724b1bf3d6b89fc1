import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import { parseBlockStatistics } from './block-statistics.ts';

test('the numbers of a block device, of a kernel that counts discards and flushes and of one that does not', () => {
  const old = '   10  1  88  30   20  2  96  40   3  50  70\n';
  const counted = {
    ...{ reads: 10, readBytes: 88 * 512, readTimeMs: 30 },
    ...{ writes: 20, writeBytes: 96 * 512, discards: 0, discardBytes: 0, flushes: 0, inFlight: 3 },
  };
  assert.deepEqual(parseBlockStatistics(old), counted);
  assert.deepEqual(parseBlockStatistics(`${old.trim()} 4 0 64 5 6 7`), {
    ...counted,
    ...{ discards: 4, discardBytes: 64 * 512, flushes: 6 },
  });
  for (const text of ['', '1 2 3', old.replace('10', 'x')])
    assert.throws(
      () => parseBlockStatistics(text),
      (error) => isGodwitError(error, 'HOST_UNKNOWN_OUTPUT'),
    );
});
