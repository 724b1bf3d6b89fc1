import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { BLOCK_BYTES, type BlockDevice, type ByteRange } from '../block/block-device.ts';
import { closedError } from '../block/range.ts';
import type { BitCommitter } from './bit-committer.ts';
import type { DiskGate } from './disk-gate.ts';
import type { FetchLog } from './fetch-log.ts';
import { type Fetch, type InFlight, owns, release } from './in-flight.ts';
import type { ValidityMap } from './validity-map.ts';

/**
 * Fetched bytes that are asked for, or here and not in place for certain: what a SIGKILL makes the next
 * process fetch again at most.
 */
const HELD_BYTES_MAX = 64 * 2 ** 20;
/**
 * Content that the disk refuses is kept up to this much and tried again; what is beyond is fetched again when
 * it is wanted.
 */
const REFUSED_BYTES_MAX = 16 * 2 ** 20;
const RETRY_FIRST_MS = 1_000;
const RETRY_MAX_MS = 8_000;
/** A disk that has taken nothing for so long is named in the status. */
const SLOW_AFTER_MS = 5_000;
/**
 * Pieces that are let in together go to the disk together: as few large requests, and with few changes of the
 * filesystem's metadata. They wait for one another until there is so much of them, or for so long.
 */
const GATHERED_BYTES_MAX = 2 ** 20;
const GATHER_MS = 2;

/**
 * The local file, on a handle of its own: what it says of failed write-backs must not be heard by anybody
 * else.
 */
export type ArrivalStore = Pick<BlockDevice, 'write' | 'writeBack' | 'beginWriteBack' | 'discard'>;

export type ArrivalsOptions = {
  store: ArrivalStore;
  validity: ValidityMap;
  inFlight: InFlight;
  committer: BitCommitter;
  /** Where the digests of what arrived are kept, before any bit rests on it; null: nowhere. */
  log: FetchLog | null;
  /** `CloneSource.vouch`. Absent: nobody can tell one source from another. */
  vouch?: () => Promise<void>;
  /** Where what was fetched in the background waits for its turn at the disk. */
  gate: DiskGate;
  clock: Clock;
  logger: Logger;
  /** Default `HELD_BYTES_MAX`. */
  heldBytesMax?: number;
  /** Told whenever it changes: bytes that arrived and are not in place for certain. */
  onUnplaced?: (bytes: number) => void;
};

type Confirmation = {
  runs: readonly Run[];
  /** `#refusals` when the writes began. */
  refusals: number;
  confirmed: () => void;
  refused: (error: unknown) => void;
};

type Run = { first: number; end: number };

/**
 * The write path of fetched bytes, the only one: from the buffer that they arrived in to their bit.
 *
 *   write to the local file (page cache) → write-back, waited for and checked → record in the log → source vouched for → bit
 *
 * A bit in the live map is believed by every later process, and the page cache does not keep what a disk
 * refused: it calls the page clean and forgets it, and says so once. So no bit is set before the disk has the
 * bytes. Until then the buffer answers who reads the blocks, and a write of the guest takes them over
 * (`stored` in in-flight.ts). A disk that refuses leaves them absent; the content is written again from the
 * buffer, or fetched again.
 *
 * What is between the wire and the bit is bounded: whoever would fetch more waits for room (`admit`), misses
 * of the guest too.
 */
export class Arrivals {
  readonly #options: ArrivalsOptions;
  readonly #heldBytesMax: number;
  readonly #waiting: { bytes: number; proceed: () => void }[] = [];
  #admittedBytes = 0;
  #unplacedBytes = 0;
  #refusedBytes = 0;
  /**
   * Write-backs that failed: whatever was written before the last one and not confirmed by then is written
   * again.
   */
  #refusals = 0;
  #queue: Confirmation[] = [];
  #confirming = false;
  /** Pieces that are on their way into the page cache. */
  #writing = 0;
  /** Of the queue, what nobody has told the disk of yet. */
  #gathered: Run[] = [];
  #cancelGathering: (() => void) | null = null;
  /** Ends the waits of `vouched`. */
  readonly #vouching = new Set<(error: Error) => void>();
  /** Fetches that the disk has, and that `vouch` has not answered for. */
  #waitingForWord = 0;
  #closed = false;
  #error: string | null = null;
  #confirmedAtMs = Number.NEGATIVE_INFINITY;
  #oldestAtMs = Number.POSITIVE_INFINITY;

