import { BHS_BYTES, OPCODE } from './constants.ts';

/**
 * The basic header segment of each PDU in the order of RFC 7143 section 11: layout, then encode, then decode.
 * Encoders get 48 zeroed bytes and leave DataSegmentLength to the writer; decoders read a header whose opcode
 * was checked and never throw: every bit pattern of 48 bytes is a value, and whoever gets it judges it.
 *
 * Common to all (section 11.2.1):
 *   0      . I opcode(6)          I: immediate delivery
 *   1      F and flags of the opcode
 *   4      TotalAHSLength         in 4-byte words
 *   5-7    DataSegmentLength      in bytes, without padding
 *   8-15   LUN or flags of the opcode
 *   16-19  Initiator Task Tag
 *   20-47  of the opcode
 */

export const IMMEDIATE = 0x40;
const FINAL = 0x80;
const CONTINUE = 0x40;

export function opcodeOf(header: Buffer): number {
  return header[0]! & 0x3f;
}
function isImmediate(header: Buffer): boolean {
  return (header[0]! & IMMEDIATE) !== 0;
}
function isFinal(header: Buffer): boolean {
  return (header[1]! & FINAL) !== 0;
}
export function ahsBytesOf(header: Buffer): number {
  return header[4]! * 4;
}
export function dataSegmentBytesOf(header: Buffer): number {
  return (header[5]! << 16) | (header[6]! << 8) | header[7]!;
}
export function setDataSegmentBytes(header: Buffer, lengthBytes: number): void {
  header[5] = lengthBytes >>> 16;
  header[6] = lengthBytes >>> 8;
  header[7] = lengthBytes;
}
export function initiatorTaskTagOf(header: Buffer): number {
  return header.readUInt32BE(16);
}

/**
 * A LUN (SAM-5 section 4.7): single level, by peripheral (00b) or flat (01b) addressing. -1 for every other
 * form.
 */
function decodeLun(bytes: Buffer, offset: number): number {
  if (bytes.readUInt16BE(offset + 2) !== 0 || bytes.readUInt32BE(offset + 4) !== 0) return -1;
  const first = bytes[offset]!;
  const method = first >>> 6;
  if (method === 0 && first === 0) return bytes[offset + 1]!;
  if (method === 1) return ((first & 0x3f) << 8) | bytes[offset + 1]!;
  return -1;
}
function encodeLun(bytes: Buffer, offset: number, lun: number): void {
  if (lun < 256) {
    bytes[offset] = 0;
    bytes[offset + 1] = lun;
  } else {
    bytes[offset] = 0x40 | (lun >>> 8);
    bytes[offset + 1] = lun;
  }
}

/** The three counters that every target PDU carries at 24, 28 and 32. */
export type TargetCounters = { statSn: number; expCmdSn: number; maxCmdSn: number };

function encodeCounters(header: Buffer, counters: TargetCounters): void {
  header.writeUInt32BE(counters.statSn, 24);
  header.writeUInt32BE(counters.expCmdSn, 28);
  header.writeUInt32BE(counters.maxCmdSn, 32);
}
function decodeCounters(header: Buffer): TargetCounters {
  return {
    statSn: header.readUInt32BE(24),
    expCmdSn: header.readUInt32BE(28),
    maxCmdSn: header.readUInt32BE(32),
  };
}

/*
 * SCSI Command, section 11.3
 *   1      F R W . . ATTR(3)
 *   8-15   LUN
 *   20-23  Expected Data Transfer Length
 *   24-27  CmdSN
 *   28-31  ExpStatSN
 *   32-47  CDB
 */
export type ScsiCommandPdu = {
  immediate: boolean;
  final: boolean;
  reads: boolean;
  writes: boolean;
  lun: number;
  initiatorTaskTag: number;
  expectedBytes: number;
  cmdSn: number;
  expStatSn: number;
};

