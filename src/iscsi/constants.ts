/**
 * The numbers of iSCSI (RFC 7143), in the order of the RFC. `nameOf` turns one back into its name for logs
 * and errors.
 */

/** Bytes of the basic header segment, RFC 7143 section 11.2. */
export const BHS_BYTES = 48;
/** The largest total of additional header segments: an 8-bit count of 4-byte words. */
export const AHS_BYTES_MAX = 255 * 4;
/** A digest on the wire, RFC 7143 section 13.1. */
export const DIGEST_BYTES = 4;
/** "No tag": an Initiator Task Tag or Target Transfer Tag that refers to nothing. */
export const RESERVED_TAG = 0xffffffff;
/** The only protocol version there is, RFC 7143 section 11.12.4. */
export const VERSION = 0x00;
/** Data segment limit until login has negotiated another, RFC 7143 section 13.12. */
export const DEFAULT_DATA_SEGMENT_BYTES = 8192;

/** RFC 7143 section 11.2.1.2. Initiator opcodes are below 0x20, target opcodes from 0x20. */
export const OPCODE = {
  nopOut: 0x00,
  scsiCommand: 0x01,
  taskManagementRequest: 0x02,
  loginRequest: 0x03,
  textRequest: 0x04,
  dataOut: 0x05,
  logoutRequest: 0x06,
  snackRequest: 0x10,
  nopIn: 0x20,
  scsiResponse: 0x21,
  taskManagementResponse: 0x22,
  loginResponse: 0x23,
  textResponse: 0x24,
  dataIn: 0x25,
  logoutResponse: 0x26,
  readyToTransfer: 0x31,
  asyncMessage: 0x32,
  reject: 0x3f,
} as const;

/** SCSI Response codes, RFC 7143 section 11.4.3. */
export const RESPONSE = { commandCompleted: 0x00, targetFailure: 0x01 } as const;

/** Task management functions, RFC 7143 section 11.5.1. */
export const TASK_FUNCTION = {
  abortTask: 1,
  abortTaskSet: 2,
  clearAca: 3,
  clearTaskSet: 4,
  logicalUnitReset: 5,
  targetWarmReset: 6,
  targetColdReset: 7,
  taskReassign: 8,
} as const;

/** Task management responses, RFC 7143 section 11.6.1. */
export const TASK_RESPONSE = {
  complete: 0,
  taskDoesNotExist: 1,
  lunDoesNotExist: 2,
  taskStillAllegiant: 3,
  reassignmentNotSupported: 4,
  notSupported: 5,
  authorizationFailed: 6,
  rejected: 255,
} as const;

/** Asynchronous events, RFC 7143 section 11.9.1. */
export const ASYNC_EVENT = {
  scsi: 0,
  logoutRequested: 1,
  connectionDropped: 2,
  sessionDropped: 3,
  negotiationRequested: 4,
  tasksTerminated: 5,
} as const;

/** Login stages, RFC 7143 section 11.12.3. */
export const STAGE = { security: 0, operational: 1, fullFeature: 3 } as const;

/** Login status, class in the high byte and detail in the low one, RFC 7143 section 11.13.5. */
export const LOGIN_STATUS = {
  success: 0x0000,
  movedTemporarily: 0x0101,
  movedPermanently: 0x0102,
  initiatorError: 0x0200,
  authenticationFailure: 0x0201,
  authorizationFailure: 0x0202,
  notFound: 0x0203,
  targetRemoved: 0x0204,
  unsupportedVersion: 0x0205,
  tooManyConnections: 0x0206,
  missingParameter: 0x0207,
  cannotIncludeInSession: 0x0208,
  sessionTypeNotSupported: 0x0209,
  sessionDoesNotExist: 0x020a,
  invalidDuringLogin: 0x020b,
  targetError: 0x0300,
  serviceUnavailable: 0x0301,
  outOfResources: 0x0302,
} as const;

/** Logout reasons and responses, RFC 7143 sections 11.14.1 and 11.15.1. */
export const LOGOUT_REASON = { closeSession: 0, closeConnection: 1, removeForRecovery: 2 } as const;
export const LOGOUT_RESPONSE = {
  success: 0,
  cidNotFound: 1,
  recoveryNotSupported: 2,
  cleanupFailed: 3,
} as const;

/** Reject reasons, RFC 7143 section 11.17.1. */
export const REJECT_REASON = {
  dataDigestError: 0x02,
  snackReject: 0x03,
  protocolError: 0x04,
  commandNotSupported: 0x05,
  immediateCommandReject: 0x06,
  taskInProgress: 0x07,
  invalidDataAck: 0x08,
  invalidPduField: 0x09,
  longOperationReject: 0x0a,
  waitingForLogout: 0x0c,
} as const;

/** CHAP algorithms (CHAP_A), RFC 7143 section 12.1.3 and IANA's "PPP Authentication Algorithms". */
export const CHAP_ALGORITHM = { md5: 5, sha1: 6, sha256: 7, sha3_256: 8 } as const;

/** The name of a number in one of the tables above; a number that is not in it as hexadecimal. */
export function nameOf(table: Readonly<Record<string, number>>, value: number): string {
  for (const [name, number] of Object.entries(table)) if (number === value) return name;
  return `0x${value.toString(16)}`;
}
