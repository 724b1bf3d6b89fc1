import type { BlockDevice, Extent } from '../../block/block-device.ts';
import { type AfterWrite, answer, DONE, deviceFailed, type Result } from './plan.ts';
import { SENSE, STATUS } from './sense.ts';
import { Workspace } from './workspace.ts';
import { WriteGate } from './write-gate.ts';

/** A piece of the medium in bytes, whole blocks. */
export type Range = { offsetBytes: number; lengthBytes: number };

const WRITE_SAME_CHUNK_BYTES = 2 ** 20;
const CHECK_CHUNK_BYTES = 2 ** 20;
/** What PRE-FETCH reads; the rest of a longer range is left where it is. */
const PREFETCH_BYTES_MAX = 8 * 2 ** 20;
/**
 * Answers that are on their way have to fit into a connection's own part of the book, for as many commands as
 * it may have.
 */
const LBA_STATUS_DESCRIPTORS_MAX = 512;
/** Commands of a unit that have a chunk, or two, or a list of extents, at a time. */
const WORKSPACE_PLACES = 4;
/** Writes up to here are done on the spot: the hop to another thread costs more than the copy. */
const WRITE_NOW_BYTES_MAX = 32 * 1024;
/**
 * A write on the spot that took longer was made to wait by the kernel (dirty page limits, a busy journal) …
 */
const WRITE_NOW_SLOW_MS = 2;
/** … and so many after it go to the other thread, so that the other sessions are not held up again. */
const WRITE_NOW_PAUSE = 1024;

/**
 * What commands do to the device, once they are allowed to. Everything that changes it goes through one gate,
 * for the commands that must be alone between reading and writing. Device errors come back as sense.
 */
export class Medium {
  readonly #device: BlockDevice;
  readonly #gate = new WriteGate();
  /** Taken behind the gate, where both are needed: who has a place in it never waits at the gate. */
  readonly #workspace = new Workspace(WORKSPACE_PLACES);
  readonly #monotonicMs: () => number;
  /** Writes until the next one on the spot. */
  #pause = 0;

  constructor(device: BlockDevice, monotonicMs: () => number) {
    this.#device = device;
    this.#monotonicMs = monotonicMs;
  }

