import { GodwitError } from '../base/errors.ts';

/**
 * What is said on a connection that was upgraded to `godwit-exec/1` (`GET /v1/machines/{ref}/session`):
 * frames, both ways.
 *
 *   offset 0   kind, 1 byte
 *          1   length of what follows, 4 bytes, big-endian, at most FRAME_BYTES_MAX
 *          5   payload
 */
export const EXEC_PROTOCOL = 'godwit-exec/1';

/** What TERM may be for a terminal in a machine. */
export const TERM_PATTERN = '^[a-zA-Z0-9][a-zA-Z0-9+._-]{0,63}$';

export const FRAME = {
  /** Client, first and once: ExecStart as JSON. */
  start: 1,
  /**
   * Client: bytes for the command's input; INPUT_WINDOW_BYTES of them at most that the worker has not said to
   * be taken.
   */
  input: 2,
  /** Client: there is no more input. */
  inputEnd: 3,
  /** Client: columns and rows, 2 bytes each, big-endian. */
  resize: 4,
  /** Both, every 15 s: still here. */
  alive: 5,
  /** Worker: what the command wrote; of a terminal all is `stdout`. */
  stdout: 16,
  stderr: 17,
  /** Worker: so many bytes of input are taken, 4 bytes, big-endian. */
  taken: 18,
  /** Worker, last: ExecEnd as JSON. */
  end: 19,
  /** Worker, last: an error as the API's answers have it. */
  failed: 20,
} as const;
export type FrameKind = (typeof FRAME)[keyof typeof FRAME];

export const FRAME_BYTES_MAX = 1024 * 1024;
export const INPUT_WINDOW_BYTES = 64 * 1024;
const HEAD_BYTES = 5;
const KINDS: ReadonlySet<number> = new Set(Object.values(FRAME));

export type Frame = { kind: FrameKind; payload: Buffer };

export function encodeFrame(kind: FrameKind, payload: Uint8Array = new Uint8Array()): Buffer {
  const frame = Buffer.allocUnsafe(HEAD_BYTES + payload.length);
  frame[0] = kind;
  frame.writeUInt32BE(payload.length, 1);
  frame.set(payload, HEAD_BYTES);
  return frame;
}

export function encodeJsonFrame(kind: FrameKind, value: unknown): Buffer {
  return encodeFrame(kind, Buffer.from(JSON.stringify(value)));
}

export function encodeResize({ columns, rows }: { columns: number; rows: number }): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt16BE(columns, 0);
  payload.writeUInt16BE(rows, 2);
  return encodeFrame(FRAME.resize, payload);
}

/** Throws `API_BAD_FRAME`. */
export function decodeResize(payload: Buffer): { columns: number; rows: number } {
  const [columns, rows] = payload.length === 4 ? [payload.readUInt16BE(0), payload.readUInt16BE(2)] : [0, 0];
  if (columns === 0 || rows === 0) throw badFrame('a size of nothing');
  return { columns, rows };
}

export function encodeTaken(lengthBytes: number): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(lengthBytes, 0);
  return encodeFrame(FRAME.taken, payload);
}

/** Throws `API_BAD_FRAME`. */
export function decodeTaken(payload: Buffer): number {
  if (payload.length !== 4) throw badFrame('a count of another length');
  return payload.readUInt32BE(0);
}

/** Bytes as they come in, frames out. Holds no more than one frame and what came with it. */
export class FrameReader {
  #buffered: Buffer = Buffer.alloc(0);

  /** Throws `API_BAD_FRAME`; then the connection is of no more use. */
  *push(chunk: Buffer): Generator<Frame> {
    this.#buffered = this.#buffered.length === 0 ? chunk : Buffer.concat([this.#buffered, chunk]);
    while (this.#buffered.length >= HEAD_BYTES) {
      const kind = this.#buffered[0]!;
      const lengthBytes = this.#buffered.readUInt32BE(1);
      if (!KINDS.has(kind)) throw badFrame(`kind ${kind}`);
      if (lengthBytes > FRAME_BYTES_MAX) throw badFrame(`${lengthBytes} bytes`);
      const endBytes = HEAD_BYTES + lengthBytes;
      if (this.#buffered.length < endBytes) return;
      const payload = this.#buffered.subarray(HEAD_BYTES, endBytes);
      this.#buffered = this.#buffered.subarray(endBytes);
      yield { kind: kind as FrameKind, payload };
    }
  }
}

export function badFrame(what: string): GodwitError {
  return new GodwitError(
    'API_BAD_FRAME',
    `the other side of a command in a machine said what makes no sense: ${what}`,
    {
      values: { what },
      nextAction: 'Use one godwit version on both sides.',
    },
  );
}
