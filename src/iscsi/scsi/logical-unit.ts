import { isGodwitError, systemErrorCode } from '../../base/errors.ts';
import type { BlockDevice, Extent } from '../../block/block-device.ts';
import type { Command } from './command.ts';
import { type BlockLimits, type LogicalUnitIdentity, standardInquiry, vitalProductData } from './inquiry.ts';
import { modeSense } from './mode.ts';
import { encodeSense, SENSE, type Sense } from './sense.ts';

/**
 * A block device as a SCSI logical unit (SPC-4, SBC-3). The logical block is the device's block; the physical block is
 * reported as at least 4 KiB.
 *
 * `plan` decides what a command comes to, without I/O. Whoever owns the transport moves the data: reads into its own
 * buffers, writes out of them.
 */
export type Plan =
  /** Answer at once. */
  | { kind: 'answer'; data: Buffer }
  | { kind: 'sense'; sense: Sense }
  /** Read the device and send it. */
  | { kind: 'read'; offsetBytes: number; lengthBytes: number }
  /** Take `lengthBytes` from the initiator and write them. */
  | { kind: 'write'; offsetBytes: number; lengthBytes: number; flush: boolean }
  /** No data from the initiator; `run` gives the answer. `medium`: waits while the unit is in standby. */
  | { kind: 'run'; medium: boolean; run: () => Promise<Plan> }
  /** Take `lengthBytes` of parameters or data, then `run` gives the answer. */
  | { kind: 'take'; lengthBytes: number; run: (data: Buffer) => Promise<Plan> };

export type LogicalUnitOptions = LogicalUnitIdentity & {
  device: BlockDevice;
  readOnly: boolean;
  /** Largest READ or WRITE, in bytes. */
  transferBytesMax: number;
};

const UNMAP_BYTES_MAX = 2 ** 29;
const UNMAP_DESCRIPTORS_MAX = 256;
const WRITE_SAME_BYTES_MAX = 32 * 2 ** 20;
const WRITE_SAME_CHUNK_BYTES = 2 ** 20;
const PHYSICAL_BLOCK_BYTES = 4096;
const LBA_STATUS_DESCRIPTORS_MAX = 2048;

export class LogicalUnit {
  readonly device: BlockDevice;
  readonly readOnly: boolean;
  readonly blockBytes: number;
  readonly blocks: number;
  readonly #identity: LogicalUnitIdentity;
  readonly #limits: BlockLimits;
  readonly #transferBytesMax: number;
  readonly #canTellExtents: boolean;
  /** Not open yet: commands that touch the medium wait. */
  standby = false;

