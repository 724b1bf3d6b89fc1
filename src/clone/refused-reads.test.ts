import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RefusedReads } from './refused-reads.ts';

test('what was refused is asked for in smaller pieces, down to a block, and the rest as before', () => {
  const refused = new RefusedReads();
  assert.equal(refused.endOf(0, 0), 256);
  refused.note(0, 256, 0);
  assert.deepEqual([refused.endOf(0, 0), refused.endOf(17, 0)], [16, 32]);
  refused.note(16, 32, 0);
  assert.equal(refused.endOf(17, 0), 18);
  assert.equal(refused.endOf(256, 0), 512, 'its neighbour');
});

test('the background copy leaves a region alone for a moment, and longer where single blocks are refused', () => {
  const refused = new RefusedReads();
  refused.note(0, 256, 0);
  assert.deepEqual([refused.restsUntil(5, 999), refused.restsUntil(5, 1_000)], [256, 5]);
  refused.note(16, 32, 1_000);
  refused.note(17, 18, 1_000);
  assert.deepEqual([refused.restsUntil(5, 5_999), refused.restsUntil(5, 6_000)], [256, 5]);
});

test('a source that was away for a minute and is back is read in large pieces again', () => {
  const refused = new RefusedReads();
  for (let region = 0; region < 100; region++) {
    for (let size = 256; size >= 1; size /= 16) refused.note(region * 256, region * 256 + size, 0);
  }
  assert.equal(refused.endOf(0, 59_999), 1);
  assert.equal(refused.endOf(0, 60_000), 256);
  assert.equal(refused.endOf(255, 60_000), 511);
});

test('what is remembered has a bound', () => {
  const refused = new RefusedReads();
  for (let region = 0; region < 5_000; region++) refused.note(region * 256, (region + 1) * 256, 0);
  assert.equal(refused.endOf(0, 0), 256, 'the oldest is forgotten');
  assert.equal(refused.endOf(4_999 * 256, 0), 4_999 * 256 + 16);
});
