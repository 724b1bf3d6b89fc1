import { assert } from '../base/assert.ts';
import { nextTurn, turnIsLong } from '../base/turn.ts';
import { type CloneMetadata, SECTOR_BLOCKS, SECTOR_WORDS } from './metadata.ts';
import type { ValidityMap } from './validity-map.ts';

/**
 * Metadata sectors that one round writes at most (4 MiB, the bits of 126 GiB): bounds the memory of a commit.
 */
const ROUND_SECTORS = 8192;

/** What is known of one metadata sector: all of its bits are durable, or some are not, which... */
const CLEAN = 0;
/**
 * ...stand for hydrated blocks: losing them costs a second fetch, so no flush of the guest waits for them; or
 * which...
 */
const LAZY = 1;
/** ...stand for writes of the guest: its next flush must not end before they are durable; or which... */
const URGENT = 2;
/** ...are in the round that runs. */
const TAKEN = 3;
const STATES = 4;
/** Sectors that are looked at together when nothing of them is dirty. */
const GROUP_SECTORS = 1024;

/**
 * The two steps of a round in the order that keeps the promise. A test puts another order in, to see that it
 * would be noticed.
 */
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
 *
 * What is owed outlives the process beside the bits: a sector is noted before a bit of it is set, and is
 * clean when its round has ended. So whoever opens the map of a dead process knows what is not durable
 * without comparing anything.
 */
export class BitCommitter {
  readonly #local: Flushable;
  readonly #log: Flushable | null;
  readonly #written: ValidityMap | null;
  readonly #metadata: CloneMetadata;
  readonly #validity: ValidityMap;
  readonly #order: CommitOrder;
  readonly #states: Uint8Array;
  /** How many sectors of a group are in a state, at `group * STATES + state`. */
  readonly #inGroup: Uint16Array;
  #dirtySectors = 0;
  /** The bits of a round, used again by the next: one round runs at a time. */
  #words = new Uint32Array(0);
  #logFailure: Error | null = null;
  /**
   * Some sectors may have bits that rest neither on the log nor on a write: those of unused blocks, and what
   * a dead process owed.
   */
  #othersOwed = false;
  #running: Promise<void> | null = null;
  /** The commit that runs has bits of the guest's. */
  #runningUrgent = false;
  #next: { scope: Scope; promise: Promise<void> } | null = null;

  /**
   * `local` has the content that bits vouch for, `log` the digests of what was fetched; `written` tells which
   * blocks need none, because the guest wrote them. `owed` has `owedBytes(metadata.sectorCount)`: zeros, or
   * what the committer of a dead process left in it.
   */
  constructor(
    local: Flushable,
    metadata: CloneMetadata,
    validity: ValidityMap,
    owed: Uint8Array,
    { log, written }: { log: Flushable; written: ValidityMap | null } | { log: null; written?: null } = {
      log: null,
    },
    order: CommitOrder = DATA_BEFORE_BITS,
  ) {
    this.#local = local;
    this.#log = log;
    this.#written = written ?? null;
    this.#metadata = metadata;
    this.#validity = validity;
    this.#order = order;
    assert(owed.length === owedBytes(metadata.sectorCount), 'every sector and every group has its byte');
    this.#states = owed;
    this.#inGroup = new Uint16Array((owed.length - metadata.sectorCount) * STATES);
    this.#takeOver();
  }

  /**
   * Notes in the `owed` of a map that no committer has yet that nothing of the blocks [first, end) is
   * durable.
   */
  static owe(owed: Uint8Array, sectorCount: number, first: number, end: number): void {
    owed.fill(URGENT, sectorOf(first), sectorOf(end - 1) + 1);
    owed.fill(1, sectorCount + groupOf(sectorOf(first)), sectorCount + groupOf(sectorOf(end - 1)) + 1);
  }

  /**
   * Why bits of fetched blocks are held back though their data is durable: their digests could not be made
   * durable. Null: none is. What the guest wrote does not wait for that.
   */
  get logFailure(): Error | null {
    return this.#logFailure;
  }

  /** True while some bit is set and not durable. */
  get dirty(): boolean {
    return this.#dirtySectors > 0 || this.#running !== null;
  }

  /** Blocks [first, end) came over from the source. Call it before their bits are set, in the same turn. */
  hydrated(first: number, end: number): void {
    for (let sector = sectorOf(first); sector <= sectorOf(end - 1); sector++) {
      const state = this.#states[sector];
      if (state === CLEAN || state === TAKEN) this.#become(sector, LAZY);
    }
  }

