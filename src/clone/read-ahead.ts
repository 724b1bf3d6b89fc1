/** Finds sequential readers among the misses, and says what to bring before they ask. */

const STREAMS_MAX = 8;
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

  /** The guest missed [first, end). The range to bring ahead, or null. Ranges of one stream do not overlap. */
  observe(first: number, end: number): { first: number; end: number } | null {
    const index = this.#streams.findIndex(
      // A stream that was served by its own read-ahead misses next anywhere up to the end of that.
      (each) =>
        first >= each.nextBlock - SLACK_BLOCKS &&
        first <= Math.max(each.nextBlock, each.aheadEnd) + SLACK_BLOCKS,
    );
    const stream = index === -1 ? null : this.#streams.splice(index, 1)[0]!;
    if (stream === null) {
      this.#streams.push({ nextBlock: end, aheadEnd: end, aheadBlocks: AHEAD_BLOCKS_MIN / 2 });
      if (this.#streams.length > STREAMS_MAX) this.#streams.shift();
      return null;
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
