import { assert } from '../base/assert.ts';
import { viewAt } from '../sys/shared-mapping.ts';

/** Blocks whose bits are one page of a map: 4 KiB of bits, 128 MiB of the volume. */
export const PAGE_BLOCKS = 32_768;
/** Words of 32 bits in a page. */
export const PAGE_WORDS = PAGE_BLOCKS / 32;
export const PAGE_BYTES = PAGE_WORDS * 4;

/** Pages of a map of `blockCount` blocks; the last one may be of fewer blocks than the others. */
export function pageCountOf(blockCount: number): number {
  return Math.ceil(blockCount / PAGE_BLOCKS);
}

/**
 * Where a map (validity-map.ts) has its bits. A page whose bits are all the same needs no memory for them:
 * its entry says which. So a map of 64 TiB that is nearly empty, or nearly whole, is as small as what
 * differs.
 */
export type MapMemory = {
  /**
   * One word a page. What it means is the map's business; 0: no bit of the page is set, and it has no memory.
   */
  readonly entries: Uint32Array;
  /** One number for who keeps count of the bits that are set; NaN while it changes. */
  readonly count: Float64Array;
  /**
   * The bits of a page that was reserved: `PAGE_WORDS` words, all of which view the same memory in every
   * thread.
   */
  page(page: number): Uint32Array;
  /**
   * From here on the page has memory, all zeros. Throws where there is none, and then nothing has changed.
   */
  reserve(page: number): void;
  /** The page's memory is not needed any more. Who still looks at it sees its old bits, or zeros. */
  release(page: number): void;
};

/** In this process only. */
export class HeapMapMemory implements MapMemory {
  readonly entries: Uint32Array;
  readonly count = new Float64Array(1);
  readonly #pages = new Map<number, Uint32Array>();

  constructor(blockCount: number) {
    this.entries = new Uint32Array(pageCountOf(blockCount));
  }

  page(page: number): Uint32Array {
    return this.#pages.get(page) ?? NO_BITS;
  }

  reserve(page: number): void {
    this.#pages.set(page, new Uint32Array(PAGE_WORDS));
  }

  release(page: number): void {
    this.#pages.delete(page);
  }
}

const NO_BITS = new Uint32Array(PAGE_WORDS);

/** Views that are kept: making one costs more than a look at a bit. */
const VIEWS_MAX = 256;

/**
 * Pages that are viewed at once. V8 takes all that is viewed for memory that a collection may free, and one
 * view of the bits of 64 TiB, 2 GiB, made it collect again and again (a third of the time of an opening).
 */
const CHUNK_PAGES = 64;
const CHUNK_BYTES = CHUNK_PAGES * PAGE_BYTES;

/**
 * In a stretch of memory that has room for every page, and is really there only where pages are reserved: a
 * mapping of a sparse file.
 */
class FlatMapMemory implements MapMemory {
  readonly entries: Uint32Array;
  readonly count: Float64Array;
  readonly reserve: (page: number) => void;
  readonly release: (page: number) => void;
  readonly #bitsAddress: bigint;
  readonly #chunks = new Map<number, Uint32Array>();
  readonly #views = new Map<number, Uint32Array>();
  #lastPage = -1;
  #lastView: Uint32Array = NO_BITS;

  /** At `bitsAddress` are `PAGE_BYTES` for each of `entries`. */
  constructor(
    entries: Uint32Array,
    count: Float64Array,
    bitsAddress: bigint,
    pages: { reserve: (page: number) => void; release: (page: number) => void },
  ) {
    this.entries = entries;
    this.count = count;
    this.reserve = pages.reserve;
    this.release = pages.release;
    this.#bitsAddress = bitsAddress;
  }

  page(page: number): Uint32Array {
    if (page === this.#lastPage) return this.#lastView;
    let view = this.#views.get(page);
    if (view === undefined) {
      if (this.#views.size === VIEWS_MAX) this.#views.clear();
      const at = (page % CHUNK_PAGES) * PAGE_WORDS;
      view = this.#chunk(Math.floor(page / CHUNK_PAGES)).subarray(at, at + PAGE_WORDS);
      this.#views.set(page, view);
    }
    this.#lastPage = page;
    this.#lastView = view;
    return view;
  }

  #chunk(index: number): Uint32Array {
    const known = this.#chunks.get(index);
    if (known !== undefined) return known;
    if (this.#chunks.size === VIEWS_MAX) this.#chunks.clear();
    const pages = Math.min(CHUNK_PAGES, this.entries.length - index * CHUNK_PAGES);
    const chunk = wordsAt(this.#bitsAddress + BigInt(index * CHUNK_BYTES), pages * PAGE_WORDS);
    this.#chunks.set(index, chunk);
    return chunk;
  }
}

/** Where a map is in memory that several threads, or processes, share. */
export type MapPlace = { countAddress: bigint; entriesAddress: bigint; bitsAddress: bigint; pages: number };

/** The map at `place` as this thread sees it. Who may not reserve memory for it leaves `pages` out. */
export function sharedMapMemory(
  place: MapPlace,
  pages: { reserve: (page: number) => void; release: (page: number) => void } = ONLY_LOOKS,
): MapMemory {
  const count = viewAt(place.countAddress, 8);
  return new FlatMapMemory(
    wordsAt(place.entriesAddress, place.pages),
    new Float64Array(count.buffer, count.byteOffset, 1),
    place.bitsAddress,
    pages,
  );
}

const ONLY_LOOKS = {
  reserve: () => assert(false, 'the memory of this map is reserved by another thread'),
  release: () => assert(false, 'the memory of this map is released by another thread'),
};

function wordsAt(address: bigint, words: number): Uint32Array<ArrayBuffer> {
  const bytes = viewAt(address, words * 4);
  return new Uint32Array(bytes.buffer as ArrayBuffer, bytes.byteOffset, words);
}
