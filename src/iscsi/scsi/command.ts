/**
 * Command descriptor blocks (SPC-4, SBC-3) as values. What the bytes ask for is decided here, what is allowed
 * and done in logical-unit.ts.
 */

/** In the order of the operation code. */
export const OPERATION = {
  testUnitReady: 0x00,
  requestSense: 0x03,
  read6: 0x08,
  write6: 0x0a,
  inquiry: 0x12,
  modeSelect6: 0x15,
  reserve6: 0x16,
  release6: 0x17,
  modeSense6: 0x1a,
  startStopUnit: 0x1b,
  preventAllowMediumRemoval: 0x1e,
  readCapacity10: 0x25,
  read10: 0x28,
  write10: 0x2a,
  writeAndVerify10: 0x2e,
  verify10: 0x2f,
  prefetch10: 0x34,
  synchronizeCache10: 0x35,
  writeSame10: 0x41,
  unmap: 0x42,
  modeSelect10: 0x55,
  modeSense10: 0x5a,
  persistentReserveIn: 0x5e,
  persistentReserveOut: 0x5f,
  read16: 0x88,
  compareAndWrite: 0x89,
  write16: 0x8a,
  orWrite16: 0x8b,
  writeAndVerify16: 0x8e,
  verify16: 0x8f,
  prefetch16: 0x90,
  synchronizeCache16: 0x91,
  writeSame16: 0x93,
  serviceActionIn16: 0x9e,
  reportLuns: 0xa0,
  maintenanceIn: 0xa3,
  read12: 0xa8,
  write12: 0xaa,
  writeAndVerify12: 0xae,
  verify12: 0xaf,
} as const;

/**
 * Of SERVICE ACTION IN(16) and MAINTENANCE IN. Those of PERSISTENT RESERVE IN and OUT are in reservations.ts.
 */
export const SERVICE_ACTION = {
  readCapacity16: 0x10,
  getLbaStatus: 0x12,
  reportSupportedOperationCodes: 0x0c,
} as const;

/** BYTCHK: against what the medium is checked. */
export const BYTE_CHECK = { nothing: 0, data: 1, oneBlock: 3 } as const;

type Transfer = { lba: number; blocks: number; protection: number };

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
  | { kind: 'mode-select'; bytes: 6 | 10; pageFormat: boolean; save: boolean; parameterBytes: number }
  | { kind: 'start-stop-unit'; powerCondition: number; noFlush: boolean; loadEject: boolean; start: boolean }
  | { kind: 'prevent-allow'; prevent: number }
  | { kind: 'reserve-6' }
  | { kind: 'release-6' }
  | { kind: 'persistent-reserve-in'; action: number; allocationBytes: number }
  | { kind: 'persistent-reserve-out'; action: number; scope: number; type: number; parameterBytes: number }
  | {
      kind: 'report-supported-operation-codes';
      timeouts: boolean;
      options: number;
      operation: number;
      serviceAction: number;
      allocationBytes: number;
    }
  | { kind: 'read-capacity-10' }
  | { kind: 'read-capacity-16'; allocationBytes: number }
  | { kind: 'get-lba-status'; lba: number; allocationBytes: number }
  | { kind: 'report-luns'; select: number; allocationBytes: number }
  | ({ kind: 'read' } & Transfer)
  | ({ kind: 'write'; forceUnitAccess: boolean } & Transfer)
  | ({ kind: 'write-and-verify'; byteCheck: number } & Transfer)
  | ({ kind: 'verify'; byteCheck: number } & Transfer)
  | ({ kind: 'or-write'; forceUnitAccess: boolean } & Transfer)
  | ({ kind: 'compare-and-write'; forceUnitAccess: boolean } & Transfer)
  | { kind: 'prefetch'; lba: number; blocks: number; immediate: boolean }
  | { kind: 'synchronize-cache'; lba: number; blocks: number }
  | { kind: 'unmap'; anchor: boolean; parameterBytes: number }
  | ({ kind: 'write-same'; anchor: boolean; unmap: boolean; noData: boolean } & Transfer)
  | { kind: 'unknown'; operation: number };

