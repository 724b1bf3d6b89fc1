import type { Readable, Writable } from 'node:stream';
import { TIMER_MS_MAX } from './clock.ts';
import { GodwitError, toWireError, type WireError } from './errors.ts';
import { readWireError } from './read-wire-error.ts';

/**
 * Requests, replies and events as one JSON object a line: what the worker speaks with a shim (unix socket)
 * and a shim with its volume server (pipes). Chosen because a person can read it with `socat`.
 *
 *   request  {"id":7,"op":"status","args":{…}}
 *   reply    {"id":7,"ok":true,"result":…}   or   {"id":7,"error":{"code":…,"message":…,"values":…,"nextAction":…}}
 *   event    {"event":"exited","data":{…}}
 */
export type LineMessage =
  | { id: number; op: string; args: unknown }
  | { id: number; ok: true; result: unknown }
  | { id: number; error: WireError }
  | { event: string; data: unknown };

/** Longest accepted line. A peer that sends more is broken: the conversation is over. */
export const LINE_BYTES_MAX = 4 * 1024 * 1024;
/** So much may wait for a peer that does not read, stopped or hung: then the conversation is over. */
const UNREAD_BYTES_MAX = 4 * LINE_BYTES_MAX;

const NO_REPLY: WireError = {
  code: 'RPC_BAD_REPLY',
  message: 'the other process answers neither with a result nor with an error that could be read',
  values: {},
  nextAction: 'Both processes must be of the same godwit version; restart the machine.',
};

export type LineHandler = (op: string, args: unknown) => Promise<unknown>;

/** One end of a line-JSON conversation; both ends may ask. */
export class LineRpc {
  readonly #input: Readable;
  readonly #output: Writable;
  readonly #handler: LineHandler;
  readonly #onEvent: (event: string, data: unknown) => void;
  readonly #pending = new Map<
    number,
    { resolve: (value: unknown) => void; reject: (error: Error) => void }
  >();
  #nextId = 1;
  #chunks: Buffer[] = [];
  #bufferedBytes = 0;
  #closed: GodwitError | undefined;
  readonly closed: Promise<void>;
  #resolveClosed!: () => void;

