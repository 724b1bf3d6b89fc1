import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import type { Clock } from '../../src/base/clock.ts';
import { GodwitError, isGodwitError } from '../../src/base/errors.ts';
import { type Random, seededRandom } from '../../src/base/random.ts';
import type { BlockDevice, ByteRange, Extent } from '../../src/block/block-device.ts';
import { BLOCK_BYTES } from '../../src/block/block-device.ts';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import type { CommitOrder } from '../../src/clone/bit-committer.ts';
import { CloneDevice } from '../../src/clone/clone-device.ts';
import { FetchLog, fetchLogLengthBytes } from '../../src/clone/fetch-log.ts';
import { heapLiveMap, type LiveMap } from '../../src/clone/live-map.ts';
import { HeapMapMemory, type MapMemory } from '../../src/clone/map-memory.ts';
import { CloneMetadata, metadataLengthBytes, SECTOR_WORDS } from '../../src/clone/metadata.ts';
import { ValidityMap } from '../../src/clone/validity-map.ts';
import { ZeroLog } from '../../src/clone/zero-log.ts';
import { FaultDevice } from './fault-device.ts';
import { PowerSupply } from './power-supply.ts';

/**
 * A clone in a box, for tests: source, local disk, metadata disk, clock and guest are simulated, and one seed
 * decides everything. Each device operation waits until the scheduler picks it, so that operations end in any
 * order; power goes at a given operation; the process dies and comes back; the source stalls and fails. A
 * model of every 512-byte sector says what a read may return.
 *
 * The invariants (numbers of the design) that are checked all along:
 *   2  what was flushed is there after any power cut; what was acknowledged is there after any death of the process
 *   3  a read returns the latest write or the sealed content, whole sectors; after a power cut an unflushed write may be there or not
 *   9  every block that is local was fetched and has a record of that, or the guest changed it, or it is a hole or unused; and what was fetched and not
 *      marked as written is what the source has
 *   5  no block is fetched that is local, that was fetched before in this process, or that the guest wrote or discarded as a whole
 */
export type SimulationOptions = {
  seed: number;
  /** Power goes at this operation of local and metadata disk, counted from 1; null: never. */
  cutAt: number | null;
  /** More power cuts at random points after that one. */
  cutsAfterwards: number;
  /** Guest operations in all. */
  guestOperations: number;
  /** Hydrate to the end afterwards, finish, and compare everything. */
  toTheEnd: boolean;
  /**
   * Writes and write-backs of fetched blocks fail now and then, flushes of metadata and log too; what was
   * refused is gone from the page cache, at once or later, and each handle is told once.
   */
  failingDisk?: boolean;
  /** The filesystem of the data is taken away now and then and mounted again; the host lives. */
  remounts?: boolean;
  /** The live map is believed after that: what the simulation has to notice. */
  trustLiveMap?: boolean;
  commitOrder?: CommitOrder;
  /**
   * Fetched blocks count as stored when they are in the page cache: what the simulation has to notice on a
   * failing disk.
   */
  trustPageCache?: boolean;
};

export type SimulationResult = {
  /** Operations that a power cut could have hit. */
  powerOperations: number;
  crashPoints: number;
  /** What a disk refused. */
  faultPoints: number;
  processDeaths: number;
  /** Of the filesystem of the data: with nothing of the guest lost, and with something. */
  remounts: { harmless: number; lossy: number };
  steps: number;
};

const SECTOR_BYTES = 512;
const SECTORS_A_BLOCK = BLOCK_BYTES / SECTOR_BYTES;
const GUEST_DEPTH = 4;
const STEPS_MAX = 20_000;
/** Few, so that it is full in some lives: discards that cut blocks wait for the source then. */
const ZERO_LOG_SECTORS = 12;

/** A broken promise of the clone, as opposed to a defect of the simulation. */
export class Violation extends Error {}

/** One value that a sector was given, and when. */
type Version = { tag: number; issuedAt: number; ackedAt: number };

type PendingOperation = { kind: 'local' | 'arrivals' | 'metadata' | 'source'; run: () => Promise<void> };

type GuestMutation = {
  op: 'write' | 'discard' | 'writeZeroes';
  firstSector: number;
  sectors: number;
  tag: number;
  versions: Version[];
};

/** Runs one life of a clone; throws a `Violation` when an invariant does not hold. */
export async function simulateClone(options: SimulationOptions): Promise<SimulationResult> {
  const simulation = new Simulation(options);
  await simulation.run();
  return simulation.result;
}

