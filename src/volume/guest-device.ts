import { COUNTER, GuestCounters, WaitMeter } from '../attach/guest-counters.ts';
import { Heat, hottestRegions } from '../attach/heat.ts';
import type { Clock } from '../base/clock.ts';
import { Condition } from '../base/condition.ts';
import { BLOCK_BYTES, type BlockDevice } from '../block/block-device.ts';
import { readOnlyError } from '../block/range.ts';
import type { GuestWaits } from '../clone/disk-window.ts';
import type { ValidityMap } from '../clone/validity-map.ts';
import type { HydrationExtent } from '../nbd/index.ts';
import type { Access } from '../opening/spec.ts';
import type { GuestStatistics } from '../opening/status.ts';

/**
 * After this many bytes of writes their way to the disk begins, so that dirty pages do not pile up until the
 * seal before a handoff.
 */
const WRITE_BEHIND_BYTES = 64 * 1024 * 1024;

export type GuestDeviceOptions = {
  device: BlockDevice;
  access: Access;
  /** Which blocks are here, when `device` is a clone. */
  validity: ValidityMap | null;
  /** Starts to write dirty pages back and does not wait for the disk. */
  writeBack: () => Promise<void>;
  clock: Clock;
};

/**
 * A volume as its guest has it who does not come through FUSE: the same gate, counts and heat that
 * `FuseServer` has, as a layer. In `standby` reads and writes wait; in `readonly` writes reject with
 * `BLOCK_READ_ONLY`.
 */
