import { BLOCK_BYTES, type BlockDevice } from '../../block/block-device.ts';
import { BYTE_CHECK, type Command } from './command.ts';
import { type BlockLimits, type LogicalUnitIdentity, standardInquiry, vitalProductData } from './inquiry.ts';
import { Medium, type Range } from './medium.ts';
import { MODE_DEFAULTS, type ModeSettings, modeSelect, modeSense } from './mode.ts';
import { reportSupportedOperationCodes } from './operation-codes.ts';
import { type AfterWrite, answer, DONE, type Plan, type Result, refuse } from './plan.ts';
import { type Access, OUT_PARAMETERS_BYTES, Reservations } from './reservations.ts';
import { encodeSense, SENSE, type Sense, type SenseFormat, STATUS } from './sense.ts';

/**
 * A block device as a SCSI logical unit (SPC-4, SBC-3). The logical block is the device's block.
 *
 * `plan` decides what a command comes to, without I/O.
 */
export type LogicalUnitOptions = LogicalUnitIdentity & {
  device: BlockDevice;
  readOnly: boolean;
  /** Largest READ or WRITE, in bytes. */
  transferBytesMax: number;
  /** For telling how long a write on the spot took. */
  monotonicMs: () => number;
  /** What the device below writes at once; a power of two. Default 4096. Never less than its block. */
  physicalBlockBytes?: number;
};

/** One initiator port at the unit (SAM-5: an I_T nexus), from login to the end of its session. */
export class Nexus {
  /** As in reservations.ts. */
  readonly port: string;
  /**
   * Unit attention conditions that the initiator has not been told of yet, oldest first. Each kind is in it
   * once.
   */
  readonly attentions: Sense[] = [];
  /** Resolves when none of its commands can touch the medium any more. */
  readonly abortTasks: () => Promise<void>;
  readonly end: (reason: string) => void;

  constructor(options: { port: string; abortTasks: () => Promise<void>; end: (reason: string) => void }) {
    this.port = options.port;
    this.abortTasks = options.abortTasks;
    this.end = options.end;
  }

  raise(sense: Sense): void {
    if (!this.attentions.some((known) => known.asc === sense.asc)) this.attentions.push(sense);
  }
}

const UNMAP_BYTES_MAX = 2 ** 29;
const UNMAP_DESCRIPTORS_MAX = 256;
const WRITE_SAME_BYTES_MAX = 16 * 2 ** 20;
const COMPARE_AND_WRITE_BLOCKS_MAX = 255;
/** PERSISTENT RESERVE OUT may say any length; it is refused above this without being taken. */
const PARAMETER_BYTES_MAX = 64 * 1024;

export class LogicalUnit {
  readonly device: BlockDevice;
  readonly medium: Medium;
  readonly readOnly: boolean;
  readonly blockBytes: number;
  readonly blocks: number;
  readonly #identity: LogicalUnitIdentity;
  readonly #limits: BlockLimits;
  readonly #transferBytesMax: number;
  readonly #reservations = new Reservations();
  readonly #nexuses = new Set<Nexus>();
  #mode: ModeSettings = { ...MODE_DEFAULTS };
  /** By START STOP UNIT. */
  #stopped = false;
  /** Not open yet: commands that touch the medium wait. */
  standby = false;

