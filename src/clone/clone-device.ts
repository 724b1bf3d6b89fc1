import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError, messageOf } from '../base/errors.ts';
import { type Logger, silentLogger } from '../base/logger.ts';
import { nextTurn, turnIsLong } from '../base/turn.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { checkRange, closedError } from '../block/range.ts';
import type { BlockRun } from '../freemap/free-map.ts';
import { extentsOfRuns } from '../freemap/run-extents.ts';
import type { ArrivalStore } from './arrival.ts';
import { BitCommitter, type CommitOrder } from './bit-committer.ts';
import { DiskGate } from './disk-gate.ts';
import type { GuestWaits } from './disk-window.ts';
import type { FetchLog } from './fetch-log.ts';
import { type CloneSource, Fetcher, type SourceErrorPolicy } from './fetcher.ts';
import { type HydrationSettings, type HydrationStatus, Hydrator } from './hydrator.ts';
import { ended, type Fetch, InFlight, type Mutation, owns, release } from './in-flight.ts';
import type { LiveMap } from './live-map.ts';
import { type MapMemory, PAGE_BLOCKS } from './map-memory.ts';
import { type CloneMetadata, SECTOR_BLOCKS, SECTOR_WORDS } from './metadata.ts';
import { MissLatency, type MissStatistics } from './miss-latency.ts';
import { ReadAhead } from './read-ahead.ts';
import { blockCountOf, ValidityMap } from './validity-map.ts';
import type { ZeroLog } from './zero-log.ts';

export type CloneDeviceOptions = LiveMap & {
  /** A sparse file that was fresh (all zeros) when the clone was made. */
  local: BlockDevice;
  /**
   * The same file on a handle of its own, for what is fetched (arrival.ts). Where the file has a page cache
   * it is told of each failed write-back once a handle: what a fetched block needs to know must not be taken
   * from the guest's flush, nor the other way round. Default `local`; the owner closes it.
   */
  arrivals?: ArrivalStore;
  /** The sealed volume. Only read. A read may take as long as an outage does. */
  source: CloneSource;
  /** Opened or created for this clone. */
  metadata: CloneMetadata;
  /**
   * True: the live map is that of an earlier process of this boot. False: it is fresh, and what is durable
   * counts.
   */
  validityIsCurrent: boolean;
  /** Opened or created for this clone: the digest of all that is fetched. */
  fetchLog?: FetchLog;
  /**
   * Opened or created for this clone: discards and zeroing that cut absent blocks need no source. Without it
   * they wait, as writes do.
   */
  zeroLog?: ZeroLog;
  /**
   * Of as many blocks: those that a guest overwrote, or may have. Set before the data changes, here and by
   * whoever else writes to present blocks; so a block whose bit is clear after it was read has the content
   * that was fetched.
   */
  written?: MapMemory;
  /**
   * True: `written` is that of an earlier process of this boot. False: who wrote what is not known, and every
   * present block may have been overwritten.
   */
  writtenIsCurrent?: boolean;
  clock: Clock;
  logger?: Logger;
  /** Unit of addressing. Default 512. */
  blockBytes?: 512 | 4096;
  /** Default: running, without a limit. */
  hydration?: HydrationSettings;
  /** Default `wait`: the guest never sees an error of the source. */
  sourceErrorPolicy?: SourceErrorPolicy;
  /**
   * Smallest hydration window. Below 64 KiB it is a share of time (hydration-window.ts). Default 4 KiB: a
   * sixteenth.
   */
  windowFloorBytes?: number;
  /** Background bytes in flight at most. Default 8 MiB. */
  windowMaxBytes?: number;
  /** How often bits are made durable without a flush of the guest. Default 2,000. */
  commitIntervalMs?: number;
  /**
   * Hydrated bytes that may be written and not durable; then hydration waits for a commit. Default 512 MiB.
   */
  uncommittedBytesMax?: number;
  /**
   * True: others write to local blocks past this device (attach/hot-thread.ts). Which of those writes stand
   * on bits that are not durable is known from `written`; without it every flush makes all bits durable.
   * Default false.
   */
  localWrittenByOthers?: boolean;
  /**
   * Throws when the guest must be answered nothing any more, because what it wrote is lost: the source has
   * older content of a block whose bit went with it. Looked at by every request of the guest.
   */
  checkGuest?: () => void;
  /** Fetched bytes between the wire and their place at most; then misses wait too. Default 64 MiB. */
  heldBytesMax?: number;
  /** Told whenever it changes: fetched bytes that a SIGKILL would make the next process fetch again. */
  onUnplaced?: (bytes: number) => void;
  /** Payload that earlier processes counted for this clone. */
  wireBytesBefore?: number;
  /** All blocks are local, durably. Called once, also for a clone that is opened whole. */
  onHydrated?: () => void;
};

