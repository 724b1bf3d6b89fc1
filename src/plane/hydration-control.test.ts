import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  decideHydration,
  firstControl,
  HYDRATION_LIMITS,
  type HydrationControl,
} from './hydration-control.ts';

const LIMITS = HYDRATION_LIMITS;
const TICK_MS = 250;

/** Ticks, each with what the guest read and how far the copy came in it. */
function run(ticks: readonly { reads: number; readMs: number; regions: number }[]): {
  control: HydrationControl;
  pulses: number;
} {
  let control = firstControl(0, 0, LIMITS);
  let regionsHydrated = 0;
  let pulses = 0;
  for (const [index, { reads, readMs, regions }] of ticks.entries()) {
    regionsHydrated += regions;
    const sample = { atMs: (index + 1) * TICK_MS, regionsHydrated, reads, readTimeMs: reads * readMs };
    const decided = decideHydration(control, sample, LIMITS);
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
