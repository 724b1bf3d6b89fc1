import { GodwitError } from '../base/errors.ts';
import type { BlockDevice } from './block-device.ts';

/**
 * The trace of a device: one JSON array a line, in the order in which the calls ended,
 *
 *   [startMs, tookMs, "read", offsetBytes, lengthBytes]            and a sixth element, the error's code, when the call failed
 *
 * with times since the start of the trace, rounded to microseconds. Data is not recorded.
 */
export type TraceRecord = {
  startMs: number;
  tookMs: number;
  operation: TraceOperation;
  offsetBytes: number;
  lengthBytes: number;
  errorCode: string | null;
};

export const TRACE_OPERATIONS = ['read', 'write', 'flush', 'discard', 'writeZeroes'] as const;
export type TraceOperation = (typeof TRACE_OPERATIONS)[number];

/** Without the newline. */
export function encodeTraceRecord(record: TraceRecord): string {
  const { startMs, tookMs, operation, offsetBytes, lengthBytes, errorCode } = record;
  const fields: unknown[] = [
    microseconds(startMs),
    microseconds(tookMs),
    operation,
    offsetBytes,
    lengthBytes,
  ];
  if (errorCode !== null) fields.push(errorCode);
  return JSON.stringify(fields);
}

/** Throws `BLOCK_BAD_TRACE` with the number of the line. */
export function decodeTraceRecord(line: string, lineNumber: number): TraceRecord {
  let fields: unknown;
  try {
    fields = JSON.parse(line);
  } catch {
    throw badTraceError(lineNumber, 'it is not JSON');
  }
  if (!Array.isArray(fields) || fields.length < 5 || fields.length > 6) {
    throw badTraceError(lineNumber, 'it is not a list of five or six');
  }
  const [startMs, tookMs, operation, offsetBytes, lengthBytes, errorCode = null] = fields as unknown[];
  if (!isDuration(startMs) || !isDuration(tookMs)) throw badTraceError(lineNumber, 'a time is not one');
  if (!isOperation(operation)) throw badTraceError(lineNumber, 'the operation is unknown');
  if (!isByteCount(offsetBytes) || !isByteCount(lengthBytes))
    throw badTraceError(lineNumber, 'the range is not one');
  if (errorCode !== null && typeof errorCode !== 'string')
    throw badTraceError(lineNumber, 'the error is not a code');
  return { startMs, tookMs, operation, offsetBytes, lengthBytes, errorCode };
}

/** Reads a trace line by line (of a `readline` interface, or an array). Empty lines are skipped. */
export async function* readTrace(
  lines: AsyncIterable<string> | Iterable<string>,
): AsyncGenerator<TraceRecord> {
  let lineNumber = 0;
  for await (const line of lines) {
    lineNumber++;
    if (line.trim() !== '') yield decodeTraceRecord(line, lineNumber);
  }
}

/** Longest single transfer of a replay; a longer record is a trace of no real device. */
const TRANSFER_BYTES_MAX = 64 * 1024 * 1024;

/**
 * Does to `device` what the trace says, one call after the other, as fast as it goes; writes carry bytes of
 * no meaning. Calls that failed when they were traced are left out. Rejects with the first error of the
 * device, or with `BLOCK_BAD_TRACE`. Returns the number of calls.
 */
export async function replayTrace(
  records: AsyncIterable<TraceRecord> | Iterable<TraceRecord>,
  device: BlockDevice,
): Promise<number> {
  let buffer = new Uint8Array(0);
  let calls = 0;
  for await (const { operation, offsetBytes, lengthBytes, errorCode } of records) {
    if (errorCode !== null) continue;
    calls++;
    if (operation === 'flush') {
      await device.flush();
    } else if (operation === 'read' || operation === 'write') {
      if (lengthBytes > TRANSFER_BYTES_MAX) throw badTraceError(calls, `a transfer of ${lengthBytes} bytes`);
      if (buffer.length < lengthBytes) buffer = new Uint8Array(lengthBytes).fill(0x5a);
      await device[operation](offsetBytes, buffer.subarray(0, lengthBytes));
    } else {
      await device[operation](offsetBytes, lengthBytes);
    }
  }
  return calls;
}

const microseconds = (ms: number) => Math.round(ms * 1000) / 1000;
const isDuration = (value: unknown): value is number => typeof value === 'number' && value >= 0;
const isByteCount = (value: unknown): value is number =>
  Number.isSafeInteger(value) && (value as number) >= 0;
const isOperation = (value: unknown): value is TraceOperation =>
  (TRACE_OPERATIONS as readonly unknown[]).includes(value);

function badTraceError(lineNumber: number, reason: string): GodwitError {
  return new GodwitError('BLOCK_BAD_TRACE', `record ${lineNumber} of the trace cannot be used: ${reason}`, {
    values: { lineNumber },
    nextAction: 'Cut the trace before this line, or record it again.',
  });
}