  constructor(options: LogicalUnitOptions) {
    this.device = options.device;
    this.readOnly = options.readOnly || !options.device.writable;
    this.blockBytes = options.device.blockBytes;
    this.blocks = Math.floor(options.device.lengthBytes / this.blockBytes);
    this.#identity = { serial: options.serial, targetIqn: options.targetIqn };
    this.#transferBytesMax = options.transferBytesMax;
    this.#canTellExtents = options.device.extents !== undefined;
    this.#limits = {
      transferBlocksMax: options.transferBytesMax / this.blockBytes,
      transferBlocksOptimal: Math.min(options.transferBytesMax, 2 ** 20) / this.blockBytes,
      granularityBlocks: Math.max(1, PHYSICAL_BLOCK_BYTES / this.blockBytes),
      unmapBlocksMax: UNMAP_BYTES_MAX / this.blockBytes,
      unmapDescriptorsMax: UNMAP_DESCRIPTORS_MAX,
      writeSameBlocksMax: WRITE_SAME_BYTES_MAX / this.blockBytes,
      thin: !this.readOnly || this.#canTellExtents,
    };
  }

  plan(command: Command): Plan {
    switch (command.kind) {
      case 'read': {
        const bad = this.#checkTransfer(command);
        if (bad !== null) return { kind: 'sense', sense: bad };
        return { kind: 'read', ...this.#range(command) };
      }
      case 'write': {
        const bad = this.#checkTransfer(command) ?? this.#checkWritable();
        if (bad !== null) return { kind: 'sense', sense: bad };
        return { kind: 'write', ...this.#range(command), flush: command.forceUnitAccess };
      }
      case 'test-unit-ready':
        return this.standby ? { kind: 'sense', sense: SENSE.becomingReady } : answer(Buffer.alloc(0));
      case 'request-sense':
        return answer(
          encodeSense(SENSE.none, command.descriptor ? 'descriptor' : 'fixed'),
          command.allocationBytes,
        );
      case 'inquiry': {
        if (!command.vitalProductData) {
          return command.page === 0 ? answer(standardInquiry(true), command.allocationBytes) : invalidField();
        }
        const page = vitalProductData(command.page, this.#identity, this.#limits);
        return page === null ? invalidField() : answer(page, command.allocationBytes);
      }
      case 'mode-sense': {
        const pages = modeSense(command, {
          readOnly: this.readOnly,
          blocks: this.blocks,
          blockBytes: this.blockBytes,
        });
        return typeof pages === 'string'
          ? { kind: 'sense', sense: SENSE[pages] }
          : answer(pages, command.allocationBytes);
      }
      case 'read-capacity-10': {
        // 0-3 last LBA, or all ones: ask for READ CAPACITY(16)   4-7 block bytes
        const bytes = Buffer.alloc(8);
        bytes.writeUInt32BE(Math.min(this.blocks - 1, 0xffffffff), 0);
        bytes.writeUInt32BE(this.blockBytes, 4);
        return answer(bytes);
      }
      case 'read-capacity-16': {
        // 0-7 last LBA  8-11 block bytes  13 log2(physical / logical)  14 LBPME LBPRZ, lowest aligned LBA
        const bytes = Buffer.alloc(32);
        bytes.writeBigUInt64BE(BigInt(this.blocks - 1), 0);
        bytes.writeUInt32BE(this.blockBytes, 8);
        bytes[13] = Math.log2(this.#limits.granularityBlocks);
        if (this.#limits.thin) bytes[14] = 0xc0;
        return answer(bytes, command.allocationBytes);
      }
      case 'get-lba-status': {
        if (command.lba >= this.blocks) return { kind: 'sense', sense: SENSE.lbaOutOfRange };
        const lba = command.lba;
        return { kind: 'run', medium: true, run: () => this.#lbaStatus(lba, command.allocationBytes) };
      }
      case 'synchronize-cache': {
        if (command.lba + command.blocks > this.blocks) {
          return { kind: 'sense', sense: SENSE.lbaOutOfRange };
        }
        if (this.readOnly) return answer(Buffer.alloc(0));
        return { kind: 'run', medium: false, run: () => this.#mutate(() => this.device.flush()) };
      }
      case 'unmap': {
        const bad = this.#checkWritable();
        if (bad !== null) return { kind: 'sense', sense: bad };
        if (command.anchor) return invalidField();
        if (command.parameterBytes === 0) return answer(Buffer.alloc(0));
        if (command.parameterBytes < 8) return { kind: 'sense', sense: SENSE.parameterListLength };
        return { kind: 'take', lengthBytes: command.parameterBytes, run: (data) => this.#unmap(data) };
      }
      case 'write-same':
        return this.#planWriteSame(command);
      case 'report-luns':
      case 'unknown':
        return { kind: 'sense', sense: SENSE.invalidOpcode };
    }
  }

  #range(command: { lba: number; blocks: number }): { offsetBytes: number; lengthBytes: number } {
    return {
      offsetBytes: command.lba * this.blockBytes,
      lengthBytes: command.blocks * this.blockBytes,
    };
  }

  #checkTransfer(command: { lba: number; blocks: number; protection: number }): Sense | null {
    // There is no protection information, so no command may ask for it to be checked.
    if (command.protection !== 0) return SENSE.invalidFieldInCdb;
    if (command.lba + command.blocks > this.blocks) return SENSE.lbaOutOfRange;
    if (command.blocks * this.blockBytes > this.#transferBytesMax) return SENSE.invalidFieldInCdb;
    return null;
  }

  #checkWritable(): Sense | null {
    return this.readOnly ? SENSE.writeProtected : null;
  }

  async #mutate(work: () => Promise<void>): Promise<Plan> {
    try {
      await work();
      return answer(Buffer.alloc(0));
    } catch (error) {
      return { kind: 'sense', sense: senseOf(error, 'write') };
    }
  }

  /*
   * UNMAP parameter list, SBC-3 section 5.28.2
   *   0-1    length - 2
   *   2-3    length of the descriptors
   *   8-     descriptors: LBA(8), blocks(4), reserved(4)
   */
  async #unmap(data: Buffer): Promise<Plan> {
    const listed = data.readUInt16BE(2);
    const count = Math.floor(Math.min(listed, data.length - 8) / 16);
    if (count > UNMAP_DESCRIPTORS_MAX) return { kind: 'sense', sense: SENSE.invalidFieldInParameters };
    const ranges: { lba: number; blocks: number }[] = [];
    let total = 0;
    for (let index = 0; index < count; index += 1) {
      const lba = data.readBigUInt64BE(8 + 16 * index);
      const blocks = data.readUInt32BE(16 + 16 * index);
      if (lba + BigInt(blocks) > BigInt(this.blocks)) return { kind: 'sense', sense: SENSE.lbaOutOfRange };
      total += blocks;
      if (blocks > 0) ranges.push({ lba: Number(lba), blocks });
    }
    if (total > this.#limits.unmapBlocksMax) return { kind: 'sense', sense: SENSE.invalidFieldInParameters };
    return this.#mutate(async () => {
      for (const { lba, blocks } of ranges) {
        await this.device.discard(lba * this.blockBytes, blocks * this.blockBytes);
      }
    });
  }

  #planWriteSame(command: Command & { kind: 'write-same' }): Plan {
    const bad = this.#checkWritable();
    if (bad !== null) return { kind: 'sense', sense: bad };
    // WSNZ: a count of 0 ("to the end") is not taken. ANCHOR is not reported, so not taken.
    if (command.protection !== 0 || command.anchor || command.blocks === 0) return invalidField();
    if (command.noData && !command.unmap) return invalidField();
    if (command.lba + command.blocks > this.blocks) {
      return { kind: 'sense', sense: SENSE.lbaOutOfRange };
    }
    if (command.blocks > this.#limits.writeSameBlocksMax) return invalidField();
    const { offsetBytes, lengthBytes } = this.#range(command);
    const run = (data: Buffer): Promise<Plan> =>
      this.#mutate(async () => {
        if (data.every((byte) => byte === 0)) {
          if (command.unmap) await this.device.discard(offsetBytes, lengthBytes);
          else await this.device.writeZeroes(offsetBytes, lengthBytes);
          return;
        }
        const chunk = Buffer.allocUnsafe(Math.min(lengthBytes, WRITE_SAME_CHUNK_BYTES)).fill(data);
        for (let done = 0; done < lengthBytes; done += chunk.length) {
          await this.device.write(
            offsetBytes + done,
            chunk.subarray(0, Math.min(chunk.length, lengthBytes - done)),
          );
        }
      });
    if (command.noData) return { kind: 'run', medium: false, run: () => run(Buffer.alloc(0)) };
    return { kind: 'take', lengthBytes: this.blockBytes, run };
  }

  /*
   * GET LBA STATUS parameter data, SBC-3 section 5.5.2
   *   0-3    length - 4
   *   8-     descriptors: LBA(8), blocks(4), provisioning status (0 mapped, 1 deallocated), reserved(3)
   */
  async #lbaStatus(lba: number, allocationBytes: number): Promise<Plan> {
    const room = Math.floor((allocationBytes - 8) / 16);
    const limit = Math.max(1, Math.min(room, LBA_STATUS_DESCRIPTORS_MAX));
    const offsetBytes = lba * this.blockBytes;
    const rest = this.blocks * this.blockBytes - offsetBytes;
    let extents: Extent[];
    try {
      extents =
        this.device.extents === undefined
          ? [{ offsetBytes, lengthBytes: rest, kind: 'data' }]
          : await this.device.extents(offsetBytes, rest, limit);
    } catch (error) {
      return { kind: 'sense', sense: senseOf(error, 'read') };
    }
    const bytes = Buffer.alloc(8 + 16 * limit);
    let at = 8;
    for (const extent of extents) {
      let first = extent.offsetBytes / this.blockBytes;
      let blocks = extent.lengthBytes / this.blockBytes;
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
}

/** Commands to a LUN that has no unit: INQUIRY says so, REQUEST SENSE too, all else is refused (SPC-4 section 4.5.7). */
export function planForNoUnit(command: Command): Plan {
  if (command.kind === 'inquiry' && !command.vitalProductData && command.page === 0) {
    return answer(standardInquiry(false), command.allocationBytes);
  }
  if (command.kind === 'request-sense') {
    const format = command.descriptor ? 'descriptor' : 'fixed';
    return answer(encodeSense(SENSE.logicalUnitNotSupported, format), command.allocationBytes);
  }
  return { kind: 'sense', sense: SENSE.logicalUnitNotSupported };
}

/** What an error of the device is to a SCSI initiator. */
export function senseOf(error: unknown, during: 'read' | 'write'): Sense {
  if (isGodwitError(error, 'BLOCK_READ_ONLY')) return SENSE.writeProtected;
  if (isGodwitError(error, 'BLOCK_NO_SPACE') || systemErrorCode(error) === 'ENOSPC') {
    return SENSE.spaceAllocationFailed;
  }
  return during === 'read' ? SENSE.unrecoveredReadError : SENSE.writeError;
}

function answer(data: Buffer, allocationBytes = Number.POSITIVE_INFINITY): Plan {
  return { kind: 'answer', data: data.length > allocationBytes ? data.subarray(0, allocationBytes) : data };
}
function invalidField(): Plan {
  return { kind: 'sense', sense: SENSE.invalidFieldInCdb };
}