/** Only for tests of the tests. */
export type CloneDeviceSeams = { commitOrder?: CommitOrder };

const SECTOR_BYTES = 512;
const DEFAULT_BLOCK_BYTES = SECTOR_BYTES;
const WINDOW_FLOOR_BYTES = 4 * 1024;
const WINDOW_MAX_BYTES = 8 * 2 ** 20;
const COMMIT_INTERVAL_MS = 2_000;
const UNCOMMITTED_BYTES_MAX = 512 * 2 ** 20;
/** Pages of the map of written blocks that are looked at between two commits. */
const COMPACTED_PAGES = 256;
/**
 * The background copy rests while so much that arrived is on its way to the disk: the guest's own writes
 * queue behind it there.
 */
const UNPLACED_BACKGROUND_BYTES_MAX = 16 * 2 ** 20;
/** After a full local disk or a failing source. */
const HOLD_AFTER_FAILURE_MS = 1_000;

/** One guest mutation, as the shared path of write, discard and writeZeroes needs it. */
type Change = {
  offsetBytes: number;
  lengthBytes: number;
  /** Does it to a part of the local device. */
  apply: (offsetBytes: number, lengthBytes: number) => Promise<void>;
  /** It makes its range zeros. */
  zeroes: boolean;
  /**
   * Does it to a part of the content of one block: bytes [from, to) of the device, the block's content
   * beginning at `blockStart`.
   */
  merge: (content: Uint8Array, blockStart: number, from: number, to: number) => void;
};

/**
 * The asynchronous clone: a device that is whole at once, though its blocks are still at the source. A block
 * is read from the source when somebody needs it or the hydrator gets to it, is stored locally, and never
 * read there again. Writes stay local.
 *
 * What holds, and why:
 * - A block is present when its bit is set. The bit of a fetched block is set after the disk has its bytes
 *   (arrival.ts), that of a written one after the write. So reads of present blocks (also by other threads)
 *   need only the local device, and it never goes back.
 * - An absent block has at most one owner (in-flight.ts). Fetches of a block, and mutations of it, so happen
 *   one after the other; a mutation of whole blocks takes them over from a fetch that is on the wire.
 * - All mutations go through this object (it has to know which of them stand on bits that are not durable
 *   yet), or it is told that others write to present blocks, and then every flush makes every bit durable.
 * - Flush: data durable, then bits, then the answer (bit-committer.ts).
 *
 * Errors beside those of the contract: `CLONE_SOURCE_FAILED` (policy `error`, or when the source was given
 * up), `CLONE_WRONG_LENGTH` from `open`, `CLONE_NOT_COMPLETE` from `finish`, and what `CloneMetadata.load`
 * rejects with.
 */