/** Any 16 bytes give a command; the ones that we do not know give `unknown`. */
export function decodeCommand(cdb: Buffer): Command {
  const operation = cdb[0]!;
  const flags = cdb[1]!;
  switch (operation) {
    case OPERATION.read10:
      return { kind: 'read', ...transfer10(cdb) };
    case OPERATION.read12:
      return { kind: 'read', ...transfer12(cdb) };
    case OPERATION.read16:
      return { kind: 'read', ...transfer16(cdb) };
    case OPERATION.write10:
      return { kind: 'write', forceUnitAccess: (flags & 0x08) !== 0, ...transfer10(cdb) };
    case OPERATION.write12:
      return { kind: 'write', forceUnitAccess: (flags & 0x08) !== 0, ...transfer12(cdb) };
    case OPERATION.write16:
      return { kind: 'write', forceUnitAccess: (flags & 0x08) !== 0, ...transfer16(cdb) };
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
    case OPERATION.modeSelect6:
    case OPERATION.modeSelect10:
      return {
        kind: 'mode-select',
        bytes: operation === OPERATION.modeSelect6 ? 6 : 10,
        pageFormat: (flags & 0x10) !== 0,
        save: (flags & 0x01) !== 0,
        parameterBytes: operation === OPERATION.modeSelect6 ? cdb[4]! : cdb.readUInt16BE(7),
      };
    case OPERATION.startStopUnit:
      return {
        kind: 'start-stop-unit',
        powerCondition: cdb[4]! >>> 4,
        noFlush: (cdb[4]! & 0x04) !== 0,
        loadEject: (cdb[4]! & 0x02) !== 0,
        start: (cdb[4]! & 0x01) !== 0,
      };
    case OPERATION.preventAllowMediumRemoval:
      return { kind: 'prevent-allow', prevent: cdb[4]! & 0x03 };
    case OPERATION.reserve6:
      return { kind: 'reserve-6' };
    case OPERATION.release6:
      return { kind: 'release-6' };
    case OPERATION.persistentReserveIn:
      return { kind: 'persistent-reserve-in', action: flags & 0x1f, allocationBytes: cdb.readUInt16BE(7) };
    case OPERATION.persistentReserveOut:
      return {
        kind: 'persistent-reserve-out',
        action: flags & 0x1f,
        scope: cdb[2]! >>> 4,
        type: cdb[2]! & 0x0f,
        parameterBytes: cdb.readUInt32BE(5),
      };
    case OPERATION.maintenanceIn:
      if ((flags & 0x1f) !== SERVICE_ACTION.reportSupportedOperationCodes)
        return { kind: 'unknown', operation };
      return {
        kind: 'report-supported-operation-codes',
        timeouts: (cdb[2]! & 0x80) !== 0,
        options: cdb[2]! & 0x07,
        operation: cdb[3]!,
        serviceAction: cdb.readUInt16BE(4),
        allocationBytes: cdb.readUInt32BE(6),
      };
    case OPERATION.readCapacity10:
      return { kind: 'read-capacity-10' };
    case OPERATION.writeAndVerify10:
      return { kind: 'write-and-verify', byteCheck: byteCheck(flags), ...transfer10(cdb) };
    case OPERATION.writeAndVerify12:
      return { kind: 'write-and-verify', byteCheck: byteCheck(flags), ...transfer12(cdb) };
    case OPERATION.writeAndVerify16:
      return { kind: 'write-and-verify', byteCheck: byteCheck(flags), ...transfer16(cdb) };
    case OPERATION.verify10:
      return { kind: 'verify', byteCheck: byteCheck(flags), ...transfer10(cdb) };
    case OPERATION.verify12:
      return { kind: 'verify', byteCheck: byteCheck(flags), ...transfer12(cdb) };
    case OPERATION.verify16:
      return { kind: 'verify', byteCheck: byteCheck(flags), ...transfer16(cdb) };
    case OPERATION.orWrite16:
      return { kind: 'or-write', forceUnitAccess: (flags & 0x08) !== 0, ...transfer16(cdb) };
    case OPERATION.compareAndWrite:
      return {
        kind: 'compare-and-write',
        forceUnitAccess: (flags & 0x08) !== 0,
        lba: lba64(cdb),
        blocks: cdb[13]!,
        protection: flags >>> 5,
      };
    case OPERATION.prefetch10:
      return {
        kind: 'prefetch',
        immediate: (flags & 0x02) !== 0,
        lba: cdb.readUInt32BE(2),
        blocks: cdb.readUInt16BE(7),
      };
    case OPERATION.prefetch16:
      return {
        kind: 'prefetch',
        immediate: (flags & 0x02) !== 0,
        lba: lba64(cdb),
        blocks: cdb.readUInt32BE(10),
      };
    case OPERATION.synchronizeCache10:
      return { kind: 'synchronize-cache', lba: cdb.readUInt32BE(2), blocks: cdb.readUInt16BE(7) };
    case OPERATION.synchronizeCache16:
      return { kind: 'synchronize-cache', lba: lba64(cdb), blocks: cdb.readUInt32BE(10) };
    case OPERATION.unmap:
      return { kind: 'unmap', anchor: (flags & 1) !== 0, parameterBytes: cdb.readUInt16BE(7) };
    case OPERATION.writeSame10:
      return writeSame(transfer10(cdb), flags & ~1);
    case OPERATION.writeSame16:
      return writeSame(transfer16(cdb), flags);
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

function transfer10(cdb: Buffer): Transfer {
  return { lba: cdb.readUInt32BE(2), blocks: cdb.readUInt16BE(7), protection: cdb[1]! >>> 5 };
}
function transfer12(cdb: Buffer): Transfer {
  return { lba: cdb.readUInt32BE(2), blocks: cdb.readUInt32BE(6), protection: cdb[1]! >>> 5 };
}
function transfer16(cdb: Buffer): Transfer {
  return { lba: lba64(cdb), blocks: cdb.readUInt32BE(10), protection: cdb[1]! >>> 5 };
}
function byteCheck(flags: number): number {
  return (flags >>> 1) & 0x03;
}
/** Above 2^53 the value is rounded, which changes nothing: no device is as large. */
function lba64(cdb: Buffer): number {
  return cdb.readUInt32BE(2) * 2 ** 32 + cdb.readUInt32BE(6);
}
function writeSame(transfer: Transfer, flags: number): Command {
  return {
    kind: 'write-same',
    ...transfer,
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
/** With UNMAP and no data-out buffer content but zeros: one block of zeros is sent along. */
export function encodeWriteSame16(cdb: Buffer, lba: number, blocks: number, unmap: boolean): void {
  encodeReadWrite16(cdb, OPERATION.writeSame16, lba, blocks);
  if (unmap) cdb[1] = 0x08;
}
