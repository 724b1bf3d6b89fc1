import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import type { Session } from '../remote/dialect.ts';
import { type RemoteCommand, RemoteRequest } from '../remote/request.ts';
import type { RemoteExport } from './client-handshake.ts';
import { protocolError } from './errors.ts';
import {
  CHUNK,
  CHUNK_ERROR_BIT,
  COMMAND,
  COMMAND_FLAG,
  decodeBlockStatus,
  decodeErrorChunk,
  decodeHole,
  EXTENDED_REPLY_BYTES,
  EXTENDED_REPLY_MAGIC,
  nameOf,
  OFFSET_BYTES,
  OFFSET_HOLE_BYTES,
  REPLY_FLAG,
  readUint64,
  SIMPLE_REPLY_BYTES,
  SIMPLE_REPLY_MAGIC,
  STRING_BYTES_MAX,
  STRUCTURED_REPLY_BYTES,
  STRUCTURED_REPLY_MAGIC,
  type StatusExtent,
} from './protocol.ts';
import type { RequestWriter } from './request-writer.ts';

/**
 * The transmission phase of one connection, without I/O: bytes go in through `space` and `landed` (or
 * `push`), requests out through the writer. It is made for one connection and ends with it; whoever owns it
 * makes the next one and sends again what was not answered.
 *
 * Replies may come in any order and, where structured, in any number of chunks. Each names its request by
 * cookie: the number of a slot and how many requests that slot has had, so that a late, repeated or invented
 * reply finds nothing. The data of a read lands in the buffer of whoever asked; a read has succeeded only
 * when every byte of it came exactly once. All violations throw `NBD_PROTOCOL`.
 *
 * NBD has no ping. A connection that is silent for an interval is asked for its first block, the cheapest
 * request that every server answers; and a request that is not answered in time ends the connection, since
 * the server has lost it or is not there. Only the one that was sent first has a time, from when it became
 * that one: what stands behind others, at a slow server or on a slow line, is not late. While its bytes move
 * it is not late either. The time doubles with each replay of the request: one that takes a server long ends
 * some day, instead of being sent again for ever.
 */

/** What a server says about a request that it failed. */
export type NbdFailure = { error: number; message: string; offsetBytes: number | null };

/** What a server is asked to do. */
export type NbdCommand = RemoteCommand & {
  /** COMMAND. */
  readonly type: number;
  /** COMMAND_FLAG. */
  readonly flags: number;
  /** Answer to a block status request, which has a command of its own. */
  extents: StatusExtent[] | null;
};

export type NbdRequest = RemoteRequest<NbdCommand>;

export type NbdSessionOptions = {
  export: RemoteExport;
  writer: RequestWriter;
  clock: Clock;
  /** Silence after which the server is asked for its first block. */
  keepAliveIntervalMs: number;
  /** How long that may take while nothing else is under way. */
  keepAliveTimeoutMs: number;
  /** How long a request may take the first time that it is sent. */
  requestTimeoutMs: number;
  /** A request was answered: there is room for another one. */
  onRoom: () => void;
  onAnswered: (request: NbdRequest, failure: NbdFailure | null) => void;
  /** The kernel has taken the payload of a write. */
  onSent: (request: NbdRequest) => void;
  /** The session is over. Called once. */
  onOver: (error: GodwitError) => void;
};

type Slot = {
  readonly index: number;
  /** Requests that this slot has had. */
  sequence: number;
  request: NbdRequest | null;
  /** Bytes of a read that are here from its beginning on without a gap. */
  coveredBytes: number;
  /** Those that are here beyond: start and end, in the order of arrival. */
  pieces: [number, number][] | null;
  failure: NbdFailure | null;
  /** When it was sent, in numbers of sending. */
  order: number;
  /** Bytes of its answer that have come. */
  arrivedBytes: number;
};

