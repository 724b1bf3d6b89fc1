import type { Duplex } from 'node:stream';
import { GodwitError, isGodwitError, type WireError } from '../base/errors.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import {
  badFrame,
  decodeTaken,
  encodeFrame,
  encodeJsonFrame,
  encodeResize,
  FRAME,
  type Frame,
  FrameReader,
  INPUT_WINDOW_BYTES,
} from '../contract/exec-frames.ts';
import type { ExecStart } from '../contract/schemas.ts';
import type { SessionEnd } from '../shim/exec-session.ts';
import type { TerminalSize } from '../sys/pty.ts';

export type ExecStreamOptions = {
  url: string;
  start: ExecStart;
  /** Output in the order in which it was written; more comes when the promise has resolved. */
  onOutput: (stream: 'stdout' | 'stderr', bytes: Buffer) => Promise<void> | void;
};

/** The client's side of a command in a machine (exec-frames.ts). */
export class ExecStream {
  /**
   * How the command ended. Rejects with the worker's error, `API_UNREACHABLE` when the connection is lost or
   * the worker says nothing for a minute, `API_BAD_FRAME`, and with what `close` was given.
   */
  readonly ended: Promise<SessionEnd>;
  readonly #socket: Duplex;
  readonly #options: ExecStreamOptions;
  readonly #reader = new FrameReader();
  readonly #end = Promise.withResolvers<SessionEnd>();
  #isOver = false;
  /** Output that is being handed over. */
  #pending = 0;
  #windowBytes = INPUT_WINDOW_BYTES;
  #roomInWindow: PromiseWithResolvers<void> | null = null;
  #heardMs = performance.now();
  readonly #timer: NodeJS.Timeout;
  /** Frames are handled one after the other. */
  #last: Promise<void> = Promise.resolve();

  /** `head`: what came behind the answer to the upgrade. */
  constructor(socket: Duplex, head: Buffer, options: ExecStreamOptions) {
    this.#socket = socket;
    this.#options = options;
    this.ended = this.#end.promise;
    this.ended.catch(() => {});
    const lost = (error?: Error) => void this.#last.then(() => this.#fail(this.#unreachable(error)));
    socket.on('error', lost);
    socket.once('end', () => lost());
    socket.once('close', () => lost());
    socket.on('data', (chunk: Buffer) => this.#heard(chunk));
    this.#timer = setInterval(() => this.#beat(), PAUSE.heartbeat.ms);
    if (head.length > 0) this.#heard(head);
    socket.write(encodeJsonFrame(FRAME.start, options.start));
  }

  /** Resolves when more may be written: no more than a window is ever under way. */
  async write(bytes: Uint8Array): Promise<void> {
    for (let offset = 0; offset < bytes.length && !this.#isOver; ) {
      if (this.#windowBytes === 0) {
        this.#roomInWindow ??= Promise.withResolvers<void>();
        await this.#roomInWindow.promise;
        continue;
      }
      const piece = bytes.subarray(offset, offset + this.#windowBytes);
      offset += piece.length;
      this.#windowBytes -= piece.length;
      this.#socket.write(encodeFrame(FRAME.input, piece));
    }
  }

  endInput(): void {
    if (!this.#isOver) this.#socket.write(encodeFrame(FRAME.inputEnd));
  }

  resize(size: TerminalSize): void {
    if (!this.#isOver) this.#socket.write(encodeResize(size));
  }

  /** Leaves; the worker hangs the command up. */
  close(reason: unknown): void {
    this.#fail(reason);
  }

  #heard(chunk: Buffer): void {
    this.#heardMs = performance.now();
    let frames: Frame[];
    try {
      frames = [...this.#reader.push(chunk)];
    } catch (error) {
      this.#fail(error);
      return;
    }
    for (const frame of frames) {
      this.#pending++;
      this.#last = this.#last
        .then(() => this.#act(frame))
        .catch((error: unknown) => this.#fail(error))
        .finally(() => {
          this.#pending--;
          if (this.#pending === 0) {
            this.#heardMs = performance.now();
            this.#socket.resume();
          }
        });
    }
    if (this.#pending > 0) this.#socket.pause();
  }

  async #act({ kind, payload }: Frame): Promise<void> {
    if (this.#isOver) return;
    switch (kind) {
      case FRAME.stdout:
        await this.#options.onOutput('stdout', payload);
        return;
      case FRAME.stderr:
        await this.#options.onOutput('stderr', payload);
        return;
      case FRAME.taken:
        this.#windowBytes = Math.min(INPUT_WINDOW_BYTES, this.#windowBytes + decodeTaken(payload));
        this.#roomInWindow?.resolve();
        this.#roomInWindow = null;
        return;
      case FRAME.end:
        this.#over();
        this.#end.resolve(parse(payload) as SessionEnd);
        return;
      case FRAME.failed:
        throw GodwitError.fromWire(parse(payload) as WireError);
      case FRAME.alive:
        return;
      default:
        throw badFrame(`kind ${kind} of a worker`);
    }
  }

  #beat(): void {
    // While it hands output on it does not listen.
    if (this.#pending === 0 && performance.now() - this.#heardMs > PATIENCE.execSilence.ms)
      this.#fail(this.#unreachable());
    else this.#socket.write(encodeFrame(FRAME.alive));
  }

  #fail(error: unknown): void {
    if (this.#isOver) return;
    this.#over();
    this.#end.reject(error);
  }

  #over(): void {
    this.#isOver = true;
    clearInterval(this.#timer);
    this.#roomInWindow?.resolve();
    this.#socket.destroy();
  }

  #unreachable(cause?: Error): GodwitError {
    if (isGodwitError(cause)) return cause;
    const { url } = this.#options;
    return new GodwitError('API_UNREACHABLE', `the connection to ${url} is gone: the command was hung up`, {
      values: { url, delivered: 'unknown' },
      nextAction: 'Look whether the worker runs, and what the command left; then run it again.',
      ...(cause !== undefined && { cause }),
    });
  }
}

function parse(payload: Buffer): unknown {
  try {
    return JSON.parse(payload.toString('utf8'));
  } catch {
    throw badFrame('what is not JSON');
  }
}
