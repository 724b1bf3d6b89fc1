import { GodwitError } from '../../src/base/errors.ts';
import type { Random } from '../../src/base/random.ts';
import { systemRandom } from '../../src/base/random.ts';
import type { BlockDevice, Extent } from '../../src/block/block-device.ts';
import { BLOCK_BYTES } from '../../src/block/block-device.ts';
import { checkGeometry, checkRange, closedError, rangeFits, readOnlyError } from '../../src/block/range.ts';
import { SparseBytes } from '../../src/block/sparse-bytes.ts';
import { PowerSupply } from './power-supply.ts';

/**
 * A disk that misbehaves on demand. The fault model:
 *
 * - Two images: what reads see now (volatile), and what is on the platter for certain (durable). A mutation
 *   changes the first and joins the list of unflushed operations; a flush moves the list into the second and
 *   empties it.
 * - Power cut: each unflushed operation, independently of the others and of their order, survives whole, is
 *   lost, or is torn: any subset of its 512-byte sectors survives. Discards and zeroes are operations like
 *   writes. The durable image with the survivors is what the disk holds afterwards. Sectors are atomic;
 *   nothing is ever invented, and nothing flushed is ever lost. (Pillai et al., "All File Systems Are Not
 *   Created Equal", OSDI 2014, find applications break on just these reorderings.)
 * - Crash of a process without loss of power: `reopen()`. All that was written is still there, unflushed or
 *   not.
 * - Failure: the Nth call of some kinds rejects with a given error and does nothing, once or for ever.
 * - Stall: calls of some kinds wait until released, and take effect only then.
 *
 * Operations cost memory copies of their own length only, so that a run can visit tens of thousands of crash
 * points.
 */
export type OperationKind = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes' | 'extents';

/** The unit that a disk writes whole or not at all. */
export const SECTOR_BYTES = 512;

export type FaultRule = {
  /** Default: every kind. */
  kinds?: readonly OperationKind[];
  /** Only calls that touch this range of bytes (flushes touch none). Default: any. */
  range?: { offsetBytes: number; lengthBytes: number };
  /** 1: the next matching call fails, 2: the one after it… Default 1. */
  nth?: number;
  /** How many matching calls fail from there on. Default 1; Infinity for ever. */
  times?: number;
  /** Default: a `BLOCK_IO` error. */
  error?: Error;
};

export type FaultDeviceOptions = {
  lengthBytes: number;
  /** Default 512. */
  blockBytes?: number;
  /** Default true. */
  writable?: boolean;
  /** Shared by the devices of one host. Default: one of its own. */
  power?: PowerSupply;
  /** Unit of holes. Default 4096. */
  chunkBytes?: number;
};

/** A mutation that no flush has covered. Without bytes it made zeros. */
type Unflushed = { offsetBytes: number; lengthBytes: number; bytes: Uint8Array | null };

/** The disk itself: outlives the handles on it. */
type Medium = { live: SparseBytes; durable: SparseBytes; unflushed: Unflushed[] };

type ActiveRule = { rule: FaultRule; seen: number };
type Stall = { kinds: readonly OperationKind[] | undefined; released: Promise<void> };

