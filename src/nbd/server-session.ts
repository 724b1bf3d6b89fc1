import { type BufferLease, BufferPool } from '../base/buffer-pool.ts';
import type { ChunkWriter } from '../base/chunk-writer.ts';
import { type ClientAccount, OBJECT_BYTES } from '../base/client-account.ts';
import { isGodwitError, messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { nextTurn, TurnPortion, turnIsLong } from '../base/turn.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import type { ReplyMode } from './export.ts';
import type { Agreement } from './handshake-server.ts';
import type { ServerLimits } from './limits.ts';
import {
  ALLOCATION_CONTEXT,
  ALLOCATION_STATE,
  CHUNK,
  COMMAND,
  COMMAND_FLAG,
  decodeBlockStatusPayload,
  EXTENDED_REPLY_BYTES,
  encodeBlockStatus,
  encodeChunkHeader,
  encodeErrorChunk,
  encodeHole,
  encodeSimpleReply,
  HYDRATION_STATE,
  NBD_ERROR,
  OFFSET_BYTES,
  OFFSET_HOLE_BYTES,
  REPLY_FLAG,
  type Request,
  SIMPLE_REPLY_BYTES,
  STRUCTURED_REPLY_BYTES,
  type StatusExtent,
  writeUint64,
} from './protocol.ts';
import type { RequestSink } from './request-parser.ts';

/**
 * Reads up to here are made right behind their header, without a buffer of their own, when the device need
 * not wait.
 */
const INLINE_BYTES_MAX = 32 * 1024;
/** Reads from here on are asked for holes. Below, the question costs more than the zeros. */
const SPARSE_BYTES_MIN = 64 * 1024;
const SPARSE_EXTENTS_MAX = 64;
/** An extent in memory, from the device to the wire. */
const EXTENT_BYTES = 128;
/** A cache request reads in pieces of this size, and zeroes that must take space are written in such. */
const PIECE_BYTES = 256 * 1024;
const ZEROES = Buffer.alloc(PIECE_BYTES);
/**
 * Requests of one client in a turn of the event loop: what is answered at once needs no device, and there is
 * no end to it.
 */
const TURN_REQUESTS_MAX = 128;

type Refusal = { error: number; message: string };

export type SessionStatistics = { requests: number; bytesRead: number; bytesWritten: number };

/**
 * The transmission phase of one connection: requests in, device calls, replies out. Requests run side by side
 * and are answered as they finish.
 *
 * Memory: a request is charged to the peer's account, with its buffers as they are allocated, before anything
 * is taken for it; when there is no more room, or the client has had its portion of the turn, `admit` says
 * no, the connection stops reading, and `onRoom` says when to ask again. Buffers: the session holds the lease
 * of a payload from `payloadBuffer` on, while the parser fills it and while the device writes it; that of a
 * read until the kernel has taken it. What was begun when the connection ends is given back when nobody works
 * on it any more.
 */
export class ServerSession implements RequestSink {
  readonly #agreement: Agreement;
  readonly #mode: ReplyMode;
  readonly #writer: ChunkWriter;
  readonly #pool: BufferPool;
  readonly #account: ClientAccount;
  readonly #limits: ServerLimits;
  readonly #logger: Logger;
  readonly #hasPlace: () => boolean;
  readonly #onRoom: () => void;
  readonly #onEnd: (reason: string) => void;
  /** Bytes before the data of a read. */
  readonly #readHeaderBytes: number;
  readonly statistics: SessionStatistics;

  readonly #portion = new TurnPortion(TURN_REQUESTS_MAX, () => this.room());
  #requests = 0;
  /** An `admit` was refused. */
  #starved = false;
  /** Of the request that was admitted last: it is delivered before another one is. */
  #refusal: Refusal | null = null;
  #cost = 0;
  #backing: BufferLease | null = null;
  #deviceCalls = 0;
  /** Changes that the device works on, or that wait for such of connections that are gone. */
  readonly #changes = new Set<UnderWay>();
  #requestsAsked = 0;
  #disconnecting = false;
  #closed = false;
  #idle: PromiseWithResolvers<void> | null = null;

  constructor(options: {
    agreement: Agreement;
    writer: ChunkWriter;
    pool: BufferPool;
    account: ClientAccount;
    limits: ServerLimits;
    logger: Logger;
    statistics: SessionStatistics;
    /**
     * Asked before a request is taken, until it is true; when it becomes so without being asked, `room` says
     * that.
     */
    hasPlace: () => boolean;
    /** A request that was not admitted may be now. */
    onRoom: () => void;
    /** The client said goodbye, and everything is answered. */
    onEnd: (reason: string) => void;
  }) {
    this.#agreement = options.agreement;
    this.#mode = options.agreement.mode;
    this.#writer = options.writer;
    this.#pool = options.pool;
    this.#account = options.account;
    this.#limits = options.limits;
    this.#logger = options.logger;
    this.statistics = options.statistics;
    this.#hasPlace = options.hasPlace;
    this.#onRoom = options.onRoom;
    this.#onEnd = options.onEnd;
    this.#readHeaderBytes =
      this.#mode === 'simple' ? SIMPLE_REPLY_BYTES : this.#chunkHeaderBytes + OFFSET_BYTES;
  }

  get #chunkHeaderBytes(): number {
    return this.#mode === 'extended' ? EXTENDED_REPLY_BYTES : STRUCTURED_REPLY_BYTES;
  }

  /** Requests that the client has made. */
  get requestsAsked(): number {
    return this.#requestsAsked;
  }

  /** Device calls that are under way. */
  get deviceCalls(): number {
    return this.#deviceCalls;
  }

  /** Requests that are not answered yet. */
  get requestsInFlight(): number {
    return this.#requests;
  }

  admit(request: Request, payloadBytes: number): boolean {
    if (this.#requestsAsked === 0 && !this.#hasPlace()) {
      this.#starved = true;
      return false;
    }
    const refusal = this.#check(request, payloadBytes);
    const cost = OBJECT_BYTES + (refusal === null ? this.#bufferBytesOf(request) : 0);
    const isFull = this.#portion.isSpent || this.#requests >= this.#limits.requestsMax;
    if (isFull || !this.#account.take(cost)) {
      this.#starved = true;
      return false;
    }
    this.#portion.take();
    this.#requestsAsked += 1;
    this.#requests += 1;
    this.#cost = cost;
    this.#refusal = refusal;
    return true;
  }

  skips(): boolean {
    return this.#refusal !== null;
  }

  payloadBuffer(payloadBytes: number): Uint8Array {
    if (payloadBytes <= INLINE_BYTES_MAX) return Buffer.allocUnsafe(payloadBytes);
    this.#backing = this.#pool.lease(payloadBytes);
    return this.#backing.bytes.subarray(0, payloadBytes);
  }

  request(request: Request, payload: Uint8Array | null, borrowed: boolean): void {
    const cost = this.#cost;
    const backing = this.#backing;
    this.#backing = null;
    if (this.#disconnecting) {
      // Nothing may follow a disconnect; it is not looked at.
      backing?.release();
      this.#requests -= 1;
      this.#account.release(cost);
      return;
    }
    this.statistics.requests += 1;
    if (this.#refusal !== null) {
      this.#fail(request, this.#refusal, cost);
      return;
    }
    const { device } = this.#agreement.export;
    const { offsetBytes, lengthBytes } = request;
    switch (request.type) {
      case COMMAND.read:
        if (!this.#readNow(request, cost)) this.#read(request, cost);
        break;
      case COMMAND.write:
        this.#write(request, payload!, borrowed, backing, cost);
        break;
      case COMMAND.disconnect:
        this.#requests -= 1;
        this.#account.release(cost);
        this.#disconnecting = true;
        this.#endWhenDone();
        break;
      case COMMAND.flush:
        this.#run(request, cost, device.flush());
        break;
      case COMMAND.trim:
        this.#change(request, cost, () => device.discard(offsetBytes, lengthBytes));
        break;
      case COMMAND.writeZeroes:
        this.#change(request, cost, () =>
          (request.flags & COMMAND_FLAG.noHole) !== 0
            ? this.#writeZeroBytes(offsetBytes, lengthBytes)
            : device.writeZeroes(offsetBytes, lengthBytes),
        );
        break;
      case COMMAND.cache:
        this.#run(request, cost, this.#cache(offsetBytes, lengthBytes));
        break;
      case COMMAND.blockStatus:
        this.#blockStatus(request, payload, cost);
        break;
    }
  }

  /**
   * The connection is over. What the device still changes for it is before all that others change there from
   * now on.
   */
  leave(): void {
    for (const change of this.#changes) {
      const { offsetBytes, lengthBytes } = change;
      change.over ??= Promise.withResolvers();
      this.#agreement.export.leftBehind.add({ offsetBytes, lengthBytes, over: change.over.promise });
    }
  }

  /** No more device calls begin. Resolves when none is under way any more. The writer is closed by now. */
  async close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true;
      // A payload that never came whole: the socket is closed, nobody fills it any more.
      this.#backing?.release();
      this.#backing = null;
    }
    if (this.#deviceCalls > 0) {
      this.#idle ??= Promise.withResolvers();
      await this.#idle.promise;
    }
  }

  /** What a request makes the server allocate while it is under way. */
  #bufferBytesOf({ type, flags, lengthBytes }: Request): number {
    switch (type) {
      case COMMAND.read:
      case COMMAND.write:
        return lengthBytes > INLINE_BYTES_MAX ? BufferPool.sizeOf(lengthBytes) : lengthBytes;
      case COMMAND.cache:
        return BufferPool.sizeOf(Math.min(PIECE_BYTES, lengthBytes));
      case COMMAND.blockStatus: {
        const limit = (flags & COMMAND_FLAG.reqOne) !== 0 ? 1 : this.#limits.extentsMax;
        return this.#agreement.contextIds.length * limit * EXTENT_BYTES;
      }
      default:
        return 0;
    }
  }

  /** What is wrong with a request, if anything: the checks that need no device. */
  #check(request: Request, payloadBytes: number): Refusal | null {
    const { type, flags, offsetBytes, lengthBytes } = request;
    const known = ALLOWED_FLAGS.get(type);
    if (known === undefined) return invalid('the command is not known');
    let allowed = known;
    if (this.#mode === 'simple') allowed &= ~COMMAND_FLAG.dontFragment;
    if (this.#mode !== 'extended') allowed &= ~COMMAND_FLAG.payloadLength;
    if ((flags & ~allowed) !== 0) return invalid('the command does not have such a flag');
    if (type === COMMAND.disconnect) return null;
    if (type === COMMAND.flush) {
      return offsetBytes === 0 && lengthBytes === 0 ? null : invalid('a flush has no offset and no length');
    }
    const share = this.#agreement.export;
    const mutates = type === COMMAND.write || type === COMMAND.trim || type === COMMAND.writeZeroes;
    if (mutates && share.readOnly) return { error: NBD_ERROR.EPERM, message: 'the export is read-only' };
    if (type === COMMAND.blockStatus) {
      const { contextIds } = this.#agreement;
      if (contextIds.length === 0) return invalid('no metadata context was selected');
      // With a payload the length of the range is in there.
      if (payloadBytes > 0) {
        return payloadBytes <= 8 + 4 * contextIds.length ? null : invalid('more contexts than were selected');
      }
    }
    if (type === COMMAND.read || type === COMMAND.write || type === COMMAND.cache) {
      if (lengthBytes > this.#limits.requestBytesMax) return invalid('longer than the maximum block size');
    }
    if (
      type === COMMAND.writeZeroes &&
      (flags & COMMAND_FLAG.fastZero) !== 0 &&
      (!share.fastZeroes || (flags & COMMAND_FLAG.noHole) !== 0)
    ) {
      return { error: NBD_ERROR.ENOTSUP, message: 'zeroing this is no faster than writing' };
    }
    return this.#checkRange(type, offsetBytes, lengthBytes);
  }

  #checkRange(type: number, offsetBytes: number, lengthBytes: number): Refusal | null {
    const { device } = this.#agreement.export;
    if (lengthBytes === 0) return invalid('the length is 0');
    if (offsetBytes + lengthBytes > device.lengthBytes) {
      const grows = type === COMMAND.write || type === COMMAND.writeZeroes;
      return { error: grows ? NBD_ERROR.ENOSPC : NBD_ERROR.EINVAL, message: 'beyond the end of the export' };
    }
    // Numbers of that size keep their low bits in bit operations.
    if (((offsetBytes | lengthBytes) & (device.blockBytes - 1)) !== 0)
      return invalid('not a multiple of the minimum block size');
    return null;
  }

  /** The read of what is at hand: header and data side by side in the slab, done at once. */
  #readNow(request: Request, cost: number): boolean {
    const { device } = this.#agreement.export;
    const { lengthBytes } = request;
    if (lengthBytes > INLINE_BYTES_MAX || device.readNow === undefined) return false;
    const at = this.#writer.room(this.#readHeaderBytes + lengthBytes);
    const slab = this.#writer.slab;
    const dataAt = at + this.#readHeaderBytes;
    if (!device.readNow(request.offsetBytes, slab.subarray(dataAt, dataAt + lengthBytes))) return false;
    this.#encodeReadHeader(slab, at, request, request.offsetBytes, lengthBytes, true);
    this.#writer.filled(dataAt + lengthBytes);
    this.statistics.bytesRead += lengthBytes;
    this.#finish(cost);
    return true;
  }

  /** `borrowed`: the payload is another's when this returns, and a write that takes longer has a copy. */
  #write(
    request: Request,
    payload: Uint8Array,
    borrowed: boolean,
    lease: BufferLease | null,
    cost: number,
  ): void {
    if (this.#writeNow(request, payload, cost)) {
      lease?.release();
      return;
    }
    const { offsetBytes, lengthBytes } = request;
    let own = payload;
    let backing = lease;
    if (borrowed) {
      own = this.payloadBuffer(lengthBytes);
      own.set(payload);
      backing = this.#backing;
      this.#backing = null;
    }
    const write = (): Promise<void> => this.#agreement.export.device.write(offsetBytes, own);
    this.#change(request, cost, write, () => {
      this.statistics.bytesWritten += lengthBytes;
      backing?.release();
    });
  }

  /** The write of a device that need not wait, when it need not be durable. */
  #writeNow(request: Request, payload: Uint8Array, cost: number): boolean {
    const { writesNow, device, leftBehind } = this.#agreement.export;
    if (!writesNow || !device.writeNow || (request.flags & COMMAND_FLAG.fua) !== 0) return false;
    if (leftBehind.before(request.offsetBytes, payload.length) !== null) return false;
    if (!device.writeNow(request.offsetBytes, payload)) return false;
    this.statistics.bytesWritten += payload.length;
    this.#succeed(request, cost);
    return true;
  }

  #encodeReadHeader(
    slab: Buffer,
    at: number,
    request: Request,
    offsetBytes: number,
    lengthBytes: number,
    last: boolean,
  ): number {
    const { cookieHigh, cookieLow } = request;
    if (this.#mode === 'simple') return encodeSimpleReply(slab, at, { error: 0, cookieHigh, cookieLow });
    const next = encodeChunkHeader(slab, at, this.#mode === 'extended', {
      flags: last ? REPLY_FLAG.done : 0,
      type: CHUNK.offsetData,
      cookieHigh,
      cookieLow,
      offsetBytes: request.offsetBytes,
      payloadBytes: OFFSET_BYTES + lengthBytes,
    });
    return writeUint64(slab, offsetBytes, next);
  }

  #read(request: Request, cost: number): void {
    const { device } = this.#agreement.export;
    const { offsetBytes, lengthBytes } = request;
    const backing = lengthBytes > INLINE_BYTES_MAX ? this.#pool.lease(lengthBytes) : null;
    const buffer =
      backing === null ? Buffer.allocUnsafe(lengthBytes) : backing.bytes.subarray(0, lengthBytes);
    const sparse =
      this.#mode !== 'simple' &&
      (request.flags & COMMAND_FLAG.dontFragment) === 0 &&
      lengthBytes >= SPARSE_BYTES_MIN &&
      device.extents !== undefined;
    const release = () => {
      backing?.release();
      this.#finish(cost);
    };
    this.#deviceCalls += 1;
    const done = sparse
      ? this.#readSparse(request, buffer)
      : device.read(offsetBytes, buffer).then(() => null);
    done.then(
      (holes) => {
        this.#called();
        if (this.#closed) {
          release();
        } else {
          this.statistics.bytesRead += lengthBytes;
          if (holes === null) this.#sendData(request, offsetBytes, buffer, true, release);
          else this.#sendSparse(request, buffer, holes, release);
        }
        this.#endWhenDone();
      },
      (error: unknown) => {
        this.#called();
        backing?.release();
        this.#fail(request, this.#refusalOf(error), cost);
      },
    );
  }

  /** Reads the data of the range; null when it is all data. */
  async #readSparse(request: Request, buffer: Buffer): Promise<ReadPiece[] | null> {
    const { device } = this.#agreement.export;
    const { offsetBytes, lengthBytes } = request;
    const pieces: ReadPiece[] = await device.extents!(offsetBytes, lengthBytes, SPARSE_EXTENTS_MAX);
    const last = pieces.at(-1)!;
    const restBytes = offsetBytes + lengthBytes - last.offsetBytes - last.lengthBytes;
    if (restBytes > 0) {
      pieces.push({
        offsetBytes: offsetBytes + lengthBytes - restBytes,
        lengthBytes: restBytes,
        kind: 'data',
      });
    }
    if (pieces.every((piece) => piece.kind === 'data')) {
      if (!(device.readNow?.(offsetBytes, buffer) ?? false)) await device.read(offsetBytes, buffer);
      return null;
    }
    const reads = pieces
      .filter((piece) => piece.kind === 'data')
      .map((piece) => device.read(piece.offsetBytes, pieceOf(buffer, offsetBytes, piece)));
    // The buffer goes back to the pool when this ends, so all of them have to have ended, the failed one
    // first or not.
    const failed = (await Promise.allSettled(reads)).find((result) => result.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
    return pieces;
  }

  #sendData(request: Request, offsetBytes: number, data: Buffer, last: boolean, release: () => void): void {
    const at = this.#writer.room(this.#readHeaderBytes);
    const end = this.#encodeReadHeader(this.#writer.slab, at, request, offsetBytes, data.length, last);
    this.#writer.filled(end);
    this.#writer.payload(data, release);
  }

  #sendSparse(request: Request, buffer: Buffer, pieces: readonly ReadPiece[], release: () => void): void {
    for (const [index, piece] of pieces.entries()) {
      const last = index === pieces.length - 1;
      if (piece.kind === 'data') {
        const data = pieceOf(buffer, request.offsetBytes, piece);
        this.#sendData(request, piece.offsetBytes, data, last, nothing);
      } else {
        const at = this.#chunk(request, CHUNK.offsetHole, OFFSET_HOLE_BYTES, last);
        this.#writer.filled(encodeHole(this.#writer.slab, at, piece.offsetBytes, piece.lengthBytes));
      }
    }
    // Not with the last piece: that may be small enough to be copied, while others are still to be sent from
    // the buffer.
    this.#writer.afterwards(release);
  }

  /** `#run` of what changes something, after what connections that are gone still change there. */
  #change(request: Request, cost: number, call: () => Promise<void>, after: () => void = nothing): void {
    const { offsetBytes, lengthBytes } = request;
    const before = this.#agreement.export.leftBehind.before(offsetBytes, lengthBytes);
    const change: UnderWay = { offsetBytes, lengthBytes, over: null };
    this.#changes.add(change);
    // Who is gone meanwhile has begun nothing.
    const done = before === null ? call() : before.then(() => (this.#closed ? undefined : call()));
    this.#run(request, cost, done, () => {
      this.#changes.delete(change);
      change.over?.resolve();
      after();
    });
  }

  /** Runs a device call that is answered with success or failure alone; with FUA it is made durable first. */
  #run(request: Request, cost: number, call: Promise<void>, after: () => void = nothing): void {
    const durable =
      (request.flags & COMMAND_FLAG.fua) !== 0 &&
      request.type !== COMMAND.flush &&
      request.type !== COMMAND.cache;
    this.#deviceCalls += 1;
    (durable ? call.then(() => this.#agreement.export.device.flush()) : call).then(
      () => {
        this.#called();
        after();
        this.#succeed(request, cost);
      },
      (error: unknown) => {
        this.#called();
        after();
        this.#fail(request, this.#refusalOf(error), cost);
      },
    );
  }

  /**
   * Whole blocks are written, so that they have a place. What cuts a block at either end is zeroed as the
   * device likes to: a block that has a place keeps it, and for a part of one that a clone does not have yet
   * nobody waits.
   */
  async #writeZeroBytes(offsetBytes: number, lengthBytes: number): Promise<void> {
    const { device } = this.#agreement.export;
    const endBytes = offsetBytes + lengthBytes;
    const first = Math.min(endBytes, Math.ceil(offsetBytes / BLOCK_BYTES) * BLOCK_BYTES);
    // The last block of a device may be cut short by its end.
    const end = endBytes === device.lengthBytes ? endBytes : endBytes - (endBytes % BLOCK_BYTES);
    if (offsetBytes < first) await device.writeZeroes(offsetBytes, first - offsetBytes);
    for (let at = first; at < end; ) {
      const count = Math.min(PIECE_BYTES, end - at);
      await device.write(at, ZEROES.subarray(0, count));
      at += count;
    }
    const tail = Math.max(first, end);
    if (tail < endBytes) await device.writeZeroes(tail, endBytes - tail);
  }

  /** Reading is what brings bytes near: into the page cache, or, in a clone, from its source. */
  async #cache(offsetBytes: number, lengthBytes: number): Promise<void> {
    const lease = this.#pool.lease(Math.min(PIECE_BYTES, lengthBytes));
    const buffer = lease.bytes;
    try {
      for (let done = 0; done < lengthBytes; ) {
        const count = Math.min(PIECE_BYTES, lengthBytes - done);
        await this.#agreement.export.device.read(offsetBytes + done, buffer.subarray(0, count));
        done += count;
      }
    } finally {
      lease.release();
    }
  }

  #blockStatus(request: Request, payload: Uint8Array | null, cost: number): void {
    const { contextIds: selected } = this.#agreement;
    const { offsetBytes } = request;
    let contextIds = selected;
    let { lengthBytes } = request;
    if (payload !== null) {
      try {
        ({ contextIds, lengthBytes } = decodeBlockStatusPayload(Buffer.from(payload)));
      } catch (error) {
        this.#fail(request, invalid(messageOf(error)), cost);
        return;
      }
      const refusal =
        contextIds.length === 0 ||
        new Set(contextIds).size < contextIds.length ||
        contextIds.some((id) => !selected.includes(id))
          ? invalid('the contexts are not among those that were selected')
          : this.#checkRange(request.type, offsetBytes, lengthBytes);
      if (refusal !== null) {
        this.#fail(request, refusal, cost);
        return;
      }
    }
    const limit = (request.flags & COMMAND_FLAG.reqOne) !== 0 ? 1 : this.#limits.extentsMax;
    this.#deviceCalls += 1;
    Promise.all(contextIds.map((id) => this.#extentsOf(id, offsetBytes, lengthBytes, limit))).then(
      (lists) => {
        this.#called();
        const extended = this.#mode === 'extended';
        // What is queued of it is a fraction of what was counted for it.
        const release = countdown(lists.length, () => this.#finish(cost));
        for (const [index, extents] of lists.entries()) {
          const status = encodeBlockStatus(extended, contextIds[index]!, extents);
          const type = extended ? CHUNK.blockStatusExtended : CHUNK.blockStatus;
          this.#writer.filled(this.#chunk(request, type, status.length, index === lists.length - 1));
          this.#writer.payload(status, release);
        }
        this.#endWhenDone();
      },
      (error: unknown) => {
        this.#called();
        this.#fail(request, this.#refusalOf(error), cost);
      },
    );
  }

  async #extentsOf(
    contextId: number,
    offsetBytes: number,
    lengthBytes: number,
    limit: number,
  ): Promise<StatusExtent[]> {
    const { device, hydration, contexts } = this.#agreement.export;
    // Looking for thousands of extents takes milliseconds, and a peer may ask for that again and again.
    while (turnIsLong()) await nextTurn();
    if (contexts[contextId] === ALLOCATION_CONTEXT) {
      if (device.extents === undefined) return [{ lengthBytes, state: 0 }];
      const extents = await device.extents(offsetBytes, lengthBytes, limit);
      const hole = ALLOCATION_STATE.hole | ALLOCATION_STATE.zero;
      return extents.map((extent) => ({
        lengthBytes: extent.lengthBytes,
        state: extent.kind === 'hole' ? hole : 0,
      }));
    }
    const extents = await hydration!(offsetBytes, lengthBytes, limit);
    return extents.map((extent) => ({
      lengthBytes: extent.lengthBytes,
      state: extent.kind === 'remote' ? HYDRATION_STATE.remote : 0,
    }));
  }

  /** Begins a chunk in the slab; the position of its payload, of which what is small is filled in there. */
  #chunk(request: Request, type: number, payloadBytes: number, last: boolean): number {
    const at = this.#writer.room(this.#chunkHeaderBytes + OFFSET_HOLE_BYTES);
    return encodeChunkHeader(this.#writer.slab, at, this.#mode === 'extended', {
      flags: last ? REPLY_FLAG.done : 0,
      type,
      cookieHigh: request.cookieHigh,
      cookieLow: request.cookieLow,
      offsetBytes: request.offsetBytes,
      payloadBytes,
    });
  }

  #succeed(request: Request, cost: number): void {
    if (this.#mode === 'extended') {
      this.#writer.filled(this.#chunk(request, CHUNK.none, 0, true));
    } else {
      const { cookieHigh, cookieLow } = request;
      const at = this.#writer.room(SIMPLE_REPLY_BYTES);
      this.#writer.filled(encodeSimpleReply(this.#writer.slab, at, { error: 0, cookieHigh, cookieLow }));
    }
    this.#finish(cost);
    this.#endWhenDone();
  }

  #fail(request: Request, refusal: Refusal, cost: number): void {
    const { error, message } = refusal;
    if (this.#mode === 'simple') {
      const { cookieHigh, cookieLow } = request;
      const at = this.#writer.room(SIMPLE_REPLY_BYTES);
      this.#writer.filled(encodeSimpleReply(this.#writer.slab, at, { error, cookieHigh, cookieLow }));
    } else {
      const payload = encodeErrorChunk(error, message);
      this.#writer.filled(this.#chunk(request, CHUNK.error, payload.length, true));
      this.#writer.payload(payload, nothing);
    }
    this.#finish(cost);
    this.#endWhenDone();
  }

  #refusalOf(error: unknown): Refusal {
    this.#logger.warn({ error: messageOf(error) }, 'NBD: a device call failed');
    if (!isGodwitError(error)) return { error: NBD_ERROR.EIO, message: 'the device failed' };
    return { error: ERROR_OF_CODE.get(error.code) ?? NBD_ERROR.EIO, message: error.code };
  }

  #called(): void {
    this.#deviceCalls -= 1;
    if (this.#deviceCalls === 0) this.#idle?.resolve();
  }

  #finish(cost: number): void {
    this.#requests -= 1;
    this.#account.release(cost);
    if (this.#starved && this.#requests === this.#limits.requestsMax - 1) this.room();
  }

  /** What was refused for want of room may be admitted now. */
  room(): void {
    if (!this.#starved || this.#closed) return;
    this.#starved = false;
    this.#onRoom();
  }

  #endWhenDone(): void {
    if (this.#disconnecting && this.#deviceCalls === 0 && !this.#closed)
      this.#onEnd('the client disconnected');
  }
}

