import assert from 'node:assert/strict';
import test from 'node:test';
import {
  type HydrationWindow,
  initialWindow,
  regionBytes,
  restMs,
  windowAfterMiss,
  windowAfterTick,
} from './hydration-window.ts';

const LIMITS = { floorBytes: 4 * 1024, maxBytes: 8 * 2 ** 20 };

/**
 * A guest that misses every 2 ms for `durationMs`. A miss takes `baseMs`, and more with what hydration has in
 * flight; with a window below a region, hydration has one region in flight for that share of the time.
 */
function withGuest(
  window: HydrationWindow,
  fromMs: number,
  durationMs: number,
  baseMs: number,
  msPerMebibyte: number,
) {
  let next = window;
  const seen: number[] = [];
  for (let step = 0; step < durationMs / 2; step++) {
    const nowMs = fromMs + step * 2;
    const share = Math.min(1, next.windowBytes / 65_536);
    const busy = Math.floor(step * share) !== Math.floor((step + 1) * share);
    const backgroundBytes = busy ? Math.max(65_536, next.windowBytes) : 0;
    const latencyMs = baseMs + (backgroundBytes / 2 ** 20) * msPerMebibyte;
    next = windowAfterMiss(next, { nowMs, latencyMs, backgroundBytes }, LIMITS);
    if (nowMs % 50 === 0) next = windowAfterTick(next, nowMs, LIMITS);
    seen.push(latencyMs);
  }
  return { window: next, seen };
}

test('without a guest the window is soon at its maximum and regions are large', () => {
  let window = initialWindow(LIMITS);
  for (let tick = 0; tick < 4; tick++) window = windowAfterTick(window, 1000, LIMITS);
  assert.equal(window.windowBytes, LIMITS.maxBytes);
  assert.equal(regionBytes(window, 1000), 2 ** 20);
});

test('the window settles where misses cost on average a fifth more, or at its floor', () => {
  for (const msPerMebibyte of [0.1, 1, 10, 100, 10_000]) {
    const { window, seen } = withGuest(initialWindow(LIMITS), 0, 12_000, 1, msPerMebibyte);
    assert.ok(window.windowBytes >= LIMITS.floorBytes);
    const late = seen.slice(-2000);
    const meanMs = late.reduce((sum, each) => sum + each, 0) / late.length;
    const floorMs = 1 + (msPerMebibyte / 16) * (LIMITS.floorBytes / 65_536);
    assert.ok(meanMs <= Math.max(1.3, floorMs * 1.3), `${meanMs} ms at ${msPerMebibyte} ms a MiB`);
  }
});

test('a window below a region is a share of time', () => {
  const window = { ...initialWindow(LIMITS), windowBytes: 16 * 1024 };
  assert.equal(restMs(window, 2), 6);
  assert.equal(restMs({ ...window, windowBytes: 64 * 1024 }, 2), 0);
  assert.equal(restMs({ ...window, windowBytes: 4 * 1024 }, 10_000), 1_000);
});

test('hydration that disturbs nobody grows to the maximum although the guest misses', () => {
  const { window } = withGuest(initialWindow(LIMITS), 0, 10_000, 1, 0.001);
  assert.equal(window.windowBytes, LIMITS.maxBytes);
  assert.ok(regionBytes(window, 10_000) < 2 ** 20, 'but in small regions');
});

test('it grows back when the guest is quiet', () => {
  const busy = withGuest(initialWindow(LIMITS), 0, 3_000, 1, 100).window;
  assert.ok(busy.windowBytes < 2 ** 20);
  let quiet = busy;
  for (let nowMs = 3_000; nowMs < 5_000; nowMs += 50) quiet = windowAfterTick(quiet, nowMs, LIMITS);
  assert.equal(quiet.windowBytes, LIMITS.maxBytes);
});

test('a source that became slower is measured again instead of being taken for congestion for ever', () => {
  const before = withGuest(initialWindow(LIMITS), 0, 10_000, 1, 0.001).window;
  const after = withGuest(before, 10_000, 40_000, 5, 0.001).window;
  assert.equal(after.windowBytes, LIMITS.maxBytes);
});

test('an outage tells nothing of congestion', () => {
  const before = withGuest(initialWindow(LIMITS), 0, 10_000, 1, 0.001).window;
  const after = windowAfterMiss(before, { nowMs: 20_000, latencyMs: 10_000, backgroundBytes: 0 }, LIMITS);
  assert.equal(after.windowBytes, before.windowBytes);
  assert.equal(after.baselineMs, before.baselineMs);
});
