import { AnswerTime } from '../base/answer-time.ts';
import { assert } from '../base/assert.ts';
import { backoffMs } from '../base/backoff.ts';
import { BufferPool } from '../base/buffer-pool.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { closedError } from '../block/range.ts';
import { type ArrivalStore, Arrivals, ownedRuns } from './arrival.ts';
import type { BitCommitter } from './bit-committer.ts';
import type { DiskGate } from './disk-gate.ts';
import type { FetchLog } from './fetch-log.ts';
import { REGION_BYTES_MAX } from './hydration-window.ts';
import type { Fetch, FetchPurpose, FetchWaiter, InFlight } from './in-flight.ts';
import { RefusedReads } from './refused-reads.ts';
import type { ValidityMap } from './validity-map.ts';
import type { ZeroLog } from './zero-log.ts';

/** Largest fetch; longer ranges are several. */
export const FETCH_BLOCKS_MAX = REGION_BYTES_MAX / BLOCK_BYTES;
const BUFFER_BYTES_KEPT = 16 * 2 ** 20;
const NO_BYTES = new Uint8Array(0);
const RETRY = { firstMs: 100, maxMs: 5_000 };
const UNSTORED_MAX = 65_536;
/**
 * What is in flight where the source refuses everything: smaller pieces are of no use then, and many of them
 * cost.
 */
const PIECES_MAX = 256;

/** What a source says that was reached, and could not read. */
const ANSWERS = new Set(['BLOCK_IO', 'ISCSI_COMMAND_FAILED', 'NBD_REQUEST_FAILED']);
/**
 * A source that has answered nothing for so much longer than its answers take counts as silent: one that
 * takes 3 s a read is slow, and there.
 */
const SILENCE_MS = 2_000;
/** What answers may take is not believed beyond. */
const ANSWER_MS_MAX = 60_000;

export type SourceErrorPolicy = 'wait' | 'error';

/**
 * Where absent blocks come from. One that knows priorities (iscsi/initiator.ts) lets reads that the guest
 * waits for pass the others.
 */
export type CloneSource = Omit<BlockDevice, 'read'> & {
  read(offsetBytes: number, into: Uint8Array, options?: { priority?: 'guest' | 'background' }): Promise<void>;
  /**
   * Resolves when a look at the source that began after this call found it to be what it was when the clone
   * was made; rejects when it is another. Nothing that was read is taken for the clone's own before. Absent
   * where nobody can tell.
   */
  vouch?(): Promise<void>;
};

const GUEST = { priority: 'guest' } as const;
const BACKGROUND = { priority: 'background' } as const;

export type FetcherOptions = {
  /** Where fetched content goes. */
  store: ArrivalStore;
  source: CloneSource;
  validity: ValidityMap;
  inFlight: InFlight;
  committer: BitCommitter;
  /** Where the digests of what arrived are kept, before any bit rests on it; null: nowhere. */
  log: FetchLog | null;
  /** Where what was fetched in the background waits for its turn at the local device. */
  gate: DiskGate;
  /** Sectors that the guest zeroed before they came; null: never. */
  zeros: ZeroLog | null;
  clock: Clock;
  logger: Logger;
  /**
   * What a fetch that the guest waits for does when its read of the source failed: try again for as long as
   * it takes, or pass the error on.
   */
  policy: SourceErrorPolicy;
  /** A fetch has ended; `stored`: its blocks are local now. */
  onEnded: (fetch: Fetch, stored: boolean) => void;
  /** Bytes that arrived and are not in place for certain, whenever that changes. */
  onUnplaced?: (bytes: number) => void;
  /** Bytes between the wire and their place at most. Default 64 MiB. */
  heldBytesMax?: number;
};

/**
 * Brings blocks from the source: the only place that reads its content. What becomes of it then is in
 * arrival.ts.
 */