/** Leaves the CDB (16 bytes at 32) to the caller. */
export function encodeScsiCommand(header: Buffer, pdu: ScsiCommandPdu): void {
  header[0] = OPCODE.scsiCommand | (pdu.immediate ? IMMEDIATE : 0);
  // Attribute 1 is SIMPLE.
  header[1] = (pdu.final ? FINAL : 0) | (pdu.reads ? 0x40 : 0) | (pdu.writes ? 0x20 : 0) | 1;
  encodeLun(header, 8, pdu.lun);
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  header.writeUInt32BE(pdu.expectedBytes, 20);
  header.writeUInt32BE(pdu.cmdSn, 24);
  header.writeUInt32BE(pdu.expStatSn, 28);
}
export function decodeScsiCommand(header: Buffer): ScsiCommandPdu {
  const flags = header[1]!;
  return {
    immediate: isImmediate(header),
    final: (flags & FINAL) !== 0,
    reads: (flags & 0x40) !== 0,
    writes: (flags & 0x20) !== 0,
    lun: decodeLun(header, 8),
    initiatorTaskTag: header.readUInt32BE(16),
    expectedBytes: header.readUInt32BE(20),
    cmdSn: header.readUInt32BE(24),
    expStatSn: header.readUInt32BE(28),
  };
}

/*
 * SCSI Response, section 11.4
 *   1      1 . . o u O U .        O: residual overflow, U: underflow
 *   2      Response
 *   3      Status
 *   24-35  StatSN, ExpCmdSN, MaxCmdSN
 *   36-39  ExpDataSN              how many Data-In and R2T PDUs were sent for the command
 *   44-47  Residual Count
 *   data   SenseLength(2), sense data
 */
export type ScsiResponsePdu = TargetCounters & {
  initiatorTaskTag: number;
  response: number;
  status: number;
  /** Positive: overflow (the command would have moved so much more). Negative: underflow. */
  residualBytes: number;
  expDataSn: number;
};

export function encodeScsiResponse(header: Buffer, pdu: ScsiResponsePdu): void {
  header[0] = OPCODE.scsiResponse;
  header[1] = FINAL | residualFlags(pdu.residualBytes);
  header[2] = pdu.response;
  header[3] = pdu.status;
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  encodeCounters(header, pdu);
  header.writeUInt32BE(pdu.expDataSn, 36);
  header.writeUInt32BE(Math.abs(pdu.residualBytes), 44);
}
export function decodeScsiResponse(header: Buffer): ScsiResponsePdu {
  return {
    initiatorTaskTag: header.readUInt32BE(16),
    response: header[2]!,
    status: header[3]!,
    residualBytes: residualOf(header),
    expDataSn: header.readUInt32BE(36),
    ...decodeCounters(header),
  };
}
function residualFlags(residualBytes: number): number {
  if (residualBytes === 0) return 0;
  return residualBytes > 0 ? 0x04 : 0x02;
}
function residualOf(header: Buffer): number {
  const flags = header[1]!;
  if ((flags & 0x04) !== 0) return header.readUInt32BE(44);
  if ((flags & 0x02) !== 0) return -header.readUInt32BE(44);
  return 0;
}

/*
 * Task Management Function Request, section 11.5
 *   1      1 Function(7)
 *   8-15   LUN
 *   20-23  Referenced Task Tag
 *   24-27  CmdSN
 *   28-31  ExpStatSN
 *   32-35  RefCmdSN
 */
export type TaskManagementRequestPdu = {
  immediate: boolean;
  function: number;
  lun: number;
  initiatorTaskTag: number;
  referencedTaskTag: number;
  cmdSn: number;
  expStatSn: number;
  refCmdSn: number;
};

export function encodeTaskManagementRequest(header: Buffer, pdu: TaskManagementRequestPdu): void {
  header[0] = OPCODE.taskManagementRequest | (pdu.immediate ? IMMEDIATE : 0);
  header[1] = FINAL | pdu.function;
  encodeLun(header, 8, pdu.lun);
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  header.writeUInt32BE(pdu.referencedTaskTag, 20);
  header.writeUInt32BE(pdu.cmdSn, 24);
  header.writeUInt32BE(pdu.expStatSn, 28);
  header.writeUInt32BE(pdu.refCmdSn, 32);
}
export function decodeTaskManagementRequest(header: Buffer): TaskManagementRequestPdu {
  return {
    immediate: isImmediate(header),
    function: header[1]! & 0x7f,
    lun: decodeLun(header, 8),
    initiatorTaskTag: header.readUInt32BE(16),
    referencedTaskTag: header.readUInt32BE(20),
    cmdSn: header.readUInt32BE(24),
    expStatSn: header.readUInt32BE(28),
    refCmdSn: header.readUInt32BE(32),
  };
}

/*
 * Task Management Function Response, section 11.6
 *   2      Response
 *   24-35  StatSN, ExpCmdSN, MaxCmdSN
 */
export type TaskManagementResponsePdu = TargetCounters & { initiatorTaskTag: number; response: number };

