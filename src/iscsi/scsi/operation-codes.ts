import { OPERATION, SERVICE_ACTION } from './command.ts';
import { IN_ACTION, OUT_ACTION } from './reservations.ts';

/**
 * What the unit can do, byte for byte (REPORT SUPPORTED OPERATION CODES, SPC-4 section 6.35). A usage map has
 * a 1 for each bit of the CDB that the unit looks at; its first byte is the operation code, and the service
 * action stands as itself.
 */
type Supported = { operation: number; serviceAction: number | null; usage: Buffer };

const LBA_32 = 'ffffffff';
const LBA_64 = 'ffffffffffffffff';
const COUNT_32 = 'ffffffff';

function usage(operation: number, rest: string): Supported {
  return { operation, serviceAction: null, usage: map(operation, rest) };
}
function action(operation: number, serviceAction: number, rest: string): Supported {
  return { operation, serviceAction, usage: map(operation, hex(serviceAction) + rest) };
}
function map(operation: number, rest: string): Buffer {
  return Buffer.from(hex(operation) + rest.replaceAll(' ', ''), 'hex');
}
function hex(byte: number): string {
  return byte.toString(16).padStart(2, '0');
}

/** Flags (byte 1), LBA, transfer length; the shapes that most commands of SBC-3 share. */
const transfer10 = (operation: number, flags: string): Supported =>
  usage(operation, `${flags} ${LBA_32} 00 ffff 00`);
const transfer12 = (operation: number, flags: string): Supported =>
  usage(operation, `${flags} ${LBA_32} ${COUNT_32} 00 00`);
const transfer16 = (operation: number, flags: string): Supported =>
  usage(operation, `${flags} ${LBA_64} ${COUNT_32} 00 00`);

/** 0x18: DPO and FUA. 0x16: DPO and BYTCHK. */
const SUPPORTED: readonly Supported[] = [
  usage(OPERATION.testUnitReady, '00 00 00 00 00'),
  usage(OPERATION.requestSense, '01 00 00 ff 00'),
  usage(OPERATION.read6, '1f ff ff ff 00'),
  usage(OPERATION.write6, '1f ff ff ff 00'),
  usage(OPERATION.inquiry, '01 ff ff ff 00'),
  usage(OPERATION.modeSelect6, '11 00 00 ff 00'),
  usage(OPERATION.reserve6, '00 00 00 00 00'),
  usage(OPERATION.release6, '00 00 00 00 00'),
  usage(OPERATION.modeSense6, '08 ff ff ff 00'),
  usage(OPERATION.startStopUnit, '00 00 00 f7 00'),
  usage(OPERATION.preventAllowMediumRemoval, '00 00 00 03 00'),
  usage(OPERATION.readCapacity10, '00 00000000 0000 00 00'),
  transfer10(OPERATION.read10, '18'),
  transfer10(OPERATION.write10, '18'),
  transfer10(OPERATION.writeAndVerify10, '16'),
  transfer10(OPERATION.verify10, '16'),
  transfer10(OPERATION.prefetch10, '02'),
  transfer10(OPERATION.synchronizeCache10, '00'),
  transfer10(OPERATION.writeSame10, '18'),
  usage(OPERATION.unmap, '01 00000000 00 ffff 00'),
  usage(OPERATION.modeSelect10, '11 00000000 00 ffff 00'),
  usage(OPERATION.modeSense10, '18 ff ff 000000 ffff 00'),
  ...Object.values(IN_ACTION).map((it) => action(OPERATION.persistentReserveIn, it, '00000000 00 ffff 00')),
  ...Object.values(OUT_ACTION).map((it) => action(OPERATION.persistentReserveOut, it, 'ff 0000 ffffffff 00')),
  transfer16(OPERATION.read16, '18'),
  usage(OPERATION.compareAndWrite, `18 ${LBA_64} 000000ff 00 00`),
  transfer16(OPERATION.write16, '18'),
  transfer16(OPERATION.orWrite16, '18'),
  transfer16(OPERATION.writeAndVerify16, '16'),
  transfer16(OPERATION.verify16, '16'),
  transfer16(OPERATION.prefetch16, '02'),
  transfer16(OPERATION.synchronizeCache16, '00'),
  transfer16(OPERATION.writeSame16, '19'),
  action(OPERATION.serviceActionIn16, SERVICE_ACTION.readCapacity16, `0000000000000000 ${COUNT_32} 00 00`),
  action(OPERATION.serviceActionIn16, SERVICE_ACTION.getLbaStatus, `${LBA_64} ${COUNT_32} 00 00`),
  usage(OPERATION.reportLuns, '00 ff 000000 ffffffff 00 00'),
  action(OPERATION.maintenanceIn, SERVICE_ACTION.reportSupportedOperationCodes, '87 ff ffff ffffffff 00 00'),
  transfer12(OPERATION.read12, '18'),
  transfer12(OPERATION.write12, '18'),
  transfer12(OPERATION.writeAndVerify12, '16'),
  transfer12(OPERATION.verify12, '16'),
];

