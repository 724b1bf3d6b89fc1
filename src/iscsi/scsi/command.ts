/**
 * Command descriptor blocks (SPC-4, SBC-3) as values. What the bytes ask for is decided here, what is allowed and done in
 * logical-unit.ts.
 */

/** In the order of the operation code. */
export const OPERATION = {
  testUnitReady: 0x00,
  requestSense: 0x03,
  read6: 0x08,
  write6: 0x0a,
  inquiry: 0x12,
  modeSense6: 0x1a,
  readCapacity10: 0x25,
  read10: 0x28,
  write10: 0x2a,
  synchronizeCache10: 0x35,
  writeSame10: 0x41,
  unmap: 0x42,
  modeSense10: 0x5a,
  read16: 0x88,
  write16: 0x8a,
  synchronizeCache16: 0x91,
  writeSame16: 0x93,
  serviceActionIn16: 0x9e,
  reportLuns: 0xa0,
  read12: 0xa8,
  write12: 0xaa,
} as const;

export const SERVICE_ACTION = { readCapacity16: 0x10, getLbaStatus: 0x12 } as const;

/** Counts are in logical blocks, `allocationBytes` is how much answer the initiator has room for. */
export type Command =
  | { kind: 'test-unit-ready' }
  | { kind: 'request-sense'; descriptor: boolean; allocationBytes: number }
  | { kind: 'inquiry'; vitalProductData: boolean; page: number; allocationBytes: number }
  | {
      kind: 'mode-sense';
      bytes: 6 | 10;
      noBlockDescriptor: boolean;
      longLba: boolean;
      control: number;
      page: number;
      subpage: number;
      allocationBytes: number;
    }
  | { kind: 'read-capacity-10' }
  | { kind: 'read-capacity-16'; allocationBytes: number }
  | { kind: 'get-lba-status'; lba: number; allocationBytes: number }
  | { kind: 'report-luns'; select: number; allocationBytes: number }
  | { kind: 'read'; lba: number; blocks: number; protection: number }
  | { kind: 'write'; lba: number; blocks: number; protection: number; forceUnitAccess: boolean }
  | { kind: 'synchronize-cache'; lba: number; blocks: number }
  | { kind: 'unmap'; anchor: boolean; parameterBytes: number }
  | {
      kind: 'write-same';
      lba: number;
      blocks: number;
      protection: number;
      anchor: boolean;
      unmap: boolean;
      noData: boolean;
    }
  | { kind: 'unknown'; operation: number };

/** Any 16 bytes give a command; the ones that we do not know give `unknown`. */
export function decodeCommand(cdb: Buffer): Command {
  const operation = cdb[0]!;
  const flags = cdb[1]!;
  switch (operation) {
    case OPERATION.testUnitReady:
      return { kind: 'test-unit-ready' };
    case OPERATION.requestSense:
      return { kind: 'request-sense', descriptor: (flags & 1) !== 0, allocationBytes: cdb[4]! };
    case OPERATION.read6:
    case OPERATION.write6: {
      // A transfer length of 0 means 256 blocks, in the 6-byte commands only.
      const lba = ((flags & 0x1f) << 16) | cdb.readUInt16BE(2);
      const blocks = cdb[4] === 0 ? 256 : cdb[4]!;
      return operation === OPERATION.read6
        ? { kind: 'read', lba, blocks, protection: 0 }
        : { kind: 'write', lba, blocks, protection: 0, forceUnitAccess: false };
    }
    case OPERATION.inquiry:
      return {
        kind: 'inquiry',
        vitalProductData: (flags & 1) !== 0,
        page: cdb[2]!,
        allocationBytes: cdb.readUInt16BE(3),
      };
    case OPERATION.modeSense6:
    case OPERATION.modeSense10:
      return {
        kind: 'mode-sense',
        bytes: operation === OPERATION.modeSense6 ? 6 : 10,
        noBlockDescriptor: (flags & 0x08) !== 0,
        longLba: operation === OPERATION.modeSense10 && (flags & 0x10) !== 0,
        control: cdb[2]! >>> 6,
        page: cdb[2]! & 0x3f,
        subpage: cdb[3]!,
        allocationBytes: operation === OPERATION.modeSense6 ? cdb[4]! : cdb.readUInt16BE(7),
      };
    case OPERATION.readCapacity10:
      return { kind: 'read-capacity-10' };
    case OPERATION.read10:
      return read(cdb.readUInt32BE(2), cdb.readUInt16BE(7), flags);
    case OPERATION.read12:
      return read(cdb.readUInt32BE(2), cdb.readUInt32BE(6), flags);
    case OPERATION.read16:
      return read(lba64(cdb), cdb.readUInt32BE(10), flags);
    case OPERATION.write10:
      return write(cdb.readUInt32BE(2), cdb.readUInt16BE(7), flags);
    case OPERATION.write12:
      return write(cdb.readUInt32BE(2), cdb.readUInt32BE(6), flags);
    case OPERATION.write16:
      return write(lba64(cdb), cdb.readUInt32BE(10), flags);
    case OPERATION.synchronizeCache10:
      return { kind: 'synchronize-cache', lba: cdb.readUInt32BE(2), blocks: cdb.readUInt16BE(7) };
    case OPERATION.synchronizeCache16:
      return { kind: 'synchronize-cache', lba: lba64(cdb), blocks: cdb.readUInt32BE(10) };
    case OPERATION.unmap:
      return { kind: 'unmap', anchor: (flags & 1) !== 0, parameterBytes: cdb.readUInt16BE(7) };
    case OPERATION.writeSame10:
      return writeSame(cdb.readUInt32BE(2), cdb.readUInt16BE(7), flags & ~1);
    case OPERATION.writeSame16:
      return writeSame(lba64(cdb), cdb.readUInt32BE(10), flags);
    case OPERATION.serviceActionIn16:
      if ((flags & 0x1f) === SERVICE_ACTION.readCapacity16) {
        return { kind: 'read-capacity-16', allocationBytes: cdb.readUInt32BE(10) };
      }
      if ((flags & 0x1f) === SERVICE_ACTION.getLbaStatus) {
        return { kind: 'get-lba-status', lba: lba64(cdb), allocationBytes: cdb.readUInt32BE(10) };
      }
      return { kind: 'unknown', operation };
    case OPERATION.reportLuns:
      return { kind: 'report-luns', select: cdb[2]!, allocationBytes: cdb.readUInt32BE(6) };
    default:
      return { kind: 'unknown', operation };
  }
}