export function encodeTaskManagementResponse(header: Buffer, pdu: TaskManagementResponsePdu): void {
  header[0] = OPCODE.taskManagementResponse;
  header[1] = FINAL;
  header[2] = pdu.response;
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  encodeCounters(header, pdu);
}
export function decodeTaskManagementResponse(header: Buffer): TaskManagementResponsePdu {
  return {
    initiatorTaskTag: header.readUInt32BE(16),
    response: header[2]!,
    ...decodeCounters(header),
  };
}

/*
 * SCSI Data-Out, section 11.7
 *   1      F
 *   8-15   LUN                    when the Target Transfer Tag is valid
 *   20-23  Target Transfer Tag    of the R2T, or reserved: unsolicited data
 *   28-31  ExpStatSN
 *   36-39  DataSN                 from 0 in each sequence
 *   40-43  Buffer Offset
 */
export type DataOutPdu = {
  final: boolean;
  lun: number;
  initiatorTaskTag: number;
  targetTransferTag: number;
  expStatSn: number;
  dataSn: number;
  bufferOffset: number;
};

export function encodeDataOut(header: Buffer, pdu: DataOutPdu): void {
  header[0] = OPCODE.dataOut;
  header[1] = pdu.final ? FINAL : 0;
  encodeLun(header, 8, pdu.lun);
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  header.writeUInt32BE(pdu.targetTransferTag, 20);
  header.writeUInt32BE(pdu.expStatSn, 28);
  header.writeUInt32BE(pdu.dataSn, 36);
  header.writeUInt32BE(pdu.bufferOffset, 40);
}
export function decodeDataOut(header: Buffer): DataOutPdu {
  return {
    final: isFinal(header),
    lun: decodeLun(header, 8),
    initiatorTaskTag: header.readUInt32BE(16),
    targetTransferTag: header.readUInt32BE(20),
    expStatSn: header.readUInt32BE(28),
    dataSn: header.readUInt32BE(36),
    bufferOffset: header.readUInt32BE(40),
  };
}

/*
 * SCSI Data-In, section 11.7
 *   1      F A . . . O U S        S: this PDU carries the status too (phase collapse)
 *   3      Status                 when S
 *   8-15   LUN                    when A
 *   20-23  Target Transfer Tag    when A
 *   24-35  StatSN (when S), ExpCmdSN, MaxCmdSN
 *   36-39  DataSN
 *   40-43  Buffer Offset
 *   44-47  Residual Count         when S
 */
export type DataInPdu = TargetCounters & {
  final: boolean;
  hasStatus: boolean;
  status: number;
  initiatorTaskTag: number;
  dataSn: number;
  bufferOffset: number;
  residualBytes: number;
};

export function encodeDataIn(header: Buffer, pdu: DataInPdu): void {
  header[0] = OPCODE.dataIn;
  header[1] = pdu.final ? FINAL : 0;
  if (pdu.hasStatus) {
    header[1] |= 0x01 | residualFlags(pdu.residualBytes);
    header[3] = pdu.status;
    header.writeUInt32BE(pdu.statSn, 24);
    header.writeUInt32BE(Math.abs(pdu.residualBytes), 44);
  }
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  header.writeUInt32BE(0xffffffff, 20);
  header.writeUInt32BE(pdu.expCmdSn, 28);
  header.writeUInt32BE(pdu.maxCmdSn, 32);
  header.writeUInt32BE(pdu.dataSn, 36);
  header.writeUInt32BE(pdu.bufferOffset, 40);
}
export function decodeDataIn(header: Buffer): DataInPdu {
  return {
    final: isFinal(header),
    hasStatus: (header[1]! & 0x01) !== 0,
    status: header[3]!,
    initiatorTaskTag: header.readUInt32BE(16),
    statSn: header.readUInt32BE(24),
    expCmdSn: header.readUInt32BE(28),
    maxCmdSn: header.readUInt32BE(32),
    dataSn: header.readUInt32BE(36),
    bufferOffset: header.readUInt32BE(40),
    residualBytes: residualOf(header),
  };
}

/*
 * Ready To Transfer, section 11.8
 *   8-15   LUN
 *   20-23  Target Transfer Tag
 *   24-35  StatSN (next one, not consumed), ExpCmdSN, MaxCmdSN
 *   36-39  R2TSN
 *   40-43  Buffer Offset
 *   44-47  Desired Data Transfer Length
 */