/** REPORTING OPTIONS. */
const REPORT = { all: 0, operation: 1, serviceAction: 2, either: 3 } as const;
/** SUPPORT of one command. */
const SUPPORT = { no: 1, standard: 3 } as const;
const TIMEOUTS_BYTES = 12;

export type OperationCodesRequest = {
  timeouts: boolean;
  options: number;
  operation: number;
  serviceAction: number;
};

/**
 * null: invalid field in CDB.
 *
 *   all           0-3 length   4- descriptors of 8 bytes: operation, -, service action(2), -, CTDP(bit 1) SERVACTV(bit 0), CDB length(2),
 *                 each followed by a timeouts descriptor where RCTD asks for it
 *   one command   1 CTDP(bit 7) SUPPORT(3)   2-3 CDB length   4- usage map, then the timeouts descriptor
 *   timeouts      0-1 length 10, the rest zero: no timeout is given
 */
export function reportSupportedOperationCodes(request: OperationCodesRequest): Buffer | null {
  const timeouts = Buffer.alloc(request.timeouts ? TIMEOUTS_BYTES : 0);
  if (request.timeouts) timeouts[1] = TIMEOUTS_BYTES - 2;
  if (request.options === REPORT.all) {
    const parts = SUPPORTED.map((it) => {
      const descriptor = Buffer.alloc(8);
      descriptor[0] = it.operation;
      descriptor.writeUInt16BE(it.serviceAction ?? 0, 2);
      descriptor[5] = (request.timeouts ? 0x02 : 0) | (it.serviceAction === null ? 0 : 0x01);
      descriptor.writeUInt16BE(it.usage.length, 6);
      return Buffer.concat([descriptor, timeouts]);
    });
    const list = Buffer.concat([Buffer.alloc(4), ...parts]);
    list.writeUInt32BE(list.length - 4, 0);
    return list;
  }
  const ofOperation = SUPPORTED.filter((it) => it.operation === request.operation);
  const hasActions = ofOperation.some((it) => it.serviceAction !== null);
  // An option that does not fit a command which is there is refused; a command that is not there is reported
  // so.
  if (request.options === REPORT.operation && hasActions) return null;
  if (request.options === REPORT.serviceAction && ofOperation.length > 0 && !hasActions) return null;
  if (request.options > REPORT.either) return null;
  const found = ofOperation.find(
    (it) => it.serviceAction === null || it.serviceAction === request.serviceAction,
  );
  if (
    found === undefined ||
    (request.options === REPORT.either && !hasActions && request.serviceAction !== 0)
  ) {
    return Buffer.from([0, SUPPORT.no, 0, 0]);
  }
  const head = Buffer.from([0, SUPPORT.standard | (request.timeouts ? 0x80 : 0), 0, found.usage.length]);
  return Buffer.concat([head, found.usage, timeouts]);
}
