import assert from 'node:assert/strict';
import { test } from 'node:test';
import { backoffMs, jittered, pauses } from './backoff.ts';
import { seededRandom } from './random.ts';

test('the pause doubles with each failure up to the longest, however many there were', () => {
  const backoff = { firstMs: 50, maxMs: 3_000 };
  const pauses = [0, 1, 2, 3, 6, 7, 8, 1_000_000].map((failures) => backoffMs(backoff, failures));
  assert.deepEqual(pauses, [50, 50, 100, 200, 1600, 3000, 3000, 3000]);
  assert.equal(backoffMs({ firstMs: 1, maxMs: Number.POSITIVE_INFINITY }, 5_000), 2 ** 30);
});

test('chance takes at most half of a pause, and adds nothing', () => {
  const random = seededRandom(5);
  const pauses = Array.from({ length: 500 }, () => jittered(100, random));
  assert.equal(Math.min(...pauses), 50);
  assert.equal(Math.max(...pauses), 100);
});

test('who looks again waits longer each time, and is called off at once', async () => {
  const slept: number[] = [];
  const clock = {
    async sleep(ms: number, signal?: AbortSignal) {
      signal?.throwIfAborted();
      slept.push(ms);
    },
  };
  const pause = pauses(clock, { firstMs: 20, maxMs: 50 });
  for (let looks = 0; looks < 4; looks += 1) await pause();
  assert.deepEqual(slept, [20, 40, 50, 50]);
  await assert.rejects(pause(AbortSignal.abort(new Error('ends'))), /ends/);
});