export type ReadyToTransferPdu = TargetCounters & {
  lun: number;
  initiatorTaskTag: number;
  targetTransferTag: number;
  r2tSn: number;
  bufferOffset: number;
  desiredBytes: number;
};

export function encodeReadyToTransfer(header: Buffer, pdu: ReadyToTransferPdu): void {
  header[0] = OPCODE.readyToTransfer;
  header[1] = FINAL;
  encodeLun(header, 8, pdu.lun);
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  header.writeUInt32BE(pdu.targetTransferTag, 20);
  encodeCounters(header, pdu);
  header.writeUInt32BE(pdu.r2tSn, 36);
  header.writeUInt32BE(pdu.bufferOffset, 40);
  header.writeUInt32BE(pdu.desiredBytes, 44);
}
export function decodeReadyToTransfer(header: Buffer): ReadyToTransferPdu {
  return {
    lun: decodeLun(header, 8),
    initiatorTaskTag: header.readUInt32BE(16),
    targetTransferTag: header.readUInt32BE(20),
    r2tSn: header.readUInt32BE(36),
    bufferOffset: header.readUInt32BE(40),
    desiredBytes: header.readUInt32BE(44),
    ...decodeCounters(header),
  };
}

/*
 * Asynchronous Message, section 11.9
 *   8-15   LUN
 *   16-19  0xffffffff
 *   24-35  StatSN, ExpCmdSN, MaxCmdSN
 *   36     AsyncEvent
 *   37     AsyncVCode
 *   38-39  Parameter1
 *   40-41  Parameter2             seconds: Time2Wait
 *   42-43  Parameter3             seconds: Time2Retain, or time until logout
 */
export type AsyncMessagePdu = TargetCounters & {
  event: number;
  parameter1: number;
  parameter2: number;
  parameter3: number;
};

export function encodeAsyncMessage(header: Buffer, pdu: AsyncMessagePdu): void {
  header[0] = OPCODE.asyncMessage;
  header[1] = FINAL;
  header.writeUInt32BE(0xffffffff, 16);
  encodeCounters(header, pdu);
  header[36] = pdu.event;
  header.writeUInt16BE(pdu.parameter1, 38);
  header.writeUInt16BE(pdu.parameter2, 40);
  header.writeUInt16BE(pdu.parameter3, 42);
}
export function decodeAsyncMessage(header: Buffer): AsyncMessagePdu {
  return {
    event: header[36]!,
    parameter1: header.readUInt16BE(38),
    parameter2: header.readUInt16BE(40),
    parameter3: header.readUInt16BE(42),
    ...decodeCounters(header),
  };
}

/*
 * Text Request, section 11.10                  Text Response, section 11.11
 *   1      F C                                   1      F C
 *   20-23  Target Transfer Tag                   20-23  Target Transfer Tag
 *   24-27  CmdSN                                 24-35  StatSN, ExpCmdSN, MaxCmdSN
 *   28-31  ExpStatSN
 */
export type TextRequestPdu = {
  immediate: boolean;
  final: boolean;
  continues: boolean;
  initiatorTaskTag: number;
  targetTransferTag: number;
  cmdSn: number;
  expStatSn: number;
};

export function encodeTextRequest(header: Buffer, pdu: TextRequestPdu): void {
  header[0] = OPCODE.textRequest | (pdu.immediate ? IMMEDIATE : 0);
  header[1] = (pdu.final ? FINAL : 0) | (pdu.continues ? CONTINUE : 0);
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  header.writeUInt32BE(pdu.targetTransferTag, 20);
  header.writeUInt32BE(pdu.cmdSn, 24);
  header.writeUInt32BE(pdu.expStatSn, 28);
}
export function decodeTextRequest(header: Buffer): TextRequestPdu {
  return {
    immediate: isImmediate(header),
    final: isFinal(header),
    continues: (header[1]! & CONTINUE) !== 0,
    initiatorTaskTag: header.readUInt32BE(16),
    targetTransferTag: header.readUInt32BE(20),
    cmdSn: header.readUInt32BE(24),
    expStatSn: header.readUInt32BE(28),
  };
}

export type TextResponsePdu = TargetCounters & {
  final: boolean;
  continues: boolean;
  initiatorTaskTag: number;
  targetTransferTag: number;
};

