import { assert } from '../base/assert.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { type MapMemory, PAGE_BLOCKS, PAGE_WORDS, pageCountOf } from './map-memory.ts';

/** Bits in one word of the map. */
const WORD_BITS = 32;
const ALL_ONES = 0xffffffff;

/** Blocks of a device of `lengthBytes`; a last, partial block counts. */
export function blockCountOf(lengthBytes: number): number {
  return Math.ceil(lengthBytes / BLOCK_BYTES);
}

/** What the entry of a page says, beside 0 (no bit is set): all are set, and the page needs no memory... */
const FULL = 1 << 19;
/** ...or its bits are in its memory; then also... */
const MIXED = 1 << 17;
/** ...how many are set, by who keeps count. */
const COUNT_MASK = MIXED - 1;

export type ValidityMapOptions = {
  /**
   * True (the default): this instance is the only one that sets bits, and it keeps the count of them. False:
   * it only asks, or it sets bits beside others (then nobody counts).
   */
  counted: boolean;
};

/**
 * Which blocks are local: one bit for each block of 4 KiB. Bits only go from 0 to 1. Two levels: pages of
 * 32,768 bits, and a word for each that says where all of its bits are the same; those take no memory, and no
 * time to pass over.
 *
 * The memory is the caller's (map-memory.ts): in a volume server a shared mapping, where it outlives the
 * process and other threads read it. Hence the rule for every writer: the data is in place before its bit is
 * set, and the bit is set with an atomic operation. A reader that sees the bit therefore sees the data.
 *
 * One instance in one thread gives pages back. Another that looks meanwhile may find zeros in the page, so
 * who finds a bit clear looks at the entry again, where the page was declared full before it was given back.
 *
 * Block numbers go beyond 2^32 (16 TiB): no 32-bit operator may be applied to one. Inside a page they fit.
 */
export class ValidityMap {
  readonly blockCount: number;
  readonly #memory: MapMemory;
  readonly #entries: Uint32Array;
  readonly #counted: boolean;
  #compactNext = 0;

  /** `memory` must have an entry for each of `pageCountOf(blockCount)` pages. */
  constructor(memory: MapMemory, blockCount: number, options: ValidityMapOptions = { counted: true }) {
    assert(Number.isSafeInteger(blockCount) && blockCount >= 1, 'a map has at least one block');
    assert(memory.entries.length >= pageCountOf(blockCount), 'the memory holds every block');
    this.blockCount = blockCount;
    this.#memory = memory;
    this.#entries = memory.entries;
    this.#counted = options.counted;
    // A process died while it set bits: their page, and so all of them, are counted again.
    if (options.counted && Number.isNaN(memory.count[0])) memory.count[0] = this.#countAgain();
  }

  /** Blocks that are local, as far as they are counted. */
  get presentCount(): number {
    return this.#memory.count[0]!;
  }

  get complete(): boolean {
    return this.#memory.count[0] === this.blockCount;
  }

