import type { Duplex } from 'node:stream';
import { Compile } from 'typebox/compile';
import type { Clock } from '../base/clock.ts';
import { toWireError } from '../base/errors.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import {
  badFrame,
  decodeResize,
  encodeFrame,
  encodeJsonFrame,
  encodeTaken,
  FRAME,
  type Frame,
  FrameReader,
  INPUT_WINDOW_BYTES,
} from '../contract/exec-frames.ts';
import { ExecStart } from '../contract/schemas.ts';
import type { ExecSession, SessionOutput } from '../shim/exec-session.ts';
import { strict } from './strict.ts';

const startSchema = Compile(strict(ExecStart));

export type ExecServerOptions = {
  start: (request: ExecStart, onOutput: SessionOutput) => Promise<ExecSession>;
  clock: Clock;
  /** The server closes: the command is hung up. */
  closing: AbortSignal;
};

/**
 * The worker's side of a command in a machine: input and output over one connection, until the command ends
 * or the client leaves, which hangs it up (SIGHUP).
 *
 * What is held is bounded whatever the client does: input by its window, output by one piece, because a
 * client that does not read makes the command wait. It is always read from, so that its end is seen, but
 * while it does not take what it is sent; then the guard of connections ends it.
 */
export class ExecServer {
  readonly #socket: Duplex;
  readonly #options: ExecServerOptions;
  readonly #reader = new FrameReader();
  #session: ExecSession | null = null;
  #hasStarted = false;
  #isOver = false;
  /** Waits for the command to take it. */
  readonly #input: (Buffer | null)[] = [];
  #inputBytes = 0;
  #inputEnded = false;
  #isWriting = false;
  #size: { columns: number; rows: number } | null = null;
  #heardMs: number;
  #cancelTimer: () => void = () => {};

  constructor(socket: Duplex, options: ExecServerOptions) {
    this.#socket = socket;
    this.#options = options;
    this.#heardMs = options.clock.monotonicMs();
    const leave = () => this.#end();
    options.closing.addEventListener('abort', leave, { once: true });
    socket.once('close', () => {
      options.closing.removeEventListener('abort', leave);
      this.#end();
    });
    // Half a connection is none: nobody would read the output.
    socket.once('end', leave);
    socket.on('drain', () => {
      this.#session?.resume();
      this.#heardMs = options.clock.monotonicMs();
      socket.resume();
    });
    socket.on('data', (chunk: Buffer) => this.#heard(chunk));
    this.#beat();
    if (options.closing.aborted) leave();
  }

  #heard(chunk: Buffer): void {
    this.#heardMs = this.#options.clock.monotonicMs();
    try {
      for (const frame of this.#reader.push(chunk)) if (!this.#isOver) this.#act(frame);
    } catch (error) {
      this.#fail(error);
    }
  }

  #act({ kind, payload }: Frame): void {
    if (kind !== FRAME.start && !this.#hasStarted) throw badFrame('something before the command');
    switch (kind) {
      case FRAME.start:
        this.#start(payload);
        return;
      case FRAME.input:
        if (payload.length === 0) return;
        this.#inputBytes += payload.length;
        if (this.#inputEnded || this.#inputBytes > INPUT_WINDOW_BYTES)
          throw badFrame('more input than was asked for');
        this.#input.push(Buffer.from(payload));
        void this.#handInput();
        return;
      case FRAME.inputEnd:
        if (this.#inputEnded) return;
        this.#inputEnded = true;
        this.#input.push(null);
        void this.#handInput();
        return;
      case FRAME.resize:
        this.#size = decodeResize(payload);
        this.#session?.resize(this.#size);
        return;
      case FRAME.alive:
        return;
      default:
        throw badFrame(`kind ${kind} of a client`);
    }
  }

  #start(payload: Buffer): void {
    if (this.#hasStarted) throw badFrame('a second command');
    this.#hasStarted = true;
    let request: unknown;
    try {
      request = JSON.parse(payload.toString('utf8'));
    } catch {
      throw badFrame('a command that is not JSON');
    }
    if (!startSchema.Check(request)) throw badFrame('a command of another form');
    const output: SessionOutput = (stream, bytes) => {
      if (!this.#isOver) this.#send(encodeFrame(FRAME[stream], bytes));
    };
    this.#options.start(request, output).then(
      (session) => this.#run(session),
      (error: unknown) => this.#fail(error),
    );
  }

  #run(session: ExecSession): void {
    this.#session = session;
    if (this.#isOver) {
      session.hangUp();
      return;
    }
    if (this.#size !== null) session.resize(this.#size);
    if (this.#socket.writableNeedDrain) session.pause();
    void this.#handInput();
    void session.ended.then((end) => this.#last(encodeJsonFrame(FRAME.end, end)));
  }

  async #handInput(): Promise<void> {
    const session = this.#session;
    if (session === null || this.#isWriting) return;
    this.#isWriting = true;
    for (let next = this.#input.shift(); next !== undefined; next = this.#input.shift()) {
      if (next === null) session.endInput();
      else {
        await session.write(next);
        this.#inputBytes -= next.length;
        if (!this.#isOver) this.#send(encodeTaken(next.length));
      }
    }
    this.#isWriting = false;
  }

  #send(frame: Buffer): void {
    if (this.#socket.write(frame)) return;
    this.#session?.pause();
    this.#socket.pause();
  }

  #beat(): void {
    const { clock } = this.#options;
    this.#cancelTimer = clock.timer(PAUSE.heartbeat.ms, () => {
      const isRead = !this.#socket.writableNeedDrain;
      if (isRead && clock.monotonicMs() - this.#heardMs > PATIENCE.execSilence.ms) {
        this.#end();
        return;
      }
      if (isRead) this.#send(encodeFrame(FRAME.alive));
      this.#beat();
    });
  }

  #fail(error: unknown): void {
    this.#last(encodeJsonFrame(FRAME.failed, toWireError(error)));
  }

  /** The client reads it and closes the connection. */
  #last(frame: Buffer): void {
    if (this.#isOver) return;
    this.#over();
    this.#socket.end(frame);
    // What it still sends is for nobody.
    this.#socket.resume();
  }

  #end(): void {
    if (!this.#isOver) this.#over();
    this.#socket.destroy();
  }

  #over(): void {
    this.#isOver = true;
    this.#cancelTimer();
    this.#session?.hangUp();
  }
}