  constructor(
    input: Readable,
    output: Writable,
    options: { handler?: LineHandler; onEvent?: (event: string, data: unknown) => void } = {},
  ) {
    this.#input = input;
    this.#output = output;
    this.#handler =
      options.handler ??
      (async (op) => {
        throw new GodwitError('RPC_UNKNOWN_OP', `no operation ${op} here`, {
          values: { op },
          nextAction: 'Both processes must be of the same godwit version.',
        });
      });
    this.#onEvent = options.onEvent ?? (() => {});
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
    input.on('data', (chunk: Buffer) => this.#push(chunk));
    const end = () => this.#close('the other process closed the connection');
    input.on('end', end);
    input.on('close', end);
    input.on('error', end);
    output.on('error', end);
  }

  /**
   * Rejects with the peer's error, with `RPC_CLOSED` when the connection ends, with `RPC_TIMEOUT` after
   * `timeoutMs` (null: never), and with the reason of `signal`.
   */
  call(
    op: string,
    args: unknown = {},
    timeoutMs: number | null = 30_000,
    signal?: AbortSignal,
  ): Promise<unknown> {
    if (this.#closed) return Promise.reject(this.#closed);
    if (signal?.aborted) return Promise.reject(signal.reason);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const giveUp = (reason: unknown) => {
        const pending = this.#pending.get(id);
        this.#pending.delete(id);
        pending?.reject(reason as Error);
      };
      const late = () => giveUp(rpcTimeout(op, timeoutMs ?? 0));
      const onAbort = () => giveUp(signal?.reason);
      // When this process was stopped, or had no processor, its timers are due before the answers are read
      // that came meanwhile.
      const timeout =
        timeoutMs === null
          ? undefined
          : setTimeout(() => setImmediate(() => setImmediate(late)), Math.min(timeoutMs, TIMER_MS_MAX));
      signal?.addEventListener('abort', onAbort, { once: true });
      const over = () => {
        clearTimeout(timeout);
        signal?.removeEventListener('abort', onAbort);
      };
      this.#pending.set(id, {
        resolve: (value) => {
          over();
          resolve(value);
        },
        reject: (error) => {
          over();
          reject(error);
        },
      });
      this.#send({ id, op, args });
    });
  }

  emit(event: string, data: unknown): void {
    if (!this.#closed) this.#send({ event, data });
  }

  /** What this process has said and the other one has not read. */
  get unreadBytes(): number {
    return this.#output.writableLength;
  }

  /** Ends our side. Pending calls reject with `RPC_CLOSED`. */
  close(): void {
    this.#close('closed by this process');
    this.#output.end();
    this.#input.destroy();
  }

  #send(message: LineMessage): void {
    if (this.unreadBytes > UNREAD_BYTES_MAX) this.#close('the other process does not read');
    else this.#output.write(`${JSON.stringify(message)}\n`);
  }

  #push(chunk: Buffer): void {
    let start = 0;
    for (let newline = chunk.indexOf(10); newline !== -1; newline = chunk.indexOf(10, start)) {
      if (this.#closed) return;
      this.#chunks.push(chunk.subarray(start, newline));
      const line = Buffer.concat(this.#chunks).toString('utf8');
      this.#chunks = [];
      this.#bufferedBytes = 0;
      start = newline + 1;
      this.#line(line);
    }
    if (start < chunk.length && !this.#closed) {
      this.#chunks.push(chunk.subarray(start));
      this.#bufferedBytes += chunk.length - start;
      if (this.#bufferedBytes > LINE_BYTES_MAX) this.#close(`a line is longer than ${LINE_BYTES_MAX} bytes`);
    }
  }

  #line(line: string): void {
    let message: unknown;
    try {
      message = JSON.parse(line);
    } catch {
      return; // a stray print on the pipe is no reason to lose the conversation
    }
    if (typeof message !== 'object' || message === null) return;
    const fields = message as Record<string, unknown>;
    if (typeof fields.event === 'string') {
      this.#onEvent(fields.event, fields.data);
    } else if (typeof fields.id === 'number' && typeof fields.op === 'string') {
      void this.#answer(fields.id, fields.op, fields.args);
    } else if (typeof fields.id === 'number') {
      const pending = this.#pending.get(fields.id);
      if (!pending) return;
      this.#pending.delete(fields.id);
      if (fields.ok === true) pending.resolve(fields.result);
      else pending.reject(GodwitError.fromWire(readWireError(fields.error) ?? NO_REPLY));
    }
  }

  async #answer(id: number, op: string, args: unknown): Promise<void> {
    try {
      const result = await this.#handler(op, args);
      if (!this.#closed) this.#send({ id, ok: true, result: result ?? null });
    } catch (error) {
      if (!this.#closed) this.#send({ id, error: toWireError(error) });
    }
  }

  #close(why: string): void {
    if (this.#closed) return;
    this.#closed = new GodwitError('RPC_CLOSED', why, {
      retry: 'later',
      nextAction: 'The process ended or restarted; the caller connects again.',
    });
    this.#chunks = [];
    for (const pending of this.#pending.values()) pending.reject(this.#closed);
    this.#pending.clear();
    this.#resolveClosed();
  }
}

/** No answer in time, or from a process that answers nothing else either. */
export function rpcTimeout(op: string, timeoutMs: number): GodwitError {
  return new GodwitError('RPC_TIMEOUT', `no answer to ${op} within ${Math.round(timeoutMs)} ms`, {
    values: { op, timeoutMs: Math.round(timeoutMs) },
    retry: 'later',
    nextAction: 'The process on the other side hangs or the machine is overloaded; ask again.',
  });
}