  has(block: number): boolean {
    const page = Math.floor(block / PAGE_BLOCKS);
    const entry = this.#entries[page]!;
    if (entry === FULL) return true;
    if ((entry & MIXED) === 0) return false;
    const bit = block - page * PAGE_BLOCKS;
    if (((this.#memory.page(page)[bit >>> 5]! >>> (bit & 31)) & 1) === 1) return true;
    return Atomics.load(this.#entries, page) === FULL;
  }

  /** True when every block of [first, end) is local. */
  hasAll(first: number, end: number): boolean {
    if (end - first === 1) return this.has(first);
    return this.firstAbsent(first, end) === end;
  }

  /** The first block of [first, end) that is not local; `end` when all are. */
  firstAbsent(first: number, end: number): number {
    return this.#find(first, end, false);
  }

  /** The first block of [first, end) that is local; `end` when none is. */
  firstPresent(first: number, end: number): number {
    return this.#find(first, end, true);
  }

  /**
   * Whether a request has to wait for the source: a read of an absent block, or a write of a part of one. The
   * range is inside the map.
   */
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

  /**
   * Marks [first, end). Call it when the data is in place, not before. Returns how many bits were new. Throws
   * what `reserve` of the memory throws, and then no bit has been set: of what is half marked nobody could
   * say whose it is.
   */
  setRange(first: number, end: number): number {
    assert(first >= 0 && first <= end && end <= this.blockCount, 'the range is inside the map');
    if (first === end) return 0;
    // Only pages at the ends can be marked in part, and so need memory.
    this.#openInPart(first, end, Math.floor(first / PAGE_BLOCKS));
    this.#openInPart(first, end, Math.floor((end - 1) / PAGE_BLOCKS));
    let added = 0;
    for (let block = first; block < end; ) {
      const page = Math.floor(block / PAGE_BLOCKS);
      const start = page * PAGE_BLOCKS;
      const stop = Math.min(end, start + PAGE_BLOCKS);
      added += this.#setInPage(page, block - start, stop - start);
      block = stop;
    }
    return added;
  }

  /**
   * As `setRange`, for who must not reserve memory: false, and nothing is set, where that would be needed.
   */
  trySetRange(first: number, end: number): boolean {
    const lastPage = Math.floor((end - 1) / PAGE_BLOCKS);
    for (let page = Math.floor(first / PAGE_BLOCKS); page <= lastPage; page++)
      if ((this.#entries[page]! & (FULL | MIXED)) === 0) return false;
    this.setRange(first, end);
    return true;
  }

  /**
   * ORs whole words in, from the word `firstWord` on; bits beyond the last block must be zero. Returns how
   * many were new.
   */
  orWords(firstWord: number, words: Uint32Array): number {
    let added = 0;
    for (let index = 0; index < words.length; ) {
      const page = Math.floor((firstWord + index) / PAGE_WORDS);
      const at = firstWord + index - page * PAGE_WORDS;
      const part = words.subarray(index, index + PAGE_WORDS - at);
      added += this.#orInPage(page, at, part);
      index += part.length;
    }
    return added;
  }

  /** Copies words from `firstWord` on into `into`; words beyond the end of the map are zero. */
  copyWords(firstWord: number, into: Uint32Array): void {
    for (let index = 0; index < into.length; ) {
      const page = Math.floor((firstWord + index) / PAGE_WORDS);
      const at = firstWord + index - page * PAGE_WORDS;
      const part = into.subarray(index, index + PAGE_WORDS - at);
      this.#copyFromPage(page, at, part);
      index += part.length;
    }
  }

  /**
   * Gives back what pages take whose bits have all been set meanwhile: for maps that several set bits in,
   * where nobody sees the last one come. Looks at `pagesMax` pages that have memory, and at the next ones
   * when it is called again.
   */
  compact(pagesMax: number): void {
    const pages = pageCountOf(this.blockCount);
    let looked = 0;
    for (let step = 0; step < pages && looked < pagesMax; step++) {
      const page = this.#compactNext;
      this.#compactNext = (page + 1) % pages;
      if ((this.#entries[page]! & MIXED) === 0) continue;
      looked++;
      if (this.#firstClear(page) === this.#blocksOf(page)) this.#fill(page);
    }
  }

  /** Reserves what marking the part of [first, end) in this page needs. */
  #openInPart(first: number, end: number, page: number): void {
    const start = page * PAGE_BLOCKS;
    const isWhole = first <= start && end >= start + this.#blocksOf(page);
    if (!isWhole && this.#entries[page] !== FULL) this.#open(page);
  }

  #setInPage(page: number, from: number, to: number): number {
    const entry = this.#entries[page]!;
    if (entry === FULL) return 0;
    if (from === 0 && to === this.#blocksOf(page)) {
      const added = to - (entry & COUNT_MASK);
      this.#fillCounted(page, added);
      return added;
    }
    const words = this.#open(page);
    const count = this.#beginCount();
    let added = 0;
    for (let bit = from; bit < to; ) {
      const low = bit & 31;
      const bits = Math.min(WORD_BITS - low, to - bit);
      const mask = bits === WORD_BITS ? ALL_ONES : ((1 << bits) - 1) << low;
      added += popcount(~Atomics.or(words, bit >>> 5, mask) & mask);
      bit += bits;
    }
    this.#endCount(page, count, added);
    return added;
  }

  #orInPage(page: number, at: number, masks: Uint32Array): number {
    const entry = this.#entries[page] ?? 0;
    if (entry === FULL || masks.every((mask) => mask === 0)) return 0;
    assert((page * PAGE_WORDS + at) * WORD_BITS < this.blockCount, 'no bit is set beyond the last block');
    const words = this.#open(page);
    const count = this.#beginCount();
    let added = 0;
    for (let index = 0; index < masks.length; index++) {
      const mask = masks[index]!;
      if (mask !== 0) added += popcount(~Atomics.or(words, at + index, mask) & mask);
    }
    this.#endCount(page, count, added);
    return added;
  }

  /** The words of a page, to set bits in: reserves them where there are none. */
  #open(page: number): Uint32Array {
    if ((this.#entries[page]! & (FULL | MIXED)) === 0) {
      this.#memory.reserve(page);
      Atomics.or(this.#entries, page, MIXED);
    }
    return this.#memory.page(page);
  }

  /** Until `#endCount` a death of the process is seen by who comes next. */
  #beginCount(): number {
    const count = this.#memory.count[0]!;
    if (this.#counted) this.#memory.count[0] = Number.NaN;
    return count;
  }

  #endCount(page: number, countBefore: number, added: number): void {
    if (!this.#counted) return;
    const inPage = (this.#entries[page]! & COUNT_MASK) + added;
    assert(inPage <= this.#blocksOf(page), 'no bit is set beyond the last block');
    if (inPage === this.#blocksOf(page)) this.#fill(page);
    else Atomics.store(this.#entries, page, MIXED | inPage);
    this.#memory.count[0] = countBefore + added;
  }

  #fillCounted(page: number, added: number): void {
    const count = this.#beginCount();
    this.#fill(page);
    if (this.#counted) this.#memory.count[0] = count + added;
  }

  /** In this order: who finds the page's memory gone finds the entry changed. */
  #fill(page: number): void {
    const entry = this.#entries[page]!;
    Atomics.store(this.#entries, page, FULL);
    if ((entry & MIXED) !== 0) this.#memory.release(page);
  }

  #copyFromPage(page: number, at: number, into: Uint32Array): void {
    const entry = this.#entries[page] ?? 0;
    if ((entry & MIXED) !== 0) {
      into.set(this.#memory.page(page).subarray(at, at + into.length));
      return;
    }
    const bits = entry === FULL ? this.#blocksOf(page) - at * WORD_BITS : 0;
    const wholeWords = Math.min(into.length, Math.max(0, Math.floor(bits / WORD_BITS)));
    into.fill(ALL_ONES, 0, wholeWords);
    into.fill(0, wholeWords);
    if (wholeWords < into.length && bits > 0) into[wholeWords] = 2 ** (bits % WORD_BITS) - 1;
  }

  #find(first: number, end: number, present: boolean): number {
    for (let block = first; block < end; ) {
      const page = Math.floor(block / PAGE_BLOCKS);
      const start = page * PAGE_BLOCKS;
      const stop = Math.min(end, start + PAGE_BLOCKS);
      let entry = this.#entries[page]!;
      if ((entry & MIXED) !== 0) {
        const found = findBit(this.#memory.page(page), block - start, stop - start, present);
        entry = Atomics.load(this.#entries, page);
        if (entry !== FULL && found < stop - start) return start + found;
      }
      if ((entry & MIXED) === 0 && (entry === FULL) === present) return block;
      block = stop;
    }
    return end;
  }

  #firstClear(page: number): number {
    return findBit(this.#memory.page(page), 0, this.#blocksOf(page), false);
  }

  #blocksOf(page: number): number {
    return Math.min(PAGE_BLOCKS, this.blockCount - page * PAGE_BLOCKS);
  }

  #countAgain(): number {
    let count = 0;
    for (let page = pageCountOf(this.blockCount) - 1; page >= 0; page--) {
      const entry = this.#entries[page]!;
      if (entry === FULL) count += this.#blocksOf(page);
      else if ((entry & MIXED) !== 0) count += this.#countInPage(page);
    }
    return count;
  }

  #countInPage(page: number): number {
    const blocks = this.#blocksOf(page);
    const words = this.#memory.page(page);
    let count = 0;
    for (const word of words) count += popcount(word);
    const tail = findBit(words, blocks, PAGE_BLOCKS, true);
    assert(tail === PAGE_BLOCKS, 'no bit is set beyond the last block');
    if (count === blocks) this.#fill(page);
    else Atomics.store(this.#entries, page, MIXED | count);
    return count;
  }
}

/** First bit of [from, to) of a page that is set (`present`) or clear; `to` when there is none. */
function findBit(words: Uint32Array, from: number, to: number, present: boolean): number {
  if (from >= to) return to;
  const flip = present ? 0 : ALL_ONES;
  const lastWord = (to - 1) >>> 5;
  let word = from >>> 5;
  let differing = (words[word]! ^ flip) & (ALL_ONES << (from & 31));
  while (differing === 0) {
    word++;
    if (word > lastWord) return to;
    differing = words[word]! ^ flip;
  }
  return Math.min(to, word * WORD_BITS + (31 - Math.clz32(differing & -differing)));
}

/** Number of one bits in a 32-bit word (Hacker's Delight, figure 5-2). */
export function popcount(word: number): number {
  let bits = word - ((word >>> 1) & 0x55555555);
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  return Math.imul((bits + (bits >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