  constructor(options: ArrivalsOptions) {
    this.#options = options;
    this.#heldBytesMax = options.heldBytesMax ?? HELD_BYTES_MAX;
  }

  /** Bytes that arrived and whose bits are not set yet. */
  get unplacedBytes(): number {
    return this.#unplacedBytes;
  }

  /** Why fetched blocks are not kept just now; null: they are. */
  get error(): string | null {
    if (this.#error !== null) return this.#error;
    const nowMs = this.#options.clock.monotonicMs();
    const forMs = nowMs - Math.max(this.#oldestAtMs, Math.min(this.#confirmedAtMs, nowMs));
    if (this.#unplacedBytes === 0 || forMs < SLOW_AFTER_MS) return null;
    // What the disk has taken waits for the source's word: why that does not come, the source's own error
    // says.
    if (this.#waitingForWord > 0) return null;
    return `storing fetched blocks: the local disk has taken none for ${Math.round(forMs / 1000)} s`;
  }

  /**
   * Room for the bytes of one fetch, given back with `leave`. Null: taken at once; else it is when the
   * promise resolves, first come, first served.
   */
  admit(bytes: number): Promise<void> | null {
    // One that is larger than all the room there is goes alone.
    if (this.#waiting.length === 0 && this.#fits(bytes)) {
      this.#admittedBytes += bytes;
      return null;
    }
    return new Promise((proceed) => this.#waiting.push({ bytes, proceed }));
  }

  leave(bytes: number): void {
    this.#admittedBytes -= bytes;
    for (let next = this.#waiting[0]; next && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift();
      this.#admittedBytes += next.bytes;
      next.proceed();
    }
  }

  /**
   * Brings what the fetch still owns into its place: true when its bits are set. False: it is absent as
   * before, because the disk refused it and too much is waiting to be tried again, or because of `close`.
   * Never rejects.
   */
  async place(fetch: Fetch): Promise<boolean> {
    const bytes = (fetch.end - fetch.first) * BLOCK_BYTES;
    this.#countUnplaced(bytes);
    let refused = false;
    let recorded: Promise<void> | null = null;
    const record = () => {
      recorded ??= this.#record(fetch).catch((error: unknown) => {
        recorded = null;
        throw error;
      });
      return recorded;
    };
    let placed = await this.#tryInTurn(fetch, record);
    for (
      let delayMs = RETRY_FIRST_MS;
      !placed && !this.#closed;
      delayMs = Math.min(RETRY_MAX_MS, delayMs * 2)
    ) {
      if (!refused && this.#refusedBytes + fetch.asArrived.length > REFUSED_BYTES_MAX) break;
      if (!refused) this.#refusedBytes += fetch.asArrived.length;
      refused = true;
      await this.#waitBeforeRetry(fetch, delayMs);
      if (!this.#closed) placed = await this.#tryToPlace(fetch, record);
    }
    if (refused) this.#refusedBytes -= fetch.asArrived.length;
    this.#countUnplaced(-bytes);
    return placed;
  }

  /**
   * Until it is its turn, what arrived is as what the disk refused: whoever reads it has it from the buffer,
   * and writes of the guest take blocks over.
   */
  async #tryInTurn(fetch: Fetch, record: () => Promise<void>): Promise<boolean> {
    const passage = this.#options.gate.enter(fetch.contentBytes, { waits: fetch.purpose !== 'miss' });
    if (passage.turn !== null) {
      fetch.state = 'stored';
      fetch.retryNow = passage.goNow;
      await passage.turn;
      fetch.retryNow = null;
    }
    const placed = !this.#closed && (await this.#tryToPlace(fetch, record));
    passage.ended(placed);
    return placed;
  }

  /** Lets go of those that wait for room or for their next try. */
  close(): void {
    this.#closed = true;
    for (const end of [...this.#vouching]) end(closedError());
    for (const { bytes, proceed } of this.#waiting.splice(0)) {
      this.#admittedBytes += bytes;
      proceed();
    }
  }

  /**
   * Resolves when a look that began after this call found the source to be what it was; rejects when it is
   * another, or on `close`.
   */
  vouched(): Promise<void> {
    const { vouch } = this.#options;
    if (vouch === undefined) return Promise.resolve();
    if (this.#closed) return Promise.reject(closedError());
    return new Promise((resolve, reject) => {
      this.#vouching.add(reject);
      vouch()
        .then(resolve, reject)
        .finally(() => this.#vouching.delete(reject));
    });
  }

  #fits(bytes: number): boolean {
    return this.#admittedBytes === 0 || this.#admittedBytes + bytes <= this.#heldBytesMax;
  }

  async #tryToPlace(fetch: Fetch, record: () => Promise<void>): Promise<boolean> {
    const { store, validity, committer, inFlight } = this.#options;
    const refusals = this.#refusals;
    const recorded = record();
    recorded.catch(() => {}); // looked at below
    // A look that begins now: what came before it, came from the source that it finds.
    const vouched = this.vouched();
    vouched.catch(() => {}); // the same
    try {
      const runs = ownedRuns(fetch);
      fetch.state = 'storing';
      this.#writing++;
      const results = await Promise.allSettled(
        runs.map(({ first, end }) => store.write(first * BLOCK_BYTES, this.#content(fetch, first, end))),
      );
      this.#writing--;
      fetch.state = 'stored';
      inFlight.wake(fetch);
      const failed = results.find((result) => result.status === 'rejected');
      const confirmed = failed ? Promise.reject(failed.reason) : this.#confirmed(runs, refusals);
      this.#gather();
      await confirmed;
      await recorded;
      this.#confirmedAtMs = this.#options.clock.monotonicMs();
      this.#waitingForWord += 1;
      await vouched.finally(() => {
        this.#waitingForWord -= 1;
      });
      for (const { first, end } of ownedRuns(fetch)) {
        committer.hydrated(first, end);
        validity.setRange(first, end);
        release(fetch, first, end);
      }
    } catch (error) {
      await recorded.catch(() => {}); // the buffer may be used again afterwards
      await this.#clear(fetch);
      this.#noteError(error, fetch);
      return false;
    }
    this.#error = null;
    return true;
  }

  /**
   * Takes away what a refusal left behind: blocks that the filesystem has given to a page that was not
   * written hold nobody knows what, and the next try should find a hole, as the first one did. Seen through a
   * loop device on a full tmpfs, whose driver calls a short write a success; not on a disk that refuses whole
   * requests.
   */
  async #clear(fetch: Fetch): Promise<void> {
    fetch.state = 'storing';
    const cleared = ownedRuns(fetch).map(({ first, end }) =>
      this.#options.store.discard(first * BLOCK_BYTES, this.#content(fetch, first, end).length),
    );
    await Promise.allSettled(cleared);
    fetch.state = 'stored';
    this.#options.inFlight.wake(fetch);
  }

  /**
   * All of it as it arrived, also what a mutation took over: a block that the guest writes in part keeps the
   * rest.
   */
  async #record(fetch: Fetch): Promise<void> {
    await this.#options.log?.record(fetch.first, fetch.asArrived.subarray(0, fetch.contentBytes));
  }

  /**
   * Resolves when the runs, written since `refusals`, have been written back and no write-back failed since.
   */
  #confirmed(runs: readonly Run[], refusals: number): Promise<void> {
    if (!this.#options.store.writeBack || runs.length === 0) return Promise.resolve();
    return new Promise((confirmed, refused) => {
      this.#queue.push({ runs, refusals, confirmed, refused });
      this.#gathered.push(...runs);
    });
  }

  /** Hands what was gathered to the disk, unless more is about to come. */
  #gather(): void {
    if (this.#gathered.length === 0) return;
    const blocks = this.#gathered.reduce((sum, { first, end }) => sum + end - first, 0);
    if (this.#writing > 0 && blocks * BLOCK_BYTES < GATHERED_BYTES_MAX) {
      this.#cancelGathering ??= this.#options.clock.timer(GATHER_MS, () => this.#handOver());
      return;
    }
    this.#handOver();
  }

  #handOver(): void {
    this.#cancelGathering?.();
    this.#cancelGathering = null;
    const runs = this.#gathered;
    this.#gathered = [];
    if (runs.length === 0) return;
    // Side by side with what is being waited for. Of failures the wait tells.
    if (this.#confirming) this.#options.store.beginWriteBack?.(byteRangesOf(runs)).catch(() => {});
    else void this.#confirmQueue();
  }

  /**
   * One call at a time, for all that came meanwhile: a failure that it tells of may be of anything that was
   * written before it ended.
   */
  async #confirmQueue(): Promise<void> {
    const { store } = this.#options;
    this.#confirming = true;
    while (this.#queue.length > 0) {
      const batch = this.#queue;
      this.#queue = [];
      this.#gathered = [];
      let failure: unknown = null;
      try {
        await store.writeBack!(byteRangesOf(batch.flatMap(({ runs }) => runs)));
      } catch (error) {
        failure = error;
        this.#refusals++;
      }
      for (const { refusals, confirmed, refused } of batch) {
        if (refusals === this.#refusals) confirmed();
        else refused(failure ?? lostError());
      }
    }
    this.#confirming = false;
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

  #content(fetch: Fetch, first: number, end: number): Uint8Array {
    const lastByte = Math.min((end - fetch.first) * BLOCK_BYTES, fetch.contentBytes);
    return fetch.buffer.subarray((first - fetch.first) * BLOCK_BYTES, lastByte);
  }

  #countUnplaced(bytes: number): void {
    if (this.#unplacedBytes === 0) this.#oldestAtMs = this.#options.clock.monotonicMs();
    this.#unplacedBytes += bytes;
    this.#options.onUnplaced?.(this.#unplacedBytes);
  }

  #noteError(error: unknown, fetch: Fetch): void {
    if (this.#error === null) {
      this.#options.logger.warn(
        { error: messageOf(error), firstBlock: fetch.first },
        'cannot keep fetched blocks; they stay absent, and are tried again',
      );
    }
    const code = isGodwitError(error) ? `${error.code}: ` : '';
    this.#error = `storing fetched blocks: ${code}${messageOf(error)}`;
  }
}

/** The runs of blocks that no mutation has taken over. */
export function ownedRuns(fetch: Fetch): Run[] {
  if (fetch.released === null) return [{ first: fetch.first, end: fetch.end }];
  const runs: Run[] = [];
  for (let block = fetch.first; block < fetch.end; block++) {
    if (!owns(fetch, block)) continue;
    const last = runs.at(-1);
    if (last?.end === block) last.end++;
    else runs.push({ first: block, end: block + 1 });
  }
  return runs;
}

/** Neighbours as one, so that there are few calls. */
function byteRangesOf(runs: Run[]): ByteRange[] {
  const merged: Run[] = [];
  for (const { first, end } of runs.sort((left, right) => left.first - right.first)) {
    const last = merged.at(-1);
    if (last !== undefined && last.end >= first) last.end = Math.max(last.end, end);
    else merged.push({ first, end });
  }
  return merged.map(({ first, end }) => ({
    offsetBytes: first * BLOCK_BYTES,
    lengthBytes: (end - first) * BLOCK_BYTES,
  }));
}

function lostError(): GodwitError {
  return new GodwitError('BLOCK_IO', 'a write-back of the local file failed meanwhile', {
    values: { operation: 'write-back' },
    nextAction: 'Look at the kernel log for the disk that fails; move the machine away from this host.',
  });
}
