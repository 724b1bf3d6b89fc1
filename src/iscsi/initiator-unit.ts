import type { Extent } from '../block/block-device.ts';
import type { Piece, RemoteUnit } from '../remote/dialect.ts';
import { protocolError } from './errors.ts';
import type { ScsiCommand } from './initiator-session.ts';
import {
  encodeGetLbaStatus,
  encodeInquiry,
  encodeModeSense6,
  encodeReadCapacity16,
  encodeReadWrite16,
  encodeSynchronizeCache16,
  encodeWriteSame16,
  OPERATION,
} from './scsi/command.ts';
import { PAGE } from './scsi/inquiry.ts';

/** What tells a unit from another. */
export type UnitIdentity = RemoteUnit & {
  /** Unit serial number (VPD page 80), or '' where there is none. */
  serial: string;
  /** Designators of the unit (VPD page 83) in hexadecimal, or '' where there are none. */
  designators: string;
};

/** What is known of a logical unit. */
export type Unit = UnitIdentity & {
  writeProtected: boolean;
  zeroesUnmapped: boolean;
  unmapsByWriteSame: boolean;
  transferBytesMax: number;
  writeSameBytesMax: number;
};

export const WRITE_SAME_BYTES_MAX = 32 * 1024 * 1024;
const LBA_STATUS_DESCRIPTORS_MAX = 512;
const LBA_STATUS_HEADER_BYTES = 8;
const LBA_STATUS_BYTES = 16;

/** Commands that move or change blocks. */
export const SCSI = {
  read: {
    ...{ counts: 'read', operation: OPERATION.read16, direction: 'in', answers: false },
    encode: (cdb, lba, blocks) => encodeReadWrite16(cdb, OPERATION.read16, lba, blocks),
  },
  write: {
    ...{ counts: 'write', operation: OPERATION.write16, direction: 'out', answers: false },
    encode: (cdb, lba, blocks) => encodeReadWrite16(cdb, OPERATION.write16, lba, blocks),
  },
  synchronizeCache: {
    ...{ counts: null, operation: OPERATION.synchronizeCache16, direction: 'none', answers: false },
    encode: (cdb) => encodeSynchronizeCache16(cdb),
  },
  writeSame: {
    ...{ counts: null, operation: OPERATION.writeSame16, direction: 'out', answers: false },
    encode: (cdb, lba, blocks) => encodeWriteSame16(cdb, lba, blocks, false),
  },
  writeSameUnmap: {
    ...{ counts: null, operation: OPERATION.writeSame16, direction: 'out', answers: false },
    encode: (cdb, lba, blocks) => encodeWriteSame16(cdb, lba, blocks, true),
  },
  getLbaStatus: {
    ...{ counts: null, operation: OPERATION.serviceActionIn16, direction: 'in', answers: true },
    encode: (cdb, lba, _blocks, bufferBytes) => encodeGetLbaStatus(cdb, lba, bufferBytes),
  },
} as const satisfies Record<string, ScsiCommand>;

/** Something that a unit says of itself, and how long an answer is taken. */
export type Question = { command: ScsiCommand; bytes: number };

function question(operation: number, bytes: number, encode: (cdb: Buffer, bytes: number) => void): Question {
  const command: ScsiCommand = {
    ...{ counts: null, operation, direction: 'in', answers: true },
    encode: (cdb, _lba, _blocks, bufferBytes) => encode(cdb, bufferBytes),
  };
  return { command, bytes };
}

const pageQuestion = (page: number, bytes: number): Question =>
  question(OPERATION.inquiry, bytes, (cdb, allocationBytes) => encodeInquiry(cdb, page, allocationBytes));

/** What tells the unit from another. */
export const IDENTITY_QUESTIONS: readonly Question[] = [
  question(OPERATION.serviceActionIn16, 32, encodeReadCapacity16),
  pageQuestion(PAGE.serialNumber, 255),
  pageQuestion(PAGE.identification, 1024),
];

/** These, and what the unit can do. */
export const UNIT_QUESTIONS: readonly Question[] = [
  ...IDENTITY_QUESTIONS,
  pageQuestion(PAGE.blockLimits, 64),
  pageQuestion(PAGE.logicalBlockProvisioning, 8),
  question(OPERATION.modeSense6, 255, encodeModeSense6),
];

/** Null stands for a question that the target does not support. */
type Answers = readonly (Buffer | null)[];

