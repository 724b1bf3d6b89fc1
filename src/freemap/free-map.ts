import { assert } from '../base/assert.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';

const WORD_BITS = 32;

/** Blocks [first, end) of a volume. */
export type BlockRun = { first: number; end: number };

/**
 * Which blocks of 4 KiB of a volume its filesystem does not use: one bit a block, 1 for free, block 0 in the lowest bit of word 0.
 * A fresh map says that everything is used; a last, partial block always is.
 */
export class FreeMap {
  /** Length of the volume in bytes. */
  readonly lengthBytes: number;
  /** Whole blocks of the volume. */
  readonly blockCount: number;
  readonly #words: Uint32Array;

  constructor(lengthBytes: number) {
    assert(Number.isSafeInteger(lengthBytes) && lengthBytes >= 0, 'a volume has a length');
    this.lengthBytes = lengthBytes;
    this.blockCount = Math.floor(lengthBytes / BLOCK_BYTES);
    this.#words = new Uint32Array(Math.ceil(this.blockCount / WORD_BITS));
  }

  has(block: number): boolean {
    if (block < 0 || block >= this.blockCount) return false;
    return ((this.#words[Math.floor(block / WORD_BITS)]! >>> (block % WORD_BITS)) & 1) === 1;
  }

  markFree(first: number, end: number): void {
    this.#fill(first, end, true);
  }

  markUsed(first: number, end: number): void {
    this.#fill(first, end, false);
  }

  /** Counted anew at each call. */
  countFree(): number {
    let count = 0;
    for (const run of this.runs()) count += run.end - run.first;
    return count;
  }

  /** The free runs in ascending order; two of them never touch. */
  *runs(): Generator<BlockRun> {
    let first = this.#find(0, 0);
    while (first < this.blockCount) {
      const end = this.#find(first, 0xffffffff);
      yield { first, end };
      first = this.#find(end, 0);
    }
  }

  /** The first block at or after `from` whose bit differs from those of `skip` (all ones or all zeros); `blockCount` where there is none. */
  #find(from: number, skip: number): number {
    if (from >= this.blockCount) return this.blockCount;
    const words = this.#words;
    let word = Math.floor(from / WORD_BITS);
    let differing = (words[word]! ^ skip) & (0xffffffff << (from % WORD_BITS));
    while (differing === 0) {
      word++;
      if (word === words.length) return this.blockCount;
      differing = words[word]! ^ skip;
    }
    return Math.min(this.blockCount, word * WORD_BITS + lowestBit(differing));
  }

  #fill(first: number, end: number, free: boolean): void {
    assert(first >= 0 && end <= this.blockCount, 'the run is inside the volume');
    if (first >= end) return;
    const words = this.#words;
    const firstWord = Math.floor(first / WORD_BITS);
    const lastWord = Math.floor((end - 1) / WORD_BITS);
    const head = 0xffffffff << (first % WORD_BITS);
    const tail = 0xffffffff >>> (WORD_BITS - 1 - ((end - 1) % WORD_BITS));
    const change = (word: number, mask: number) => {
      words[word] = free ? words[word]! | mask : words[word]! & ~mask;
    };
    if (firstWord === lastWord) {
      change(firstWord, head & tail);
      return;
    }
    change(firstWord, head);
    words.fill(free ? 0xffffffff : 0, firstWord + 1, lastWord);
    change(lastWord, tail);
  }
}

/** Index of the lowest one bit of a word that is not zero. */
export function lowestBit(word: number): number {
  return 31 - Math.clz32(word & -word);
}