export class CloneDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly writable = true;
  readonly #options: CloneDeviceOptions;
  readonly #local: BlockDevice;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #validity: ValidityMap;
  readonly #committer: BitCommitter;
  readonly #written: ValidityMap | null;
  readonly #fetcher: Fetcher;
  readonly #hydrator: Hydrator;
  readonly #inFlight = new InFlight();
  readonly #gate: DiskGate;
  readonly #readAhead: ReadAhead;
  readonly #missLatency = new MissLatency();
  readonly #localMutations = new Set<Promise<void>>();
  #uncommittedBytes = 0;
  #committing = false;
  /** Why bits could not be made durable at the last try; null: they could. */
  #commitError: string | null = null;
  #cancelCommitTimer: () => void = () => {};
  #completeNoted = false;
  #started = false;
  #finished = false;
  #closed = false;

  private constructor(options: CloneDeviceOptions, validity: ValidityMap, committer: BitCommitter) {
    this.#options = options;
    this.lengthBytes = options.metadata.identity.lengthBytes;
    this.blockBytes = options.blockBytes ?? DEFAULT_BLOCK_BYTES;
    this.#local = options.local;
    this.#clock = options.clock;
    this.#logger = options.logger ?? silentLogger;
    this.#validity = validity;
    this.#committer = committer;
    this.#written = options.written
      ? new ValidityMap(options.written, validity.blockCount, { counted: false })
      : null;
    // They have not the content that will be fetched, and after a power cut nothing else says so.
    for (const block of options.zeroLog?.blocks ?? []) this.#written?.setRange(block, block + 1);
    this.#readAhead = new ReadAhead(validity.blockCount);
    const maxBytes = options.windowMaxBytes ?? WINDOW_MAX_BYTES;
    this.#gate = new DiskGate(options.clock, maxBytes);
    this.#fetcher = new Fetcher({
      store: options.arrivals ?? options.local,
      source: options.source,
      validity,
      inFlight: this.#inFlight,
      committer,
      log: options.fetchLog ?? null,
      zeros: options.zeroLog ?? null,
      gate: this.#gate,
      clock: options.clock,
      logger: this.#logger,
      policy: options.sourceErrorPolicy ?? 'wait',
      onEnded: (fetch, stored) => this.#fetchEnded(fetch, stored),
      ...(options.onUnplaced && { onUnplaced: options.onUnplaced }),
      ...(options.heldBytesMax !== undefined && { heldBytesMax: options.heldBytesMax }),
    });
    const uncommittedBytesMax = options.uncommittedBytesMax ?? UNCOMMITTED_BYTES_MAX;
    this.#hydrator = new Hydrator({
      local: options.local,
      source: options.source,
      validity,
      inFlight: this.#inFlight,
      fetcher: this.#fetcher,
      committer,
      gate: this.#gate,
      clock: options.clock,
      logger: this.#logger,
      settings: options.hydration ?? { paused: false, rateBytesPerSecondMax: 0 },
      limits: {
        floorBytes: options.windowFloorBytes ?? WINDOW_FLOOR_BYTES,
        maxBytes,
      },
      mayStore: () =>
        this.#uncommittedBytes < uncommittedBytesMax &&
        this.#fetcher.unplacedBytes < UNPLACED_BACKGROUND_BYTES_MAX,
      onMarked: () => this.#noteCompletion(),
    });
  }

  /** Loads the durable bits. Hydration begins with `start`. */
  static async open(options: CloneDeviceOptions, seams: CloneDeviceSeams = {}): Promise<CloneDevice> {
    const { metadata, local, source } = options;
    const { lengthBytes } = metadata.identity;
    for (const [what, device] of Object.entries({ local, source })) {
      if (device.lengthBytes === lengthBytes) continue;
      throw new GodwitError(
        'CLONE_WRONG_LENGTH',
        `the ${what} has ${device.lengthBytes} bytes, the clone ${lengthBytes}`,
        {
          values: { what, found: device.lengthBytes, expected: lengthBytes },
          nextAction:
            'This is another volume, or it was cut short; look at the volume records of both workers.',
        },
      );
    }
    const blockBytes = options.blockBytes ?? DEFAULT_BLOCK_BYTES;
    assert(local.blockBytes <= blockBytes, 'the local device can address what the clone can');
    const validity = new ValidityMap(options.validity, blockCountOf(lengthBytes));
    const { fetchLog } = options;
    const written = options.written ? new ValidityMap(options.written, validity.blockCount) : null;
    const committer = new BitCommitter(
      local,
      metadata,
      validity,
      options.owed,
      fetchLog ? { log: fetchLog, written } : { log: null },
      seams.commitOrder,
    );
    await loadDurableBits(
      metadata,
      validity,
      options.validityIsCurrent,
      options.writtenIsCurrent ? null : written,
    );
    return new CloneDevice(options, validity, committer);
  }

  /**
   * Discards blocks that nobody needs (the free map of the filesystem), given as ascending runs: they read as
   * zeros and are not fetched. For the first opening of a generation, before `start` and before any guest,
   * because afterwards a guest may know their content. Sets bits and does no I/O a block: only what is a hole
   * of the local file counts, for bytes in an absent block are left over from a write that a crash cut off.
   * As with any discard, the guest's next flush makes it last. Returns how many blocks were marked.
   * Idempotent.
   */
  async markUnused(runs: Iterable<BlockRun>): Promise<number> {
    this.#check(0, 0);
    assert(!this.#started, 'unused blocks are marked before anybody can read them');
    let marked = 0;
    for await (const { first, end, kind } of extentsOfRuns(this.#local, runs)) {
      if (kind === 'data') continue;
      if (this.#validity.hasAll(first, end)) continue;
      this.#committer.unused(first, end);
      marked += this.#validity.setRange(first, end);
    }
    return marked;
  }

  /** Starts the background copy and the periodic commits. */
  start(): void {
    assert(!this.#closed && !this.#finished, 'a clone is started while it is open');
    this.#started = true;
    this.#armCommitTimer();
    this.#hydrator.start();
    this.#noteCompletion();
  }

  /**
   * The source will not come back: reads that wait for it, and those that will, fail with
   * `CLONE_SOURCE_FAILED` when the source device rejects. Nothing more is hydrated. What is local stays as it
   * is.
   */
  giveUpSource(): void {
    this.#hydrator.configure({ paused: true, rateBytesPerSecondMax: 0 });
    this.#fetcher.stopWaiting();
  }

  /**
   * `waits` tells what the guest waited for since it was asked last, but for the source: the background copy
   * stands back at the local disk for that.
   */
  watchGuest(waits: () => GuestWaits): void {
    this.#gate.watch(waits);
  }

  /**
   * Pauses, resumes or limits the background copy. Misses of the guest, and read-ahead, are not held back.
   */
  configureHydration(settings: HydrationSettings): void {
    this.#hydrator.configure(settings);
  }

  /**
   * Bring these ranges first and in this order, also while the background copy is paused; behind misses and
   * read-ahead. What of them lies outside the device is left out. Before `start` too.
   */
  warm(ranges: readonly { offsetBytes: number; lengthBytes: number }[]): void {
    const { blockCount } = this.#validity;
    this.#hydrator.warm(
      ranges
        .map(({ offsetBytes, lengthBytes }) => ({
          first: firstBlockOf(offsetBytes),
          end: Math.min(blockCount, endBlockOf(offsetBytes + lengthBytes)),
        }))
        .filter(({ first, end }) => first < end),
    );
  }

  get hydrationSettings(): HydrationSettings {
    return this.#hydrator.settings;
  }

  /**
   * Every block is local, and all that is known of what came is recorded: nothing is added to the log any
   * more but by a mend.
   */
  get complete(): boolean {
    return this.#validity.complete && !this.#fetcher.placing;
  }

  hydrationStatus(): HydrationStatus {
    const status = this.#hydrator.status(this.#options.wireBytesBefore ?? 0);
    return { ...status, lastError: this.#commitError ?? status.lastError };
  }

  missStatistics(): MissStatistics {
    return this.#missLatency.statistics();
  }

  read(offsetBytes: number, into: Uint8Array): Promise<void> {
    try {
      this.#checkRequest(offsetBytes, into.length);
    } catch (error) {
      return Promise.reject(error);
    }
    if (into.length === 0) return Promise.resolve();
    const endBytes = offsetBytes + into.length;
    if (this.#validity.hasAll(firstBlockOf(offsetBytes), endBlockOf(endBytes))) {
      return this.#local.read(offsetBytes, into);
    }
    return this.#readMissing(offsetBytes, into);
  }

  readNow(offsetBytes: number, into: Uint8Array): boolean {
    if (this.#closed || into.length === 0 || !this.#local.readNow) return false;
    const endBytes = offsetBytes + into.length;
    if (offsetBytes < 0 || endBytes > this.lengthBytes) return false;
    if (!this.#validity.hasAll(firstBlockOf(offsetBytes), endBlockOf(endBytes))) return false;
    return this.#local.readNow(offsetBytes, into);
  }

  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    this.#checkRequest(offsetBytes, from.length);
    await this.#mutate({
      offsetBytes,
      lengthBytes: from.length,
      zeroes: false,
      apply: (start, length) =>
        this.#local.write(start, from.subarray(start - offsetBytes, start - offsetBytes + length)),
      merge: (content, blockStart, start, end) =>
        content.set(from.subarray(start - offsetBytes, end - offsetBytes), start - blockStart),
    });
  }

  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkRequest(offsetBytes, lengthBytes);
    await this.#mutate({
      offsetBytes,
      lengthBytes,
      zeroes: true,
      apply: (start, length) => this.#local.discard(start, length),
      merge: (content, blockStart, start, end) => content.fill(0, start - blockStart, end - blockStart),
    });
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkRequest(offsetBytes, lengthBytes);
    await this.#mutate({
      offsetBytes,
      lengthBytes,
      zeroes: true,
      apply: (start, length) => this.#local.writeZeroes(start, length),
      merge: (content, blockStart, start, end) => content.fill(0, start - blockStart, end - blockStart),
    });
  }

  async flush(): Promise<void> {
    this.#checkRequest(0, 0);
    const ended = this.#gate.flushing();
    try {
      await Promise.all([this.#flushData(), this.#options.zeroLog?.flush()]);
    } finally {
      ended();
    }
  }

  /**
   * Ends the clone once it is complete: all data and bits durable, no timer left, the source not used again
   * (the caller closes it). The device goes on serving from the local one. Error: `CLONE_NOT_COMPLETE`.
   * Idempotent.
   */
  async finish(): Promise<void> {
    this.#check(0, 0);
    this.checkComplete();
    this.#hydrator.stop();
    await this.#commitEverything();
    if (this.#committer.logFailure !== null) throw this.#committer.logFailure;
    this.#finished = true;
    this.#cancelCommitTimer();
  }

  /** Throws `CLONE_NOT_COMPLETE` while blocks are missing. */
  checkComplete(): void {
    if (!this.complete) {
      const { blocksTotal, blocksPresent } = this.hydrationStatus();
      const absent = blocksTotal - blocksPresent;
      throw new GodwitError(
        'CLONE_NOT_COMPLETE',
        absent > 0
          ? `${absent} blocks are still only at the source`
          : 'the last blocks that came are not recorded yet',
        {
          values: { blocksTotal, blocksPresent },
          nextAction: 'Wait until hydration is complete; resume it if it is paused.',
        },
      );
    }
  }

  /**
   * Stops everything; requests that wait for the source reject with `BLOCK_CLOSED`. Resolves when nothing
   * writes to the local device or the metadata any more. Does not flush. Closes the local device, the
   * metadata and the fetch log; the source is the caller's.
   */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#hydrator.stop();
    this.#cancelCommitTimer();
    await this.#fetcher.close();
    await Promise.allSettled(this.#localMutations);
    await this.#committer.settled();
    await this.#local.close();
    await this.#options.metadata.close();
    await this.#options.fetchLog?.close();
    await this.#options.zeroLog?.close();
  }

  #checkRequest(offsetBytes: number, lengthBytes: number): void {
    this.#check(offsetBytes, lengthBytes);
    this.#options.checkGuest?.();
  }

  #check(offsetBytes: number, lengthBytes: number): void {
    if (this.#closed) throw closedError();
    checkRange(this, offsetBytes, lengthBytes);
  }

  // --- reads
  // ---------------------------------------------------------------------------------------------------------

  async #readMissing(offsetBytes: number, into: Uint8Array): Promise<void> {
    const first = firstBlockOf(offsetBytes);
    const end = endBlockOf(offsetBytes + into.length);
    const startedAtMs = this.#clock.monotonicMs();
    const backgroundBytes = this.#fetcher.backgroundBytes;
    const reading = this.#readBlocks(first, end, offsetBytes, into);
    // After the miss itself, which is on its way by now.
    const ahead = this.#readAhead.observe(first, end);
    if (ahead !== null) this.#hydrator.readAhead(ahead);
    await reading;
    this.#noteMiss(startedAtMs, backgroundBytes);
  }

  /** Reads the part of `into` (which begins at `offsetBytes`) that lies in the blocks [first, end). */
  async #readBlocks(first: number, end: number, offsetBytes: number, into: Uint8Array): Promise<void> {
    const parts: Promise<void>[] = [];
    for (let block = first; block < end; ) {
      const absent = this.#validity.firstAbsent(block, end);
      if (absent > block) parts.push(this.#readLocal(block, absent, offsetBytes, into));
      if (absent === end) break;
      block = this.#readAbsent(absent, this.#validity.firstPresent(absent, end), offsetBytes, into, parts);
    }
    await Promise.all(parts);
  }

  #readLocal(first: number, end: number, offsetBytes: number, into: Uint8Array): Promise<void> {
    const start = Math.max(first * BLOCK_BYTES, offsetBytes);
    const stop = Math.min(end * BLOCK_BYTES, offsetBytes + into.length);
    return this.#local.read(start, into.subarray(start - offsetBytes, stop - offsetBytes));
  }

  /** Reads the longest run from `first` on that has one owner, or none; returns its end. */
  #readAbsent(
    first: number,
    limit: number,
    offsetBytes: number,
    into: Uint8Array,
    parts: Promise<void>[],
  ): number {
    const owner = this.#inFlight.ownerOf(first);
    let end = first + 1;
    const endMax = Math.min(
      limit,
      owner === null ? this.#fetcher.refused.endOf(first, this.#options.clock.monotonicMs()) : owner.end,
    );
    while (end < endMax && this.#inFlight.ownerOf(end) === owner) end++;
    if (owner?.kind === 'mutation') {
      parts.push(ended(owner).then(() => this.#readAgain(first, end, offsetBytes, into)));
    } else {
      parts.push(
        this.#copyWhenArrived(
          owner ?? this.#fetcher.start(first, end, 'miss'),
          first,
          end,
          offsetBytes,
          into,
        ),
      );
    }
    return end;
  }

  #readAgain(first: number, end: number, offsetBytes: number, into: Uint8Array): Promise<void> {
    if (this.#closed) return Promise.reject(closedError());
    return this.#readBlocks(first, end, offsetBytes, into);
  }

  #copyWhenArrived(
    fetch: Fetch,
    first: number,
    end: number,
    offsetBytes: number,
    into: Uint8Array,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#fetcher.whenArrived(fetch, {
        arrived: () => {
          const start = Math.max(first * BLOCK_BYTES, offsetBytes);
          const stop = Math.min(end * BLOCK_BYTES, offsetBytes + into.length);
          const base = fetch.first * BLOCK_BYTES;
          into.set(fetch.buffer.subarray(start - base, stop - base), start - offsetBytes);
          resolve();
        },
        failed: reject,
        again: () => resolve(this.#readAgain(first, end, offsetBytes, into)),
      });
    });
  }

  // --- mutations
  // -----------------------------------------------------------------------------------------------------

  /**
   * What waits for the source is only a block that is absent and covered in part, and it owns nothing while
   * it waits. The whole blocks between two such ends are changed at once.
   */
  async #mutate(change: Change): Promise<void> {
    if (change.lengthBytes === 0) return;
    const { offsetBytes } = change;
    const endBytes = offsetBytes + change.lengthBytes;
    const first = firstBlockOf(offsetBytes);
    const end = endBlockOf(endBytes);
    this.#written?.setRange(first, end);
    const parts: Promise<void>[] = [];
    let wholeFirst = first;
    let wholeEnd = end;
    for (const block of first === end - 1 ? [first] : [first, end - 1]) {
      const start = block * BLOCK_BYTES;
      const stop = Math.min(start + BLOCK_BYTES, this.lengthBytes);
      if ((offsetBytes <= start && endBytes >= stop) || this.#validity.has(block)) continue;
      parts.push(this.#changePart(change, block, Math.max(start, offsetBytes), Math.min(stop, endBytes)));
      if (block === first) wholeFirst = first + 1;
      if (block === end - 1) wholeEnd = end - 1;
    }
    if (wholeFirst < wholeEnd) parts.push(this.#changeWhole(change, wholeFirst, wholeEnd));
    if (parts.length === 1) return parts[0];
    // All of them, also when one failed: the buffer is the caller's again afterwards.
    const results = await Promise.allSettled(parts);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  /** The blocks [first, end): each is covered by the change, or local. */
  async #changeWhole(change: Change, first: number, end: number): Promise<void> {
    const start = Math.max(first * BLOCK_BYTES, change.offsetBytes);
    const lengthBytes = Math.min(end * BLOCK_BYTES, change.offsetBytes + change.lengthBytes) - start;
    while (!this.#validity.hasAll(first, end)) {
      const blocker = this.#inFlight.blockerOf(first, end);
      if (blocker === null) {
        this.#inFlight.takeOver(first, end);
        return this.#makeLocal(first, end, () => change.apply(start, lengthBytes));
      }
      await ended(blocker);
      if (this.#closed) throw closedError();
    }
    await this.#tracked(change.apply(start, lengthBytes));
    this.#committer.overwritten(first, end);
  }

  /** The bytes [from, to) of a block that the change does not cover. */
  async #changePart(change: Change, block: number, from: number, to: number): Promise<void> {
    const startedAtMs = this.#clock.monotonicMs();
    const { backgroundBytes } = this.#fetcher;
    while (!this.#validity.has(block)) {
      const owner = this.#inFlight.ownerOf(block);
      if (owner !== null && (owner.kind === 'mutation' || owner.state === 'storing')) {
        await ended(owner); // nothing of this is at the source
      } else if (change.zeroes && owner?.state !== 'stored' && (await this.#zeroPart(block, from, to))) {
        return;
      } else {
        const content = await this.#takeContent(block, owner);
        if (content !== null) {
          this.#noteMiss(startedAtMs, backgroundBytes);
          return this.#storeMerged(change, content, block, from, to);
        }
      }
      if (this.#closed) throw closedError();
    }
    await this.#tracked(change.apply(from, to - from));
    this.#committer.overwritten(block, block + 1);
  }

  /**
   * Zeroes a part of an absent block without its content, which gets the zeros when it arrives. False: that
   * cannot be, and nothing was done. A block that has no other content left is local.
   */
  async #zeroPart(block: number, from: number, to: number): Promise<boolean> {
    const zeros = this.#options.zeroLog;
    if (!zeros || zeros.full) return false;
    const start = block * BLOCK_BYTES;
    const stop = Math.min(start + BLOCK_BYTES, this.lengthBytes);
    const mask = sectorMask(from - start, to - start);
    const before = zeros.maskOf(block);
    const whole = sectorMask(0, stop - start);
    if (((before | mask) & whole) === whole) {
      this.#inFlight.takeOver(block, block + 1);
      await this.#makeLocal(block, block + 1, () => this.#local.writeZeroes(start, stop - start));
      return true;
    }
    await zeros.add(block, mask);
    return true;
  }

  /**
   * The content of an absent block, from the fetch that brings it or (owner null) by one of its own. From
   * then on a mutation owns the block, and the caller has to store it. Null: the block has come, or has
   * another owner.
   */
  #takeContent(
    block: number,
    owner: Fetch | null,
  ): Promise<{ bytes: Uint8Array; mutation: Mutation } | null> {
    const fetch = owner ?? this.#fetcher.start(block, block + 1, 'miss');
    const lengthBytes = Math.min(BLOCK_BYTES, this.lengthBytes - block * BLOCK_BYTES);
    return new Promise((resolve, reject) => {
      this.#fetcher.whenArrived(fetch, {
        arrived: () => {
          if (!owns(fetch, block)) return resolve(null);
          const from = (block - fetch.first) * BLOCK_BYTES;
          release(fetch, block, block + 1);
          const mutation: Mutation = { kind: 'mutation', first: block, end: block + 1, waiters: [] };
          this.#inFlight.add(mutation);
          resolve({ bytes: new Uint8Array(fetch.buffer.subarray(from, from + lengthBytes)), mutation });
        },
        failed: reject,
        again: () => resolve(null),
      });
    });
  }

  async #storeMerged(
    change: Change,
    { bytes, mutation }: { bytes: Uint8Array; mutation: Mutation },
    block: number,
    from: number,
    to: number,
  ): Promise<void> {
    const start = block * BLOCK_BYTES;
    change.merge(bytes, start, from, to);
    const store = async () => {
      await this.#fetcher.vouched();
      await this.#local.write(start, bytes);
    };
    await this.#makeLocal(block, block + 1, store, mutation);
  }

  /**
   * Blocks [first, end), some of them absent and none with another owner, get content that needs no source.
   */
  async #makeLocal(first: number, end: number, store: () => Promise<void>, owning?: Mutation): Promise<void> {
    const mutation: Mutation = owning ?? { kind: 'mutation', first, end, waiters: [] };
    if (owning === undefined) this.#inFlight.add(mutation);
    try {
      if (this.#closed) throw closedError();
      await this.#tracked(store());
      this.#committer.written(first, end);
      this.#validity.setRange(first, end);
    } catch (error) {
      this.#hydrator.failedHalfWay();
      throw error;
    } finally {
      this.#inFlight.remove(mutation);
    }
    this.#noteCompletion();
  }

  /** Remembers a local mutation until it has settled, for `close`. */
  async #tracked(work: Promise<void>): Promise<void> {
    this.#localMutations.add(work);
    try {
      await work;
    } finally {
      this.#localMutations.delete(work);
    }
  }

  // --- commits and completion
  // ----------------------------------------------------------------------------------------

  #fetchEnded(fetch: Fetch, stored: boolean): void {
    if (!stored) this.#hydrator.failedHalfWay();
    if (stored) this.#uncommittedBytes += (fetch.end - fetch.first) * BLOCK_BYTES;
    else this.#hydrator.hold(Math.max(this.#fetcher.backoffMs, HOLD_AFTER_FAILURE_MS));
    if (this.#uncommittedBytes >= (this.#options.uncommittedBytesMax ?? UNCOMMITTED_BYTES_MAX) / 2) {
      void this.#commitInBackground();
    }
    if (fetch.purpose !== 'miss')
      this.#hydrator.fetched(Math.max(0, this.#clock.monotonicMs() - fetch.startedAtMs));
    this.#noteCompletion();
    this.#hydrator.pump();
  }

  #noteMiss(startedAtMs: number, backgroundBytes: number): void {
    const latencyMs = this.#clock.monotonicMs() - startedAtMs;
    this.#missLatency.add(latencyMs);
    this.#hydrator.missed(latencyMs, backgroundBytes);
  }

  /** When the last block has come: makes it durable, then tells. */
  #noteCompletion(): void {
    if (this.#completeNoted || !this.complete) return;
    this.#completeNoted = true;
    void this.#tellHydrated();
  }

  async #tellHydrated(): Promise<void> {
    try {
      await this.#commitEverything();
      if (this.#committer.logFailure !== null) throw this.#committer.logFailure;
    } catch (error) {
      this.#logger.warn(
        { error: messageOf(error) },
        'hydrated, but the last bits could not be made durable yet',
      );
      this.#completeNoted = false; // the next periodic commit tries again
      return;
    }
    if (!this.#closed) this.#options.onHydrated?.();
  }

  /** With the bits that what the guest wrote rests on. */
  #flushData(): Promise<void> {
    if (!this.#options.localWrittenByOthers) return this.#committer.flush();
    return this.#written === null ? this.#commitEverything() : this.#committer.flushWritten(this.#written);
  }

  async #commitEverything(): Promise<void> {
    const owedBytes = this.#uncommittedBytes;
    try {
      await this.#committer.commitAll();
    } catch (error) {
      this.#commitError = `making validity bits durable: ${messageOf(error)}`;
      throw error;
    }
    const { logFailure } = this.#committer;
    this.#commitError =
      logFailure && `making the digests of fetched blocks durable: ${messageOf(logFailure)}`;
    this.#uncommittedBytes -= Math.min(owedBytes, this.#uncommittedBytes);
  }

  async #commitInBackground(): Promise<void> {
    if (this.#committing || this.#closed) return;
    this.#committing = true;
    try {
      await this.#commitEverything();
    } catch (error) {
      // The bits stay dirty: the next commit takes them, and a flush of the guest would report the error to
      // it.
      this.#logger.warn({ error: messageOf(error) }, 'could not make validity bits durable; trying again');
    } finally {
      this.#committing = false;
    }
    this.#hydrator.pump();
  }

  #armCommitTimer(): void {
    this.#cancelCommitTimer = this.#clock.timer(this.#options.commitIntervalMs ?? COMMIT_INTERVAL_MS, () => {
      if (this.#closed || this.#finished) return;
      if (this.#committer.dirty) void this.#commitInBackground();
      this.#written?.compact(COMPACTED_PAGES);
      this.#noteCompletion();
      this.#armCommitTimer();
    });
  }
}

