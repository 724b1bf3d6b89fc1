import { HISTOGRAM_BYTES, Histogram } from '../base/histogram.ts';
import type { GuestWaits, WaitKind } from '../clone/disk-window.ts';

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
  /** Those that needed no source, and how long they took in all. */
  localReads: 7,
  localReadMs: 8,
  localWrites: 9,
  localWriteMs: 10,
  flushMs: 11,
} as const;
const COUNTERS = 12;
const COUNTER_BYTES = COUNTERS * Float64Array.BYTES_PER_ELEMENT;

/**
 * Counters and latencies (arrival of a request at the server to its reply) of one thread, in shared memory:
 * the thread that owns them counts with plain stores, and others read.
 */
export class GuestCounters {
  readonly shared: SharedArrayBuffer;
  readonly readLatency: Histogram;
  readonly writeLatency: Histogram;
  readonly missLatency: Histogram;
  readonly #counts: Float64Array;

  constructor(shared?: SharedArrayBuffer) {
    this.shared = shared ?? new SharedArrayBuffer(COUNTER_BYTES + 3 * HISTOGRAM_BYTES);
    this.#counts = new Float64Array(this.shared, 0, COUNTERS);
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

  /** One of a kind needed no source and took so long. Flushes are counted as such elsewhere. */
  waited(kind: WaitKind, milliseconds: number): void {
    const [count, total] = WAITED[kind];
    if (count !== null) this.add(count, 1);
    this.add(total, milliseconds);
  }
}

const WAITED = {
  read: [COUNTER.localReads, COUNTER.localReadMs],
  write: [COUNTER.localWrites, COUNTER.localWriteMs],
  flush: [null, COUNTER.flushMs],
} as const;

/** What a guest waited for since the last look, of the counters of all threads that serve it. */
export class WaitMeter {
  readonly #counters: readonly GuestCounters[];
  readonly #flushesSinceMs = new Set<{ startMs: number }>();
  readonly #before = new Float64Array(COUNTERS);

  constructor(counters: readonly GuestCounters[]) {
    this.#counters = counters;
  }

  /** Follows a flush until it has its answer, good or bad. */
  async flush(nowMs: () => number, work: () => Promise<void>): Promise<void> {
    const flush = { startMs: nowMs() };
    this.#flushesSinceMs.add(flush);
    try {
      await work();
    } finally {
      this.#flushesSinceMs.delete(flush);
    }
  }

  take(nowMs: number): GuestWaits {
    const since = (counter: number) => {
      const total = this.#counters.reduce((sum, counters) => sum + counters.get(counter), 0);
      const before = this.#before[counter]!;
      this.#before[counter] = total;
      return total - before;
    };
    const [oldest] = this.#flushesSinceMs;
    return {
      flush: { count: since(COUNTER.flushes), totalMs: since(COUNTER.flushMs) },
      read: { count: since(COUNTER.localReads), totalMs: since(COUNTER.localReadMs) },
      write: { count: since(COUNTER.localWrites), totalMs: since(COUNTER.localWriteMs) },
      oldestFlushMs: oldest === undefined ? 0 : nowMs - oldest.startMs,
    };
  }
}