export class FaultDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly writable: boolean;
  readonly power: PowerSupply;
  readonly #options: FaultDeviceOptions;
  readonly #medium: Medium;
  readonly #rules = new Set<ActiveRule>();
  readonly #stalls = new Set<Stall>();
  /** Calls that wait in a stall. */
  #stalledCalls = 0;
  #closed = false;
  /** Cut off by `reopen`: what a dead process still sends reaches nothing. */
  #dead = false;
  #powerCuts = 0;

  /** Throws `BLOCK_BAD_GEOMETRY`. `medium` is for `reopen` only. */
  constructor(options: FaultDeviceOptions, medium?: Medium) {
    this.#options = options;
    this.lengthBytes = options.lengthBytes;
    this.blockBytes = options.blockBytes ?? 512;
    this.writable = options.writable ?? true;
    this.power = options.power ?? new PowerSupply(systemRandom);
    const chunkBytes = options.chunkBytes ?? BLOCK_BYTES;
    this.#medium = medium ?? {
      live: new SparseBytes(chunkBytes),
      durable: new SparseBytes(chunkBytes),
      unflushed: [],
    };
    checkGeometry(this);
    this.power.connect(this);
  }

  /** Operations that a power cut could take back. */
  get unflushedOperations(): number {
    return this.#medium.unflushed.length;
  }

  /** Calls that wait in a stall now. */
  get stalledCalls(): number {
    return this.#stalledCalls;
  }

  /** Arms a failure; the returned function disarms it. */
  fail(rule: FaultRule = {}): () => void {
    const active: ActiveRule = { rule, seen: 0 };
    this.#rules.add(active);
    return () => this.#rules.delete(active);
  }

  /** Holds calls of the kinds (default: all) until the returned function is called. */
  stall(kinds?: readonly OperationKind[]): () => void {
    const { promise, resolve } = Promise.withResolvers<void>();
    const stall: Stall = { kinds, released: promise };
    this.#stalls.add(stall);
    return () => {
      this.#stalls.delete(stall);
      resolve();
    };
  }

  /**
   * Another handle on the same disk, as the next process has it; this one is dead: its calls, stalled ones
   * too, reject with `BLOCK_CLOSED` and do nothing. Rules and stalls stay behind with it. `writable` of the
   * new handle can be chosen.
   */
  reopen(options: { writable?: boolean } = {}): FaultDevice {
    this.#dead = true;
    this.power.disconnect(this);
    return new FaultDevice({ ...this.#options, power: this.power, ...options }, this.#medium);
  }

  /** Reads what is there now past all rules, counting nothing: for the eyes of a test. */
  peek(offsetBytes: number, into: Uint8Array): void {
    this.#medium.live.read(offsetBytes, into);
  }

  /** Changes bytes behind everyone's back, durably: bit rot. */
  corrupt(offsetBytes: number, bytes: Uint8Array): void {
    this.#medium.live.write(offsetBytes, bytes);
    this.#medium.durable.write(offsetBytes, bytes);
  }

  /** What `power.cut()` does to this disk. Calls that were in a stall reject and do nothing. */
  powerCut(random: Random): void {
    this.#powerCuts++;
    const { live, durable, unflushed } = this.#medium;
    // Disks that lose all of their cache or nothing of it are the common ones, and no mix of independent
    // coins over many operations would ever show them.
    const mood = random.below(4);
    for (const operation of unflushed) {
      if (mood === 0) continue;
      if (mood === 1) apply(durable, operation, 0, operation.lengthBytes);
      else applySurvivors(durable, operation, random);
    }
    for (const { offsetBytes, lengthBytes } of unflushed) live.copyFrom(durable, offsetBytes, lengthBytes);
    this.#medium.unflushed = [];
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    checkRange(this, offsetBytes, into.length);
    const wait = this.#admit('read', offsetBytes, into.length);
    if (wait !== undefined) await wait;
    this.#medium.live.read(offsetBytes, into);
  }

  readNow(offsetBytes: number, into: Uint8Array): boolean {
    if (this.#closed || this.#dead || !this.power.on || this.#rules.size > 0 || this.#stalls.size > 0)
      return false;
    if (!rangeFits(this, offsetBytes, into.length)) return false;
    this.#medium.live.read(offsetBytes, into);
    return true;
  }

  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    this.#checkMutation(offsetBytes, from.length);
    const wait = this.#admit('write', offsetBytes, from.length);
    if (wait !== undefined) await wait;
    this.#mutate({ offsetBytes, lengthBytes: from.length, bytes: new Uint8Array(from) });
  }

  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkMutation(offsetBytes, lengthBytes);
    const wait = this.#admit('discard', offsetBytes, lengthBytes);
    if (wait !== undefined) await wait;
    this.#mutate({ offsetBytes, lengthBytes, bytes: null });
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkMutation(offsetBytes, lengthBytes);
    const wait = this.#admit('writeZeroes', offsetBytes, lengthBytes);
    if (wait !== undefined) await wait;
    this.#mutate({ offsetBytes, lengthBytes, bytes: null });
  }

  async flush(): Promise<void> {
    const wait = this.#admit('flush', 0, 0);
    if (wait !== undefined) await wait;
    if (this.power.beginOperation()) {
      this.power.cut();
      throw powerLostError();
    }
    for (const operation of this.#medium.unflushed) {
      apply(this.#medium.durable, operation, 0, operation.lengthBytes);
    }
    this.#medium.unflushed = [];
  }

  async extents(offsetBytes: number, lengthBytes: number, limitExtents: number): Promise<Extent[]> {
    checkRange(this, offsetBytes, lengthBytes);
    const wait = this.#admit('extents', offsetBytes, lengthBytes);
    if (wait !== undefined) await wait;
    return this.#medium.live.extents(offsetBytes, lengthBytes, limitExtents);
  }

  async close(): Promise<void> {
    this.#closed = true;
  }

  #checkMutation(offsetBytes: number, lengthBytes: number): void {
    if (this.#closed || this.#dead) throw closedError();
    checkRange(this, offsetBytes, lengthBytes);
    if (!this.writable) throw readOnlyError();
  }

  /** Throws what the call must end with, or gives the promise that it has to wait for first. */
  #admit(kind: OperationKind, offsetBytes: number, lengthBytes: number): Promise<void> | undefined {
    this.#checkAlive();
    for (const active of this.#rules) this.#applyRule(active, kind, offsetBytes, lengthBytes);
    for (const stall of this.#stalls) {
      if (stall.kinds === undefined || stall.kinds.includes(kind)) return this.#waitOut(kind);
    }
    return undefined;
  }

  #checkAlive(): void {
    if (this.#closed || this.#dead) throw closedError();
    if (!this.power.on) throw powerLostError();
  }

  #applyRule(active: ActiveRule, kind: OperationKind, offsetBytes: number, lengthBytes: number): void {
    const { kinds, range, nth = 1, times = 1, error } = active.rule;
    if (kinds !== undefined && !kinds.includes(kind)) return;
    if (range !== undefined) {
      const apart =
        offsetBytes >= range.offsetBytes + range.lengthBytes ||
        offsetBytes + lengthBytes <= range.offsetBytes;
      if (apart) return;
    }
    active.seen++;
    if (active.seen < nth) return;
    if (active.seen >= nth + times - 1) this.#rules.delete(active);
    throw error ?? ioError(kind);
  }

  async #waitOut(kind: OperationKind): Promise<void> {
    const powerCuts = this.#powerCuts;
    this.#stalledCalls++;
    try {
      for (;;) {
        const stall = [...this.#stalls].find((each) => each.kinds === undefined || each.kinds.includes(kind));
        if (stall === undefined) break;
        await stall.released;
      }
    } finally {
      this.#stalledCalls--;
    }
    this.#checkAlive();
    if (this.#powerCuts !== powerCuts) throw powerLostError();
  }

  #mutate(operation: Unflushed): void {
    const powerGoes = this.power.beginOperation();
    apply(this.#medium.live, operation, 0, operation.lengthBytes);
    this.#medium.unflushed.push(operation);
    if (powerGoes) {
      this.power.cut();
      throw powerLostError();
    }
  }
}

/** Applies the part of an operation that lies `start` to `end` bytes into it. */
function apply(bytes: SparseBytes, operation: Unflushed, start: number, end: number): void {
  if (operation.bytes === null) bytes.zero(operation.offsetBytes + start, end - start);
  else bytes.write(operation.offsetBytes + start, operation.bytes.subarray(start, end));
}

/**
 * Most pieces that a torn operation breaks into; a discard of a terabyte has too many sectors to toss a coin
 * for each.
 */
const PIECES_MAX = 256;

function applySurvivors(bytes: SparseBytes, operation: Unflushed, random: Random): void {
  const sectors = operation.lengthBytes / SECTOR_BYTES;
  const fate = random.below(4);
  if (fate === 0 || sectors === 0) return;
  if (fate === 1) {
    apply(bytes, operation, 0, operation.lengthBytes);
    return;
  }
  if (fate === 2) {
    // Cut in the middle of the transfer: a prefix survives.
    apply(bytes, operation, 0, random.below(Math.min(sectors + 1, 2 ** 32)) * SECTOR_BYTES);
    return;
  }
  const pieceBytes = Math.ceil(sectors / PIECES_MAX) * SECTOR_BYTES;
  for (let start = 0; start < operation.lengthBytes; start += pieceBytes) {
    if (random.below(2) === 1)
      apply(bytes, operation, start, Math.min(start + pieceBytes, operation.lengthBytes));
  }
}

function powerLostError(): GodwitError {
  return new GodwitError('BLOCK_POWER_LOST', 'the host lost its power', {
    nextAction: 'This is a simulated power cut of a test; restore the power and open everything again.',
  });
}

function ioError(kind: OperationKind): GodwitError {
  return new GodwitError('BLOCK_IO', `injected I/O error on ${kind}`, {
    values: { operation: kind },
    nextAction: 'Look at the kernel log for the disk that fails; move the machine away from this host.',
  });
}
