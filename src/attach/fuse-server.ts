import { closeSync } from 'node:fs';
import { constants } from 'node:os';
import type { Worker } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { Condition } from '../base/condition.ts';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import type { Histogram } from '../base/histogram.ts';
import type { Logger } from '../base/logger.ts';
import { LOOKING_PAYS } from '../base/look-out.ts';
import type { BlockDevice } from '../block/block-device.ts';
import type { GuestWaits } from '../clone/disk-window.ts';
import { sharedMapMemory } from '../clone/map-memory.ts';
import { blockCountOf, ValidityMap } from '../clone/validity-map.ts';
import type { Access } from '../opening/spec.ts';
import type { GuestStatistics } from '../opening/status.ts';
import { errnoName } from '../sys/libc.ts';
import { addressOf, ENODEV, eventDescriptor, rawWrite, setNonBlocking } from '../sys/raw-io.ts';
import { ResidentMemory } from '../sys/resident-memory.ts';
import { startWriteBack } from '../sys/sync-file-range.ts';
import { FuseSlot, OPCODE, PAYLOAD_AT, REPLY_AT, resendNotification, SLOT_BYTES } from './fuse-protocol.ts';
import { COUNTER, GuestCounters, WaitMeter } from './guest-counters.ts';
import { Heat, hottestRegions } from './heat.ts';
import { startHotThread } from './hot-program.ts';
import type { HotPath, HotThreadData, HotThreadMessage } from './hot-thread.ts';
import { ACCESS_READONLY, ACCESS_STANDBY, ACCESS_WRITABLE, SLOT_COUNT, Slots } from './slots.ts';

const { EIO, EROFS, EINVAL, ENOSPC, EOPNOTSUPP, EFBIG } = constants.errno;

/** include/uapi/linux/falloc.h: what the loop driver sends for a discard, and for write-zeroes. */
const MODE_DISCARD = 0x02 | 0x01;
const MODE_WRITE_ZEROES = 0x10 | 0x01;

/**
 * How long the hot thread looks for the next request before it sleeps. A guest at depth 1 comes back within
 * some 25 us on the machine that this was measured on; see docs/performance.md.
 */
const SPIN_MICROSECONDS = 50;

const accessNumbers = {
  standby: ACCESS_STANDBY,
  writable: ACCESS_WRITABLE,
  readonly: ACCESS_READONLY,
} as const;

export type FuseServerOptions = {
  /**
   * The descriptor of a mounted FUSE connection whose INIT was answered (fuse-mount.ts). Stays the caller's.
   */
  fuseFd: number;
  /** Serves what the hot path does not. `blockBytes` must not be above the loop device's sector size. */
  device: BlockDevice;
  /**
   * The local file under `device`, for the hot path; null where there is none. `validity`: address and number
   * of 32-bit words of the bits that say which blocks of the file are valid (clone/validity-map.ts); null:
   * all are. With `encryption` the file is ciphertext and `device` is plaintext.
   */
  hot: HotPath | null;
  access: Access;
  clock: Clock;
  logger: Logger;
};

/**
 * Serves one device as the file of one FUSE connection. A hot thread reads the requests and answers what it
 * can at once; the rest comes here, to the thread that runs the asynchronous device.
 *
 * Writes of the hot path do not pass through `device`: its `flush` must make all of the local file durable.
 */
export class FuseServer {
  /**
   * Resolves when the connection ended: the file was unmounted, aborted, or `stop` was called. Rejects when
   * the hot thread broke.
   */
  readonly closed: Promise<void>;
  readonly #options: FuseServerOptions;
  readonly #slots = new Slots();
  readonly #dataAddress: number;
  readonly #fuseSlots: FuseSlot[];
  readonly #hotCounters = new GuestCounters();
  readonly #slowCounters = new GuestCounters();
  readonly #waits = new WaitMeter([this.#hotCounters, this.#slowCounters]);
  readonly #hotHeat = new Heat();
  readonly #slowHeat = new Heat();
  readonly #landing: ResidentMemory;
  readonly #wakeFd: number;
  readonly #worker: Worker;
  readonly #onExit = () => this.#wakeHotThread();
  #device: BlockDevice;
  #validity: ValidityMap | null;
  #access: Access;
  /** Requests that wait for the end of standby. */
  #held: { index: number; startMs: number }[] = [];
  /** Reads and writes, and of them the changes, that `#device` works on. */
  #requestsInFlight = 0;
  #changesInFlight = 0;
  readonly #idle = new Condition();
  #stopped = false;
  #writesBack = false;
  #failed = false;