class ManualClock implements Clock {
  nowMs = 0;
  timers: { atMs: number; callback: () => void }[] = [];
  wallMs = () => this.nowMs;
  monotonicMs = () => this.nowMs;
  timer(delayMs: number, callback: () => void): () => void {
    const timer = { atMs: this.nowMs + delayMs, callback };
    this.timers.push(timer);
    return () => {
      this.timers = this.timers.filter((each) => each !== timer);
    };
  }
  sleep(delayMs: number): Promise<void> {
    return new Promise((resolve) => this.timer(delayMs, resolve));
  }
  /** Goes to the next timer and calls it. */
  advance(): void {
    const next = this.timers.reduce<(typeof this.timers)[0] | null>(
      (first, each) => (first === null || each.atMs < first.atMs ? each : first),
      null,
    );
    if (next === null) return;
    this.timers = this.timers.filter((each) => each !== next);
    this.nowMs = Math.max(this.nowMs, next.atMs);
    next.callback();
  }
}

class Simulation {
  readonly result: SimulationResult = {
    powerOperations: 0,
    crashPoints: 0,
    faultPoints: 0,
    processDeaths: 0,
    remounts: { harmless: 0, lossy: 0 },
    steps: 0,
  };
  readonly #options: SimulationOptions;
  readonly #random: Random;
  readonly #power: PowerSupply;
  readonly #clock = new ManualClock();
  readonly #lengthBytes: number;
  /**
   * The blocks that the guest uses: [firstBlock, firstBlock + blocks). The rest of the volume is a hole of
   * the source.
   */
  readonly #firstBlock: number;
  readonly #blocks: number;
  readonly #local: FaultDevice;
  readonly #metadataDisk: FaultDevice;
  readonly #logDisk: FaultDevice;
  readonly #zeroLogDisk: FaultDevice;
  readonly #source: MemoryDevice;
  readonly #sectors: Version[][] = [];
  /** Blocks of the volume that must not be fetched any more: written or discarded whole. 2: and flushed. */
  readonly #settledBlocks: Uint8Array;
  #fetchedByProcess: Uint8Array;
  /** Blocks that need no record: holes of the source, unused ones, and those that the guest ever changed. */
  readonly #excused: Uint8Array;
  #liveMap: LiveMap;
  #writtenMemory: MapMemory;
  #process = 0;
  #clone!: CloneDevice;
  #pending: PendingOperation[] = [];
  #mutations = new Set<GuestMutation>();
  #guestOperations = 0;
  #inFlight = 0;
  #now = 1;
  #nextTag = 1;
  #sourceStalled = false;
  #quiet = false;
  #flushedAt = 0;
  /** Writes to blocks that are here go past the clone. */
  readonly #others: boolean;
  readonly #readsStartedAt = new Set<number>();
  #violation: Violation | null = null;
  /** Sectors that were fetched and written, and that the disk does not have yet. */
  readonly #cached = new Set<number>();
  /** A write-back failed, and the handle of what is fetched has not been told. */
  #untold = false;
  #opening = false;