/** `over`: there where somebody waits for it. */
type UnderWay = { offsetBytes: number; lengthBytes: number; over: PromiseWithResolvers<void> | null };

type ReadPiece = { offsetBytes: number; lengthBytes: number; kind: 'data' | 'hole' };

function pieceOf(buffer: Buffer, startBytes: number, piece: ReadPiece): Buffer {
  const at = piece.offsetBytes - startBytes;
  return buffer.subarray(at, at + piece.lengthBytes);
}

/** FUA is accepted with every command, as the protocol document asks for. */
const ALLOWED_FLAGS: ReadonlyMap<number, number> = new Map([
  [COMMAND.read, COMMAND_FLAG.fua | COMMAND_FLAG.dontFragment],
  [COMMAND.write, COMMAND_FLAG.fua | COMMAND_FLAG.payloadLength],
  [COMMAND.disconnect, COMMAND_FLAG.fua],
  [COMMAND.flush, COMMAND_FLAG.fua],
  [COMMAND.trim, COMMAND_FLAG.fua],
  [COMMAND.cache, COMMAND_FLAG.fua],
  [COMMAND.writeZeroes, COMMAND_FLAG.fua | COMMAND_FLAG.noHole | COMMAND_FLAG.fastZero],
  [COMMAND.blockStatus, COMMAND_FLAG.fua | COMMAND_FLAG.reqOne | COMMAND_FLAG.payloadLength],
]);

const ERROR_OF_CODE: ReadonlyMap<string, number> = new Map([
  ['BLOCK_NO_SPACE', NBD_ERROR.ENOSPC],
  ['VOLUME_NO_SPACE', NBD_ERROR.ENOSPC],
  ['BLOCK_READ_ONLY', NBD_ERROR.EPERM],
  ['BLOCK_BAD_RANGE', NBD_ERROR.EINVAL],
  ['BLOCK_CLOSED', NBD_ERROR.ESHUTDOWN],
]);

/** Calls `last` when it was called so many times itself. */
function countdown(count: number, last: () => void): () => void {
  let left = count;
  return () => {
    left -= 1;
    if (left === 0) last();
  };
}

function invalid(message: string): Refusal {
  return { error: NBD_ERROR.EINVAL, message };
}

function nothing(): void {}