  /**
   * Starts to serve at once. Asks the kernel to send again what a dead forerunner had read and not answered.
   */
  constructor(options: FuseServerOptions) {
    this.#options = options;
    const { device, hot } = options;
    assert(device.lengthBytes % device.blockBytes === 0, 'a device is whole blocks long');
    this.#device = device;
    this.#access = options.access;
    this.#slots.access = accessNumbers[options.access];
    this.#validity = hot?.validity
      ? new ValidityMap(sharedMapMemory(hot.validity), blockCountOf(device.lengthBytes), { counted: false })
      : null;
    const data = this.#slots.shared.data;
    this.#dataAddress = addressOf(new Uint8Array(data));
    this.#fuseSlots = Array.from(
      { length: SLOT_COUNT },
      (_, index) => new FuseSlot(data, Slots.offsetBytesOf(index, this.#dataAddress)),
    );
    // The hot thread looks without sleeping, and then sleeps in poll, where it can be woken.
    check('fcntl', setNonBlocking(options.fuseFd));
    this.#wakeFd = check('eventfd', eventDescriptor());
    this.#landing = new ResidentMemory(SLOT_BYTES);
    this.#write(resendNotification());
    const workerData: HotThreadData = {
      fuseFd: options.fuseFd,
      wakeFd: this.#wakeFd,
      slots: this.#slots.shared,
      landingAddress: this.#landing.address,
      counters: this.#hotCounters.shared,
      heat: this.#hotHeat.shared,
      lengthBytes: device.lengthBytes,
      blockBytes: device.blockBytes,
      hot,
      spinMicroseconds: LOOKING_PAYS ? SPIN_MICROSECONDS : 0,
    };
    this.#worker = startHotThread({
      workerData,
      name: 'godwit-hot',
      resourceLimits: { maxYoungGenerationSizeMb: 1, maxOldGenerationSizeMb: 32, stackSizeMb: 1 },
    });
    // A thread that sleeps in poll keeps the process from ending.
    process.once('exit', this.#onExit);
    this.closed = new Promise((resolve, reject) => {
      this.#worker.on('message', (message: HotThreadMessage) => {
        if (message === 'posted') this.#takePosted();
        else if (message === 'dirty') this.#startWriteBack();
        else if (message.closed === -ENODEV) resolve();
        else reject(callFailed('read of /dev/fuse', message.closed));
      });
      this.#worker.on('error', reject);
      this.#worker.on('exit', () => resolve());
    });
    // A caller that only stops the server need not look at how it ended.
    this.closed.catch(() => {});
  }

  get access(): Access {
    return this.#access;
  }

  /**
   * Resolves when the new access holds: after `readonly` and `standby` no write that came before is still on
   * its way and none passes any more (a write then gets EROFS, or waits). Does not flush. After `standby`,
   * reads wait as well.
   */
  async setAccess(access: Access): Promise<void> {
    this.#access = access;
    if (!this.#failed) this.#slots.access = accessNumbers[access];
    if (access !== 'standby') {
      const held = this.#held;
      this.#held = [];
      for (const { index, startMs } of held) this.#accept(index, startMs);
    }
    await this.#hotThreadPassed();
    this.#takePosted();
    if (access !== 'writable') await this.#idle.until(() => this.#changesInFlight === 0);
  }

  /**
   * From here on `device` has the word on everything, and is known to refuse: the hot thread answers nothing
   * by itself any more.
   */
  failStop(): void {
    this.#failed = true;
    this.#slots.access = ACCESS_STANDBY;
  }

  /**
   * From here on `device` serves, and every block of the local file is valid: how a clone drops its source
   * when it is whole. Resolves when nobody looks at the old device or the validity bits any more; then they
   * can be closed and unmapped.
   */
  async becomeWhole(device: BlockDevice): Promise<void> {
    this.#device = device;
    this.#validity = null;
    this.#slots.whole = true;
    await this.#hotThreadPassed();
    // Requests in flight may have been started on the old device.
    await this.#idle.until(() => this.#requestsInFlight === 0);
  }

  statistics(): GuestStatistics {
    const both = [this.#hotCounters, this.#slowCounters];
    const sum = (counter: number) => both.reduce((total, counters) => total + counters.get(counter), 0);
    // Misses pass the main thread only.
    const misses = this.#slowCounters.missLatency;
    const reads = this.readLatency();
    return {
      reads: sum(COUNTER.reads),
      readBytes: sum(COUNTER.readBytes),
      writes: sum(COUNTER.writes),
      writeBytes: sum(COUNTER.writeBytes),
      flushes: sum(COUNTER.flushes),
      misses: sum(COUNTER.misses),
      readLatencyP50Ms: reads.quantileMs(0.5),
      readLatencyP99Ms: reads.quantileMs(0.99),
      missLatencyP50Ms: misses.quantileMs(0.5),
      missLatencyP99Ms: misses.quantileMs(0.99),
    };
  }

  /** What the guest waited for since the last call, but for the source. */
  takeWaits(): GuestWaits {
    return this.#waits.take(this.#options.clock.monotonicMs());
  }

  /**
   * What the guest will want first when it starts elsewhere: regions of `HEAT_REGION_BYTES`, most wanted
   * first.
   */
  heat(): number[] {
    return hottestRegions([this.#hotHeat, this.#slowHeat]);
  }

  /** Of all reads so far: for percentiles of a span, take one before and use `since`. */
  readLatency(): Histogram {
    const merged = this.#hotCounters.readLatency.snapshot();
    merged.merge(this.#slowCounters.readLatency);
    return merged;
  }

  /** How many reads and writes the hot thread answered itself. */
  get hotRequests(): number {
    return this.#hotCounters.get(COUNTER.reads) + this.#hotCounters.get(COUNTER.writes);
  }

  /**
   * Ends the hot thread; requests that the device still works on are answered when it is done, but for those
   * that it drops because it is closed. The connection stays: those, and new requests, wait in the kernel for
   * the next server. Idempotent.
   */
  async stop(): Promise<void> {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#wakeHotThread();
    await this.#worker.terminate();
    process.removeListener('exit', this.#onExit);
    closeSync(this.#wakeFd);
    this.#landing.free();
  }

  #wakeHotThread(): void {
    this.#slots.stop();
    rawWrite(this.#wakeFd, addressOf(wakeCount), wakeCount.byteLength);
  }

  #startWriteBack(): void {
    const { hot } = this.#options;
    if (hot === null || this.#writesBack || this.#access !== 'writable') return;
    this.#writesBack = true;
    void startWriteBack(hot.dataFd).finally(() => {
      this.#writesBack = false;
    });
  }

  /** Resolves when the hot thread cannot act any more on what the shared words said before the call. */
  async #hotThreadPassed(): Promise<void> {
    const sequence = this.#slots.sequence;
    if (sequence % 2 === 0) return;
    while (this.#slots.sequence === sequence && !this.#stopped) await this.#options.clock.sleep(0);
  }

  #takePosted(): void {
    for (let index = this.#slots.next(); index !== -1; index = this.#slots.next()) {
      this.#accept(index, this.#options.clock.monotonicMs());
    }
  }

  #accept(index: number, startMs: number): void {
    const opcode = this.#fuseSlots[index]!.opcode;
    if (this.#access === 'standby' && opcode !== OPCODE.fsync) {
      this.#held.push({ index, startMs });
      return;
    }
    const changes = opcode !== OPCODE.read && opcode !== OPCODE.fsync;
    this.#requestsInFlight++;
    if (changes) this.#changesInFlight++;
    void this.#answer(index, startMs).finally(() => {
      this.#requestsInFlight--;
      if (changes) this.#changesInFlight--;
      this.#idle.changed();
    });
  }

  async #answer(index: number, startMs: number): Promise<void> {
    const slot = this.#fuseSlots[index]!;
    const address = this.#dataAddress + Slots.offsetBytesOf(index, this.#dataAddress);
    // Read before the reply overwrites the arguments.
    const opcode = slot.opcode;
    const offsetBytes = slot.offsetBytes;
    const lengthBytes = opcode === OPCODE.fallocate ? slot.fallocateLengthBytes : slot.sizeBytes;
    const missed = this.#isMiss(opcode, offsetBytes, lengthBytes);
    let replyBytes: number;
    try {
      replyBytes = await this.#perform(slot, opcode, offsetBytes, lengthBytes);
    } catch (error) {
      // Nobody asked the disk or the source: left unanswered, it is for the next server.
      if (this.#stopped && isGodwitError(error, 'BLOCK_CLOSED')) return;
      this.#options.logger.error(
        {
          opcode,
          offsetBytes,
          lengthBytes,
          error: messageOf(error),
          code: isGodwitError(error) ? error.code : null,
        },
        'a request of the guest failed',
      );
      replyBytes = slot.replyError(errnoFor(error));
    }
    // A failure here is ENOENT: the request was aborted, and nobody waits for the reply.
    rawWrite(this.#options.fuseFd, address + REPLY_AT, replyBytes);
    if (opcode === OPCODE.read) this.#slowHeat.read(offsetBytes, lengthBytes);
    else if (opcode === OPCODE.write) this.#slowHeat.write(offsetBytes, lengthBytes);
    this.#count(opcode, lengthBytes, this.#options.clock.monotonicMs() - startMs, missed);
    const movesData = opcode === OPCODE.read || opcode === OPCODE.write;
    this.#slots.free(index, address + PAYLOAD_AT, movesData ? lengthBytes : 0);
  }

  /** Fills the reply in and returns its length. */
  async #perform(slot: FuseSlot, opcode: number, offsetBytes: number, lengthBytes: number): Promise<number> {
    const device = this.#device;
    if (opcode === OPCODE.fsync) {
      await this.#waits.flush(
        () => this.#options.clock.monotonicMs(),
        () => device.flush(),
      );
      return slot.replyEmpty();
    }
    const changes = opcode !== OPCODE.read;
    if (changes && this.#access !== 'writable') return slot.replyError(EROFS);
    if ((offsetBytes | lengthBytes) & (device.blockBytes - 1)) return slot.replyError(EINVAL);
    if (offsetBytes + lengthBytes > device.lengthBytes) return slot.replyError(changes ? EFBIG : EINVAL);
    if (opcode === OPCODE.read) {
      if (lengthBytes > 0) await device.read(offsetBytes, slot.payload(lengthBytes));
      return slot.replyRead(lengthBytes);
    }
    if (opcode === OPCODE.write) {
      if (lengthBytes > 0) await device.write(offsetBytes, slot.payload(lengthBytes));
      return slot.replyWrite(lengthBytes);
    }
    assert(opcode === OPCODE.fallocate, 'the hot thread posts data requests only');
    const mode = slot.fallocateMode;
    if (mode === MODE_DISCARD) await device.discard(offsetBytes, lengthBytes);
    else if (mode === MODE_WRITE_ZEROES) await device.writeZeroes(offsetBytes, lengthBytes);
    else return slot.replyError(EOPNOTSUPP);
    return slot.replyEmpty();
  }

  /**
   * Whether the request has to wait for the source: a read of an absent block, or a write of a part of one.
   */
  #isMiss(opcode: number, offsetBytes: number, lengthBytes: number): boolean {
    if (this.#validity === null || (opcode !== OPCODE.read && opcode !== OPCODE.write)) return false;
    if (!(offsetBytes + lengthBytes <= this.#device.lengthBytes)) return false;
    return this.#validity.mustFetch(opcode === OPCODE.read ? 'read' : 'write', offsetBytes, lengthBytes);
  }

  #count(opcode: number, lengthBytes: number, milliseconds: number, missed: boolean): void {
    const counters = this.#slowCounters;
    if (missed) {
      counters.add(COUNTER.misses, 1);
      counters.missLatency.record(milliseconds);
    } else if (opcode === OPCODE.read || opcode === OPCODE.write) {
      counters.waited(opcode === OPCODE.read ? 'read' : 'write', milliseconds);
    }
    if (opcode === OPCODE.read) {
      counters.add(COUNTER.reads, 1);
      counters.add(COUNTER.readBytes, lengthBytes);
      counters.readLatency.record(milliseconds);
    } else if (opcode === OPCODE.write) {
      counters.add(COUNTER.writes, 1);
      counters.add(COUNTER.writeBytes, lengthBytes);
      counters.writeLatency.record(milliseconds);
    } else if (opcode === OPCODE.fsync) {
      counters.add(COUNTER.flushes, 1);
      counters.waited('flush', milliseconds);
    } else {
      counters.add(COUNTER.discards, 1);
    }
  }

  #write(bytes: Uint8Array): void {
    const count = rawWrite(this.#options.fuseFd, addressOf(bytes), bytes.length);
    // A kernel without resend answers EINVAL: nothing could have been in flight there (fuse-mount.ts), so
    // nothing is lost.
    if (count < 0 && count !== -EINVAL) throw callFailed('write of /dev/fuse', count);
  }
}

const wakeCount = new BigUint64Array([1n]);

/** What the guest's kernel is told. Anything without a better word is EIO. */
function errnoFor(error: unknown): number {
  if (isGodwitError(error, 'BLOCK_NO_SPACE') || isGodwitError(error, 'VOLUME_NO_SPACE')) return ENOSPC;
  if (isGodwitError(error, 'BLOCK_READ_ONLY')) return EROFS;
  if (isGodwitError(error, 'BLOCK_BAD_RANGE')) return EINVAL;
  return EIO;
}

function check(call: string, result: number): number {
  if (result < 0) throw callFailed(call, result);
  return result;
}

function callFailed(call: string, result: number): GodwitError {
  return new GodwitError('ATTACH_FUSE_FAILED', `${call} failed with ${errnoName(-result)}`, {
    values: { call, errno: errnoName(-result) },
    nextAction:
      'The connection is broken or the descriptor is not a FUSE one; start the volume server again.',
  });
}