/** From the answers to `UNIT_QUESTIONS`. Throws as `identityOf`. */
export function unitOf(answers: Answers, transferBytesMax: number): Unit {
  const identity = identityOf(answers);
  const [capacity, , , limits = null, provisioning = null, mode = null] = answers;
  const { blockBytes } = identity;
  const transferBlocks = limits !== null && limits.length >= 12 ? limits.readUInt32BE(8) : 0;
  const writeSameBlocks = limits !== null && limits.length >= 44 ? Number(limits.readBigUInt64BE(36)) : 0;
  const wholeBlocks = (bytes: number, limitBlocks: number): number => {
    const bytesMax = limitBlocks === 0 ? bytes : Math.min(bytes, limitBlocks * blockBytes);
    return Math.max(blockBytes, bytesMax - (bytesMax % blockBytes));
  };
  return {
    ...identity,
    writeProtected: mode !== null && mode.length >= 4 && (mode[2]! & 0x80) !== 0,
    zeroesUnmapped: zeroesUnmapped(capacity ?? null),
    unmapsByWriteSame: provisioning !== null && provisioning.length >= 6 && (provisioning[5]! & 0x40) !== 0,
    transferBytesMax: wholeBlocks(transferBytesMax, transferBlocks),
    writeSameBytesMax: wholeBlocks(WRITE_SAME_BYTES_MAX, writeSameBlocks),
  };
}

/** LBPME and LBPRZ of READ CAPACITY (16): what is not mapped reads as zeros. */
export function zeroesUnmapped(capacity: Buffer | null): boolean {
  return capacity !== null && capacity.length >= 15 && (capacity[14]! & 0xc0) === 0xc0;
}

/** From the answers to `IDENTITY_QUESTIONS`. Throws `ISCSI_PROTOCOL` where they do not say what it is. */
export function identityOf([capacity = null, serial = null, designators = null]: Answers): UnitIdentity {
  if (capacity === null || capacity.length < 12) throw protocolError('target does not tell its capacity');
  for (const page of [serial, designators]) {
    // SPC-4 section 6.5.2: a peripheral qualifier that is not zero says that no unit is there.
    if (page !== null && page.length > 0 && page[0]! >> 5 !== 0) throw protocolError('no unit is there');
  }
  const blockBytes = capacity.readUInt32BE(8);
  const blocks = Number(capacity.readBigUInt64BE(0)) + 1;
  const lengthBytes = blocks * blockBytes;
  if (![512, 1024, 2048, 4096].includes(blockBytes) || !Number.isSafeInteger(lengthBytes)) {
    throw protocolError('target has an unsupported geometry', { blockBytes, blocks });
  }
  return {
    lengthBytes,
    blockBytes,
    // LIO counts a final zero byte.
    serial: pageOf(serial).toString('latin1').replaceAll('\0', '').trim(),
    designators: unitDesignators(pageOf(designators)),
  };
}

/** A buffer for the answer to GET LBA STATUS with so many descriptors. */
export function lbaStatusBuffer(limit: number): Buffer {
  const count = Math.max(1, Math.min(limit, LBA_STATUS_DESCRIPTORS_MAX));
  return Buffer.alloc(LBA_STATUS_HEADER_BYTES + LBA_STATUS_BYTES * count);
}

/**
 * What the first `receivedBytes` of the answer say of the blocks from `offsetBytes` on: up to the first
 * descriptor that does not go on where the one before ended.
 */
export function lbaStatusPieces(
  answer: Buffer,
  receivedBytes: number,
  offsetBytes: number,
  blockBytes: number,
): Piece[] {
  const listed = Math.min(receivedBytes < 4 ? 0 : answer.readUInt32BE(0) + 4, receivedBytes);
  const pieces: Piece[] = [];
  let position = offsetBytes;
  for (let at = LBA_STATUS_HEADER_BYTES; at + LBA_STATUS_BYTES <= listed; at += LBA_STATUS_BYTES) {
    const lba = Number(answer.readBigUInt64BE(at));
    const start = Math.max(offsetBytes, lba * blockBytes);
    const end = (lba + answer.readUInt32BE(at + 8)) * blockBytes;
    if (start !== position || end <= start) break;
    const kind: Extent['kind'] = (answer[at + 12]! & 0x0f) === 1 ? 'hole' : 'data';
    pieces.push({ lengthBytes: end - start, kind });
    position = end;
  }
  return pieces;
}

/** The contents of a vital product data page. */
function pageOf(page: Buffer | null): Buffer {
  if (page === null || page.length < 4) return Buffer.alloc(0);
  return page.subarray(4, 4 + page.readUInt16BE(2));
}

/** Designators with association 0, the logical unit; those of ports differ by path. */
function unitDesignators(page: Buffer): string {
  const found: string[] = [];
  for (let at = 0; at + 4 <= page.length; at += 4 + page[at + 3]!) {
    if ((page[at + 1]! & 0x30) === 0)
      found.push(page.subarray(at + 4, at + 4 + page[at + 3]!).toString('hex'));
  }
  return found.join(' ');
}
