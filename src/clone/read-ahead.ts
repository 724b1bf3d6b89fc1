/**
 * Says what to bring before the guest asks: behind a sequential reader what comes next, and around any other
 * miss its neighbourhood, because what was written together is read together (the bubble of Hines and
 * Gopalan, VEE 2009). A booting machine misses in a few dozen places, and that is what its users wait for.
 */

const STREAMS_MAX = 8;
/** The neighbourhood of a miss: the aligned 64 KiB that it lies in. */
const BUBBLE_BLOCKS = 16;
/** First read-ahead of a stream; it doubles with every miss that goes on where the last one ended. */
const AHEAD_BLOCKS_MIN = 32;
const AHEAD_BLOCKS_MAX = 512;
/** A reader may leave out, or ask again for, this much and still count as sequential. */
const SLACK_BLOCKS = 32;

type Stream = { nextBlock: number; aheadEnd: number; aheadBlocks: number };

export class ReadAhead {
  readonly #blockCount: number;
  /** Most recently used last. */
  readonly #streams: Stream[] = [];

  constructor(blockCount: number) {
    this.#blockCount = blockCount;
  }

  /**
   * The guest missed [first, end). The range to bring, or null; what of it is local or on its way is the
   * caller's to skip. The ranges ahead of one stream do not overlap.
   */
  observe(first: number, end: number): { first: number; end: number } | null {
    const index = this.#streams.findIndex(
      // A stream that was served by its own read-ahead misses next anywhere up to the end of that.
      (each) =>
        first >= each.nextBlock - SLACK_BLOCKS &&
        first <= Math.max(each.nextBlock, each.aheadEnd) + SLACK_BLOCKS,
    );
    const stream = index === -1 ? null : this.#streams.splice(index, 1)[0]!;
    if (stream === null) {
      const bubble = {
        first: Math.floor(first / BUBBLE_BLOCKS) * BUBBLE_BLOCKS,
        end: Math.min(this.#blockCount, Math.ceil(end / BUBBLE_BLOCKS) * BUBBLE_BLOCKS),
      };
      this.#streams.push({ nextBlock: end, aheadEnd: bubble.end, aheadBlocks: AHEAD_BLOCKS_MIN / 2 });
      if (this.#streams.length > STREAMS_MAX) this.#streams.shift();
      return bubble.end - bubble.first > end - first ? bubble : null;
    }
    this.#streams.push(stream);
    const forward = end > stream.nextBlock;
    stream.nextBlock = Math.max(stream.nextBlock, end);
    if (!forward) return null;
    stream.aheadBlocks = Math.min(AHEAD_BLOCKS_MAX, stream.aheadBlocks * 2);
    const aheadFirst = Math.max(end, stream.aheadEnd);
    const aheadEnd = Math.min(this.#blockCount, end + stream.aheadBlocks);
    if (aheadEnd <= aheadFirst) return null;
    stream.aheadEnd = aheadEnd;
    return { first: aheadFirst, end: aheadEnd };
  }
}