  /** A small write done at once. False: not done, call `write`. */
  writeNow(offsetBytes: number, from: Buffer): boolean {
    if (this.#device.writeNow === undefined || from.length > WRITE_NOW_BYTES_MAX || !this.#gate.open)
      return false;
    if (this.#pause > 0) {
      this.#pause -= 1;
      return false;
    }
    const startMs = this.#monotonicMs();
    const done = this.#device.writeNow(offsetBytes, from);
    if (!done || this.#monotonicMs() - startMs > WRITE_NOW_SLOW_MS) this.#pause = WRITE_NOW_PAUSE;
    return done;
  }

  /** `from` is whole blocks. */
  async write(offsetBytes: number, from: Buffer, after: AfterWrite): Promise<Result> {
    try {
      if (from.length > 0) await this.#gate.shared(() => this.#device.write(offsetBytes, from));
      // What is verified is what the medium has (SBC-3, WRITE AND VERIFY), and not a cache.
      if (after !== 'nothing') await this.#device.flush();
    } catch (error) {
      return deviceFailed(error, 'write');
    }
    if (after === 'read') return this.check({ offsetBytes, lengthBytes: from.length }, null);
    if (after === 'compare') return this.check({ offsetBytes, lengthBytes: from.length }, from);
    return DONE;
  }

  flush(): Promise<Result> {
    return this.#mutate(() => this.#device.flush());
  }

  discard(ranges: readonly Range[]): Promise<Result> {
    return this.#mutate(() =>
      this.#gate.shared(async () => {
        for (const { offsetBytes, lengthBytes } of ranges)
          await this.#device.discard(offsetBytes, lengthBytes);
      }),
    );
  }

  /** `block` once per block; empty: zeros. `unmap`: zeros may be a hole. */
  writeSame(range: Range, block: Buffer, unmap: boolean): Promise<Result> {
    const { offsetBytes, lengthBytes } = range;
    return this.#mutate(() =>
      this.#gate.shared(async () => {
        if (block.every((byte) => byte === 0)) {
          if (unmap) await this.#device.discard(offsetBytes, lengthBytes);
          else await this.#device.writeZeroes(offsetBytes, lengthBytes);
          return;
        }
        await this.#workspace.use(() => this.#repeat(range, block));
      }),
    );
  }

  async #repeat({ offsetBytes, lengthBytes }: Range, block: Buffer): Promise<void> {
    const chunk = Buffer.allocUnsafe(Math.min(lengthBytes, WRITE_SAME_CHUNK_BYTES)).fill(block);
    for (let done = 0; done < lengthBytes; done += chunk.length) {
      const length = Math.min(chunk.length, lengthBytes - done);
      await this.#device.write(offsetBytes + done, chunk.subarray(0, length));
    }
  }

  /** Reads the range, and compares it with `expected` (repeated where it is shorter). null: reads only. */
  check(range: Range, expected: Buffer | null): Promise<Result> {
    return this.#workspace.use(() => this.#check(range, expected));
  }

  async #check(range: Range, expected: Buffer | null): Promise<Result> {
    const repeats = expected !== null && expected.length < range.lengthBytes;
    const chunkBytes = Math.min(range.lengthBytes, CHECK_CHUNK_BYTES);
    const repeated = repeats ? Buffer.allocUnsafe(chunkBytes).fill(expected) : null;
    const chunk = Buffer.allocUnsafe(chunkBytes);
    try {
      for (let done = 0; done < range.lengthBytes; done += chunk.length) {
        const part = chunk.subarray(0, Math.min(chunk.length, range.lengthBytes - done));
        await this.#device.read(range.offsetBytes + done, part);
        if (expected === null) continue;
        const wanted = repeated?.subarray(0, part.length) ?? expected.subarray(done, done + part.length);
        const difference = firstDifference(part, wanted);
        if (difference !== null) return miscompare(done + difference);
      }
      return DONE;
    } catch (error) {
      return deviceFailed(error, 'read');
    }
  }

  /** COMPARE AND WRITE: `data` is what must be there, then what is written. */
  compareAndWrite(range: Range, data: Buffer, flush: boolean): Promise<Result> {
    return this.#gate.alone(async () => {
      const compared = await this.check(range, data.subarray(0, range.lengthBytes));
      if (compared.kind !== 'answer') return compared;
      return this.#mutate(async () => {
        await this.#device.write(range.offsetBytes, data.subarray(range.lengthBytes));
        if (flush) await this.#device.flush();
      });
    });
  }

  orWrite(range: Range, data: Buffer, flush: boolean): Promise<Result> {
    return this.#gate.alone(async () => {
      const merged = Buffer.allocUnsafe(range.lengthBytes);
      try {
        await this.#device.read(range.offsetBytes, merged);
      } catch (error) {
        return deviceFailed(error, 'read');
      }
      for (let index = 0; index < merged.length; index += 1) merged[index]! |= data[index]!;
      return this.#mutate(async () => {
        await this.#device.write(range.offsetBytes, merged);
        if (flush) await this.#device.flush();
      });
    });
  }

  /** Reads and forgets, when that can begin at once: for those that do not want to know how it ended. */
  prefetchSoon(range: Range): void {
    if (this.#workspace.hasRoom) void this.prefetch(range);
  }

  /** Reads and forgets: a cache below has it then, and a clone its blocks. CONDITION MET: all of it. */
  async prefetch(range: Range): Promise<Result> {
    const lengthBytes = Math.min(range.lengthBytes, PREFETCH_BYTES_MAX);
    const fetched = await this.check({ offsetBytes: range.offsetBytes, lengthBytes }, null);
    if (fetched.kind !== 'answer' || lengthBytes < range.lengthBytes) return fetched;
    return { kind: 'status', status: STATUS.conditionMet };
  }

  /*
   * GET LBA STATUS parameter data, SBC-3 section 5.5.2
   *   0-3    length - 4
   *   8-     descriptors: LBA(8), blocks(4), provisioning status (0 mapped, 1 deallocated), reserved(3)
   */
  lbaStatus(range: Range, blockBytes: number, allocationBytes: number): Promise<Result> {
    return this.#workspace.use(() => this.#lbaStatus(range, blockBytes, allocationBytes));
  }

  async #lbaStatus(range: Range, blockBytes: number, allocationBytes: number): Promise<Result> {
    const room = Math.floor((allocationBytes - 8) / 16);
    const limit = Math.max(1, Math.min(room, LBA_STATUS_DESCRIPTORS_MAX));
    let extents: Extent[];
    try {
      extents =
        this.#device.extents === undefined
          ? [{ ...range, kind: 'data' }]
          : await this.#device.extents(range.offsetBytes, range.lengthBytes, limit);
    } catch (error) {
      return deviceFailed(error, 'read');
    }
    const bytes = Buffer.alloc(8 + 16 * limit);
    let at = 8;
    for (const extent of extents) {
      let first = extent.offsetBytes / blockBytes;
      let blocks = extent.lengthBytes / blockBytes;
      while (blocks > 0 && at < bytes.length) {
        // A count has 32 bits; a longer extent takes several descriptors.
        const count = Math.min(blocks, 0xffffffff);
        bytes.writeBigUInt64BE(BigInt(first), at);
        bytes.writeUInt32BE(count, at + 8);
        bytes[at + 12] = extent.kind === 'hole' ? 1 : 0;
        first += count;
        blocks -= count;
        at += 16;
      }
    }
    bytes.writeUInt32BE(at - 4, 0);
    return answer(bytes.subarray(0, at), allocationBytes);
  }

  async #mutate(work: () => Promise<void>): Promise<Result> {
    try {
      await work();
      return DONE;
    } catch (error) {
      return deviceFailed(error, 'write');
    }
  }
}

function miscompare(offsetBytes: number): Result {
  return { kind: 'sense', sense: { ...SENSE.miscompare, information: offsetBytes } };
}

function firstDifference(left: Buffer, right: Buffer): number | null {
  if (left.equals(right)) return null;
  return left.findIndex((byte, index) => byte !== right[index]);
}
