import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { nextTurn, turnIsLong } from '../base/turn.ts';
import type { BlockDevice, Extent } from '../block/block-device.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import type { BitCommitter } from './bit-committer.ts';
import type { DiskGate } from './disk-gate.ts';
import { type CloneSource, FETCH_BLOCKS_MAX, type Fetcher } from './fetcher.ts';
import {
  type HydrationWindow,
  initialWindow,
  regionBytes,
  restMs,
  type WindowLimits,
  windowAfterMiss,
  windowAfterTick,
} from './hydration-window.ts';
import type { InFlight } from './in-flight.ts';
import type { ValidityMap } from './validity-map.ts';

/** What an operator can set while the copy runs. */
export type HydrationSettings = {
  paused: boolean;
  /** Upper bound of the background copy in bytes per second; 0 is none. */
  rateBytesPerSecondMax: number;
};

/** Progress of a clone, as a volume server reports it. */
export type HydrationStatus = {
  state: 'paused' | 'running' | 'source-lost' | 'complete';
  blocksTotal: number;
  blocksPresent: number;
  /** Blocks that are still only at the source, in bytes: what a loss of the source would cost now. */
  exposedBytes: number;
  /** Payload that crossed the wire since the clone was made, as far as it was counted. */
  wireBytes: number;
  /** Blocks that this process fetched although it had fetched them before. */
  blocksFetchedTwice: number;
  bytesPerSecond: number;
  /** null: not known yet, or nothing moves. */
  etaMs: number | null;
  sourceLostForMs: number | null;
  lastError: string | null;
  /** `lastError` is what the source answers: it is not lost, its disk cannot read. Left out: it is not. */
  sourceFails?: true;
};

export type HydratorOptions = {
  local: BlockDevice;
  source: CloneSource;
  validity: ValidityMap;
  inFlight: InFlight;
  fetcher: Fetcher;
  committer: BitCommitter;
  gate: DiskGate;
  clock: Clock;
  logger: Logger;
  settings: HydrationSettings;
  limits: WindowLimits;
  /** False while too much hydrated data is not durable: the copy waits for the next commit. */
  mayStore: () => boolean;
  /** Holes were marked as local. */
  onMarked: () => void;
};

const TICK_MS = 50;
const RATE_SPAN_MS = 5_000;
const READ_AHEAD_RANGES_MAX = 8;
const EXTENTS_LIMIT = 1024;
/** Answers of so many extents each that are looked at while the copy is paused. */
const NOTING_LOOKS_MAX = 8;
/**
 * Marked in one go without letting other work in: some milliseconds. So are as many extents of the local file
 * as are asked for.
 */
const MARK_BYTES_MAX = 64 * 2 ** 30;
const LOCAL_EXTENTS_LIMIT = 128;
const MAP_FAILURES_MAX = 8;
const MAP_RETRY_MS = 500;
const MARK_RETRY_MS = 2_000;
/** A burst of the rate limit, as time at the full rate. */
const RATE_BURST_SECONDS = 0.1;

type Range = { first: number; end: number };

/**
 * The background copy. Misses of the guest never queue here: they go straight to the source. What this
 * decides is how much else may be on the wire (hydration-window.ts) and which blocks: read-ahead first, then
 * what the guest touched most where it came from, then everything absent from front to back. Where the source
 * can tell its holes, they are marked as local without a fetch, and the linear copy stays behind that map.
 */
export class Hydrator {
  readonly #options: HydratorOptions;
  #settings: HydrationSettings;
  #window: HydrationWindow;
  #readAhead: Range[] = [];
  #warm: Range[] = [];
  /** All blocks below are local. */
  #firstAbsentHint = 0;
  #cursor = 0;
  /** The linear copy may fetch below this block: it is known what of it is a hole. */
  #mappedEnd = 0;
  #mapStarted = false;
  /**
   * Holes of the source that are known and whose bits are not set yet, ascending. Nobody fetches them
   * unasked.
   */
  #notedHoles: Range[] = [];
  #noting = false;
  /** Times that what was under way at the local device failed. */
  #failures = 0;
  #stopped = false;
  #running = false;
  #cancelTimer: () => void = () => {};
  #heldUntilMs = 0;
  #restUntilMs = 0;
  #cancelRest: () => void = () => {};
  #allowanceBytes = 0;
  #allowanceAtMs = 0;
  #rateSamples: { atMs: number; wireBytes: number }[] = [];

  constructor(options: HydratorOptions) {
    this.#options = options;
    this.#settings = options.settings;
    this.#window = initialWindow(options.limits);
    if (!options.source.extents || !options.local.extents) this.#mappedEnd = options.validity.blockCount;
  }

  get settings(): HydrationSettings {
    return this.#settings;
  }

