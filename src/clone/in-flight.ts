import { assert } from '../base/assert.ts';

/**
 * Who is busy with which absent blocks. A block has at most one owner at a time: a fetch that will store it,
 * or a mutation of the guest that makes it local without the source. Present blocks need no owner. The table
 * is a plain list, because it has as many entries as requests are in flight (tens), each over a range.
 */

/** A mutation of the guest: owns [first, end) from its start to the moment when the bits are set. */
export type Mutation = { kind: 'mutation'; first: number; end: number; waiters: (() => void)[] };

/** Somebody who needs the content of a fetch. Exactly one of these is called, once. */
export type FetchWaiter = {
  /** The content is in `fetch.buffer`, and only during the call. */
  arrived(fetch: Fetch): void;
  failed(error: Error): void;
  /** Some of the fetch's blocks need not be fetched any more, and no content has come yet: look again. */
  again(): void;
};

/** 'miss': the guest waits for it. The others are background: they stay inside the hydration window. */
export type FetchPurpose = 'miss' | 'readahead' | 'hydration';

export type Fetch = {
  kind: 'fetch';
  first: number;
  end: number;
  purpose: FetchPurpose;
  /**
   * Blocks of the fetch that it no longer owns: a mutation took them over while it was on the wire. null:
   * none.
   */
  released: Uint8Array | null;
  /**
   * `fetching`: on the wire or waiting for room, blocks can still be taken over. `storing`: content is there
   * and being written to the local device. `stored`: content is there, and was written or refused; the disk
   * may not have it yet. Blocks can be taken over again.
   */
  state: 'fetching' | 'storing' | 'stored';
  /**
   * The content for the guest and the local device: as it arrived, but for sectors that the guest zeroed
   * meanwhile.
   */
  buffer: Uint8Array;
  /**
   * Where the source's content is read to, and stays as it came. Empty until there is room for what comes.
   */
  asArrived: Uint8Array;
  /** What of the buffers is content: the last block of a device may be cut short by its end. */
  contentBytes: number;
  contentWaiters: FetchWaiter[];
  /** Called when the fetch has ended, whatever the end, and when its blocks can be taken over. */
  waiters: (() => void)[];
  /** When the source was asked first; infinite before. */
  startedAtMs: number;
  /** Wakes the fetch from its wait before the next attempt; null while it does not wait. */
  retryNow: (() => void) | null;
};

export class InFlight {
  readonly #entries: (Mutation | Fetch)[] = [];

  get entries(): readonly (Mutation | Fetch)[] {
    return this.#entries;
  }

  add(entry: Mutation | Fetch): void {
    this.#entries.push(entry);
  }

  /** Removes the entry and wakes who waited for its end. */
  remove(entry: Mutation | Fetch): void {
    const index = this.#entries.indexOf(entry);
    assert(index !== -1, 'an entry is removed once');
    const last = this.#entries.pop()!;
    if (last !== entry) this.#entries[index] = last;
    this.wake(entry);
  }

  /** Lets those look again who wait for the entry. */
  wake(entry: Mutation | Fetch): void {
    const waiters = entry.waiters;
    entry.waiters = [];
    for (const wake of waiters) wake();
  }

  ownerOf(block: number): Mutation | Fetch | null {
    for (const entry of this.#entries) {
      if (block >= entry.first && block < entry.end && owns(entry, block)) return entry;
    }
    return null;
  }

  /** The first block of [first, end) that nobody owns; `end` when all are owned. */
  firstFree(first: number, end: number): number {
    for (let block = first; block < end; ) {
      const owner = this.ownerOf(block);
      if (owner === null) return block;
      // A discard may own a million blocks.
      block = owner.kind === 'mutation' ? Math.min(end, owner.end) : block + 1;
    }
    return end;
  }

  /** The first block of [first, end) that somebody owns; `end` when all are free. */
  firstOwned(first: number, end: number): number {
    let found = end;
    for (const entry of this.#entries) {
      const overlapEnd = Math.min(entry.end, found);
      for (let block = Math.max(entry.first, first); block < overlapEnd; block++) {
        if (!owns(entry, block)) continue;
        found = block;
        break;
      }
    }
    return found;
  }

  /**
   * What a mutation of [first, end) has to wait for: another mutation, or a fetch that is storing. null: it
   * may begin.
   */
  blockerOf(first: number, end: number): Mutation | Fetch | null {
    for (const entry of this.#entries) {
      if (entry.end <= first || entry.first >= end) continue;
      if (entry.kind === 'mutation') return entry;
      if (entry.state !== 'storing') continue;
      for (let block = Math.max(entry.first, first); block < Math.min(entry.end, end); block++) {
        if (owns(entry, block)) return entry;
      }
    }
    return null;
  }

  /**
   * Takes [first, end) away from the fetches that do not store it now: what they bring for it is not stored.
   * Whoever waits for such a fetch looks again, because what it needs may be local before the source says
   * anything.
   */
  takeOver(first: number, end: number): void {
    for (const entry of this.#entries) {
      if (entry.kind !== 'fetch' || entry.end <= first || entry.first >= end) continue;
      if (entry.state === 'storing') continue; // owns nothing here any more, else it would have been waited for
      release(entry, Math.max(first, entry.first), Math.min(end, entry.end));
      if (entry.state !== 'fetching') continue;
      const waiters = entry.contentWaiters;
      entry.contentWaiters = [];
      for (const waiter of waiters) queueMicrotask(() => waiter.again());
    }
  }
}

/** The fetch does not own its blocks [first, end) any more. */
export function release(fetch: Fetch, first: number, end: number): void {
  fetch.released ??= new Uint8Array(fetch.end - fetch.first);
  fetch.released.fill(1, first - fetch.first, end - fetch.first);
}

export function owns(entry: Mutation | Fetch, block: number): boolean {
  return entry.kind === 'mutation' || entry.released === null || entry.released[block - entry.first] === 0;
}

/** Resolves when the entry has ended, or let go of its blocks. */
export function ended(entry: Mutation | Fetch): Promise<void> {
  return new Promise((resolve) => entry.waiters.push(resolve));
}
