import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { HISTOGRAM_BYTES, Histogram } from './histogram.ts';

test('quantiles are those of the sorted list, never below, at most 1/32 and a tick above', () => {
  const duration = fc.oneof(
    fc.double({ min: 0, max: 0.02, noNaN: true }),
    fc.double({ min: 0, max: 50, noNaN: true }),
    fc.double({ min: 0, max: 400_000, noNaN: true }),
  );
  fc.assert(
    fc.property(
      fc.array(duration, { minLength: 1, maxLength: 300 }),
      fc.constantFrom(0, 0.01, 0.5, 0.9, 0.99, 1),
      (durationsMs, quantile) => {
        const histogram = new Histogram();
        for (const each of durationsMs) histogram.record(each);
        assert.equal(histogram.count, durationsMs.length);
        const sorted = durationsMs.toSorted((a, b) => a - b);
        const exact = sorted[Math.max(1, Math.ceil(sorted.length * quantile)) - 1]!;
        const got = histogram.quantileMs(quantile);
        const tickMs = 0.0001;
        assert.ok(got >= exact - tickMs, `${got} is below ${exact}`);
        assert.ok(got <= exact * (1 + 1 / 32) + tickMs, `${got} is too far above ${exact}`);
      },
    ),
  );
});

test('an empty histogram, and durations outside the range', () => {
  const histogram = new Histogram();
  assert.deepEqual([histogram.count, histogram.quantileMs(0.5)], [0, 0]);
  histogram.record(-1);
  assert.equal(histogram.quantileMs(1), 0);
  histogram.record(Number.MAX_VALUE);
  assert.equal(histogram.quantileMs(1), (2 ** 32 - 1) / 10_000);
});

test('merge adds, since subtracts, a snapshot stays', () => {
  const a = new Histogram();
  const b = new Histogram();
  a.record(1);
  const snapshot = a.snapshot();
  b.record(100);
  b.record(100);
  a.merge(b);
  assert.deepEqual([a.count, snapshot.count, a.since(snapshot).count], [3, 1, 2]);
  assert.ok(a.since(snapshot).quantileMs(0) >= 100);
  assert.ok(snapshot.quantileMs(1) < 1.1);
});

test('two histograms on one shared memory are one', () => {
  const memory = new SharedArrayBuffer(HISTOGRAM_BYTES);
  const recorder = new Histogram(new Float64Array(memory));
  recorder.record(5);
  const reader = new Histogram(new Float64Array(memory));
  assert.equal(reader.count, 1);
  recorder.record(5);
  assert.equal(reader.count, 2);
  assert.throws(() => new Histogram(new Float64Array(3)), RangeError);
});
