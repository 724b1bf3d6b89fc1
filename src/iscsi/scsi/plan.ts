import { isGodwitError, systemErrorCode } from '../../base/errors.ts';
import { SENSE, type Sense } from './sense.ts';

/**
 * What a command comes to. Made without I/O by the logical unit; whoever owns the transport moves the data:
 * reads into its own buffers, writes out of them.
 */
export type Plan =
  | Result
  /** Read the device and send it. */
  | { kind: 'read'; offsetBytes: number; lengthBytes: number }
  /** Take `lengthBytes` from the initiator and write them; as many whole blocks as come. */
  | { kind: 'write'; offsetBytes: number; lengthBytes: number; after: AfterWrite }
  /** No data from the initiator; `run` gives the answer. `medium`: waits while the unit is in standby. */
  | { kind: 'run'; medium: boolean; run: () => Promise<Result> }
  /** Take `lengthBytes` of parameters or data, all of them, then `run` gives the answer. */
  | { kind: 'take'; medium: boolean; lengthBytes: number; run: (data: Buffer) => Promise<Result> };

/** How a command ends. */
export type Result =
  | { kind: 'answer'; data: Buffer }
  /** `cause`: the error of the device behind it, for the log. */
  | { kind: 'sense'; sense: Sense; cause?: unknown }
  /** A status without sense: CONDITION MET, RESERVATION CONFLICT. */
  | { kind: 'status'; status: number };

/** flush: the data is durable. read: it is, and can be read. compare: it is, and reads as it was sent. */
export type AfterWrite = 'nothing' | 'flush' | 'read' | 'compare';

export const DONE: Result = { kind: 'answer', data: Buffer.alloc(0) };

export function answer(data: Buffer, allocationBytes = Number.POSITIVE_INFINITY): Result {
  return { kind: 'answer', data: data.length > allocationBytes ? data.subarray(0, allocationBytes) : data };
}
export function refuse(sense: keyof typeof SENSE): Result {
  return { kind: 'sense', sense: SENSE[sense] };
}

export function deviceFailed(error: unknown, during: 'read' | 'write'): Result {
  return { kind: 'sense', sense: senseOf(error, during), cause: error };
}

/** What an error of the device is to a SCSI initiator. */
function senseOf(error: unknown, during: 'read' | 'write'): Sense {
  if (isGodwitError(error, 'BLOCK_READ_ONLY')) return SENSE.writeProtected;
  if (isGodwitError(error, 'BLOCK_NO_SPACE') || systemErrorCode(error) === 'ENOSPC') {
    return SENSE.spaceAllocationFailed;
  }
  return during === 'read' ? SENSE.unrecoveredReadError : SENSE.writeError;
}
