import assert from 'node:assert/strict';
import test from 'node:test';
import { RefusedReads } from './refused-reads.ts';

test('what was refused is asked for in smaller pieces, down to a block, and left alone for a while', () => {
  const refused = new RefusedReads();
  assert.equal(refused.endOf(100), 356);
  refused.note(0, 256, 0);
  assert.deepEqual([refused.endOf(0), refused.endOf(100), refused.endOf(255)], [16, 112, 256]);
  assert.equal(refused.endOf(256), 512, 'its neighbour was not refused');
  assert.deepEqual([refused.restsUntil(7, 999), refused.restsUntil(7, 1_000)], [256, 7]);
  refused.note(96, 112, 2_000);
  assert.equal(refused.endOf(100), 101);
  refused.note(100, 101, 4_000);
  assert.deepEqual([refused.endOf(100), refused.endOf(200)], [101, 201]);
  assert.deepEqual([refused.restsUntil(100, 8_999), refused.restsUntil(100, 9_000)], [256, 100]);
});

test('one that lies across two regions counts for both; beyond 2^32 too', () => {
  const refused = new RefusedReads();
  const border = 2 ** 32;
  refused.note(border - 100, border + 56, 0);
  assert.deepEqual([refused.endOf(border - 10), refused.endOf(border + 3)], [border - 8, border + 8]);
  assert.equal(refused.endOf(3), 259);
});

test('a source that refuses everything does not take all memory', () => {
  const refused = new RefusedReads();
  for (let region = 0; region < 10_000; region++) refused.note(region * 256, region * 256 + 256, 0);
  assert.equal(refused.endOf(0), 256, 'forgotten');
  assert.equal(refused.endOf(9_999 * 256), 9_999 * 256 + 16);
});