/** Commands that do not vary, but for their flags. */
export const NBD = {
  read: { counts: 'read', type: COMMAND.read, flags: 0, extents: null },
  write: { counts: 'write', type: COMMAND.write, flags: 0, extents: null },
  writeDurably: { counts: 'write', type: COMMAND.write, flags: COMMAND_FLAG.fua, extents: null },
  flush: { counts: null, type: COMMAND.flush, flags: 0, extents: null },
  trim: { counts: null, type: COMMAND.trim, flags: 0, extents: null },
  makeHoles: { counts: null, type: COMMAND.writeZeroes, flags: 0, extents: null },
  writeZeroes: { counts: null, type: COMMAND.writeZeroes, flags: COMMAND_FLAG.noHole, extents: null },
} as const satisfies Record<string, NbdCommand>;

/** Requests on the wire at the very most. */
const SLOTS_MAX = 1024;
/**
 * From this size on the rest of a payload is read straight into its destination; below, one read for many
 * replies is cheaper.
 */
const DIRECT_BYTES_MIN = 16 * 1024;
const STAGING_BYTES = 128 * 1024;
const BIG_PAYLOAD_BYTES = 128 * 1024;
const SHORT_BYTES = 4 * 1024;
/** The longest head: an extended header and the offset of a data chunk. */
const HEAD_BYTES_MAX = EXTENDED_REPLY_BYTES + OFFSET_BYTES;
/** A million extents, which is what the document advises servers not to exceed. */
const STATUS_PAYLOAD_BYTES_MAX = 16 * 2 ** 20 + 8;
const ERROR_PAYLOAD_BYTES_MAX = 6 + STRING_BYTES_MAX + OFFSET_BYTES;
/** Chunks of one read that came out of order. */
const PIECES_MAX = 4096;
const TIMEOUT_DOUBLINGS_MAX = 6;
/** An answer of which so much came since its time began has all of its time again. */
const PROGRESS_BYTES = 64 * 1024;
const NOTHING = new Uint8Array(0);

export class NbdSession implements Session<NbdCommand> {
  readonly #options: NbdSessionOptions;
  readonly #extended: boolean;
  readonly #slots: Slot[] = [];
  /** Indices of slots without a request. */
  readonly #free: number[] = [];
  #inFlight = 0;
  #over = false;
  #disconnecting = false;

  #state: 'head' | 'data' | 'payload' = 'head';
  readonly #head = Buffer.alloc(HEAD_BYTES_MAX);
  #headBytes = 0;
  /**
   * Destination of the bytes that are coming in: a piece of the buffer of a read, or the payload of another
   * chunk.
   */
  #data: Uint8Array = NOTHING;
  #dataBytes = 0;
  /** Whose they are, the type of their chunk, and whether it is the last one. */
  #current: Slot | null = null;
  #chunkType = 0;
  #chunkDone = false;
  #dataStart = 0;
  #staging: Buffer | null = null;
  #direct = false;
  #afterBigPayload = false;

  #heard = false;
  #sent = 0;
  /** The slot whose request was sent first: which, its bytes that had moved, and intervals since. */
  readonly #first = { order: 0, movedBytes: 0, rounds: 0 };
  #probe: NbdRequest | null = null;
  #cancelTimer: () => void = () => {};

  constructor(options: NbdSessionOptions) {
    this.#options = options;
    this.#extended = options.export.replyStyle === 'extended';
    this.#armTimer();
  }

  get hasRoom(): boolean {
    return !this.#over && !this.#disconnecting && this.#inFlight < SLOTS_MAX;
  }