export function encodeTextResponse(header: Buffer, pdu: TextResponsePdu): void {
  header[0] = OPCODE.textResponse;
  header[1] = (pdu.final ? FINAL : 0) | (pdu.continues ? CONTINUE : 0);
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  header.writeUInt32BE(pdu.targetTransferTag, 20);
  encodeCounters(header, pdu);
}

/*
 * Login Request, section 11.12                 Login Response, section 11.13
 *   1      T C . . CSG(2) NSG(2)                 1      T C . . CSG(2) NSG(2)
 *   2      Version-max                           2      Version-max
 *   3      Version-min                           3      Version-active
 *   8-13   ISID                                  8-13   ISID
 *   14-15  TSIH                                  14-15  TSIH
 *   20-21  CID                                   24-35  StatSN, ExpCmdSN, MaxCmdSN
 *   24-27  CmdSN                                 36     Status-Class
 *   28-31  ExpStatSN                             37     Status-Detail
 */
export type LoginRequestPdu = {
  transit: boolean;
  continues: boolean;
  currentStage: number;
  nextStage: number;
  versionMax: number;
  versionMin: number;
  /** 6 bytes. */
  isid: Buffer;
  tsih: number;
  initiatorTaskTag: number;
  cid: number;
  cmdSn: number;
  expStatSn: number;
};

export function encodeLoginRequest(header: Buffer, pdu: LoginRequestPdu): void {
  header[0] = OPCODE.loginRequest | IMMEDIATE;
  header[1] = loginFlags(pdu);
  header[2] = pdu.versionMax;
  header[3] = pdu.versionMin;
  pdu.isid.copy(header, 8, 0, 6);
  header.writeUInt16BE(pdu.tsih, 14);
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  header.writeUInt16BE(pdu.cid, 20);
  header.writeUInt32BE(pdu.cmdSn, 24);
  header.writeUInt32BE(pdu.expStatSn, 28);
}
export function decodeLoginRequest(header: Buffer): LoginRequestPdu {
  return {
    ...loginFlagsOf(header),
    versionMax: header[2]!,
    versionMin: header[3]!,
    isid: Buffer.from(header.subarray(8, 14)),
    tsih: header.readUInt16BE(14),
    initiatorTaskTag: header.readUInt32BE(16),
    cid: header.readUInt16BE(20),
    cmdSn: header.readUInt32BE(24),
    expStatSn: header.readUInt32BE(28),
  };
}

export type LoginResponsePdu = TargetCounters & {
  transit: boolean;
  continues: boolean;
  currentStage: number;
  nextStage: number;
  versionMax: number;
  versionActive: number;
  isid: Buffer;
  tsih: number;
  initiatorTaskTag: number;
  /** Class in the high byte, detail in the low one. */
  status: number;
};

export function encodeLoginResponse(header: Buffer, pdu: LoginResponsePdu): void {
  header[0] = OPCODE.loginResponse;
  header[1] = loginFlags(pdu);
  header[2] = pdu.versionMax;
  header[3] = pdu.versionActive;
  pdu.isid.copy(header, 8, 0, 6);
  header.writeUInt16BE(pdu.tsih, 14);
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  encodeCounters(header, pdu);
  header.writeUInt16BE(pdu.status, 36);
}
export function decodeLoginResponse(header: Buffer): LoginResponsePdu {
  return {
    ...loginFlagsOf(header),
    versionMax: header[2]!,
    versionActive: header[3]!,
    isid: Buffer.from(header.subarray(8, 14)),
    tsih: header.readUInt16BE(14),
    initiatorTaskTag: header.readUInt32BE(16),
    status: header.readUInt16BE(36),
    ...decodeCounters(header),
  };
}

type LoginFlags = { transit: boolean; continues: boolean; currentStage: number; nextStage: number };
function loginFlags(pdu: LoginFlags): number {
  const next = pdu.transit ? pdu.nextStage : 0;
  return (pdu.transit ? FINAL : 0) | (pdu.continues ? CONTINUE : 0) | (pdu.currentStage << 2) | next;
}
function loginFlagsOf(header: Buffer): LoginFlags {
  const flags = header[1]!;
  return {
    transit: (flags & FINAL) !== 0,
    continues: (flags & CONTINUE) !== 0,
    currentStage: (flags >>> 2) & 3,
    nextStage: flags & 3,
  };
}

/*
 * Logout Request, section 11.14                Logout Response, section 11.15
 *   1      1 Reason(7)                           2      Response
 *   20-21  CID                                   24-35  StatSN, ExpCmdSN, MaxCmdSN
 *   24-27  CmdSN                                 40-41  Time2Wait
 *   28-31  ExpStatSN                             42-43  Time2Retain
 */