  start(): void {
    if (this.#running || this.#stopped) return;
    this.#running = true;
    this.#allowanceAtMs = this.#options.clock.monotonicMs();
    if (this.#settings.paused) void this.#noteHoles();
    this.#tick();
    this.#startMap();
  }

  stop(): void {
    this.#stopped = true;
    this.#cancelTimer();
    this.#cancelRest();
  }

  configure(settings: HydrationSettings): void {
    this.#settings = settings;
    this.#allowanceBytes = 0;
    this.#allowanceAtMs = this.#options.clock.monotonicMs();
    this.#startMap();
    this.pump();
  }

  /** The guest waited for the source. `backgroundBytes` were in flight when it began to. */
  missed(latencyMs: number, backgroundBytes: number): void {
    const nowMs = this.#options.clock.monotonicMs();
    this.#window = windowAfterMiss(this.#window, { nowMs, latencyMs, backgroundBytes }, this.#options.limits);
  }

  /** Bring this soon: a sequential reader is on its way there. */
  readAhead(range: Range): void {
    this.#readAhead.push(range);
    if (this.#readAhead.length > READ_AHEAD_RANGES_MAX) this.#readAhead.shift();
    this.pump();
  }

  /** Bring these first, in this order; read-ahead still goes before them. */
  warm(ranges: Range[]): void {
    this.#warm = ranges;
    this.pump();
  }

  /** A background fetch has ended. */
  fetched(durationMs: number): void {
    const { clock } = this.#options;
    const delayMs = restMs(this.#window, durationMs);
    if (delayMs === 0 || this.#stopped) return;
    this.#restUntilMs = clock.monotonicMs() + delayMs;
    this.#cancelRest();
    this.#cancelRest = clock.timer(Math.ceil(delayMs), () => this.pump());
  }

  /** Leaves the source, or a full disk, alone for a while. */
  hold(delayMs: number): void {
    this.#heldUntilMs = this.#options.clock.monotonicMs() + delayMs;
  }

  /**
   * Something failed half-way, and may have left bytes in absent blocks: what is being learned of holes of
   * the local device is not true any more.
   */
  failedHalfWay(): void {
    this.#failures++;
  }

  /** Starts as many background fetches as are allowed now. Call it whenever that may have changed. */
  pump(): void {
    const { clock, fetcher, mayStore } = this.#options;
    if (!this.#running || this.#stopped) return;
    const nowMs = clock.monotonicMs();
    this.#refillAllowance(nowMs);
    while (fetcher.backgroundBytes < this.#window.windowBytes) {
      if (nowMs < this.#heldUntilMs || nowMs < this.#restUntilMs || !mayStore()) return;
      const bytes = Math.min(regionBytes(this.#window, nowMs), this.#options.gate.regionBytes);
      const blocks = Math.min(FETCH_BLOCKS_MAX, bytes / BLOCK_BYTES);
      const ahead =
        this.#nextOf(this.#readAhead, blocks) ?? (this.#noting ? null : this.#nextOf(this.#warm, blocks));
      if (ahead !== null) {
        fetcher.start(ahead.first, ahead.end, 'readahead');
        continue;
      }
      if (this.#settings.paused || this.#allowanceBytes < 0) return;
      const region = this.#nextRegion(blocks);
      if (region === null) return;
      this.#allowanceBytes -= (region.end - region.first) * BLOCK_BYTES;
      fetcher.start(region.first, region.end, 'hydration');
    }
  }

  status(wireBytesBefore: number): HydrationStatus {
    const { validity, fetcher, clock, source } = this.#options;
    const absentBlocks = validity.blockCount - validity.presentCount;
    const exposedBytes = Math.min(absentBlocks * BLOCK_BYTES, source.lengthBytes);
    const bytesPerSecond = this.#bytesPerSecond();
    const sourceLostForMs = this.#sourceLostForMs(clock.monotonicMs());
    const mapped = this.#mappedEnd >= validity.blockCount;
    const moves = bytesPerSecond > 0 && mapped && !this.#settings.paused && sourceLostForMs === null;
    let state: HydrationStatus['state'] = 'running';
    if (validity.complete && !fetcher.placing) state = 'complete';
    else if (sourceLostForMs !== null) state = 'source-lost';
    else if (this.#settings.paused) state = 'paused';
    return {
      state,
      blocksTotal: validity.blockCount,
      blocksPresent: validity.presentCount,
      exposedBytes,
      wireBytes: wireBytesBefore + fetcher.wireBytes,
      blocksFetchedTwice: fetcher.blocksFetchedTwice,
      bytesPerSecond: state === 'complete' ? 0 : bytesPerSecond,
      etaMs: state === 'complete' ? 0 : moves ? Math.round((exposedBytes / bytesPerSecond) * 1000) : null,
      sourceLostForMs,
      lastError: fetcher.lastError,
      ...(fetcher.answersWithError && { sourceFails: true }),
    };
  }

  #sourceLostForMs(nowMs: number): number | null {
    const { fetcher, validity } = this.#options;
    if (validity.complete) return null;
    if (fetcher.failingSinceMs !== null) return Math.round(nowMs - fetcher.failingSinceMs);
    const silentForMs = fetcher.silentForMs(nowMs);
    return silentForMs === null ? null : Math.round(silentForMs);
  }

  #tick(): void {
    const { clock, validity, limits, fetcher } = this.#options;
    if (this.#stopped || validity.complete) return;
    const nowMs = clock.monotonicMs();
    this.#window = windowAfterTick(this.#window, nowMs, limits);
    this.#options.gate.tick(nowMs);
    this.#rateSamples.push({ atMs: nowMs, wireBytes: fetcher.wireBytes });
    while (this.#rateSamples[0]!.atMs < nowMs - RATE_SPAN_MS) this.#rateSamples.shift();
    this.pump();
    this.#cancelTimer = clock.timer(TICK_MS, () => this.#tick());
  }

  #bytesPerSecond(): number {
    const first = this.#rateSamples[0];
    const last = this.#rateSamples.at(-1);
    if (first === undefined || last === undefined || last.atMs <= first.atMs) return 0;
    return Math.round(((last.wireBytes - first.wireBytes) / (last.atMs - first.atMs)) * 1000);
  }

  #refillAllowance(nowMs: number): void {
    const rate = this.#settings.rateBytesPerSecondMax;
    const elapsedMs = nowMs - this.#allowanceAtMs;
    this.#allowanceAtMs = nowMs;
    this.#allowanceBytes =
      rate === 0
        ? Number.POSITIVE_INFINITY
        : Math.min(rate * RATE_BURST_SECONDS, this.#allowanceBytes + (rate * elapsedMs) / 1000);
  }

  /** The next absent, unowned run of the ranges; those that have none left are dropped. */
  #nextOf(ranges: Range[], blocks: number): Range | null {
    for (let range = ranges[0]; range !== undefined; range = ranges[0]) {
      const found = this.#freeRun(range.first, range.end, blocks);
      if (found === null) {
        ranges.shift();
        continue;
      }
      const hole = this.#notedHoleFrom(found.first);
      if (hole !== null && hole.first <= found.first) {
        range.first = hole.end;
        continue;
      }
      if (hole !== null) found.end = Math.min(found.end, hole.first);
      range.first = found.end;
      return found;
    }
    return null;
  }

  /**
   * The next absent, unowned run for the linear copy, inside one region of `blocks`; from the front again
   * after the end.
   */
  #nextRegion(blocks: number): Range | null {
    const { validity } = this.#options;
    this.#firstAbsentHint = validity.firstAbsent(this.#firstAbsentHint, validity.blockCount);
    const limit = this.#mappedEnd;
    let found = this.#freeRun(Math.max(this.#cursor, this.#firstAbsentHint), limit, blocks);
    found ??= this.#freeRun(this.#firstAbsentHint, Math.min(this.#cursor, limit), blocks);
    if (found !== null) this.#cursor = found.end;
    return found;
  }

  /**
   * The first run of [from, limit) that is absent and has no owner: at most `blocks`, and not across a
   * multiple of that.
   */
  #freeRun(from: number, limit: number, blocks: number): Range | null {
    const { validity, inFlight, clock, fetcher } = this.#options;
    const nowMs = clock.monotonicMs();
    for (let block = validity.firstAbsent(from, limit); block < limit; ) {
      const rested = fetcher.refused.restsUntil(block, nowMs);
      if (rested > block) {
        block = validity.firstAbsent(Math.min(limit, rested), limit);
        continue;
      }
      const regionEnd = Math.min(
        limit,
        (Math.floor(block / blocks) + 1) * blocks,
        fetcher.refused.endOf(block, nowMs),
      );
      const absentEnd = validity.firstPresent(block, regionEnd);
      const first = inFlight.firstFree(block, absentEnd);
      if (first < absentEnd) return { first, end: inFlight.firstOwned(first, absentEnd) };
      block = validity.firstAbsent(absentEnd, limit);
    }
    return null;
  }

  /**
   * Not while paused: a machine that boots would wait at its first flush for the bits of all holes to become
   * durable.
   */
  #startMap(): void {
    if (!this.#running || this.#stopped || this.#settings.paused || this.#mapStarted) return;
    this.#mapStarted = true;
    this.#notedHoles = [];
    if (this.#mappedEnd < this.#options.validity.blockCount) void this.#readMap();
  }

  /**
   * While the copy is paused no hole is marked, but what is brought ahead of a booting guest should not be
   * zeros: so a bounded look at the holes. Never rejects.
   */
  async #noteHoles(): Promise<void> {
    const { source, validity } = this.#options;
    if (this.#mappedEnd >= validity.blockCount) return;
    this.#noting = true;
    try {
      let offsetBytes = 0;
      for (let looks = 0; looks < NOTING_LOOKS_MAX && offsetBytes < source.lengthBytes; looks++) {
        const extents = await source.extents!(offsetBytes, source.lengthBytes - offsetBytes, EXTENTS_LIMIT);
        if (this.#stopped || this.#mapStarted) return;
        for (const extent of extents) {
          offsetBytes = extent.offsetBytes + extent.lengthBytes;
          const first = Math.ceil(extent.offsetBytes / BLOCK_BYTES);
          const end = Math.floor(offsetBytes / BLOCK_BYTES);
          if (extent.kind === 'hole' && first < end) this.#notedHoles.push({ first, end });
        }
      }
    } catch {
      // A help and no more; the map proper reports what is wrong.
    } finally {
      this.#noting = false;
      this.pump();
    }
  }

  /** The first noted hole that ends behind `block`. */
  #notedHoleFrom(block: number): Range | null {
    const holes = this.#notedHoles;
    let low = 0;
    for (let high = holes.length; low < high; ) {
      const middle = (low + high) >>> 1;
      if (holes[middle]!.end <= block) low = middle + 1;
      else high = middle;
    }
    return holes[low] ?? null;
  }

  /** Walks the source's map of holes once, from the first absent block to the end. Never rejects. */
  async #readMap(): Promise<void> {
    const { source, validity, clock, logger } = this.#options;
    let failures = 0;
    let offsetBytes = validity.firstAbsent(0, validity.blockCount) * BLOCK_BYTES;
    const waitAfter = (error: unknown, delayMs: number) => {
      logger.warn({ error: messageOf(error), failures }, 'could not take over the map of holes');
      return new Promise<void>((resolve) => clock.timer(delayMs, resolve));
    };
    while (offsetBytes < source.lengthBytes && !this.#stopped) {
      let extents: Extent[];
      try {
        extents = await source.extents!(offsetBytes, source.lengthBytes - offsetBytes, EXTENTS_LIMIT);
        failures = 0;
      } catch (error) {
        failures++;
        if (failures === MAP_FAILURES_MAX) break; // everything is copied then: slower, and just as right
        await waitAfter(error, MAP_RETRY_MS * failures);
        continue;
      }
      try {
        // Of which disk they are the holes.
        await this.#options.fetcher.vouched();
        for (const extent of extents) {
          const endBytes = extent.offsetBytes + extent.lengthBytes;
          if (extent.kind === 'hole') await this.#markHole(extent.offsetBytes, endBytes);
          offsetBytes = endBytes;
          this.#mappedEnd = Math.floor(endBytes / BLOCK_BYTES);
        }
        this.pump();
      } catch (error) {
        // No memory for the bits, or a local disk that fails: that is no reason to fetch terabytes of zeros.
        await waitAfter(error, MARK_RETRY_MS);
      }
    }
    this.#mappedEnd = validity.blockCount;
    this.pump();
  }

  async #markHole(startBytes: number, endBytes: number): Promise<void> {
    for (let start = startBytes; start < endBytes; ) {
      if (turnIsLong()) await nextTurn();
      if (this.#stopped) return;
      const end = Math.min(endBytes, start + MARK_BYTES_MAX);
      const failures = this.#failures;
      const extents = await this.#options.local.extents!(start, end - start, LOCAL_EXTENTS_LIMIT);
      if (failures !== this.#failures) continue;
      // Nothing else runs from here on until the bits are set, so no mutation can have begun on what is free.
      for (const extent of extents) {
        start = extent.offsetBytes + extent.lengthBytes;
        // Bytes in an absent block are left over from a write that a crash cut off: it must be fetched over.
        if (extent.kind === 'hole') this.#markZero(extent.offsetBytes, start);
      }
      this.#options.onMarked();
    }
  }

  #markZero(startBytes: number, endBytes: number): void {
    const { validity, inFlight, committer, local } = this.#options;
    if (this.#stopped) return;
    const limit = endBytes === local.lengthBytes ? validity.blockCount : Math.floor(endBytes / BLOCK_BYTES);
    let block = validity.firstAbsent(Math.ceil(startBytes / BLOCK_BYTES), limit);
    while (block < limit) {
      const absentEnd = validity.firstPresent(block, limit);
      const first = inFlight.firstFree(block, absentEnd);
      const end = inFlight.firstOwned(first, absentEnd);
      if (first < end) {
        committer.hydrated(first, end);
        validity.setRange(first, end);
      }
      block = validity.firstAbsent(end, limit);
    }
  }
}