/** Above 2^53 the value is rounded, which changes nothing: no device is as large. */
function lba64(cdb: Buffer): number {
  return cdb.readUInt32BE(2) * 2 ** 32 + cdb.readUInt32BE(6);
}
function read(lba: number, blocks: number, flags: number): Command {
  return { kind: 'read', lba, blocks, protection: flags >>> 5 };
}
function write(lba: number, blocks: number, flags: number): Command {
  return {
    kind: 'write',
    lba,
    blocks,
    protection: flags >>> 5,
    forceUnitAccess: (flags & 0x08) !== 0,
  };
}
function writeSame(lba: number, blocks: number, flags: number): Command {
  return {
    kind: 'write-same',
    lba,
    blocks,
    protection: flags >>> 5,
    anchor: (flags & 0x10) !== 0,
    unmap: (flags & 0x08) !== 0,
    noData: (flags & 0x01) !== 0,
  };
}

/*
 * The commands that the initiator sends, each into 16 zeroed bytes.
 * READ(16), WRITE(16)   0 operation   1 flags   2-9 LBA   10-13 TRANSFER LENGTH
 */
export function encodeReadWrite16(cdb: Buffer, operation: number, lba: number, blocks: number): void {
  cdb[0] = operation;
  cdb.writeUInt32BE(Math.floor(lba / 2 ** 32), 2);
  cdb.writeUInt32BE(lba % 2 ** 32, 6);
  cdb.writeUInt32BE(blocks, 10);
}
export function encodeInquiry(cdb: Buffer, page: number | null, allocationBytes: number): void {
  cdb[0] = OPERATION.inquiry;
  if (page !== null) {
    cdb[1] = 1;
    cdb[2] = page;
  }
  cdb.writeUInt16BE(allocationBytes, 3);
}
export function encodeReadCapacity16(cdb: Buffer, allocationBytes: number): void {
  cdb[0] = OPERATION.serviceActionIn16;
  cdb[1] = SERVICE_ACTION.readCapacity16;
  cdb.writeUInt32BE(allocationBytes, 10);
}
export function encodeModeSense6(cdb: Buffer, allocationBytes: number): void {
  cdb[0] = OPERATION.modeSense6;
  cdb[1] = 0x08;
  cdb[2] = 0x3f;
  cdb[4] = allocationBytes;
}
export function encodeGetLbaStatus(cdb: Buffer, lba: number, allocationBytes: number): void {
  encodeReadWrite16(cdb, OPERATION.serviceActionIn16, lba, allocationBytes);
  cdb[1] = SERVICE_ACTION.getLbaStatus;
}
export function encodeSynchronizeCache16(cdb: Buffer): void {
  cdb[0] = OPERATION.synchronizeCache16;
}
export function encodeUnmap(cdb: Buffer, parameterBytes: number): void {
  cdb[0] = OPERATION.unmap;
  cdb.writeUInt16BE(parameterBytes, 7);
}
/** With UNMAP and no data-out buffer content but zeros: one block of zeros is sent along. */
export function encodeWriteSame16(cdb: Buffer, lba: number, blocks: number, unmap: boolean): void {
  encodeReadWrite16(cdb, OPERATION.writeSame16, lba, blocks);
  if (unmap) cdb[1] = 0x08;
}
