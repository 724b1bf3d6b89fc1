import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  decideHydration,
  decidePace,
  firstControl,
  firstPace,
  HYDRATION_LIMITS,
  type HydrationControl,
  limitsAtRate,
} from './hydration-control.ts';

const LIMITS = HYDRATION_LIMITS;
const TICK_MS = 250;

/** Ticks, each with what the guest read and how far the copy came in it. */
function run(
  ticks: readonly { reads: number; readMs: number; regions: number }[],
  limits = LIMITS,
): { control: HydrationControl; pulses: number } {
  let control = firstControl(0, 0, limits);
  let regionsHydrated = 0;
  let pulses = 0;
  for (const [index, { reads, readMs, regions }] of ticks.entries()) {
    regionsHydrated += regions;
    const sample = { atMs: (index + 1) * TICK_MS, regionsHydrated, reads, readTimeMs: reads * readMs };
    const decided = decideHydration(control, sample, limits);
    control = decided.control;
    if (decided.pulse) pulses++;
  }
  return { control, pulses };
}

const times = <Value>(count: number, value: Value): Value[] => Array.from({ length: count }, () => value);

test('an idle guest gets the whole window, and is never held', () => {
  const { control, pulses } = run(times(40, { reads: 0, readMs: 0, regions: 600 }));
  assert.equal(control.threshold, LIMITS.thresholdMax);
  assert.equal(pulses, 0);
});

test('reads that become slow make room, and it grows again when they are fast', () => {
  const calm = times(20, { reads: 100, readMs: 1, regions: 600 });
  const slow = times(6, { reads: 100, readMs: 30, regions: 600 });
  const before = run(calm).control.threshold;
  const during = run([...calm, ...slow]).control.threshold;
  const after = run([...calm, ...slow, ...calm]).control.threshold;
  assert.ok(during < before / 8, `${during} after ${before}`);
  assert.equal(after, before);
});

test('a little slower is not slow', () => {
  const { control } = run([
    ...times(20, { reads: 100, readMs: 0.2, regions: 600 }),
    ...times(20, { reads: 100, readMs: 1.5, regions: 600 }),
  ]);
  assert.equal(control.threshold, LIMITS.thresholdMax);
});

test('it never goes below the least, nor above the most', () => {
  const { control } = run([
    { reads: 10, readMs: 0.1, regions: 600 },
    ...times(60, { reads: 10, readMs: 500, regions: 600 }),
  ]);
  assert.equal(control.threshold, LIMITS.thresholdMin);
});

test('a copy that does not move on is helped, as often as the floor says', () => {
  const { pulses } = run(times(40, { reads: 1000, readMs: 1, regions: 0 }));
  assert.equal(pulses, (40 * TICK_MS) / LIMITS.floorSpanMs);
});

test('a copy that reaches its floor is not', () => {
  const regions = Math.ceil((LIMITS.floorRegions * TICK_MS) / LIMITS.floorSpanMs);
  assert.equal(run(times(40, { reads: 1000, readMs: 1, regions })).pulses, 0);
  assert.ok(run(times(40, { reads: 1000, readMs: 1, regions: regions - 10 })).pulses > 0);
});

const KIB = 2 ** 10;
const MIB = 2 ** 20;

/** A copy that brings so much while it runs, under a rate: what came in each tick. */
function copied(
  ticks: number,
  rateBytesPerSecondMax: number,
  bytesPerMs: (tick: number) => number,
): number[] {
  let pace = firstPace(0);
  const brought: number[] = [];
  let ranMs = 0;
  let copiedBytes = 0;
  for (let tick = 1; tick <= ticks; tick++) {
    const sample = { atMs: tick * TICK_MS, copiedBytes, ranMs };
    const decided = decidePace(pace, sample, rateBytesPerSecondMax, TICK_MS);
    assert.ok(decided.runMs >= 0 && decided.runMs <= TICK_MS);
    pace = decided.pace;
    ranMs = decided.runMs;
    copiedBytes = Math.floor(ranMs * bytesPerMs(tick));
    brought.push(copiedBytes);
  }
  return brought;
}

const sum = (numbers: readonly number[]) => numbers.reduce((total, number) => total + number, 0);

test('a rate holds on average, however fast the copy is', () => {
  for (const rate of [64 * KIB, MIB, 10 * MIB, 100 * MIB]) {
    for (const bytesPerMs of [20 * KIB, 100 * KIB, MIB]) {
      const seconds = 120;
      const total = sum(copied((seconds * 1000) / TICK_MS, rate, () => bytesPerMs));
      const expected = Math.min(rate, bytesPerMs * 1000) * seconds;
      const about = `${rate} B/s of ${bytesPerMs} B/ms: ${total / expected}`;
      // One run of the least length may be on its way at the end.
      assert.ok(total <= expected + 10 * bytesPerMs, about);
      assert.ok(total >= expected * 0.9 - 10 * bytesPerMs, about);
    }
  }
});

test('a copy that was held up makes up for a second of it, not more', () => {
  const rate = 10 * MIB;
  const stuckTicks = 40;
  const brought = copied(80, rate, (tick) => (tick <= stuckTicks ? 0 : MIB));
  assert.equal(sum(brought.slice(0, stuckTicks)), 0);
  const afterwards = sum(brought.slice(stuckTicks));
  const seconds = (40 * TICK_MS) / 1000;
  // The first run after it lasts a whole tick, because nothing was known of its speed.
  assert.ok(afterwards <= rate * (seconds + 1) + TICK_MS * MIB, String(afterwards));
  assert.ok(afterwards >= rate * seconds * 0.9, String(afterwards));
});

test('a copy that becomes faster overshoots by one tick at most, and pays it back', () => {
  const rate = 10 * MIB;
  const brought = copied(120, rate, (tick) => (tick <= 40 ? 20 * KIB : MIB));
  assert.ok(sum(brought) <= rate * ((120 * TICK_MS) / 1000) + TICK_MS * MIB);
});

test('under a rate fewer are in flight, and the floor is below it', () => {
  assert.deepEqual(limitsAtRate(LIMITS, 0), LIMITS);
  const slow = limitsAtRate(LIMITS, MIB);
  assert.equal(slow.thresholdMax, LIMITS.thresholdMin);
  assert.equal(slow.floorRegions, 64);
  const { control, pulses } = run(times(40, { reads: 0, readMs: 0, regions: 64 }), slow);
  assert.equal(control.threshold, slow.thresholdMax);
  assert.equal(pulses, 0);
  assert.deepEqual(limitsAtRate(LIMITS, 2 ** 30), LIMITS);
});
