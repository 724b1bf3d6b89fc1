import { HEAT_REGION_BYTES, HEAT_REGIONS_MAX } from '../opening/guest.ts';

const FIRST_READS_MAX = 1024;
const LATEST_MAX = 4096;
const FIRST_READS_COUNT = 0;
const LATEST_COUNT = 1;
const FIRST_READS_AT = 2;
const LATEST_AT = FIRST_READS_AT + FIRST_READS_MAX;

/**
 * Which parts of a volume its guest will want first when it starts elsewhere: the first reads since the
 * volume was attached, which are its last boot, and what it touched latest. One thread records with plain
 * stores, others look. It is a hint: nothing depends on it.
 *
 *   Uint32 0          first reads recorded
 *   Uint32 1          touches recorded, modulo 2^32
 *   Uint32 2...       regions of the first reads, in order
 *   Uint32 1026...    regions of the latest touches, a ring
 */
export class Heat {
  readonly shared: SharedArrayBuffer;
  readonly #words: Uint32Array;
  #lastRead = -1;
  #last = -1;

  constructor(shared?: SharedArrayBuffer) {
    this.shared = shared ?? new SharedArrayBuffer(4 * (LATEST_AT + LATEST_MAX));
    this.#words = new Uint32Array(this.shared);
  }

  read(offsetBytes: number, lengthBytes: number): void {
    const end = Math.ceil((offsetBytes + lengthBytes) / HEAT_REGION_BYTES);
    for (let region = Math.floor(offsetBytes / HEAT_REGION_BYTES); region < end; region++) {
      const count = this.#words[FIRST_READS_COUNT]!;
      if (region !== this.#lastRead && count < FIRST_READS_MAX) {
        this.#words[FIRST_READS_AT + count] = region;
        this.#words[FIRST_READS_COUNT] = count + 1;
      }
      this.#lastRead = region;
      this.#touch(region);
    }
  }

  write(offsetBytes: number, lengthBytes: number): void {
    const end = Math.ceil((offsetBytes + lengthBytes) / HEAT_REGION_BYTES);
    for (let region = Math.floor(offsetBytes / HEAT_REGION_BYTES); region < end; region++)
      this.#touch(region);
  }

  #touch(region: number): void {
    if (region === this.#last) return;
    this.#last = region;
    const count = this.#words[LATEST_COUNT]!;
    this.#words[LATEST_AT + (count % LATEST_MAX)] = region;
    this.#words[LATEST_COUNT] = count + 1;
  }

  /** First reads, oldest first. */
  firstReads(): Uint32Array {
    return this.#words.slice(FIRST_READS_AT, FIRST_READS_AT + this.#words[FIRST_READS_COUNT]!);
  }

  /** Touches, latest first. */
  latest(): number[] {
    const count = this.#words[LATEST_COUNT]!;
    const regions: number[] = [];
    for (let age = 1; age <= Math.min(count, LATEST_MAX); age++) {
      regions.push(this.#words[LATEST_AT + ((count - age) % LATEST_MAX)]!);
    }
    return regions;
  }
}

/** What to bring first, each region once: the first reads of all, then the latest touches of all. */
export function hottestRegions(heats: readonly Heat[], limit = HEAT_REGIONS_MAX): number[] {
  const regions = new Set<number>();
  for (const heat of heats) for (const region of heat.firstReads()) regions.add(region);
  for (const heat of heats) for (const region of heat.latest()) regions.add(region);
  return [...regions].slice(0, limit);
}