export type LogoutRequestPdu = {
  immediate: boolean;
  reason: number;
  initiatorTaskTag: number;
  cid: number;
  cmdSn: number;
  expStatSn: number;
};

export function encodeLogoutRequest(header: Buffer, pdu: LogoutRequestPdu): void {
  header[0] = OPCODE.logoutRequest | (pdu.immediate ? IMMEDIATE : 0);
  header[1] = FINAL | pdu.reason;
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  header.writeUInt16BE(pdu.cid, 20);
  header.writeUInt32BE(pdu.cmdSn, 24);
  header.writeUInt32BE(pdu.expStatSn, 28);
}
export function decodeLogoutRequest(header: Buffer): LogoutRequestPdu {
  return {
    immediate: isImmediate(header),
    reason: header[1]! & 0x7f,
    initiatorTaskTag: header.readUInt32BE(16),
    cid: header.readUInt16BE(20),
    cmdSn: header.readUInt32BE(24),
    expStatSn: header.readUInt32BE(28),
  };
}

export type LogoutResponsePdu = TargetCounters & { initiatorTaskTag: number; response: number };

export function encodeLogoutResponse(header: Buffer, pdu: LogoutResponsePdu): void {
  header[0] = OPCODE.logoutResponse;
  header[1] = FINAL;
  header[2] = pdu.response;
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  encodeCounters(header, pdu);
}

/*
 * Reject, section 11.17
 *   2      Reason
 *   16-19  0xffffffff
 *   24-35  StatSN, ExpCmdSN, MaxCmdSN
 *   data   the header of the PDU that is rejected
 */
export type RejectPdu = TargetCounters & { reason: number };

export function encodeReject(header: Buffer, pdu: RejectPdu): void {
  header[0] = OPCODE.reject;
  header[1] = FINAL;
  header[2] = pdu.reason;
  header.writeUInt32BE(0xffffffff, 16);
  encodeCounters(header, pdu);
}
export function decodeReject(header: Buffer): RejectPdu {
  return { reason: header[2]!, ...decodeCounters(header) };
}

/*
 * NOP-Out, section 11.18                       NOP-In, section 11.19
 *   8-15   LUN                                   8-15   LUN
 *   20-23  Target Transfer Tag                   20-23  Target Transfer Tag
 *   24-27  CmdSN                                 24-35  StatSN, ExpCmdSN, MaxCmdSN
 *   28-31  ExpStatSN
 *   data   ping data                             data   the ping's data back
 */
export type NopOutPdu = {
  immediate: boolean;
  initiatorTaskTag: number;
  targetTransferTag: number;
  cmdSn: number;
  expStatSn: number;
};

export function encodeNopOut(header: Buffer, pdu: NopOutPdu): void {
  header[0] = OPCODE.nopOut | (pdu.immediate ? IMMEDIATE : 0);
  header[1] = FINAL;
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  header.writeUInt32BE(pdu.targetTransferTag, 20);
  header.writeUInt32BE(pdu.cmdSn, 24);
  header.writeUInt32BE(pdu.expStatSn, 28);
}
export function decodeNopOut(header: Buffer): NopOutPdu {
  return {
    immediate: isImmediate(header),
    initiatorTaskTag: header.readUInt32BE(16),
    targetTransferTag: header.readUInt32BE(20),
    cmdSn: header.readUInt32BE(24),
    expStatSn: header.readUInt32BE(28),
  };
}

export type NopInPdu = TargetCounters & { initiatorTaskTag: number; targetTransferTag: number };

export function encodeNopIn(header: Buffer, pdu: NopInPdu): void {
  header[0] = OPCODE.nopIn;
  header[1] = FINAL;
  header.writeUInt32BE(pdu.initiatorTaskTag, 16);
  header.writeUInt32BE(pdu.targetTransferTag, 20);
  encodeCounters(header, pdu);
}
export function decodeNopIn(header: Buffer): NopInPdu {
  return {
    initiatorTaskTag: header.readUInt32BE(16),
    targetTransferTag: header.readUInt32BE(20),
    ...decodeCounters(header),
  };
}

/** 48 zeroed bytes: a header for the encoders. */
export function emptyHeader(): Buffer {
  return Buffer.alloc(BHS_BYTES);
}