export class Fetcher {
  readonly #options: FetcherOptions;
  readonly #arrivals: Arrivals;
  readonly #buffers = new BufferPool(BUFFER_BYTES_KEPT);
  /** Blocks that came and are not local, to count the ones that come twice: the latest `UNSTORED_MAX`. */
  readonly #unstored = new Set<number>();
  readonly #storing = new Set<Promise<void>>();
  /**
   * Where the source answered with an error: fetches there are small, so that a bad sector holds nothing but
   * its block.
   */
  readonly refused = new RefusedReads();
  #closed = false;
  #policy: SourceErrorPolicy;
  #wireBytes = 0;
  #blocksFetchedTwice = 0;
  #backgroundBytes = 0;
  #lastSuccessAtMs = Number.NEGATIVE_INFINITY;
  #failingSinceMs: number | null = null;
  #consecutiveFailures = 0;
  #lastError: string | null = null;
  #answersWithError = false;
  readonly #answerTimes = new AnswerTime({ floorMs: 0, ceilingMs: ANSWER_MS_MAX });

  constructor(options: FetcherOptions) {
    this.#options = options;
    const { source } = options;
    this.#arrivals = new Arrivals(
      source.vouch === undefined ? options : { ...options, vouch: () => source.vouch!() },
    );
    this.#policy = options.policy;
  }

  get wireBytes(): number {
    return this.#wireBytes;
  }

  get blocksFetchedTwice(): number {
    return this.#blocksFetchedTwice;
  }

  /** Bytes of background fetches (not misses) that have not ended. */
  get backgroundBytes(): number {
    return this.#backgroundBytes;
  }

  /** The last failure of the source or of storing what it sent; null when all is well again. */
  get lastError(): string | null {
    return this.#arrivals.error ?? this.#lastError;
  }

  /** The last failure is what the source said itself: it is there, and its disk is not well. */
  get answersWithError(): boolean {
    return this.#failingSinceMs !== null && this.#answersWithError;
  }

  /** Bytes that arrived and whose bits are not set yet. */
  get unplacedBytes(): number {
    return this.#arrivals.unplacedBytes;
  }

  /**
   * Content has arrived that is not recorded or not in place yet: the log of what was fetched still grows.
   */
  get placing(): boolean {
    return this.#options.inFlight.entries.some(
      (entry) => entry.kind === 'fetch' && entry.state !== 'fetching',
    );
  }

  /** Since when the source has been failing; null when its last answer was good. */
  get failingSinceMs(): number | null {
    return this.#failingSinceMs;
  }

  /** How long to leave the source alone after its last failure, in milliseconds. 0: it is well. */
  get backoffMs(): number {
    if (this.#consecutiveFailures === 0) return 0;
    return backoffMs(RETRY, this.#consecutiveFailures);
  }

  /**
   * How long a question to the source has been waiting without any other being answered, in milliseconds;
   * null: none waits, or not for longer than answers take.
   */
  silentForMs(nowMs: number): number | null {
    let oldestMs = nowMs;
    for (const entry of this.#options.inFlight.entries) {
      if (entry.kind === 'fetch' && entry.state === 'fetching') {
        oldestMs = Math.min(oldestMs, entry.startedAtMs);
      }
    }
    const silentMs = nowMs - Math.max(oldestMs, Math.min(this.#lastSuccessAtMs, nowMs));
    return silentMs >= SILENCE_MS + this.#answerTimes.patienceMs ? silentMs : null;
  }

  /** Starts to bring [first, end), which is absent and has no owner; at most FETCH_BLOCKS_MAX blocks. */
  start(first: number, end: number, purpose: FetchPurpose): Fetch {
    assert(end > first && end - first <= FETCH_BLOCKS_MAX, 'a fetch has 1 to FETCH_BLOCKS_MAX blocks');
    const blocks = end - first;
    const fetch: Fetch = {
      kind: 'fetch',
      first,
      end,
      purpose,
      released: null,
      state: 'fetching',
      buffer: NO_BYTES,
      asArrived: NO_BYTES,
      contentBytes: Math.min(end * BLOCK_BYTES, this.#options.source.lengthBytes) - first * BLOCK_BYTES,
      contentWaiters: [],
      waiters: [],
      startedAtMs: Number.POSITIVE_INFINITY,
      retryNow: null,
    };
    this.#options.inFlight.add(fetch);
    if (purpose !== 'miss') this.#backgroundBytes += blocks * BLOCK_BYTES;
    void this.#run(fetch);
    return fetch;
  }

  /**
   * Calls the waiter when the content is there, at once when it already is. Somebody waits, so a retry does
   * not.
   */
  whenArrived(fetch: Fetch, waiter: FetchWaiter): void {
    if (fetch.state !== 'fetching') {
      waiter.arrived(fetch);
      return;
    }
    fetch.contentWaiters.push(waiter);
    fetch.retryNow?.();
  }

  /** The guest zeroed sectors of it while it was on the wire, or before. */
  #applyZeros(fetch: Fetch): void {
    const { zeros } = this.#options;
    if (zeros === null) return;
    const content = fetch.buffer.subarray(0, fetch.contentBytes);
    const applied = zeros.applied(fetch.first, content);
    if (applied !== content) fetch.buffer = applied;
  }

  /**
   * From now on a fetch that the source does not answer fails with `CLONE_SOURCE_FAILED`; those that wait for
   * their next attempt make it now.
   */
  stopWaiting(): void {
    this.#policy = 'error';
    for (const entry of [...this.#options.inFlight.entries])
      if (entry.kind === 'fetch' && entry.state === 'fetching') entry.retryNow?.();
  }

  /**
   * Resolves when what was read by now may be taken for the clone's own: a look at the source that began
   * after this call was good.
   */
  vouched(): Promise<void> {
    return this.#arrivals.vouched();
  }

  /** Fails who waits with `BLOCK_CLOSED`; resolves when nothing writes to the local device any more. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#arrivals.close();
    for (const entry of [...this.#options.inFlight.entries]) {
      if (entry.kind !== 'fetch') continue;
      const wake = entry.retryNow;
      if (entry.state === 'fetching') this.#end(entry, (waiter) => waiter.failed(closedError()));
      wake?.();
    }
    await Promise.all(this.#storing);
  }

  async #run(fetch: Fetch): Promise<void> {
    const lengthBytes = (fetch.end - fetch.first) * BLOCK_BYTES;
    const room = this.#arrivals.admit(lengthBytes);
    if (room !== null) await room;
    try {
      await this.#bring(fetch);
    } finally {
      this.#arrivals.leave(lengthBytes);
    }
  }

  async #bring(fetch: Fetch): Promise<void> {
    if (this.#closed) return; // `close` has ended the fetch
    // Whoever took blocks over while this waited for room must not have them asked for.
    const outcome = fetch.released !== null ? 'again' : await this.#readSource(fetch);
    if (this.#closed) return; // the same; its buffer is not used again
    if (outcome !== 'arrived') {
      this.#end(fetch, (waiter) => (outcome === 'again' ? waiter.again() : waiter.failed(outcome)));
      this.#recycle(fetch);
      this.#options.onEnded(fetch, false);
      return;
    }
    this.#countArrival(fetch);
    if (fetch.contentWaiters.length === 0 && ownedRuns(fetch).length === 0) {
      // The guest wrote all of it meanwhile. Nobody has use for it, and a record of it might come when the
      // log is being added up.
      this.#end(fetch, () => {});
      this.#noteUnstored(fetch);
      this.#recycle(fetch);
      this.#options.onEnded(fetch, true);
      return;
    }
    this.#applyZeros(fetch);
    fetch.state = 'storing';
    const waiters = fetch.contentWaiters;
    fetch.contentWaiters = [];
    for (const waiter of waiters) waiter.arrived(fetch);
    const storing = this.#place(fetch);
    this.#storing.add(storing);
    await storing;
    this.#storing.delete(storing);
  }

  /**
   * An error is one to pass on. 'again': blocks were taken over while the source did not answer, and must not
   * be asked for again.
   */
  async #readSource(fetch: Fetch): Promise<'arrived' | 'again' | Error> {
    const { source, clock } = this.#options;
    fetch.startedAtMs = clock.monotonicMs();
    const { buffer, byteOffset, length } = this.#buffers.take(fetch.contentBytes);
    // Not as a Buffer, whose `slice` is no copy.
    fetch.asArrived = new Uint8Array(buffer, byteOffset, length);
    fetch.buffer = fetch.asArrived;
    const into = fetch.buffer.subarray(0, fetch.contentBytes);
    for (;;) {
      try {
        await source.read(fetch.first * BLOCK_BYTES, into, fetch.purpose === 'miss' ? GUEST : BACKGROUND);
        return 'arrived';
      } catch (error) {
        if (this.#closed) return 'again';
        this.#countFailure(error, fetch);
        if (this.#policy === 'error') return sourceFailedError(fetch, error);
      }
      this.refused.note(fetch.first, fetch.end, clock.monotonicMs());
      const goesSmaller = fetch.end - fetch.first > 1 && this.#options.inFlight.entries.length <= PIECES_MAX;
      // The guest may need what lies beside the block that is bad; and nobody waits for the background copy.
      if (fetch.purpose !== 'miss' || goesSmaller) return 'again';
      await this.#waitBeforeRetry(fetch, this.backoffMs);
      if (this.#closed || fetch.released !== null) return 'again';
    }
  }

  /** Resolves after `delayMs`, or when `retryNow` of the fetch is called. */
  #waitBeforeRetry(fetch: Fetch, delayMs: number): Promise<void> {
    return new Promise((resolve) => {
      const proceed = () => {
        cancel();
        fetch.retryNow = null;
        resolve();
      };
      const cancel = this.#options.clock.timer(delayMs, proceed);
      fetch.retryNow = proceed;
    });
  }

  /** Never rejects. */
  async #place(fetch: Fetch): Promise<void> {
    const placed = await this.#arrivals.place(fetch);
    this.#noteUnstored(fetch);
    this.#end(fetch, () => {}); // nobody waits for content: it was there before
    this.#recycle(fetch);
    this.#options.onEnded(fetch, placed);
  }

  #end(fetch: Fetch, tell: (waiter: FetchWaiter) => void): void {
    this.#options.inFlight.remove(fetch);
    this.#countEnd(fetch);
    const waiters = fetch.contentWaiters;
    fetch.contentWaiters = [];
    for (const waiter of waiters) tell(waiter);
  }

  #recycle(fetch: Fetch): void {
    const { buffer, byteOffset, length } = fetch.asArrived;
    if (length > 0) this.#buffers.give(Buffer.from(buffer, byteOffset, length));
  }

  #countArrival(fetch: Fetch): void {
    const { clock, logger } = this.#options;
    this.#wireBytes += fetch.contentBytes;
    if (this.#unstored.size > 0) {
      for (let block = fetch.first; block < fetch.end; block++)
        if (this.#unstored.has(block)) this.#blocksFetchedTwice++;
    }
    this.#lastSuccessAtMs = clock.monotonicMs();
    this.#answerTimes.answered(this.#lastSuccessAtMs - fetch.startedAtMs);
    this.#consecutiveFailures = 0;
    if (this.#failingSinceMs === null) return;
    logger.info(
      { lostForMs: Math.round(this.#lastSuccessAtMs - this.#failingSinceMs) },
      'the source answers again',
    );
    this.#failingSinceMs = null;
    this.#lastError = null;
  }

  /** What is local is never fetched again, so only the rest is remembered. */
  #noteUnstored({ first, end }: Fetch): void {
    const { validity } = this.#options;
    for (let block = validity.firstAbsent(first, end); block < end; ) {
      this.#unstored.add(block);
      block = validity.firstAbsent(block + 1, end);
    }
    for (const oldest of this.#unstored) {
      if (this.#unstored.size <= UNSTORED_MAX) break;
      this.#unstored.delete(oldest);
    }
  }

  #countFailure(error: unknown, { first, end }: Fetch): void {
    const { clock, logger } = this.#options;
    this.#consecutiveFailures++;
    this.#lastError = messageOf(error);
    this.#answersWithError = isGodwitError(error) && ANSWERS.has(error.code);
    if (this.#failingSinceMs !== null) return;
    this.#failingSinceMs = clock.monotonicMs();
    logger.warn(
      { error: messageOf(error), firstBlock: first, blocks: end - first },
      'the source does not answer; reads of blocks that are only there wait',
    );
  }

  #countEnd(fetch: Fetch): void {
    if (fetch.purpose !== 'miss') this.#backgroundBytes -= (fetch.end - fetch.first) * BLOCK_BYTES;
  }
}

function sourceFailedError(fetch: Fetch, cause: unknown): GodwitError {
  return new GodwitError('CLONE_SOURCE_FAILED', `the source could not be read: ${messageOf(cause)}`, {
    values: { firstBlock: fetch.first, blocks: fetch.end - fetch.first },
    nextAction:
      'Look at the source worker and the network to it; blocks that are only there cannot be read until it is back.',
    cause,
  });
}