  constructor(options: SimulationOptions) {
    this.#options = options;
    this.#random = seededRandom(options.seed);
    this.#power = new PowerSupply(seededRandom(options.seed * 31 + (options.cutAt ?? 0)));
    // Either a small volume, or one in which the guest works across the border of two metadata sectors.
    const small = this.#random.below(2) === 0;
    this.#blocks = 12 + this.#random.below(52);
    this.#firstBlock = small ? 0 : 4032 - this.#random.below(this.#blocks);
    // A length that ends within a block is as good as any.
    const tailBytes = this.#random.below(3) === 0 ? SECTOR_BYTES * (1 + this.#random.below(7)) : 0;
    this.#others = this.#random.below(2) === 0;
    const blocksTotal = small ? this.#blocks : 8064;
    this.#lengthBytes = blocksTotal * BLOCK_BYTES - tailBytes;
    this.#local = new FaultDevice({ lengthBytes: this.#lengthBytes, power: this.#power });
    this.#metadataDisk = new FaultDevice({
      lengthBytes: metadataLengthBytes(this.#lengthBytes),
      power: this.#power,
    });
    this.#logDisk = new FaultDevice({
      lengthBytes: fetchLogLengthBytes(this.#lengthBytes),
      power: this.#power,
    });
    this.#zeroLogDisk = new FaultDevice({ lengthBytes: ZERO_LOG_SECTORS * SECTOR_BYTES, power: this.#power });
    this.#source = new MemoryDevice({ lengthBytes: this.#lengthBytes });
    this.#settledBlocks = new Uint8Array(blocksTotal);
    this.#fetchedByProcess = new Uint8Array(blocksTotal);
    this.#excused = new Uint8Array(blocksTotal).fill(1);
    this.#liveMap = heapLiveMap(this.#lengthBytes);
    this.#writtenMemory = new HeapMapMemory(blocksTotal);
  }

  get #blocksTotal(): number {
    return this.#excused.length;
  }

  get #validity(): ValidityMap {
    return new ValidityMap(this.#liveMap.validity, this.#blocksTotal, { counted: false });
  }

  get #firstByte(): number {
    return this.#firstBlock * BLOCK_BYTES;
  }

  get #activeSectors(): number {
    const endBytes = Math.min(this.#firstByte + this.#blocks * BLOCK_BYTES, this.#lengthBytes);
    return (endBytes - this.#firstByte) / SECTOR_BYTES;
  }

  async run(): Promise<void> {
    await this.#fillSource();
    await CloneMetadata.create(this.#metadataDisk, this.#identity);
    await FetchLog.create(this.#logDisk, this.#identity);
    await ZeroLog.create(this.#zeroLogDisk, this.#identity);
    if (this.#options.cutAt !== null) this.#power.cutAt = this.#power.operations + this.#options.cutAt;
    const operationsBefore = this.#power.operations;
    await this.#open(false);
    let cutsLeft = this.#options.cutsAfterwards;
    while (this.#guestOperations < this.#options.guestOperations || this.#inFlight > 0) {
      if (this.#power.on) await this.#step();
      if (!this.#power.on) {
        await this.#recoverFromPowerCut();
        if (cutsLeft > 0) {
          cutsLeft--;
          this.#power.cutAt = this.#power.operations + 1 + this.#random.below(8);
        }
      }
    }
    this.result.powerOperations = this.#power.operations - operationsBefore;
    this.#power.cutAt = null;
    if (this.#options.toTheEnd) await this.#runToTheEnd();
  }

  get #identity() {
    return { volumeId: 'simulated', generation: 3, lengthBytes: this.#lengthBytes };
  }

  async #fillSource(): Promise<void> {
    for (let block = 0; block < this.#blocks; block++) {
      const hole = this.#random.below(5) === 0;
      const sectors = Math.min(SECTORS_A_BLOCK, this.#activeSectors - block * SECTORS_A_BLOCK);
      const first = block * SECTORS_A_BLOCK;
      for (let sector = first; sector < first + sectors; sector++) {
        this.#sectors[sector] = [{ tag: hole ? 0 : sourceTag(sector), issuedAt: -1, ackedAt: -1 }];
      }
      if (hole) continue;
      this.#excused[this.#firstBlock + block] = 0;
      const content = new Uint32Array((sectors * SECTOR_BYTES) / 4);
      for (let sector = 0; sector < sectors; sector++) {
        content.fill(sourceTag(first + sector), sector * 128, (sector + 1) * 128);
      }
      await this.#source.write(this.#firstByte + block * BLOCK_BYTES, new Uint8Array(content.buffer));
    }
  }

  /** False: power went while it was opening. */
  async #open(validityIsCurrent: boolean): Promise<boolean> {
    try {
      await this.#openClone(validityIsCurrent);
      return true;
    } catch (error) {
      if (this.#power.on) throw error;
      return false;
    }
  }

  async #openClone(validityIsCurrent: boolean): Promise<void> {
    this.#opening = true;
    this.#process++;
    this.#readsStartedAt.clear();
    this.#pending = [];
    this.#clock.timers = [];
    this.#fetchedByProcess.fill(0);
    if (!validityIsCurrent) {
      this.#liveMap = heapLiveMap(this.#lengthBytes);
      this.#writtenMemory = new HeapMapMemory(this.#blocksTotal);
    }
    const seams = this.#options.commitOrder ? { commitOrder: this.#options.commitOrder } : {};
    const metadata = await this.#drained(
      CloneMetadata.open(this.#scheduled(this.#metadataDisk, 'metadata'), this.#identity),
    );
    const fetchLog = await this.#drained(
      FetchLog.open(this.#scheduled(this.#logDisk, 'metadata'), this.#identity, digestNow),
    );
    const zeroLog = await this.#drained(
      ZeroLog.open(this.#scheduled(this.#zeroLogDisk, 'metadata'), this.#identity),
    );
    this.#clone = await this.#drained(
      CloneDevice.open(
        {
          local: this.#scheduled(this.#local, 'local'),
          ...(this.#options.failingDisk && { arrivals: this.#scheduled(this.#local, 'arrivals') }),
          source: this.#scheduled(this.#source, 'source'),
          metadata,
          ...this.#liveMap,
          validityIsCurrent,
          fetchLog,
          zeroLog,
          written: this.#writtenMemory,
          writtenIsCurrent: validityIsCurrent,
          localWrittenByOthers: this.#others,
          clock: this.#clock,
          windowFloorBytes: 8192,
          windowMaxBytes: 8192 * (1 + this.#random.below(8)),
        },
        seams,
      ),
    );
    if (this.#process === 1 && this.#random.below(2) === 0) await this.#markUnused();
    this.#opening = false;
    this.#clone.start();
  }

  /** The filesystem did not use some blocks. To the guest it is as if it had discarded them. */
  async #markUnused(): Promise<void> {
    const runs: { first: number; end: number }[] = [];
    const wholeBlocks = Math.floor(this.#activeSectors / SECTORS_A_BLOCK);
    for (let block = this.#random.below(4); block < wholeBlocks; ) {
      const end = Math.min(wholeBlocks, block + 1 + this.#random.below(8));
      runs.push({ first: this.#firstBlock + block, end: this.#firstBlock + end });
      for (let sector = block * SECTORS_A_BLOCK; sector < end * SECTORS_A_BLOCK; sector++) {
        this.#sectors[sector]!.push({ tag: 0, issuedAt: this.#now, ackedAt: this.#now });
      }
      this.#settledBlocks.fill(1, this.#firstBlock + block, this.#firstBlock + end);
      this.#excused.fill(1, this.#firstBlock + block, this.#firstBlock + end);
      block = end + 1 + this.#random.below(8);
    }
    this.#now++;
    await this.#drained(this.#clone.markUnused(runs));
  }

  /** Runs everything that is pending, in order, until the promise settles. */
  async #drained<T>(promise: Promise<T>): Promise<T> {
    let settled = false;
    const done = () => {
      settled = true;
    };
    promise.then(done, done);
    await tick();
    // Work that is cut into turns (base/turn.ts) waits for nothing, and is not over yet.
    for (let idle = 0; !settled; await tick()) {
      const operation = this.#pending.shift();
      idle = operation ? 0 : idle + 1;
      assert.ok(idle < 100, 'opening waits for something that is no operation');
      await operation?.run();
    }
    return promise;
  }

  /** One event: a guest operation begins, a device operation happens, time passes, or something breaks. */
  async #step(): Promise<void> {
    if (++this.result.steps > STEPS_MAX) {
      throw new Violation(
        `stuck: ${this.#inFlight} guest operations in flight, ${this.#pending.length} device operations`,
      );
    }
    const dice = this.#quiet ? 50 + this.#random.below(50) : this.#random.below(100);
    const mayBegin = this.#guestOperations < this.#options.guestOperations && this.#inFlight < GUEST_DEPTH;
    if (this.#options.failingDisk && !this.#quiet && this.#random.below(20) === 0) this.#losePages();
    if (dice < 2) this.#sourceStalled = !this.#sourceStalled;
    else if (dice < 4) await this.#killProcess();
    else if (dice < 6 && this.#options.remounts) await this.#remount();
    else if (dice < 30 && mayBegin) this.#beginGuestOperation();
    else if (dice < 60 || !(await this.#runPending())) {
      if (this.#sourceStalled && this.#random.below(4) === 0) this.#sourceStalled = false;
      this.#clock.advance();
    }
    await tick();
    if (this.#violation !== null) throw this.#violation;
  }

  async #runPending(): Promise<boolean> {
    const ready = this.#sourceStalled
      ? this.#pending.filter((each) => each.kind !== 'source')
      : this.#pending;
    if (ready.length === 0) return false;
    const operation = ready[this.#random.below(ready.length)]!;
    this.#pending.splice(this.#pending.indexOf(operation), 1);
    await operation.run();
    return true;
  }

  // --- the guest
  // -----------------------------------------------------------------------------------------------------

  #beginGuestOperation(): void {
    this.#guestOperations++;
    const dice = this.#random.below(100);
    if (dice < 30) this.#beginRead();
    else if (dice < 42) this.#beginFlush();
    else this.#beginMutation(dice < 82 ? 'write' : dice < 91 ? 'discard' : 'writeZeroes');
  }

  #someRange(): { firstSector: number; sectors: number } {
    const blockAligned = this.#random.below(2) === 0;
    if (!blockAligned) {
      const firstSector = this.#random.below(this.#activeSectors);
      const most = Math.min(this.#activeSectors - firstSector, 1 + this.#random.below(30));
      return { firstSector, sectors: 1 + this.#random.below(most) };
    }
    const firstSector = this.#random.below(this.#blocks) * SECTORS_A_BLOCK;
    const sectors = (1 + this.#random.below(6)) * SECTORS_A_BLOCK;
    return { firstSector, sectors: Math.min(sectors, this.#activeSectors - firstSector) };
  }

  #beginRead(): void {
    const { firstSector, sectors } = this.#someRange();
    const startedAt = this.#now++;
    const into = new Uint8Array(sectors * SECTOR_BYTES);
    this.#readsStartedAt.add(startedAt);
    this.#follow(this.#clone.read(this.#firstByte + firstSector * SECTOR_BYTES, into), () => {
      this.#readsStartedAt.delete(startedAt);
      this.#checkRead(firstSector, into, startedAt);
    });
  }

  /** Drops what neither a power cut can bring back nor a read that is still going on may return. */
  #forget(): void {
    const at = Math.min(this.#flushedAt, ...this.#readsStartedAt);
    for (const versions of this.#sectors) prune(versions, at);
  }

  #beginFlush(): void {
    const startedAt = this.#now++;
    const flushing = this.#clone.flush();
    const settledBefore = this.#settledBlocks.slice();
    this.#follow(
      flushing,
      () => {
        this.#flushedAt = Math.max(this.#flushedAt, startedAt);
        this.#forget();
        for (const [block, settled] of settledBefore.entries())
          if (settled > 0) this.#settledBlocks[block] = 2;
      },
      this.#options.failingDisk,
    );
  }

  #beginMutation(op: GuestMutation['op']): void {
    const range = this.#someRange();
    const tag = op === 'write' ? this.#nextTag++ : 0;
    const mutation: GuestMutation = { ...range, op, tag, versions: [] };
    const issuedAt = this.#now++;
    for (let index = 0; index < range.sectors; index++) {
      const version = {
        tag: writeTag(tag, range.firstSector + index),
        issuedAt,
        ackedAt: Number.POSITIVE_INFINITY,
      };
      mutation.versions.push(version);
      this.#sectors[range.firstSector + index]!.push(version);
    }
    this.#send(mutation);
  }

  /** Also after the death of the process: the kernel sends again what was not answered. */
  #send(mutation: GuestMutation): void {
    this.#mutations.add(mutation);
    const { op, firstSector, sectors, tag } = mutation;
    const firstBlock = Math.floor(firstSector / SECTORS_A_BLOCK);
    const endBlock = Math.ceil((firstSector + sectors) / SECTORS_A_BLOCK);
    this.#excused.fill(1, this.#firstBlock + firstBlock, this.#firstBlock + endBlock);
    const offsetBytes = this.#firstByte + firstSector * SECTOR_BYTES;
    let work: Promise<void>;
    if (op === 'write') {
      const content = new Uint32Array(sectors * 128);
      for (let index = 0; index < sectors; index++) {
        content.fill(writeTag(tag, firstSector + index), index * 128, (index + 1) * 128);
      }
      const bytes = new Uint8Array(content.buffer);
      const local = this.#others && this.#allLocal(firstBlock, endBlock);
      work = local ? this.#writePast(offsetBytes, bytes) : this.#clone.write(offsetBytes, bytes);
    } else {
      work = this.#clone[op](offsetBytes, sectors * SECTOR_BYTES);
    }
    this.#follow(work, () => {
      this.#mutations.delete(mutation);
      const ackedAt = this.#now++;
      for (const version of mutation.versions) version.ackedAt = ackedAt;
      for (let block = 0; block < this.#blocks; block++) {
        const blockEnd = Math.min((block + 1) * SECTORS_A_BLOCK, this.#activeSectors);
        const whole = firstSector <= block * SECTORS_A_BLOCK && firstSector + sectors >= blockEnd;
        if (whole) this.#settledBlocks[this.#firstBlock + block] ||= 1;
      }
    });
  }

  #allLocal(firstBlock: number, endBlock: number): boolean {
    const validity = new ValidityMap(this.#liveMap.validity, this.#settledBlocks.length, { counted: false });
    return validity.hasAll(this.#firstBlock + firstBlock, this.#firstBlock + endBlock);
  }

  /** As the hot thread does: marked, then written, and the clone never hears of it. */
  #writePast(offsetBytes: number, bytes: Uint8Array): Promise<void> {
    const written = new ValidityMap(this.#writtenMemory, this.#settledBlocks.length, { counted: false });
    const endBytes = offsetBytes + bytes.length;
    written.setRange(Math.floor(offsetBytes / BLOCK_BYTES), Math.ceil(endBytes / BLOCK_BYTES));
    return this.#scheduled(this.#local, 'local').write(offsetBytes, bytes);
  }

  #follow(work: Promise<void>, done: () => void, mayFail = false): void {
    const process = this.#process;
    this.#inFlight++;
    work.then(
      () => {
        if (process !== this.#process || !this.#power.on) return;
        this.#inFlight--;
        done();
      },
      (error: Error) => {
        if (process !== this.#process || !this.#power.on) return;
        if (mayFail && isGodwitError(error, 'BLOCK_IO')) {
          this.#inFlight--;
          return;
        }
        this.#report(`a guest operation failed: ${error.stack}`);
      },
    );
  }

  // --- what may be read
  // ----------------------------------------------------------------------------------------------

  #checkRead(firstSector: number, content: Uint8Array, startedAt: number): void {
    for (const [index, tag] of tagsOf(content).entries()) {
      const sector = firstSector + index;
      const versions = this.#sectors[sector]!;
      const allowed = versions.filter((version) => !isSuperseded(version, versions, startedAt));
      const found = allowed.find((version) => version.tag === tag);
      if (found === undefined) {
        this.#report(
          `a read of sector ${sector} returned ${tag}, allowed: ${allowed.map((each) => each.tag)}`,
        );
        return;
      }
      // Writes that overlapped have no order until somebody looks; from then on they have.
      if (allowed.length > 1 && allowed.every((version) => version.ackedAt < startedAt)) {
        found.issuedAt = this.#now;
        found.ackedAt = this.#now++;
      }
    }
  }

  async #recoverFromPowerCut(): Promise<void> {
    this.result.crashPoints++;
    this.#power.restore();
    await this.#beginAnew();
  }

  /** A new guest with what the disks have: some of what was not flushed, or nothing of it. */
  async #beginAnew(): Promise<void> {
    this.#process++; // the process that was running is gone with its requests
    this.#mutations.clear();
    this.#inFlight = 0;
    this.#sourceStalled = false;
    this.#cached.clear();
    for (const [block, settled] of this.#settledBlocks.entries())
      if (settled === 1) this.#settledBlocks[block] = 0;
    await this.#checkAccounted();
    const found = tagsOf(await this.#contentAfterCut());
    for (const [sector, tag] of found.entries()) {
      const versions = this.#sectors[sector]!;
      prune(versions, this.#flushedAt);
      if (!versions.some((version) => version.tag === tag)) {
        throw new Violation(
          `after a power cut sector ${sector} holds ${tag}, allowed: ${versions.map((each) => each.tag)}`,
        );
      }
      this.#sectors[sector] = [{ tag, issuedAt: -1, ackedAt: -1 }];
    }
    await this.#open(false);
  }

  /**
   * What is durable after a power cut, or (at the end) what the process has: each local block has a record
   * that fits, or an excuse.
   */
  async #checkAccounted(): Promise<void> {
    const durableBits = new ValidityMap(new HeapMapMemory(this.#blocksTotal), this.#blocksTotal);
    const metadata = await CloneMetadata.open(withoutTrace(this.#metadataDisk), this.#identity);
    await metadata.load((sector, durable) => durableBits.orWords(sector * SECTOR_WORDS, durable));
    const recorded = new Uint8Array(this.#excused.length);
    const log = await FetchLog.open(withoutTrace(this.#logDisk), this.#identity, digestNow);
    for (let cursor = 0, ended = false; !ended; ) {
      const page = await log.read(cursor, 100);
      for (const { first, blocks, digest } of page.records) {
        const content = new Uint8Array(
          Math.min(blocks * BLOCK_BYTES, this.#lengthBytes - first * BLOCK_BYTES),
        );
        await this.#source.read(first * BLOCK_BYTES, content);
        if (Buffer.compare(await digestNow(0, content), digest) !== 0)
          throw new Violation(`the record of block ${first} is not of what the source has`);
        recorded.fill(1, first, first + blocks);
      }
      ({ next: cursor, ended } = page);
    }
    for (const [block, excused] of this.#excused.entries()) {
      if (durableBits.has(block) && excused === 0 && recorded[block] === 0)
        throw new Violation(`block ${block} is local, and nothing says where from`);
    }
  }

  /** A block that is not marked as written has what the source has, unless it is zeros on purpose. */
  async #checkUnwritten(): Promise<void> {
    const written = new ValidityMap(this.#writtenMemory, this.#blocksTotal, { counted: false });
    for (let block = 0; block < this.#blocks; block++) {
      const at = this.#firstBlock + block;
      if (written.has(at) || !this.#validity.has(at)) continue;
      const contents = [this.#local, this.#source].map(async (device) => {
        const content = new Uint8Array(Math.min(BLOCK_BYTES, this.#lengthBytes - at * BLOCK_BYTES));
        await device.read(at * BLOCK_BYTES, content);
        return content;
      });
      const [here, there] = await Promise.all(contents);
      if (Buffer.compare(here!, there!) !== 0 && here!.some((byte) => byte !== 0))
        throw new Violation(`block ${at} is not what was fetched, and is not marked as written`);
    }
  }

  /** What a guest would read now, found out without leaving a trace. */
  async #contentAfterCut(): Promise<Uint8Array> {
    const clone = await CloneDevice.open({
      local: withoutTrace(this.#local),
      source: this.#source,
      metadata: await CloneMetadata.open(withoutTrace(this.#metadataDisk), this.#identity),
      zeroLog: await ZeroLog.open(withoutTrace(this.#zeroLogDisk), this.#identity),
      ...heapLiveMap(this.#lengthBytes),
      validityIsCurrent: false,
      clock: new ManualClock(),
      hydration: { paused: true, rateBytesPerSecondMax: 0 },
    });
    const content = new Uint8Array(this.#activeSectors * SECTOR_BYTES);
    for (let start = 0; start < content.length; start += 65_536) {
      await clone.read(this.#firstByte + start, content.subarray(start, start + 65_536));
    }
    return content;
  }

  /**
   * The filesystem of the data is shut down under the running guest and mounted again: of what was not
   * flushed some is gone, data and metadata alike, and the live map on its tmpfs knows nothing of that. The
   * next server drops the map (volume/validity-file.ts). A guest that had acknowledged writes which were not
   * flushed is told of the loss and begins anew; any other goes on, sends again what was not answered, and
   * must not notice.
   */
  async #remount(): Promise<void> {
    const flushedAt = this.#flushedAt;
    const isLossy = this.#sectors.some((versions) =>
      versions.some(({ ackedAt }) => ackedAt > flushedAt && ackedAt !== Number.POSITIVE_INFINITY),
    );
    this.#process++;
    for (const disk of [this.#local, this.#metadataDisk, this.#logDisk, this.#zeroLogDisk])
      disk.powerCut(this.#random);
    if (isLossy) {
      this.result.remounts.lossy++;
      return this.#beginAnew();
    }
    this.result.remounts.harmless++;
    const unanswered = this.#mutations;
    this.#mutations = new Set();
    this.#inFlight = 0;
    this.#cached.clear();
    if (!(await this.#open(this.#options.trustLiveMap === true))) return;
    for (const mutation of unanswered) this.#send(mutation);
  }

  /** Of the operations that were on their way to the kernel, some happen and some do not. The host lives. */
  async #killProcess(): Promise<void> {
    this.result.processDeaths++;
    this.#process++;
    const lost = this.#mutations;
    this.#mutations = new Set();
    this.#inFlight = 0;
    for (const operation of this.#pending) {
      if (operation.kind !== 'source' && this.#random.below(2) === 0) await operation.run();
    }
    await tick();
    if (!this.#power.on) return;
    if (!(await this.#open(true))) return;
    for (const mutation of lost) this.#send(mutation);
  }

  async #runToTheEnd(): Promise<void> {
    this.#sourceStalled = false;
    this.#quiet = true;
    while (!this.#clone.complete) await this.#step();
    const startedAt = this.#now++;
    const content = new Uint8Array(this.#activeSectors * SECTOR_BYTES);
    await this.#drained(this.#clone.read(this.#firstByte, content));
    this.#checkRead(0, content, startedAt);
    await this.#drained(this.#clone.finish());
    await this.#checkAccounted();
    await this.#checkUnwritten();
    if (this.#violation !== null) throw this.#violation;
    if (Buffer.compare(await this.#contentAfterCut(), content) !== 0) {
      throw new Violation('the finished clone differs from what was read of it');
    }
    const status = this.#clone.hydrationStatus();
    if (status.blocksFetchedTwice !== 0)
      throw new Violation(`${status.blocksFetchedTwice} blocks fetched twice`);
    if (status.state !== 'complete' || status.exposedBytes !== 0)
      throw new Violation('finished and not complete');
  }

  #report(message: string): void {
    this.#violation ??= new Violation(message);
  }

  // --- a disk that fails
  // ---------------------------------------------------------------------------------------------

  #refuses(): boolean {
    // An opening that fails is tried again by the supervisor: nothing of interest.
    if (this.#options.failingDisk !== true || this.#quiet || this.#opening || this.#random.below(6) > 0)
      return false;
    this.result.faultPoints++;
    return true;
  }

  /**
   * What is fetched is in the page cache only, until it was written back; what the guest writes over it is
   * the guest's.
   */
  #noteCached(kind: PendingOperation['kind'], range: ByteRange): void {
    if (kind !== 'local' && kind !== 'arrivals') return;
    const endBytes = range.offsetBytes + range.lengthBytes;
    for (let at = range.offsetBytes; at < endBytes; at += SECTOR_BYTES) {
      if (kind === 'arrivals') this.#cached.add(at);
      else this.#cached.delete(at);
    }
  }

  /** The kernel calls some pages clean that the disk refused, and forgets them. */
  #losePages(): void {
    if (this.#cached.size === 0) return;
    this.#untold = true;
    this.result.faultPoints++;
    for (const at of [...this.#cached]) {
      if (this.#random.below(2) === 0) continue;
      this.#local.corrupt(at, new Uint8Array(SECTOR_BYTES));
      this.#cached.delete(at);
    }
  }

  async #writeBack(ranges: readonly ByteRange[]): Promise<void> {
    if (this.#refuses()) this.#losePages();
    if (this.#untold) {
      this.#untold = false;
      throw refusedError('write-back');
    }
    for (const { offsetBytes, lengthBytes } of ranges)
      for (let at = offsetBytes; at < offsetBytes + lengthBytes; at += SECTOR_BYTES) this.#cached.delete(at);
  }

  async #flush(device: BlockDevice, kind: PendingOperation['kind']): Promise<void> {
    if (kind === 'metadata' && this.#refuses()) {
      // As after a power cut, on this disk alone: of what was not flushed some is there. Not of the log,
      // whose sectors were written back one by one before a bit rested on them.
      if (device === this.#metadataDisk) this.#metadataDisk.powerCut(this.#random);
      throw refusedError('flush');
    }
    await device.flush();
    if (kind === 'local') this.#cached.clear();
  }

  // --- devices
  // -------------------------------------------------------------------------------------------------------

  #countFetch(offsetBytes: number, lengthBytes: number): void {
    const end = Math.ceil((offsetBytes + lengthBytes) / BLOCK_BYTES);
    for (let block = offsetBytes / BLOCK_BYTES; block < end; block++) {
      if (this.#fetchedByProcess[block] === 1) this.#report(`block ${block} crossed the wire twice`);
      this.#fetchedByProcess[block] = 1;
    }
  }

  #checkFetch(offsetBytes: number, lengthBytes: number): void {
    const end = Math.ceil((offsetBytes + lengthBytes) / BLOCK_BYTES);
    for (let block = offsetBytes / BLOCK_BYTES; block < end; block++) {
      if (this.#validity.has(block)) this.#report(`block ${block} is local and fetched`);
      if (this.#settledBlocks[block]! > 0) this.#report(`block ${block} is overwritten and fetched`);
    }
  }

  /**
   * The device as the present process has it: each call waits in `#pending`, and never ends when the process
   * dies before.
   */
  #scheduled(device: BlockDevice, kind: PendingOperation['kind']): BlockDevice {
    const process = this.#process;
    const schedule = <T>(work: () => Promise<T>): Promise<T> =>
      new Promise((resolve, reject) => {
        if (process !== this.#process) return;
        this.#pending.push({ kind, run: () => work().then(resolve, reject) });
      });
    const settles = kind === 'arrivals' && this.#options.trustPageCache !== true;
    return {
      lengthBytes: device.lengthBytes,
      blockBytes: device.blockBytes,
      writable: device.writable,
      ...(settles && { writeBack: (ranges) => schedule(() => this.#writeBack(ranges)) }),
      read: (offsetBytes, into) => {
        if (kind !== 'source') return schedule(() => device.read(offsetBytes, into));
        if (process === this.#process) this.#checkFetch(offsetBytes, into.length);
        return schedule(async () => {
          if (this.#random.below(20) === 0) {
            throw new GodwitError('SIMULATED_OUTAGE', 'the source is gone', { nextAction: 'Wait.' });
          }
          this.#countFetch(offsetBytes, into.length);
          await device.read(offsetBytes, into);
        });
      },
      write: (offsetBytes, from) =>
        schedule(async () => {
          if (kind === 'arrivals' && this.#refuses()) throw refusedError('write');
          await device.write(offsetBytes, from);
          this.#noteCached(kind, { offsetBytes, lengthBytes: from.length });
        }),
      flush: () => schedule(() => this.#flush(device, kind)),
      discard: (offsetBytes, lengthBytes) =>
        schedule(async () => {
          await device.discard(offsetBytes, lengthBytes);
          this.#noteCached(kind, { offsetBytes, lengthBytes });
        }),
      writeZeroes: (offsetBytes, lengthBytes) =>
        schedule(async () => {
          await device.writeZeroes(offsetBytes, lengthBytes);
          this.#noteCached(kind, { offsetBytes, lengthBytes });
        }),
      extents: (offsetBytes, lengthBytes, limit) =>
        schedule<Extent[]>(() => device.extents!(offsetBytes, lengthBytes, limit)),
      close: () => device.close(),
    };
  }
}

function refusedError(operation: string): GodwitError {
  return new GodwitError('BLOCK_IO', `the disk refused a ${operation}`, { nextAction: 'Try again.' });
}

async function digestNow(_offsetBytes: number, bytes: Uint8Array): Promise<Uint8Array> {
  return createHash('sha256').update(bytes).digest();
}

/** Reads pass, changes are accepted and forgotten. */
function withoutTrace(device: FaultDevice): BlockDevice {
  return {
    lengthBytes: device.lengthBytes,
    blockBytes: device.blockBytes,
    writable: true,
    read: (offsetBytes, into) => device.read(offsetBytes, into),
    write: async () => {},
    flush: async () => {},
    discard: async () => {},
    writeZeroes: async () => {},
    close: async () => {},
  };
}

function isSuperseded(version: Version, versions: readonly Version[], at: number): boolean {
  return versions.some(
    (other) => other !== version && other.ackedAt <= at && other.issuedAt >= version.ackedAt,
  );
}

/** Forgets the versions that a flush which began at `flushedAt` made impossible to come back. */
function prune(versions: Version[], flushedAt: number): void {
  if (versions.length === 1) return;
  const kept = versions.filter((version) => !isSuperseded(version, versions, flushedAt));
  versions.splice(0, versions.length, ...kept);
}

function sourceTag(sector: number): number {
  return 0x40000000 + sector;
}

function writeTag(tag: number, sector: number): number {
  return tag === 0 ? 0 : tag * 1024 + sector;
}

/** The tag of each sector; -1 where a sector is not whole. */
function tagsOf(content: Uint8Array): number[] {
  const words = new Uint32Array(content.buffer, content.byteOffset, content.length / 4);
  const tags: number[] = [];
  for (let start = 0; start < words.length; start += 128) {
    const tag = words[start]!;
    let whole = true;
    for (let index = start + 1; index < start + 128; index++) if (words[index] !== tag) whole = false;
    tags.push(whole ? tag : -1);
  }
  return tags;
}

/** Lets everything run that only waits for promises. */
/** Some turns: on a machine that is busy with other things work may be cut (base/turn.ts). */
async function tick(): Promise<void> {
  for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve));
}