  /** Blocks [first, end) are unused: zeros, and no record says so. As `written` otherwise. */
  unused(first: number, end: number): void {
    this.#othersOwed = true;
    this.written(first, end);
  }

  /**
   * The guest wrote to the blocks [first, end). Call it before their bits are set by that, in the same turn.
   */
  written(first: number, end: number): void {
    for (let sector = sectorOf(first); sector <= sectorOf(end - 1); sector++) this.#become(sector, URGENT);
  }

  /**
   * The guest wrote over blocks that were local already. Where their bits are not durable yet, its next flush
   * has to wait for them: a power cut would make the blocks absent again, and the write would be lost behind
   * the source's content.
   */
  overwritten(first: number, end: number): void {
    for (let sector = sectorOf(first); sector <= sectorOf(end - 1); sector++) {
      if (this.#states[sector] === LAZY) this.#become(sector, URGENT);
    }
  }

  /** Resolves when all that was written before the call is durable, with the bits that it depends on. */
  flush(): Promise<void> {
    return this.#join('urgent');
  }

  /**
   * The same where others write over local blocks without a word. `written` has every block that was ever
   * written to, marked before it was. Bits of fetched blocks are waited for only in sectors that hold such a
   * block: a flush of a guest that wrote elsewhere costs one flush of the data, also while a commit runs.
   */
  flushWritten(written: ValidityMap): Promise<void> {
    let waits = this.#runningUrgent;
    for (let group = 0; group * STATES < this.#inGroup.length; group++) {
      if (this.#sectorsIn(group, LAZY, TAKEN) > 0) waits = this.#urgeWritten(group, written) || waits;
      waits ||= this.#sectorsIn(group, URGENT) > 0;
    }
    return waits ? this.#join('urgent') : this.#local.flush();
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

  #become(sector: number, state: number): void {
    const group = groupOf(sector);
    const { sectorCount } = this.#metadata;
    const before = this.#states[sector]!;
    if (before === state) return;
    // The group is marked for longer than any of its sectors.
    if (state !== CLEAN) this.#states[sectorCount + group] = 1;
    this.#states[sector] = state;
    if (state !== CLEAN) this.#inGroup[group * STATES + state]!++;
    if (before !== CLEAN) this.#inGroup[group * STATES + before]!--;
    if (this.#sectorsIn(group, LAZY, URGENT, TAKEN) === 0) this.#states[sectorCount + group] = 0;
    this.#dirtySectors += Number(isDirty(state)) - Number(isDirty(before));
  }

  #sectorsIn(group: number, ...states: number[]): number {
    let sectors = 0;
    for (const state of states) sectors += this.#inGroup[group * STATES + state]!;
    return sectors;
  }

  /** What a dead process had not made durable is owed to the next flush. */
  #takeOver(): void {
    const { sectorCount } = this.#metadata;
    for (let group = 0; sectorCount + group < this.#states.length; group++) {
      if (this.#states[sectorCount + group] === 0) continue;
      const end = Math.min(sectorCount, (group + 1) * GROUP_SECTORS);
      for (let sector = group * GROUP_SECTORS; sector < end; sector++) {
        if (this.#states[sector] === CLEAN) continue;
        this.#states[sector] = URGENT;
        this.#inGroup[group * STATES + URGENT]!++;
        this.#dirtySectors++;
        this.#othersOwed = true;
      }
    }
  }

  /** True when a sector of the group holds a written block whose bit may not be durable. */
  #urgeWritten(group: number, written: ValidityMap): boolean {
    let found = false;
    const endSector = Math.min(this.#metadata.sectorCount, (group + 1) * GROUP_SECTORS);
    for (let sector = group * GROUP_SECTORS; sector < endSector; sector++) {
      const state = this.#states[sector];
      if (state !== LAZY && state !== TAKEN) continue;
      const end = Math.min((sector + 1) * SECTOR_BLOCKS, written.blockCount);
      if (written.firstPresent(sector * SECTOR_BLOCKS, end) === end) continue;
      found = true;
      if (state === LAZY) this.#become(sector, URGENT);
    }
    return found;
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
      this.#runningUrgent = false;
      if (this.#running === running) this.#running = null;
    });
    this.#running = running;
    return running;
  }

  /**
   * Takes what is dirty from front to back, once: what is added behind that meanwhile could go on for ever.
   */
  async #commit(scope: Scope): Promise<void> {
    for (let from = 0; ; ) {
      const sectors = this.#take(from, scope);
      if (from > 0 && sectors.length === 0) return;
      await this.#round(sectors);
      if (sectors.length < ROUND_SECTORS) {
        // All that was owed when it began, from front to back.
        if (this.#logFailure === null) this.#othersOwed = false;
        return;
      }
      from = sectors.at(-1)! + 1;
    }
  }

  /** The sectors from `from` on that are due, in ascending order, `ROUND_SECTORS` at most. */
  #take(from: number, scope: Scope): number[] {
    const { sectorCount } = this.#metadata;
    const taken: number[] = [];
    for (let sector = from; sector < sectorCount && taken.length < ROUND_SECTORS; ) {
      const group = groupOf(sector);
      const groupEnd = Math.min(sectorCount, (group + 1) * GROUP_SECTORS);
      const due = scope === 'all' ? this.#sectorsIn(group, URGENT, LAZY) : this.#sectorsIn(group, URGENT);
      for (; due > 0 && sector < groupEnd && taken.length < ROUND_SECTORS; sector++) {
        const state = this.#states[sector];
        if (state !== URGENT && (state !== LAZY || scope === 'urgent')) continue;
        if (state === URGENT) this.#runningUrgent = true;
        this.#become(sector, TAKEN);
        taken.push(sector);
      }
      if (due === 0) sector = groupEnd;
    }
    return taken;
  }

  async #round(sectors: readonly number[]): Promise<void> {
    const wordCount = sectors.length * SECTOR_WORDS;
    if (this.#words.length < wordCount) this.#words = new Uint32Array(wordCount);
    const words = this.#words.subarray(0, wordCount);
    for (const [position, sector] of sectors.entries()) {
      const into = words.subarray(position * SECTOR_WORDS, (position + 1) * SECTOR_WORDS);
      this.#validity.copyWords(sector * SECTOR_WORDS, into);
      if (turnIsLong()) await nextTurn();
    }
    let logFailure: Error | null = null;
    try {
      await this.#order(
        async () => {
          // Without bits nothing rests on the log.
          const log = sectors.length === 0 ? null : this.#log;
          const [, failure] = await Promise.all([this.#local.flush(), log?.flush().then(nothing, asError)]);
          logFailure = failure ?? null;
        },
        async () => {
          if (sectors.length === 0) return;
          if (logFailure !== null) await this.#withoutFetched(sectors, words, logFailure);
          await this.#metadata.write(sectors, words);
          await this.#metadata.flush();
        },
      );
    } catch (error) {
      for (const sector of sectors) this.#become(sector, URGENT);
      throw error;
    }
    for (const sector of sectors) {
      if (this.#states[sector] === TAKEN) this.#become(sector, logFailure === null ? CLEAN : LAZY);
    }
    if (sectors.length > 0) this.#logFailure = logFailure;
  }

  /**
   * Takes the bits out that rest on the log: all but those that are durable and those of blocks that the
   * guest wrote.
   */
  async #withoutFetched(sectors: readonly number[], words: Uint32Array, failure: Error): Promise<void> {
    const written = this.#written;
    // Which bits those are is not known, and a flush must not end without them.
    if (written === null || this.#othersOwed) throw failure;
    const own = new Uint32Array(SECTOR_WORDS);
    for (const [position, sector] of sectors.entries()) {
      const durable = await this.#metadata.readSector(sector);
      written.copyWords(sector * SECTOR_WORDS, own);
      const bits = words.subarray(position * SECTOR_WORDS, (position + 1) * SECTOR_WORDS);
      for (let index = 0; index < SECTOR_WORDS; index++)
        bits[index]! &= own[index]! | (durable?.[index] ?? 0);
    }
  }
}

function nothing(): null {
  return null;
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

/**
 * Length of what a committer keeps of `sectorCount` sectors: a state for each, and for each group whether one
 * of them is not clean.
 */
export function owedBytes(sectorCount: number): number {
  return sectorCount + Math.ceil(sectorCount / GROUP_SECTORS);
}

function isDirty(state: number): boolean {
  return state === LAZY || state === URGENT;
}

function groupOf(sector: number): number {
  return Math.floor(sector / GROUP_SECTORS);
}

function sectorOf(block: number): number {
  return Math.floor(block / SECTOR_BLOCKS);
}
