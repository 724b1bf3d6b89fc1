import { assert } from '../base/assert.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';

/** Bits in one word of the map. */
const WORD_BITS = 32;

/** Blocks of a device of `lengthBytes`; a last, partial block counts. */
export function blockCountOf(lengthBytes: number): number {
  return Math.ceil(lengthBytes / BLOCK_BYTES);
}

/** Words of 32 bits that a map of `blockCount` blocks needs. */
export function wordCountOf(blockCount: number): number {
  return Math.ceil(blockCount / WORD_BITS);
}

/**
 * Which blocks are local: one bit for each block of 4 KiB, block 0 in the lowest bit of word 0. Bits only go from 0 to 1.
 *
 * The words are the caller's: plain memory in a test, a shared mapping in a volume server, where they outlive the process and
 * other threads read them. Hence the rule for every writer: the data is in place before its bit is set, and
 * the bit is set with an atomic operation. A reader that sees the bit therefore sees the data.
 *
 * One instance has the right to set bits; it keeps the count of them. Others over the same memory only ask.
 */
export class ValidityMap {
  readonly blockCount: number;
  readonly #words: Uint32Array;
  #presentCount = 0;

  /** `words` must hold at least `wordCountOf(blockCount)` words. With `counted: false` they are known to be zero. */
  constructor(words: Uint32Array, blockCount: number, options: { counted: boolean } = { counted: true }) {
    assert(Number.isSafeInteger(blockCount) && blockCount >= 1, 'a map has at least one block');
    assert(words.length >= wordCountOf(blockCount), 'the words hold every block');
    this.blockCount = blockCount;
    this.#words = words;
    // Not read when known to be zero: reading a fresh mapping would make every page of it resident.
    if (options.counted) this.#presentCount = this.#count();
  }

  /** Blocks that are local, as far as this instance has set or counted them. */
  get presentCount(): number {
    return this.#presentCount;
  }

  get complete(): boolean {
    return this.#presentCount === this.blockCount;
  }

  has(block: number): boolean {
    return ((this.#words[block >>> 5]! >>> (block & 31)) & 1) === 1;
  }

  /** True when every block of [first, end) is local. */
  hasAll(first: number, end: number): boolean {
    if (end - first === 1) return this.has(first);
    return this.firstAbsent(first, end) === end;
  }

  /** The first block of [first, end) that is not local; `end` when all are. */
  firstAbsent(first: number, end: number): number {
    return this.#find(first, end, 0xffffffff);
  }

  /** The first block of [first, end) that is local; `end` when none is. */
  firstPresent(first: number, end: number): number {
    return this.#find(first, end, 0);
  }

  /** Whether a request has to wait for the source: a read of an absent block, or a write of a part of one. The range is inside the map. */
  mustFetch(kind: 'read' | 'write', offsetBytes: number, lengthBytes: number): boolean {
    if (lengthBytes === 0) return false;
    const endBytes = offsetBytes + lengthBytes;
    const first = Math.floor(offsetBytes / BLOCK_BYTES);
    const end = Math.ceil(endBytes / BLOCK_BYTES);
    if (kind === 'read') return !this.hasAll(first, end);
    return (
      (offsetBytes % BLOCK_BYTES !== 0 && !this.has(first)) ||
      (endBytes % BLOCK_BYTES !== 0 && !this.has(end - 1))
    );
  }

  /** Marks [first, end). Call it when the data is in place, not before. Returns how many bits were new. */
  setRange(first: number, end: number): number {
    assert(first >= 0 && first <= end && end <= this.blockCount, 'the range is inside the map');
    let added = 0;
    let block = first;
    while (block < end) {
      const bit = block & 31;
      if (bit === 0 && end - block >= WORD_BITS) {
        const words = this.#fillAbsent(block >>> 5, Math.floor(end / WORD_BITS));
        added += words * WORD_BITS;
        block += words * WORD_BITS;
        if (words > 0) continue;
      }
      const bits = Math.min(WORD_BITS - bit, end - block);
      const mask = bits === WORD_BITS ? 0xffffffff : ((1 << bits) - 1) << bit;
      added += this.#or(block >>> 5, mask);
      block += bits;
    }
    this.#presentCount += added;
    return added;
  }

  /** ORs whole words in, from the word `firstWord` on; bits beyond the last block must be zero. Returns how many were new. */
  orWords(firstWord: number, words: Uint32Array): number {
    let added = 0;
    for (let index = 0; index < words.length; index++) {
      const mask = words[index]!;
      if (mask !== 0) added += this.#or(firstWord + index, mask);
    }
    this.#presentCount += added;
    return added;
  }

  /** Copies words from `firstWord` on into `into`; words beyond the end of the map are zero. */
  copyWords(firstWord: number, into: Uint32Array): void {
    const end = Math.max(firstWord, Math.min(firstWord + into.length, wordCountOf(this.blockCount)));
    into.set(this.#words.subarray(firstWord, end));
    into.fill(0, end - firstWord);
  }

  /**
   * Sets the words from `first` on that are all zeros, up to `end`; returns how many. A terabyte has eight million of them. Only this instance
   * sets bits, so none is lost, and whoever looks meanwhile may see some of them early, which does no harm.
   */
  #fillAbsent(first: number, end: number): number {
    const words = this.#words;
    let word = first;
    while (word < end && words[word] === 0) word++;
    words.fill(0xffffffff, first, word);
    return word - first;
  }

  #or(word: number, mask: number): number {
    const before = Atomics.or(this.#words, word, mask);
    return popcount(~before & mask);
  }

  /** First block of [first, end) whose bit differs from the bits of `skip` (all ones or all zeros). */
  #find(first: number, end: number, skip: number): number {
    if (first >= end) return end;
    const words = this.#words;
    let word = first >>> 5;
    const lastWord = (end - 1) >>> 5;
    let differing = (words[word]! ^ skip) & (0xffffffff << (first & 31));
    while (differing === 0) {
      word++;
      if (word > lastWord) return end;
      differing = words[word]! ^ skip;
    }
    // A word times 32 may exceed 2^31 only beyond 8 TiB; plain multiplication keeps it exact.
    const block = word * WORD_BITS + (31 - Math.clz32(differing & -differing));
    return Math.min(block, end);
  }

  #count(): number {
    const last = wordCountOf(this.blockCount) - 1;
    let count = 0;
    for (let index = 0; index <= last; index++) {
      const word = this.#words[index]!;
      if (word !== 0) count += popcount(word);
    }
    assert(
      this.blockCount % WORD_BITS === 0 || this.#words[last]! >>> (this.blockCount % WORD_BITS) === 0,
      'no bit is set beyond the last block',
    );
    return count;
  }
}

/** Number of one bits in a 32-bit word (Hacker's Delight, figure 5-2). */
export function popcount(word: number): number {
  let bits = word - ((word >>> 1) & 0x55555555);
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  return Math.imul((bits + (bits >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