  constructor(options: LogicalUnitOptions) {
    this.device = options.device;
    this.medium = new Medium(options.device, options.monotonicMs);
    this.readOnly = options.readOnly || !options.device.writable;
    this.blockBytes = options.device.blockBytes;
    this.blocks = Math.floor(options.device.lengthBytes / this.blockBytes);
    this.#identity = { serial: options.serial, targetIqn: options.targetIqn };
    this.#transferBytesMax = options.transferBytesMax;
    this.#limits = {
      transferBlocksMax: options.transferBytesMax / this.blockBytes,
      transferBlocksOptimal: Math.min(options.transferBytesMax, 2 ** 20) / this.blockBytes,
      granularityBlocks: Math.max(1, (options.physicalBlockBytes ?? BLOCK_BYTES) / this.blockBytes),
      unmapBlocksMax: UNMAP_BYTES_MAX / this.blockBytes,
      unmapDescriptorsMax: UNMAP_DESCRIPTORS_MAX,
      writeSameBlocksMax: WRITE_SAME_BYTES_MAX / this.blockBytes,
      compareAndWriteBlocksMax: COMPARE_AND_WRITE_BLOCKS_MAX,
      thin: !this.readOnly || options.device.extents !== undefined,
    };
  }

  get senseFormat(): SenseFormat {
    return this.#mode.descriptorSense ? 'descriptor' : 'fixed';
  }

  join(nexus: Nexus): void {
    this.#nexuses.add(nexus);
  }

  /** What the port held by RESERVE(6) is free again; its registrations stay. Idempotent. */
  leave(nexus: Nexus): void {
    if (!this.#nexuses.delete(nexus)) return;
    for (const other of this.#nexuses) if (other.port === nexus.port) return;
    this.#reservations.nexusLost(nexus.port);
  }

  /**
   * LOGICAL UNIT RESET and target resets (SAM-5 section 6.3.2). Resolves when no command of anybody is under
   * way.
   */
  async reset(): Promise<void> {
    this.#reservations.reset();
    this.#mode = { ...MODE_DEFAULTS };
    this.#stopped = false;
    for (const nexus of this.#nexuses) nexus.raise(SENSE.resetOccurred);
    await Promise.all([...this.#nexuses].map((nexus) => nexus.abortTasks()));
  }

  /** Ends every session of the unit. */
  endAll(reason: string): void {
    for (const nexus of [...this.#nexuses]) nexus.end(reason);
  }

  plan(command: Command, nexus: Nexus): Plan {
    if (nexus.attentions.length > 0 && command.kind !== 'inquiry') {
      const sense = nexus.attentions.shift()!;
      if (command.kind !== 'request-sense') return { kind: 'sense', sense };
      return this.#requestSense(command, sense);
    }
    if (this.#reservations.active && this.#conflicts(command, nexus)) {
      return { kind: 'status', status: STATUS.reservationConflict };
    }
    if (this.#stopped && accessOf(command) !== 'none') return refuse('initializingCommandRequired');
    switch (command.kind) {
      case 'read':
        return this.#checkTransfer(command) ?? { kind: 'read', ...this.#range(command) };
      case 'write':
        return this.#planWrite(command, command.forceUnitAccess ? 'flush' : 'nothing');
      case 'write-and-verify':
        if (command.byteCheck > BYTE_CHECK.data) return refuse('invalidFieldInCdb');
        return this.#planWrite(command, command.byteCheck === BYTE_CHECK.data ? 'compare' : 'read');
      case 'verify':
        return this.#planVerify(command);
      case 'or-write':
      case 'compare-and-write':
        return this.#planReadThenWrite(command);
      case 'test-unit-ready':
        if (this.#stopped) return refuse('initializingCommandRequired');
        return this.standby ? refuse('becomingReady') : DONE;
      case 'request-sense':
        return this.#requestSense(command, this.#stopped ? SENSE.initializingCommandRequired : SENSE.none);
      case 'inquiry': {
        if (!command.vitalProductData) {
          return command.page === 0
            ? answer(standardInquiry(true), command.allocationBytes)
            : refuse('invalidFieldInCdb');
        }
        const page = vitalProductData(command.page, this.#identity, this.#limits);
        return page === null ? refuse('invalidFieldInCdb') : answer(page, command.allocationBytes);
      }
      case 'mode-sense': {
        const pages = modeSense(command, this, this.#mode);
        return typeof pages === 'string' ? refuse(pages) : answer(pages, command.allocationBytes);
      }
      case 'mode-select':
        return {
          kind: 'take',
          medium: false,
          lengthBytes: command.parameterBytes,
          run: async (list) => this.#modeSelect(command, list, nexus),
        };
      case 'start-stop-unit':
        return this.#planStartStop(command);
      case 'prevent-allow':
        // The medium does not come out, allowed or not.
        return command.prevent <= 1 ? DONE : refuse('invalidFieldInCdb');
      case 'reserve-6':
        return this.#reservations.reserve6(nexus.port) ? DONE : conflict();
      case 'release-6':
        return this.#reservations.release6(nexus.port) ? DONE : conflict();
      case 'persistent-reserve-in': {
        const data = this.#reservations.in(command.action);
        return data === null ? refuse('invalidFieldInCdb') : answer(data, command.allocationBytes);
      }
      case 'persistent-reserve-out':
        if (command.parameterBytes < OUT_PARAMETERS_BYTES || command.parameterBytes > PARAMETER_BYTES_MAX) {
          return refuse('parameterListLength');
        }
        return {
          kind: 'take',
          medium: false,
          lengthBytes: command.parameterBytes,
          run: (parameters) => this.#persistentReserveOut(command, parameters, nexus),
        };
      case 'report-supported-operation-codes': {
        const data = reportSupportedOperationCodes(command);
        return data === null ? refuse('invalidFieldInCdb') : answer(data, command.allocationBytes);
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
        if (command.lba >= this.blocks) return refuse('lbaOutOfRange');
        const range = this.#range({ lba: command.lba, blocks: this.blocks - command.lba });
        return {
          kind: 'run',
          medium: true,
          run: () => this.medium.lbaStatus(range, this.blockBytes, command.allocationBytes),
        };
      }
      case 'prefetch':
        return this.#planPrefetch(command);
      case 'synchronize-cache':
        if (command.lba + command.blocks > this.blocks) return refuse('lbaOutOfRange');
        if (this.readOnly) return DONE;
        return { kind: 'run', medium: false, run: () => this.medium.flush() };
      case 'unmap': {
        const bad = this.#checkWritable();
        if (bad !== null) return bad;
        if (command.anchor) return refuse('invalidFieldInCdb');
        if (command.parameterBytes === 0) return DONE;
        if (command.parameterBytes < 8) return refuse('parameterListLength');
        return {
          kind: 'take',
          medium: true,
          lengthBytes: command.parameterBytes,
          run: (data) => this.#unmap(data),
        };
      }
      case 'write-same':
        return this.#planWriteSame(command);
      case 'report-luns':
      case 'unknown':
        return refuse('invalidOpcode');
    }
  }

  // --- the medium
  // ----------------------------------------------------------------------------------------------------

  #range(command: { lba: number; blocks: number }): Range {
    return {
      offsetBytes: command.lba * this.blockBytes,
      lengthBytes: command.blocks * this.blockBytes,
    };
  }

  #checkTransfer(command: { lba: number; blocks: number; protection: number }): Result | null {
    // There is no protection information, so no command may ask for it to be checked.
    if (command.protection !== 0) return refuse('invalidFieldInCdb');
    if (command.lba + command.blocks > this.blocks) return refuse('lbaOutOfRange');
    if (command.blocks * this.blockBytes > this.#transferBytesMax) return refuse('invalidFieldInCdb');
    return null;
  }

  #checkWritable(): Result | null {
    if (this.readOnly) return refuse('writeProtected');
    return this.#mode.softwareWriteProtect ? refuse('softwareWriteProtected') : null;
  }

  #planWrite(command: { lba: number; blocks: number; protection: number }, after: AfterWrite): Plan {
    return (
      this.#checkTransfer(command) ??
      this.#checkWritable() ?? { kind: 'write', ...this.#range(command), after }
    );
  }

  #planVerify(command: Command & { kind: 'verify' }): Plan {
    const bad = this.#checkTransfer(command);
    if (bad !== null) return bad;
    const range = this.#range(command);
    const check = (expected: Buffer | null): Promise<Result> => this.medium.check(range, expected);
    switch (command.byteCheck) {
      case BYTE_CHECK.nothing:
        return { kind: 'run', medium: true, run: () => check(null) };
      case BYTE_CHECK.data:
        return { kind: 'take', medium: true, lengthBytes: range.lengthBytes, run: check };
      case BYTE_CHECK.oneBlock: {
        const lengthBytes = command.blocks === 0 ? 0 : this.blockBytes;
        return { kind: 'take', medium: true, lengthBytes, run: check };
      }
      default:
        return refuse('invalidFieldInCdb');
    }
  }

  #planReadThenWrite(command: Command & { kind: 'or-write' | 'compare-and-write' }): Plan {
    const bad = this.#checkTransfer(command) ?? this.#checkWritable();
    if (bad !== null) return bad;
    const range = this.#range(command);
    const flush = command.forceUnitAccess;
    return command.kind === 'or-write'
      ? {
          kind: 'take',
          medium: true,
          lengthBytes: range.lengthBytes,
          run: (data) => this.medium.orWrite(range, data, flush),
        }
      : {
          kind: 'take',
          medium: true,
          lengthBytes: 2 * range.lengthBytes,
          run: (data) => this.medium.compareAndWrite(range, data, flush),
        };
  }

  #planPrefetch(command: Command & { kind: 'prefetch' }): Plan {
    if (command.lba + command.blocks > this.blocks) return refuse('lbaOutOfRange');
    // A count of 0: to the end.
    const blocks = command.blocks === 0 ? this.blocks - command.lba : command.blocks;
    const range = this.#range({ lba: command.lba, blocks });
    if (!command.immediate) return { kind: 'run', medium: true, run: () => this.medium.prefetch(range) };
    if (!this.standby) this.medium.prefetchSoon(range);
    return DONE;
  }

  /*
   * UNMAP parameter list, SBC-3 section 5.28.2
   *   0-1    length - 2
   *   2-3    length of the descriptors
   *   8-     descriptors: LBA(8), blocks(4), reserved(4)
   */
  async #unmap(data: Buffer): Promise<Result> {
    const listed = data.readUInt16BE(2);
    const count = Math.floor(Math.min(listed, data.length - 8) / 16);
    if (count > UNMAP_DESCRIPTORS_MAX) return refuse('invalidFieldInParameters');
    const ranges: Range[] = [];
    let total = 0;
    for (let index = 0; index < count; index += 1) {
      const lba = data.readBigUInt64BE(8 + 16 * index);
      const blocks = data.readUInt32BE(16 + 16 * index);
      if (lba + BigInt(blocks) > BigInt(this.blocks)) return refuse('lbaOutOfRange');
      total += blocks;
      if (blocks > 0) ranges.push(this.#range({ lba: Number(lba), blocks }));
    }
    if (total > this.#limits.unmapBlocksMax) return refuse('invalidFieldInParameters');
    return this.medium.discard(ranges);
  }

  #planWriteSame(command: Command & { kind: 'write-same' }): Plan {
    const bad = this.#checkWritable();
    if (bad !== null) return bad;
    // WSNZ: a count of 0 ("to the end") is not taken. ANCHOR is not reported, so not taken.
    if (command.protection !== 0 || command.anchor || command.blocks === 0)
      return refuse('invalidFieldInCdb');
    if (command.noData && !command.unmap) return refuse('invalidFieldInCdb');
    if (command.lba + command.blocks > this.blocks) return refuse('lbaOutOfRange');
    if (command.blocks > this.#limits.writeSameBlocksMax) return refuse('invalidFieldInCdb');
    const range = this.#range(command);
    const run = (data: Buffer): Promise<Result> => this.medium.writeSame(range, data, command.unmap);
    if (command.noData) return { kind: 'run', medium: true, run: () => run(Buffer.alloc(0)) };
    return { kind: 'take', medium: true, lengthBytes: this.blockBytes, run };
  }

  /** SBC-3 section 5.22. There are no power conditions but active and stopped, and nothing to eject. */
  #planStartStop(command: Command & { kind: 'start-stop-unit' }): Plan {
    if (command.powerCondition !== 0 || command.loadEject) return refuse('invalidFieldInCdb');
    if (command.start) {
      this.#stopped = false;
      return DONE;
    }
    this.#stopped = true;
    if (command.noFlush || this.readOnly) return DONE;
    return { kind: 'run', medium: false, run: () => this.medium.flush() };
  }

  // --- the initiators
  // ------------------------------------------------------------------------------------------------

  #requestSense(command: Command & { kind: 'request-sense' }, sense: Sense): Plan {
    return answer(encodeSense(sense, command.descriptor ? 'descriptor' : 'fixed'), command.allocationBytes);
  }

  /** Under RESERVE(6) only what does not concern the medium passes (SPC-2 section 5.5.1). */
  #conflicts(command: Command, nexus: Nexus): boolean {
    switch (command.kind) {
      case 'inquiry':
      case 'request-sense':
      case 'release-6':
      case 'read-capacity-10':
      case 'read-capacity-16':
        return false;
      case 'prevent-allow':
        if (command.prevent === 0) return false;
    }
    if (this.#reservations.conflicts6(nexus.port)) return true;
    return this.#reservations.conflicts(nexus.port, accessOf(command));
  }

  #modeSelect(command: Command & { kind: 'mode-select' }, list: Buffer, nexus: Nexus): Result {
    const next = modeSelect(command, list, this, this.#mode);
    if (typeof next === 'string') return refuse(next);
    const changed =
      next.descriptorSense !== this.#mode.descriptorSense ||
      next.softwareWriteProtect !== this.#mode.softwareWriteProtect;
    this.#mode = next;
    if (changed) {
      for (const other of this.#nexuses) if (other !== nexus) other.raise(SENSE.modeParametersChanged);
    }
    return DONE;
  }

  async #persistentReserveOut(
    command: Command & { kind: 'persistent-reserve-out' },
    parameters: Buffer,
    nexus: Nexus,
  ): Promise<Result> {
    const outcome = this.#reservations.out(nexus.port, command, parameters);
    if (outcome.kind === 'conflict') return conflict();
    if (outcome.kind === 'refused') return refuse(outcome.sense);
    const others = [...this.#nexuses].filter((other) => other !== nexus);
    for (const { port, attention } of outcome.notices) {
      for (const other of others) if (other.port === port) other.raise(SENSE[attention]);
    }
    const aborted = others.filter((other) => outcome.abortTasksOf.includes(other.port));
    await Promise.all(aborted.map((other) => other.abortTasks()));
    return DONE;
  }
}

/**
 * Commands to a LUN that has no unit: INQUIRY says so, REQUEST SENSE too, all else is refused (SPC-4 section
 * 4.5.7).
 */
export function planForNoUnit(command: Command): Plan {
  if (command.kind === 'inquiry' && !command.vitalProductData && command.page === 0) {
    return answer(standardInquiry(false), command.allocationBytes);
  }
  if (command.kind === 'request-sense') {
    const format = command.descriptor ? 'descriptor' : 'fixed';
    return answer(encodeSense(SENSE.logicalUnitNotSupported, format), command.allocationBytes);
  }
  return refuse('logicalUnitNotSupported');
}

/** Commands allowed beside a persistent reservation: SPC-4 table 68, SBC-3 table 13. */
function accessOf(command: Command): Access {
  switch (command.kind) {
    case 'read':
    case 'verify':
    case 'prefetch':
    case 'get-lba-status':
    case 'mode-sense':
      return 'read';
    case 'write':
    case 'write-and-verify':
    case 'or-write':
    case 'compare-and-write':
    case 'write-same':
    case 'unmap':
    case 'synchronize-cache':
    case 'mode-select':
      return 'write';
    case 'start-stop-unit':
      return command.start ? 'none' : 'write';
    case 'prevent-allow':
      return command.prevent === 0 ? 'none' : 'write';
    default:
      return 'none';
  }
}

function conflict(): Result {
  return { kind: 'status', status: STATUS.reservationConflict };
}