/**
 * The sectors of a block that the bytes [from, to) of it are, one bit each: whole ones, for a zero log is for
 * devices of 512-byte blocks.
 */
function sectorMask(from: number, to: number): number {
  return ((1 << (to / SECTOR_BYTES)) - 1) & ~((1 << (from / SECTOR_BYTES)) - 1);
}

/**
 * Takes over what is durable, where the map does not have it from an earlier process of this boot; such a map
 * has all that is durable, and `owed` says what of it is not. What is local goes into `written` too, where
 * there is one.
 */
async function loadDurableBits(
  metadata: CloneMetadata,
  validity: ValidityMap,
  validityIsCurrent: boolean,
  written: ValidityMap | null,
): Promise<void> {
  if (!validityIsCurrent) {
    // A process that died between writing bits and flushing them leaves bits that can be read and are not
    // durable.
    await metadata.flush();
    const { blockCount } = validity;
    await metadata.load(
      (sector, durable) => {
        validity.orWords(sector * SECTOR_WORDS, durable);
        written?.orWords(sector * SECTOR_WORDS, durable);
      },
      (first, end) => {
        const range = [first * SECTOR_BLOCKS, Math.min(blockCount, end * SECTOR_BLOCKS)] as const;
        validity.setRange(...range);
        written?.setRange(...range);
      },
    );
    return;
  }
  if (written === null) return;
  const { blockCount } = validity;
  for (let block = validity.firstPresent(0, blockCount); block < blockCount; ) {
    const end = validity.firstAbsent(block, Math.min(blockCount, block + PAGE_BLOCKS));
    written.setRange(block, end);
    block = validity.firstPresent(end, blockCount);
    if (turnIsLong()) await nextTurn();
  }
}

function firstBlockOf(offsetBytes: number): number {
  return Math.floor(offsetBytes / BLOCK_BYTES);
}

function endBlockOf(endBytes: number): number {
  return Math.ceil(endBytes / BLOCK_BYTES);
}
