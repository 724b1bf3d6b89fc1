import { assert } from '../base/assert.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';

const WORD_BITS = 32;

/** Blocks [first, end) of a volume. */
export type BlockRun = { first: number; end: number };

/** Blocks whose bits are one page: 128 MiB of the volume. */
const PAGE_BLOCKS = 32_768;
const PAGE_WORDS = PAGE_BLOCKS / WORD_BITS;

/** What is known of a page: all of its blocks are used, or free, or its bits tell. */
const USED = 0;
const FREE = 1;
const MIXED = 2;

/**
 * Which blocks of 4 KiB of a volume its filesystem does not use: one bit a block, 1 for free, in pages; a
 * page that is all used or all free takes no memory and no time, so that an empty filesystem of 64 TiB is a
 * few KiB. A fresh map says that everything is used; a last, partial block always is.
 *
 * Block numbers go beyond 2^32: no 32-bit operator may be applied to one.
 */
export class FreeMap {
  /** Length of the volume in bytes. */
  readonly lengthBytes: number;
  /** Whole blocks of the volume. */
  readonly blockCount: number;
  readonly #states: Uint8Array;
  readonly #pages = new Map<number, Uint32Array>();

  constructor(lengthBytes: number) {
    assert(Number.isSafeInteger(lengthBytes) && lengthBytes >= 0, 'a volume has a length');
    this.lengthBytes = lengthBytes;
    this.blockCount = Math.floor(lengthBytes / BLOCK_BYTES);
    this.#states = new Uint8Array(Math.ceil(this.blockCount / PAGE_BLOCKS));
  }

  has(block: number): boolean {
    if (block < 0 || block >= this.blockCount) return false;
    const page = Math.floor(block / PAGE_BLOCKS);
    if (this.#states[page] !== MIXED) return this.#states[page] === FREE;
    const bit = block - page * PAGE_BLOCKS;
    return ((this.#pages.get(page)![bit >>> 5]! >>> (bit & 31)) & 1) === 1;
  }

  markFree(first: number, end: number): void {
    this.#mark(first, end, FREE);
  }

  markUsed(first: number, end: number): void {
    this.#mark(first, end, USED);
  }

  /** Counted anew at each call. */
  countFree(): number {
    let count = 0;
    for (const run of this.runs()) count += run.end - run.first;
    return count;
  }

  /** The free runs in ascending order; two of them never touch. */
  *runs(): Generator<BlockRun> {
    let first = this.#find(0, FREE);
    while (first < this.blockCount) {
      const end = this.#find(first, USED);
      yield { first, end };
      first = this.#find(end, FREE);
    }
  }

  /** The first block at or after `from` that is free or used; `blockCount` where there is none. */
  #find(from: number, state: number): number {
    for (let block = from; block < this.blockCount; ) {
      const page = Math.floor(block / PAGE_BLOCKS);
      if (this.#states[page] === state) return block;
      const start = page * PAGE_BLOCKS;
      if (this.#states[page] === MIXED) {
        const found = firstBit(this.#pages.get(page)!, block - start, state === FREE ? 0 : 0xffffffff);
        if (found < PAGE_BLOCKS) return Math.min(this.blockCount, start + found);
      }
      block = start + PAGE_BLOCKS;
    }
    return this.blockCount;
  }

  #mark(first: number, end: number, state: number): void {
    assert(first >= 0 && end <= this.blockCount, 'the run is inside the volume');
    for (let block = first; block < end; ) {
      const page = Math.floor(block / PAGE_BLOCKS);
      const start = page * PAGE_BLOCKS;
      const stop = Math.min(end, start + PAGE_BLOCKS);
      if (stop - block === PAGE_BLOCKS) {
        this.#states[page] = state;
        this.#pages.delete(page);
      } else if (this.#states[page] !== state) {
        fillBits(this.#bits(page), block - start, stop - start, state === FREE);
      }
      block = stop;
    }
  }

  #bits(page: number): Uint32Array {
    const known = this.#pages.get(page);
    if (known) return known;
    const bits = new Uint32Array(PAGE_WORDS).fill(this.#states[page] === FREE ? 0xffffffff : 0);
    this.#pages.set(page, bits);
    this.#states[page] = MIXED;
    return bits;
  }
}

/**
 * The first bit at or after `from` that differs from those of `skip` (all ones or all zeros); `PAGE_BLOCKS`
 * where there is none.
 */
function firstBit(words: Uint32Array, from: number, skip: number): number {
  let word = from >>> 5;
  let differing = (words[word]! ^ skip) & (0xffffffff << (from & 31));
  while (differing === 0) {
    word++;
    if (word === words.length) return PAGE_BLOCKS;
    differing = words[word]! ^ skip;
  }
  return word * WORD_BITS + lowestBit(differing);
}

function fillBits(words: Uint32Array, first: number, end: number, set: boolean): void {
  const firstWord = first >>> 5;
  const lastWord = (end - 1) >>> 5;
  const head = 0xffffffff << (first & 31);
  const tail = 0xffffffff >>> (31 - ((end - 1) & 31));
  const change = (word: number, mask: number) => {
    words[word] = set ? words[word]! | mask : words[word]! & ~mask;
  };
  if (firstWord === lastWord) {
    change(firstWord, head & tail);
    return;
  }
  change(firstWord, head);
  words.fill(set ? 0xffffffff : 0, firstWord + 1, lastWord);
  change(lastWord, tail);
}

/** Index of the lowest one bit of a word that is not zero. */
export function lowestBit(word: number): number {
  return 31 - Math.clz32(word & -word);
}
