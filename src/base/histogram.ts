/**
 * Log-linear histogram of durations: 32 buckets for every doubling, so that a quantile is off by at most 1/32
 * (3.2 %). The layout of HdrHistogram (hdrhistogram.org) with 5 bits of precision:
 *
 *   ticks of 0.1 us   bucket
 *   0 to 63           the tick itself
 *   64 to 127         64 to 95, two ticks each
 *   128 to 255        96 to 127, four ticks each … up to 2^32 - 1 ticks (7 minutes; longer ones count as that)
 *
 * Recording allocates nothing. The counts can live on memory that threads share: one thread records, any
 * thread reads (a read of an aligned 64-bit element does not tear); each recorder has a histogram of its own,
 * and readers merge them.
 */
const PRECISION_BITS = 5;
const BUCKETS = (32 - PRECISION_BITS + 1) * 2 ** PRECISION_BITS;
const TICKS_PER_MS = 10_000;
const TICKS_MAX = 2 ** 32 - 1;

/** Length of the memory that a histogram takes. */
export const HISTOGRAM_BYTES = BUCKETS * Float64Array.BYTES_PER_ELEMENT;

export class Histogram {
  readonly #counts: Float64Array;

  /** On `counts`, whose content is kept, where given (HISTOGRAM_BYTES long). */
  constructor(counts: Float64Array = new Float64Array(BUCKETS)) {
    if (counts.length !== BUCKETS)
      throw new RangeError(`a histogram takes ${BUCKETS} counts, not ${counts.length}`);
    this.#counts = counts;
  }

  /** Negative durations count as 0. */
  record(durationMs: number): void {
    const ticks = Math.min(TICKS_MAX, Math.max(0, durationMs * TICKS_PER_MS)) >>> 0;
    this.#counts[bucketOf(ticks)]!++;
  }

  get count(): number {
    let count = 0;
    for (const each of this.#counts) count += each;
    return count;
  }

  /**
   * The duration in ms that the share `quantile` (0 to 1) of all recorded ones does not exceed: the upper
   * border of its bucket, so never better than the truth. 0 when nothing was recorded.
   */
  quantileMs(quantile: number): number {
    // At least one, so that quantile 0 is the smallest that was recorded.
    const rank = Math.max(1, Math.ceil(this.count * quantile));
    let seen = 0;
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      seen += this.#counts[bucket]!;
      if (seen >= rank) return (firstTickOf(bucket + 1) - 1) / TICKS_PER_MS;
    }
    return 0;
  }

  /** Adds the records of another one. */
  merge(other: Histogram): void {
    for (let bucket = 0; bucket < BUCKETS; bucket++) this.#counts[bucket]! += other.#counts[bucket]!;
  }

  /** A copy that later records do not change. */
  snapshot(): Histogram {
    return new Histogram(this.#counts.slice());
  }

  /** What was recorded since `earlier`, a snapshot of this one. */
  since(earlier: Histogram): Histogram {
    return new Histogram(this.#counts.map((count, bucket) => count - earlier.#counts[bucket]!));
  }
}

function bucketOf(ticks: number): number {
  const shift = Math.max(0, 31 - Math.clz32(ticks) - PRECISION_BITS);
  return shift * 2 ** PRECISION_BITS + (ticks >>> shift);
}

/** Lowest tick of a bucket; of the bucket behind the last one: 2^32. */
function firstTickOf(bucket: number): number {
  const shift = Math.max(0, (bucket >>> PRECISION_BITS) - 1);
  return (bucket - shift * 2 ** PRECISION_BITS) * 2 ** shift;
}