export class GuestDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly extents?: NonNullable<BlockDevice['extents']>;
  readonly #options: GuestDeviceOptions;
  readonly #counters = new GuestCounters();
  readonly #waits = new WaitMeter([this.#counters]);
  readonly #heat = new Heat();
  #device: BlockDevice;
  #validity: ValidityMap | null;
  #access: Access;
  #opened = Promise.withResolvers<void>();
  /** Calls that the present device works on. */
  #users = { count: 0 };
  #changesInFlight = 0;
  readonly #idle = new Condition();
  #dirtyBytes = 0;
  #writesBack = false;

  constructor(options: GuestDeviceOptions) {
    const { device } = options;
    this.#options = options;
    this.#device = device;
    this.#validity = options.validity;
    this.#access = options.access;
    if (options.access !== 'standby') this.#opened.resolve();
    this.lengthBytes = device.lengthBytes;
    this.blockBytes = device.blockBytes;
    if (device.extents) {
      this.extents = (offsetBytes, lengthBytes, limitExtents) =>
        this.#through(false, () => this.#device.extents!(offsetBytes, lengthBytes, limitExtents));
    }
  }

  get writable(): boolean {
    return this.#access === 'writable';
  }

  get access(): Access {
    return this.#access;
  }

  /**
   * Resolves when the new access holds: after `readonly` no change that was let in before is still under way.
   * Does not flush.
   */
  async setAccess(access: Access): Promise<void> {
    if (this.#access !== 'standby' && access === 'standby') this.#opened = Promise.withResolvers();
    this.#access = access;
    if (access !== 'standby') this.#opened.resolve();
    if (access !== 'writable') await this.#idle.until(() => this.#changesInFlight === 0);
  }

  /**
   * From here on `device` serves, and every block is here. Resolves when nobody uses the old one or the
   * validity bits any more.
   */
  async becomeWhole(device: BlockDevice): Promise<void> {
    const users = this.#users;
    this.#users = { count: 0 };
    this.#device = device;
    this.#validity = null;
    await this.#idle.until(() => users.count === 0);
  }

  read(offsetBytes: number, into: Uint8Array): Promise<void> {
    return this.#counted('read', offsetBytes, into.length, () => this.#device.read(offsetBytes, into));
  }

  readNow(offsetBytes: number, into: Uint8Array): boolean {
    if (this.#access === 'standby') return false;
    const startMs = this.#options.clock.monotonicMs();
    if (this.#device.readNow?.(offsetBytes, into) !== true) return false;
    this.#count('read', offsetBytes, into.length, startMs, false);
    return true;
  }

  write(offsetBytes: number, from: Uint8Array): Promise<void> {
    return this.#counted('write', offsetBytes, from.length, () => this.#device.write(offsetBytes, from));
  }

  writeNow(offsetBytes: number, from: Uint8Array): boolean {
    if (this.#access !== 'writable') return false;
    const startMs = this.#options.clock.monotonicMs();
    if (this.#device.writeNow?.(offsetBytes, from) !== true) return false;
    this.#count('write', offsetBytes, from.length, startMs, false);
    return true;
  }

  /** Never waits: what was let in may be made durable at any time. */
  async flush(): Promise<void> {
    const { clock } = this.#options;
    const startMs = clock.monotonicMs();
    await this.#waits.flush(
      () => startMs,
      () => this.#device.flush(),
    );
    this.#counters.add(COUNTER.flushes, 1);
    this.#counters.waited('flush', clock.monotonicMs() - startMs);
  }

  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#through(true, () => this.#device.discard(offsetBytes, lengthBytes));
    this.#counters.add(COUNTER.discards, 1);
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#through(true, () => this.#device.writeZeroes(offsetBytes, lengthBytes));
    this.#counters.add(COUNTER.discards, 1);
  }

  /** Closes the device. */
  close(): Promise<void> {
    return this.#device.close();
  }

  /** Which parts of a range are here and which have to be fetched (`HydrationExtents` of the NBD server). */
  hydration(offsetBytes: number, lengthBytes: number, limitExtents: number): HydrationExtent[] {
    const validity = this.#validity;
    if (validity === null) return [{ offsetBytes, lengthBytes, kind: 'hydrated' }];
    const endBytes = offsetBytes + lengthBytes;
    const endBlock = Math.ceil(endBytes / BLOCK_BYTES);
    const extents: HydrationExtent[] = [];
    for (let at = offsetBytes; at < endBytes && extents.length < limitExtents; ) {
      const block = Math.floor(at / BLOCK_BYTES);
      const isHere = validity.has(block);
      const next = isHere ? validity.firstAbsent(block, endBlock) : validity.firstPresent(block, endBlock);
      const nextBytes = Math.min(next * BLOCK_BYTES, endBytes);
      extents.push({ offsetBytes: at, lengthBytes: nextBytes - at, kind: isHere ? 'hydrated' : 'remote' });
      at = nextBytes;
    }
    return extents;
  }

  statistics(): GuestStatistics {
    const counters = this.#counters;
    const { readLatency, missLatency } = counters;
    return {
      reads: counters.get(COUNTER.reads),
      readBytes: counters.get(COUNTER.readBytes),
      writes: counters.get(COUNTER.writes),
      writeBytes: counters.get(COUNTER.writeBytes),
      flushes: counters.get(COUNTER.flushes),
      misses: counters.get(COUNTER.misses),
      readLatencyP50Ms: readLatency.quantileMs(0.5),
      readLatencyP99Ms: readLatency.quantileMs(0.99),
      missLatencyP50Ms: missLatency.quantileMs(0.5),
      missLatencyP99Ms: missLatency.quantileMs(0.99),
    };
  }

  /** As `FuseServer.takeWaits`. */
  takeWaits(): GuestWaits {
    return this.#waits.take(this.#options.clock.monotonicMs());
  }

  /** As `FuseServer.heat`. */
  heat(): number[] {
    return hottestRegions([this.#heat]);
  }

  async #counted(
    kind: 'read' | 'write',
    offsetBytes: number,
    lengthBytes: number,
    call: () => Promise<void>,
  ): Promise<void> {
    const startMs = this.#options.clock.monotonicMs();
    let missed = false;
    await this.#through(kind === 'write', () => {
      // Judged when it is let in: in standby nothing is here yet, and that is no miss.
      missed = this.#mustFetch(kind, offsetBytes, lengthBytes);
      return call();
    });
    this.#count(kind, offsetBytes, lengthBytes, startMs, missed);
  }

  #mustFetch(kind: 'read' | 'write', offsetBytes: number, lengthBytes: number): boolean {
    if (this.#validity === null || !(offsetBytes >= 0 && offsetBytes + lengthBytes <= this.lengthBytes))
      return false;
    return this.#validity.mustFetch(kind, offsetBytes, lengthBytes);
  }

  #count(
    kind: 'read' | 'write',
    offsetBytes: number,
    lengthBytes: number,
    startMs: number,
    missed: boolean,
  ): void {
    const counters = this.#counters;
    const milliseconds = this.#options.clock.monotonicMs() - startMs;
    if (missed) {
      counters.add(COUNTER.misses, 1);
      counters.missLatency.record(milliseconds);
    } else {
      counters.waited(kind, milliseconds);
    }
    if (kind === 'read') {
      this.#heat.read(offsetBytes, lengthBytes);
      counters.add(COUNTER.reads, 1);
      counters.add(COUNTER.readBytes, lengthBytes);
      counters.readLatency.record(milliseconds);
      return;
    }
    this.#heat.write(offsetBytes, lengthBytes);
    counters.add(COUNTER.writes, 1);
    counters.add(COUNTER.writeBytes, lengthBytes);
    counters.writeLatency.record(milliseconds);
    this.#dirtyBytes += lengthBytes;
    if (this.#dirtyBytes >= WRITE_BEHIND_BYTES) this.#writeBehind();
  }

  #writeBehind(): void {
    if (this.#writesBack) return;
    this.#dirtyBytes = 0;
    this.#writesBack = true;
    void this.#options
      .writeBack()
      // A failure comes again at the next flush, which reports it.
      .catch(() => {})
      .finally(() => {
        this.#writesBack = false;
      });
  }

  /**
   * Lets a call in when the gate is open. Between the look at the gate and the count of the call nothing else
   * runs.
   */
  async #through<T>(changes: boolean, call: () => Promise<T>): Promise<T> {
    while (this.#access === 'standby') await this.#opened.promise;
    if (changes && this.#access !== 'writable') throw readOnlyError();
    const users = this.#users;
    users.count++;
    if (changes) this.#changesInFlight++;
    try {
      return await call();
    } finally {
      users.count--;
      if (changes) this.#changesInFlight--;
      this.#idle.changed();
    }
  }
}
