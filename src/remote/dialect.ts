import type { GodwitError } from '../base/errors.ts';
import type { Extent } from '../block/block-device.ts';
import type { RemoteCommand, RemoteRequest, RequestParts } from './request.ts';

/** What is known of a disk once it was reached; dialects know more. */
export type RemoteUnit = { readonly lengthBytes: number; readonly blockBytes: number };

/** What has become of a request that did not succeed. */
export type Failure = {
  error: GodwitError;
  /**
   * no: the caller is told. now: it is sent again at once. later: after a pause, and meanwhile `trouble` says
   * why. afterLook: when the disk was looked at. nextSession: this session is over.
   */
  again: 'no' | 'now' | 'later' | 'afterLook' | 'nextSession';
  /** It is sent again for as long as it takes, and not only a number of times. */
  endless?: boolean;
};

/** Carries requests to the disk and answers back, until it is over. */
export interface Session<Command extends RemoteCommand> {
  readonly hasRoom: boolean;
  /**
   * Only when `hasRoom`. `SessionHost.answered` follows, unless the session ends before. Each part of the
   * buffer that is handed on and not copied counts in `unsentParts`, until `SessionHost.sent`.
   */
  send(request: RemoteRequest<Command>): void;
  /** Ends it from our side: `SessionHost.over` follows. */
  fail(error: GodwitError): void;
}

/** One attempt to reach the disk, and what comes of it. */
export interface Link {
  /** Ends it at once: nothing lands in a buffer, and nothing is read from one, when this returns. */
  destroy(): void;
  /** Says good-bye, where nothing is under way; resolves when it is over. */
  leave(): Promise<void>;
}

/** What a dialect tells of a link. */
export interface SessionHost<Unit extends RemoteUnit, Command extends RemoteCommand> {
  /** By how many times the usual the peer is waited for, 1 to 8. */
  readonly patience: number;
  /**
   * The disk was reached; requests come from here on. Throws when it is not the disk that it was: the link is
   * over then.
   */
  ready(session: Session<Command>, unit: Unit): void;
  /** There may be room for another request. */
  room(): void;
  /** `failure` null: it is done, every byte of it. */
  answered(request: RemoteRequest<Command>, failure: Failure | null): void;
  /** The wire is through with a part of the request's buffer. */
  sent(request: RemoteRequest<Command>): void;
  /** The link is over, and why. Only the first counts. */
  over(error: GodwitError): void;
}

/** Sends a request for the dialect itself, and resolves with it when it was answered. */
export type Ask<Command extends RemoteCommand> = (
  parts: RequestParts<Command>,
) => Promise<RemoteRequest<Command>>;

/** A part of a range, from where the one before ended. */
export type Piece = Pick<Extent, 'lengthBytes' | 'kind'>;

/** How to make a range read as zeros. */
export type Zeroing<Command extends RemoteCommand> = {
  command: Command;
  /** Of one request. */
  stepBytes: number;
  /** What goes along. */
  payload: Uint8Array;
};

/**
 * A protocol by which a disk is reached: how to get a session, what to say on it, and how to read the
 * answers. All that outlives a session is `RemoteDisk`'s. A protocol without sessions (HTTP) has one that
 * lasts from the first look at the disk to the first request that the network failed.
 *
 * `unit` is null until the disk was reached for the first time.
 */
export interface Dialect<Unit extends RemoteUnit, Command extends RemoteCommand> {
  /** For logs. */
  readonly name: string;
  /** Codes of the errors that say: the peer ended the connection; it is not the disk that it was. */
  readonly codes: { readonly lost: string; readonly changed: string };
  /** In how many places it may be found: they are tried in turn, the first one first. */
  readonly placeCount: number;
  /** For logs and errors. */
  place(index: number): Record<string, string | number>;

  /** May throw; then there is no link. */
  dial(place: number, host: SessionHost<Unit, Command>): Link;
  /** Sessions side by side, at most. */
  sessionsMax(unit: Unit): number;
  /**
   * Null, or the error (`codes.changed`) that says how the disk differs, or what it does no longer that
   * nothing can stand for. `known` is what it was last; null: it is the first.
   */
  changed(seen: Unit, known: Unit | null): GodwitError | null;
  /** Whether sessions to both may be there side by side. Absent: there is one at a time. */
  areAlike?(one: Unit, other: Unit): boolean;
  /**
   * Whether a session to this disk may be sent the request. It may have been made for what the disk was able
   * to do on an earlier session; what is not taken is done in another way, or fails by name.
   */
  takes(unit: Unit, request: RequestParts<Command>): boolean;
  /**
   * Asks the disk in use who it is, and throws what `changed` gives. `known` is the disk of the session that
   * there is when the answers have come. Absent: a session has one disk from its beginning to its end.
   */
  look?(ask: Ask<Command>, known: () => Unit): Promise<void>;

  readonly reads: Command;
  readonly writes: Command;
  /** A write that is durable when it is answered; null: there is none. */
  durableWrites(unit: Unit | null): Command | null;
  /** Null: nothing is ever kept back. */
  flushes(unit: Unit): Command | null;
  /** `mayPunch`: the range need not take space afterwards. Null: zeros are to be written. */
  zeroes(unit: Unit, mayPunch: boolean): Zeroing<Command> | null;
  /** The disk does not know the command: what `zeroes` gave is done by writing. */
  isUnsupported(error: unknown): boolean;
  /** Whether the disk takes writes. */
  writable(unit: Unit | null): boolean;
  /** Of one read or write; a multiple of the block size. */
  transferBytesMax(unit: Unit | null): number;
  /** What the range holds, from its beginning on; never none. */
  pieces(
    ask: Ask<Command>,
    unit: Unit,
    offsetBytes: number,
    lengthBytes: number,
    limit: number,
  ): Promise<Piece[]>;

  /** The disk was not reached in time, and no attempt has ended. */
  unreachable(): GodwitError;
  /** An attempt took too long. */
  timedOut(place: number, timeoutMs: number): GodwitError;
  /** A request for which the peer ends session after session. */
  poisoned(request: RemoteRequest<Command>, unit: Unit): GodwitError;
  /** An error of this protocol, whatever was thrown. */
  typed(error: unknown): GodwitError;
}