  /** Only when `hasRoom`. */
  send(request: NbdRequest): void {
    assert(this.hasRoom, 'there is a free slot');
    let index = this.#free.pop();
    if (index === undefined) {
      index = this.#slots.length;
      this.#slots.push({
        index,
        sequence: 0,
        request: null,
        coveredBytes: 0,
        pieces: null,
        failure: null,
        order: 0,
        arrivedBytes: 0,
      });
    }
    const slot = this.#slots[index]!;
    slot.sequence = (slot.sequence + 1) >>> 0;
    slot.request = request;
    slot.coveredBytes = 0;
    slot.pieces = null;
    slot.failure = null;
    this.#sent += 1;
    slot.order = this.#sent;
    slot.arrivedBytes = 0;
    const { command, buffer } = request;
    if (command.type === COMMAND.blockStatus) command.extents = null;
    this.#inFlight += 1;
    const writes = command.type === COMMAND.write;
    if (writes) request.unsentParts += 1;
    this.#options.writer.write(
      {
        flags: this.#extended && writes ? command.flags | COMMAND_FLAG.payloadLength : command.flags,
        type: command.type,
        cookieHigh: slot.sequence,
        cookieLow: index,
        offsetBytes: request.offsetBytes,
        lengthBytes: request.lengthBytes,
      },
      this.#extended,
      writes ? buffer : null,
      writes ? () => this.#options.onSent(request) : undefined,
    );
  }

  /** Says good-bye: nothing is answered from here on, and nothing more may be sent. */
  disconnect(): void {
    if (this.#over || this.#disconnecting) return;
    this.#disconnecting = true;
    this.#options.writer.write(
      { flags: 0, type: COMMAND.disconnect, cookieHigh: 0, cookieLow: 0, offsetBytes: 0, lengthBytes: 0 },
      this.#extended,
      null,
    );
    this.#options.writer.flush();
  }

  /** Ends the session from our side. */
  fail(error: GodwitError): void {
    if (this.#over) return;
    this.#over = true;
    this.#cancelTimer();
    this.#options.onOver(error);
  }

  // --- bytes in
  // ------------------------------------------------------------------------------------------------------

  /** Where the next bytes should land. Never empty. */
  space(): Uint8Array {
    this.#direct = this.#state !== 'head' && this.#data.length - this.#dataBytes >= DIRECT_BYTES_MIN;
    if (this.#direct && !this.#over) return this.#data.subarray(this.#dataBytes);
    this.#direct = false;
    this.#staging ??= Buffer.allocUnsafeSlow(STAGING_BYTES);
    // After a big payload another one is likely: what comes with its head would have to be copied.
    return this.#afterBigPayload && this.#state === 'head'
      ? this.#staging.subarray(0, SHORT_BYTES)
      : this.#staging;
  }

  /** `count` bytes landed at the start of what `space` returned last. */
  landed(count: number): void {
    if (this.#over) return;
    this.#heard = true;
    if (!this.#direct) {
      this.push(this.#staging!.subarray(0, count));
      return;
    }
    try {
      this.#dataBytes += count;
      this.#current!.arrivedBytes += count;
      if (this.#dataBytes === this.#data.length) this.#endOfData();
    } catch (error) {
      this.#broken(error);
    }
  }

  push(bytes: Buffer): void {
    this.#heard = true;
    try {
      let at = 0;
      while (at < bytes.length && !this.#over) {
        if (this.#state === 'head') {
          at += this.#takeHead(bytes, at);
          continue;
        }
        const count = Math.min(this.#data.length - this.#dataBytes, bytes.length - at);
        this.#data.set(bytes.subarray(at, at + count), this.#dataBytes);
        at += count;
        this.#dataBytes += count;
        this.#current!.arrivedBytes += count;
        if (this.#dataBytes === this.#data.length) this.#endOfData();
      }
    } catch (error) {
      this.#broken(error);
    }
  }

  #broken(error: unknown): void {
    this.fail(error instanceof GodwitError ? error : protocolError(String(error)));
  }

  /**
   * How many bytes of the input it took. A head that is whole in the input is read there; one in two pieces
   * is put together first.
   */
  #takeHead(bytes: Buffer, at: number): number {
    if (this.#headBytes === 0) {
      const taken = this.#parseHead(bytes, at, bytes.length - at);
      if (taken > 0) return taken;
    }
    const before = this.#headBytes;
    const copied = bytes.copy(this.#head, before, at, Math.min(bytes.length, at + HEAD_BYTES_MAX - before));
    this.#headBytes = 0;
    const taken = this.#parseHead(this.#head, 0, before + copied);
    if (taken > 0) return taken - before;
    this.#headBytes = before + copied;
    return copied;
  }

  /** 0: it is not whole yet. */
  #parseHead(from: Buffer, at: number, available: number): number {
    if (available < SIMPLE_REPLY_BYTES) return 0;
    const magic = from.readUInt32BE(at);
    const { replyStyle } = this.#options.export;
    if (magic === SIMPLE_REPLY_MAGIC && replyStyle !== 'extended') {
      this.#simpleReply(from.readUInt32BE(at + 4), this.#slotOf(from, at + 8));
      return SIMPLE_REPLY_BYTES;
    }
    if (magic === STRUCTURED_REPLY_MAGIC && replyStyle === 'structured') {
      if (available < STRUCTURED_REPLY_BYTES) return 0;
      const payloadBytes = from.readUInt32BE(at + 16);
      return this.#chunk(from, at, available, STRUCTURED_REPLY_BYTES, payloadBytes);
    }
    if (magic === EXTENDED_REPLY_MAGIC && replyStyle === 'extended') {
      if (available < EXTENDED_REPLY_BYTES) return 0;
      const payloadBytes = readUint64(from, at + 24);
      return this.#chunk(from, at, available, EXTENDED_REPLY_BYTES, payloadBytes);
    }
    throw protocolError('a reply does not begin with its magic', { magic, replyStyle });
  }

  #slotOf(from: Buffer, at: number): Slot {
    const slot = this.#slots[from.readUInt32BE(at + 4)];
    if (slot === undefined || slot.request === null || slot.sequence !== from.readUInt32BE(at)) {
      throw protocolError('a reply to a request that is not under way');
    }
    return slot;
  }

  #simpleReply(error: number, slot: Slot): void {
    const { command, buffer } = slot.request!;
    const { type } = command;
    if (error !== 0) {
      slot.failure = { error, message: '', offsetBytes: null };
      this.#finish(slot);
      return;
    }
    if (type === COMMAND.blockStatus) throw protocolError('a block status without a status');
    if (type !== COMMAND.read) {
      this.#finish(slot);
      return;
    }
    if (this.#options.export.replyStyle !== 'simple')
      throw protocolError('a read was answered by a simple reply');
    this.#expectData(slot, 0, buffer.length, true);
  }

  /** The head of a chunk, with the offset where it is one of data. */
  #chunk(from: Buffer, at: number, available: number, headerBytes: number, payloadBytes: number): number {
    const flags = from.readUInt16BE(at + 4);
    const type = from.readUInt16BE(at + 6);
    if (type === CHUNK.offsetData && available < headerBytes + OFFSET_BYTES) return 0;
    const slot = this.#slotOf(from, at + 8);
    const request = slot.request!;
    const done = (flags & REPLY_FLAG.done) !== 0;
    if (this.#extended && readUint64(from, at + 16) !== request.offsetBytes) {
      throw protocolError('a reply is not to the offset of its request');
    }
    if (type === CHUNK.offsetData) {
      if (request.command.type !== COMMAND.read) throw protocolError('data for a request that reads nothing');
      if (payloadBytes <= OFFSET_BYTES) throw protocolError('a data chunk without data', { payloadBytes });
      const start = readUint64(from, at + headerBytes) - request.offsetBytes;
      this.#expectData(slot, start, payloadBytes - OFFSET_BYTES, done);
      return headerBytes + OFFSET_BYTES;
    }
    const limit = payloadLimit(type, request.command.type, this.#extended);
    if (limit === null || payloadBytes > limit) {
      throw protocolError('a chunk does not fit its request', {
        type: nameOf(CHUNK, type),
        payloadBytes,
        request: nameOf(COMMAND, request.command.type),
      });
    }
    this.#current = slot;
    this.#chunkType = type;
    this.#chunkDone = done;
    this.#data = payloadBytes === 0 ? NOTHING : Buffer.allocUnsafe(payloadBytes);
    this.#dataBytes = 0;
    this.#state = 'payload';
    if (payloadBytes === 0) this.#endOfData();
    return headerBytes;
  }

  /** The next bytes are those of a read, from `start` of its buffer on. */
  #expectData(slot: Slot, start: number, lengthBytes: number, done: boolean): void {
    this.#checkPiece(slot, start, lengthBytes);
    this.#current = slot;
    this.#chunkDone = done;
    this.#data = slot.request!.buffer.subarray(start, start + lengthBytes);
    this.#dataStart = start;
    this.#afterBigPayload = lengthBytes >= BIG_PAYLOAD_BYTES;
    this.#dataBytes = 0;
    this.#state = 'data';
  }

  #checkPiece(slot: Slot, start: number, lengthBytes: number): void {
    const bufferBytes = slot.request!.buffer.length;
    if (start < slot.coveredBytes || start + lengthBytes > bufferBytes) {
      throw protocolError('data outside of what was asked for', {
        start,
        lengthBytes,
        expected: bufferBytes,
      });
    }
  }

  #endOfData(): void {
    const slot = this.#current!;
    const data = this.#data;
    const { state, done } = { state: this.#state, done: this.#chunkDone };
    this.#state = 'head';
    this.#current = null;
    this.#data = NOTHING;
    if (state === 'data') this.#cover(slot, this.#dataStart, data.length);
    else this.#payload(slot, this.#chunkType, Buffer.from(data.buffer, data.byteOffset, data.length), done);
    if (done) this.#finish(slot);
  }

  #payload(slot: Slot, type: number, payload: Buffer, done: boolean): void {
    const request = slot.request!;
    switch (type) {
      case CHUNK.none:
        if (!done) throw protocolError('an empty chunk that is not the last one');
        return;
      case CHUNK.offsetHole: {
        const hole = decodeHole(payload);
        const start = hole.offsetBytes - request.offsetBytes;
        if (hole.lengthBytes === 0) throw protocolError('an empty hole');
        this.#checkPiece(slot, start, hole.lengthBytes);
        request.buffer.fill(0, start, start + hole.lengthBytes);
        this.#cover(slot, start, hole.lengthBytes);
        return;
      }
      case CHUNK.blockStatus:
      case CHUNK.blockStatusExtended: {
        const status = decodeBlockStatus(type, payload);
        if (
          status.contextId !== this.#options.export.allocationContextId ||
          request.command.extents !== null
        ) {
          throw protocolError('a block status that was not asked for', { contextId: status.contextId });
        }
        request.command.extents = status.extents;
        return;
      }
      default:
        // The first error is the cause.
        slot.failure ??= decodeErrorChunk(type, payload);
        // An error of 0 would be success of something that says that it failed.
        if (slot.failure.error === 0) throw protocolError('an error chunk without an error');
    }
  }

  #cover(slot: Slot, start: number, lengthBytes: number): void {
    if (start === slot.coveredBytes) {
      slot.coveredBytes += lengthBytes;
      return;
    }
    slot.pieces ??= [];
    if (slot.pieces.length >= PIECES_MAX) throw protocolError('a read came in too many pieces');
    slot.pieces.push([start, start + lengthBytes]);
  }

  #finish(slot: Slot): void {
    const request = slot.request!;
    const { failure } = slot;
    if (failure === null) {
      if (request.command.type === COMMAND.read && !isCovered(slot)) {
        throw protocolError('a read was not answered in full', { lengthBytes: request.lengthBytes });
      }
      if (request.command.type === COMMAND.blockStatus && request.command.extents === null) {
        throw protocolError('a block status without a status');
      }
    }
    slot.request = null;
    this.#free.push(slot.index);
    this.#inFlight -= 1;
    if (request === this.#probe) this.#probe = null;
    // An error is an answer.
    else this.#options.onAnswered(request, failure);
    if (!this.#over) this.#options.onRoom();
  }

  // --- liveness
  // ------------------------------------------------------------------------------------------------------

  /**
   * Counting intervals instead of comparing times keeps a process that was itself asleep from blaming its
   * peer.
   */
  #armTimer(): void {
    this.#cancelTimer = this.#options.clock.timer(this.#options.keepAliveIntervalMs, () => {
      if (this.#over) return;
      const overdue = this.#countRound();
      if (overdue !== null) {
        this.fail(
          new GodwitError('NBD_SILENT', 'The NBD server does not answer', {
            values: {
              request: nameOf(COMMAND, overdue.command.type),
              offsetBytes: overdue.offsetBytes,
              lengthBytes: overdue.lengthBytes,
              attempts: overdue.losses,
              inFlight: this.#inFlight,
            },
            retry: 'later',
            nextAction: 'The connection is made anew; check the network and the host of the server.',
          }),
        );
        return;
      }
      if (!this.#heard && this.#probe === null && this.hasRoom) this.#sendProbe();
      this.#heard = false;
      this.#armTimer();
    });
  }

  /** The request that was sent first, where that has taken too long. */
  #countRound(): NbdRequest | null {
    let slot: Slot | null = null;
    for (const each of this.#slots) {
      if (each.request !== null && (slot === null || each.order < slot.order)) slot = each;
    }
    if (slot === null) return null;
    const request = slot.request!;
    const first = this.#first;
    const sentBytes = request.unsentParts > 0 ? this.#options.writer.writtenBytes : 0;
    const movedBytes = slot.arrivedBytes + sentBytes;
    // Less than before: all of a payload is sent.
    const moves = Math.abs(movedBytes - first.movedBytes) >= PROGRESS_BYTES;
    if (slot.order !== first.order || moves) {
      Object.assign(first, { order: slot.order, movedBytes, rounds: 0 });
      return null;
    }
    first.rounds += 1;
    const { keepAliveIntervalMs, keepAliveTimeoutMs, requestTimeoutMs } = this.#options;
    const limitMs =
      request === this.#probe && this.#inFlight === 1
        ? keepAliveTimeoutMs
        : requestTimeoutMs * 2 ** Math.min(request.losses, TIMEOUT_DOUBLINGS_MAX);
    return first.rounds * keepAliveIntervalMs >= limitMs ? request : null;
  }

  #sendProbe(): void {
    const { lengthBytes: exportBytes, minimumBlockBytes } = this.#options.export;
    const lengthBytes = Math.max(512, minimumBlockBytes);
    if (exportBytes < lengthBytes) return;
    const ignore = (): void => {};
    const buffer = Buffer.alloc(lengthBytes);
    this.#probe = new RemoteRequest<NbdCommand>(NBD.read, 0, lengthBytes, buffer, 0, ignore, ignore);
    this.send(this.#probe);
  }
}

/** Largest payload of a chunk of this type as an answer to such a request; null: it is none. */
function payloadLimit(type: number, command: number, extended: boolean): number | null {
  if ((type & CHUNK_ERROR_BIT) !== 0) return ERROR_PAYLOAD_BYTES_MAX;
  switch (type) {
    case CHUNK.none:
      return 0;
    case CHUNK.offsetHole:
      return command === COMMAND.read ? OFFSET_HOLE_BYTES : null;
    case CHUNK.blockStatus:
      return command === COMMAND.blockStatus && !extended ? STATUS_PAYLOAD_BYTES_MAX : null;
    case CHUNK.blockStatusExtended:
      return command === COMMAND.blockStatus && extended ? STATUS_PAYLOAD_BYTES_MAX : null;
    default:
      return null;
  }
}

/** True when every byte of the read came exactly once. */
function isCovered(slot: Slot): boolean {
  let end = slot.coveredBytes;
  for (const [start, stop] of (slot.pieces ?? []).sort(([left], [right]) => left - right)) {
    if (start !== end) return false;
    end = stop;
  }
  return end === slot.request!.buffer.length;
}
