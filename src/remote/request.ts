import { GodwitError, isGodwitError } from '../base/errors.ts';
import type { Failure } from './dialect.ts';

/** What a peer is asked to do, in the words of a dialect. One that does not vary is made once. */
export type RemoteCommand = {
  /** As what its bytes count in the statistics. */
  readonly counts: 'read' | 'write' | null;
};

/** What a request says. */
export type RequestParts<Command> = {
  command: Command;
  offsetBytes: number;
  lengthBytes: number;
  /** The bytes that it sends, or where its answer lands; empty where there are none. */
  buffer: Uint8Array;
};

/** The disk that came back takes a request no longer, and there is no other way. */
export function notTakenError({ offsetBytes, lengthBytes }: RequestParts<unknown>): GodwitError {
  return new GodwitError('REMOTE_NOT_TAKEN', 'The disk that came back does not take this request any more', {
    values: { offsetBytes, lengthBytes },
    nextAction: 'Look at what the server says that it can do, and serve the disk as it was before.',
  });
}

export function isNotTaken(error: unknown): boolean {
  return isGodwitError(error, 'REMOTE_NOT_TAKEN');
}

/** What goes with a command that moves no bytes. */
export const NO_BYTES = new Uint8Array(0);

/**
 * A request and what has become of it. It may be sent several times, on one session after another; what
 * counts for one session only begins anew with each.
 */
export class RemoteRequest<Command extends RemoteCommand = RemoteCommand> implements RequestParts<Command> {
  readonly command: Command;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly buffer: Uint8Array;
  /** On the monotonic clock. */
  readonly startedMs: number;
  /** It goes when nobody waits for a place. */
  background = false;
  /** Part of a look at the disk. */
  isLook = false;
  /** Shows that a session answers, and ends with it: nobody waits for it. */
  isProbe = false;

  /** Of its buffer, on this session: bytes that came in, or that have gone out, unasked or asked for. */
  movedBytes = 0;
  /** Parts of its buffer that the wire has not taken yet: until then the buffer is not the caller's again. */
  unsentParts = 0;
  /** The answer that came before the wire was through with the buffer. */
  early: { failure: Failure | null } | null = null;

  /** Times that the peer did not do it and may yet. */
  tries = 0;
  /** Sessions that ended while it was under way, since a peer has last answered it. */
  losses = 0;
  /** Times that the peer ended its sessions, and when it last did, in numbers of sending. */
  peerEnds = 0;
  endedAs = 0;
  /** Of these, those on which nothing else was sent beside it. */
  peerEndsAlone = 0;
  /** Times that it was alone for so long that the others went on. */
  acquittals = 0;

  /** Where it is among the requests of its carrier, and when it was sent, in numbers of sending. */
  position = 0;
  sentAs = 0;

  #abort: { signal: AbortSignal; onAbort: () => void } | null = null;
  readonly #resolve: () => void;
  readonly #reject: (error: unknown) => void;

  constructor(
    command: Command,
    offsetBytes: number,
    lengthBytes: number,
    buffer: Uint8Array,
    startedMs: number,
    resolve: () => void,
    reject: (error: unknown) => void,
  ) {
    this.command = command;
    this.offsetBytes = offsetBytes;
    this.lengthBytes = lengthBytes;
    this.buffer = buffer;
    this.startedMs = startedMs;
    this.#resolve = resolve;
    this.#reject = reject;
  }

  /** Calls `onAbort` when the signal aborts, unless the request is settled by then. */
  watch(signal: AbortSignal, onAbort: () => void): void {
    this.#abort = { signal, onAbort };
    signal.addEventListener('abort', onAbort, { once: true });
  }

  /** Of whoever wants it. */
  get signal(): AbortSignal | undefined {
    return this.#abort?.signal;
  }

  /** Nobody wants it any more, for this reason. Null: somebody does. */
  get abortedWith(): { reason: unknown } | null {
    return this.#abort?.signal.aborted === true ? { reason: this.#abort.signal.reason } : null;
  }

  /** A session begins to send it. */
  begin(position: number, sentAs: number): void {
    this.position = position;
    this.sentAs = sentAs;
    this.movedBytes = 0;
    this.unsentParts = 0;
    this.early = null;
  }

  resolve(): void {
    this.#unwatch();
    this.#resolve();
  }

  reject(error: unknown): void {
    this.#unwatch();
    this.#reject(error);
  }

  #unwatch(): void {
    this.#abort?.signal.removeEventListener('abort', this.#abort.onAbort);
  }
}
