import { type CloneMetadata, SECTOR_BLOCKS, SECTOR_WORDS } from './metadata.ts';
import type { ValidityMap } from './validity-map.ts';

/** Metadata sectors that one round writes at most (4 MiB, the bits of 126 GiB): bounds the memory of a commit. */
const ROUND_SECTORS = 8192;

/** What is known of one metadata sector: all of its bits are durable, or some are not, which... */
const CLEAN = 0;
/** ...stand for hydrated blocks: losing them costs a second fetch, so no flush of the guest waits for them; or which... */
const LAZY = 1;
/** ...stand for writes of the guest: its next flush must not end before they are durable. */
const URGENT = 2;

/** The two steps of a round in the order that keeps the promise. A test puts another order in, to see that it would be noticed. */
export type CommitOrder = (
  dataDurable: () => Promise<void>,
  bitsDurable: () => Promise<void>,
) => Promise<void>;

const DATA_BEFORE_BITS: CommitOrder = async (dataDurable, bitsDurable) => {
  await dataDurable();
  await bitsDurable();
};

type Flushable = { flush(): Promise<void> };

type Scope = 'urgent' | 'all';

/**
 * Makes validity bits durable, never ahead of the data that they vouch for:
 * take the bits that are set now (their data is written) → flush the data → write the bits → flush the bits.
 * Bits that are set meanwhile are the next round's.
 *
 * One commit runs at a time. The flushes that arrive while it runs share the next one (group commit).
 */
export class BitCommitter {
  readonly #local: Flushable;
  readonly #log: Flushable | null;
  readonly #metadata: CloneMetadata;
  readonly #validity: ValidityMap;
  readonly #order: CommitOrder;
  readonly #states: Uint8Array;
  /** The bits of a round, used again by the next: one round runs at a time. */
  #words = new Uint32Array(0);
  #urgent: number[] = [];
  #lazy: number[] = [];
  #running: Promise<void> | null = null;
  #next: { scope: Scope; promise: Promise<void> } | null = null;

  /** `local` has the content that bits vouch for, `log` the digests of what was fetched. */
  constructor(
    local: Flushable,
    metadata: CloneMetadata,
    validity: ValidityMap,
    log: Flushable | null = null,
    order: CommitOrder = DATA_BEFORE_BITS,
  ) {
    this.#local = local;
    this.#log = log;
    this.#metadata = metadata;
    this.#validity = validity;
    this.#order = order;
    this.#states = new Uint8Array(metadata.sectorCount);
  }

  /** True while some bit is set and not durable. */
  get dirty(): boolean {
    return this.#urgent.length > 0 || this.#lazy.length > 0 || this.#running !== null;
  }

  /** Blocks [first, end) came over from the source and their bits are set. */
  hydrated(first: number, end: number): void {
    for (let sector = sectorOf(first); sector <= sectorOf(end - 1); sector++) {
      if (this.#states[sector] !== CLEAN) continue;
      this.#states[sector] = LAZY;
      this.#lazy.push(sector);
    }
  }

  /** The guest wrote to the blocks [first, end) and their bits were set by that. */
  written(first: number, end: number): void {
    for (let sector = sectorOf(first); sector <= sectorOf(end - 1); sector++) this.#urge(sector);
  }

  /**
   * The guest wrote over blocks that were local already. Where their bits are not durable yet, its next flush has to wait for them: a power
   * cut would make the blocks absent again, and the write would be lost behind the source's content.
   */
  overwritten(first: number, end: number): void {
    for (let sector = sectorOf(first); sector <= sectorOf(end - 1); sector++) {
      if (this.#states[sector] === LAZY) this.#urge(sector);
    }
  }

  /** Resolves when all that was written before the call is durable, with the bits that it depends on. */
  flush(): Promise<void> {
    return this.#join('urgent');
  }

  /** The same with the bits of hydrated blocks. */
  commitAll(): Promise<void> {
    return this.#join('all');
  }

  /** Resolves when no commit is running or waiting to. */
  async settled(): Promise<void> {
    while (this.#running !== null || this.#next !== null) {
      await (this.#next?.promise ?? this.#running)?.catch(() => {});
    }
  }

  #urge(sector: number): void {
    if (this.#states[sector] === URGENT) return;
    this.#states[sector] = URGENT; // an entry that it leaves in the lazy list is skipped there
    this.#urgent.push(sector);
  }

  #join(scope: Scope): Promise<void> {
    if (this.#next !== null) {
      if (scope === 'all') this.#next.scope = 'all';
      return this.#next.promise;
    }
    if (this.#running === null) return this.#start(scope);
    const next: { scope: Scope; promise: Promise<void> } = { scope, promise: Promise.resolve() };
    next.promise = this.#running
      .catch(() => {}) // those who waited for it were told; this one tries on its own
      .then(() => {
        this.#next = null;
        return this.#start(next.scope);
      });
    this.#next = next;
    return next.promise;
  }

  #start(scope: Scope): Promise<void> {
    const running = this.#commit(scope).finally(() => {
      if (this.#running === running) this.#running = null;
    });
    this.#running = running;
    return running;
  }

  async #commit(scope: Scope): Promise<void> {
    // Only what is dirty now is owed; what is added meanwhile could go on for ever.
    let owed = this.#urgent.length;
    if (scope === 'all') owed += this.#lazy.length;
    do {
      const sectors = this.#take(Math.min(owed, ROUND_SECTORS), scope);
      owed -= Math.min(owed, ROUND_SECTORS);
      await this.#round(sectors);
    } while (owed > 0);
  }

  /** Removes up to `limit` entries from the lists, urgent ones first; the sectors in ascending order. */
  #take(limit: number, scope: Scope): number[] {
    const taken: number[] = [];
    const take = (list: number[], state: number) => {
      for (const sector of list.splice(0, limit - taken.length)) {
        if (this.#states[sector] !== state) continue; // became urgent after it was listed as lazy
        this.#states[sector] = CLEAN;
        taken.push(sector);
      }
    };
    take(this.#urgent, URGENT);
    if (scope === 'all') take(this.#lazy, LAZY);
    return taken.sort((left, right) => left - right);
  }

  async #round(sectors: readonly number[]): Promise<void> {
    const wordCount = sectors.length * SECTOR_WORDS;
    if (this.#words.length < wordCount) this.#words = new Uint32Array(wordCount);
    const words = this.#words.subarray(0, wordCount);
    for (const [position, sector] of sectors.entries()) {
      const into = words.subarray(position * SECTOR_WORDS, (position + 1) * SECTOR_WORDS);
      this.#validity.copyWords(sector * SECTOR_WORDS, into);
    }
    try {
      await this.#order(
        async () => {
          // Without bits nothing rests on the log.
          await Promise.all([this.#local.flush(), sectors.length === 0 ? null : this.#log?.flush()]);
        },
        async () => {
          if (sectors.length === 0) return;
          await this.#metadata.write(sectors, words);
          await this.#metadata.flush();
        },
      );
    } catch (error) {
      for (const sector of sectors) this.#urge(sector);
      throw error;
    }
  }
}

function sectorOf(block: number): number {
  return Math.floor(block / SECTOR_BLOCKS);
}
