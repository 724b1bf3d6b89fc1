import { HISTOGRAM_BYTES, Histogram } from '../base/histogram.ts';

/** Counts of what the guest asked for. */
export const COUNTER = {
  reads: 0,
  readBytes: 1,
  writes: 2,
  writeBytes: 3,
  flushes: 4,
  discards: 5,
  /** Reads and writes that had to wait for the source. */
  misses: 6,
} as const;
const COUNTER_BYTES = 8 * Float64Array.BYTES_PER_ELEMENT;

/**
 * Counters and latencies (arrival of a request at the server to its reply) of one thread, in shared memory: the thread that owns them
 * counts with plain stores, and others read.
 */
export class GuestCounters {
  readonly shared: SharedArrayBuffer;
  readonly readLatency: Histogram;
  readonly writeLatency: Histogram;
  readonly missLatency: Histogram;
  readonly #counts: Float64Array;

  constructor(shared?: SharedArrayBuffer) {
    this.shared = shared ?? new SharedArrayBuffer(COUNTER_BYTES + 3 * HISTOGRAM_BYTES);
    this.#counts = new Float64Array(this.shared, 0, 8);
    const histogram = (index: number) =>
      new Histogram(
        new Float64Array(this.shared, COUNTER_BYTES + index * HISTOGRAM_BYTES, HISTOGRAM_BYTES / 8),
      );
    this.readLatency = histogram(0);
    this.writeLatency = histogram(1);
    this.missLatency = histogram(2);
  }

  get(counter: number): number {
    return this.#counts[counter]!;
  }

  add(counter: number, amount: number): void {
    this.#counts[counter]! += amount;
  }
}
