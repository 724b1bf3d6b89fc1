import type { Socket } from 'node:net';
import type { BufferPool } from '../base/buffer-pool.ts';
import { ChunkWriter } from '../base/chunk-writer.ts';
import { type ClientAccount, type ClientBook, type Debt, OBJECT_BYTES } from '../base/client-account.ts';
import type { Clock } from '../base/clock.ts';
import type { Doorkeeper, Stay } from '../base/doorkeeper.ts';
import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { LookOut } from '../base/look-out.ts';
import { withReadBuffer } from '../base/read-buffer.ts';
import { takenBytes } from '../base/socket-progress.ts';
import { type SocketSink, socketSink } from '../base/socket-sink.ts';
import { startReading, stopReading } from '../base/stopped-reads.ts';
import { hasHungUp } from '../sys/hung-up.ts';
import { protocolError } from './errors.ts';
import type { NbdExport } from './export.ts';
import { type Agreement, type HandshakeHost, ServerHandshake } from './handshake-server.ts';
import type { ServerLimits } from './limits.ts';
import { RequestParser } from './request-parser.ts';
import { ServerSession, type SessionStatistics } from './server-session.ts';
import type { TlsHandshakes } from './tls-handshakes.ts';

/** How long a peer may take to read our last words and close. */
const LINGER_MS = 2_000;
/**
 * A client that has asked for so much, as a disk in use has, keeps its place when nothing came from it for so
 * long.
 */
const ESTABLISHED_REQUESTS = 1024;
const ESTABLISHED_IDLE_AFTER_MS = 10_000;
/** So much of a payload, or of answers that are taken, is a step; less is a drip. */
const STEP_BYTES = 64 * 1024;
/**
 * What a client has to show that has asked for nothing: a connection, a certificate or at least TLS, a
 * handshake.
 */
const NOTHING_SHOWN = 0;
const ENCRYPTS = 1;
const AGREED = 2;
const NOTHING = Buffer.alloc(0);

/**
 * One connection to the server: handshake, TLS where it is asked for, then transmission. Whatever goes wrong
 * on it ends it, and only it.
 */
export class ServerConnection {
  readonly #limits: ServerLimits;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #pool: BufferPool;
  readonly #account: ClientAccount;
  readonly #statistics: SessionStatistics;
  readonly #lookOut: LookOut;
  readonly #staging: Buffer;
  readonly #tls: TlsHandshakes | null;
  readonly #onBegin: (connection: ServerConnection) => void;
  readonly #onClose: (connection: ServerConnection) => void;
  readonly #handshake: ServerHandshake;
  /** The one from `accept`, and the one that requests go over: with TLS another. */
  readonly #rawSocket: Socket;
  #socket: Socket;
  #writer: ChunkWriter | null = null;
  #sink: SocketSink | null = null;
  #parser: RequestParser | null = null;
  #session: ServerSession | null = null;
  #export: NbdExport | null = null;
  /** What could not be taken yet: the session had no room. */
  #rest: Buffer = NOTHING;
  #restAt = 0;
  #paused = false;
  #pumping = false;
  #receivedBytes = 0;
  /** Answers of the handshake that the client has not taken. */
  #answerBytes = 0;
  /** Its place among those that have asked for nothing, and then among those that have. */
  readonly #visit: Stay;
  readonly #seats: Doorkeeper;
  #seat: Stay | null = null;
  readonly #address: string;
  /** At the last step of it. */
  #stepRequests = 0;
  #stepBytes = 0;
  /** Bytes of `#rest` that are charged. */
  #restBytes = 0;
  #cancelTimer: () => void;
  #ending = false;
  #gone: Promise<void> | null = null;

  constructor(options: {
    socket: Socket;
    host: HandshakeHost;
    tls: TlsHandshakes | null;
    limits: ServerLimits;
    pool: BufferPool;
    clients: ClientBook;
    /** What the connection counts under: an address, or `unix`. */
    address: string;
    /** Its place in the handshake. */
    handshake: Stay;
    /** Where it gets one when it asks for something. */
    seats: Doorkeeper;
    clock: Clock;
    logger: Logger;
    statistics: SessionStatistics;
    lookOut: LookOut;
    /** What is read lands here first, of every connection: it is looked at before the next read. */
    staging: Buffer;
    /** It has chosen its export, and its first request may follow. */
    onBegin: (connection: ServerConnection) => void;
    onClose: (connection: ServerConnection) => void;
  }) {
    this.#staging = options.staging;
    this.#limits = options.limits;
    this.#clock = options.clock;
    this.#pool = options.pool;
    this.#statistics = options.statistics;
    this.#lookOut = options.lookOut;
    this.#tls = options.tls;
    this.#onBegin = options.onBegin;
    this.#onClose = options.onClose;
    this.#visit = options.handshake;
    this.#seats = options.seats;
    this.#address = options.address;
    const { remoteAddress, remotePort } = options.socket;
    this.#logger = options.logger.child({
      peer: remoteAddress === undefined ? 'unix' : `${remoteAddress}:${remotePort}`,
    });
    this.#handshake = new ServerHandshake({
      host: options.host,
      limits: options.limits,
      reply: (bytes) => this.#answer(bytes),
      takesMore: () => this.#takesMore,
    });
    this.#account = options.clients.open({
      address: options.address,
      debt: () => this.#debt(),
      movedBytes: (debt) =>
        debt === 'input' ? this.#receivedBytes : takenBytes(this.#rawSocket, this.#writer?.writtenBytes ?? 0),
      onRoom: () => this.#session?.room(),
      drop: (reason) => this.drop(reason),
    });
    this.#cancelTimer = options.clock.timer(options.limits.handshakeTimeoutMs, () =>
      this.drop('the handshake took too long'),
    );
    this.#rawSocket = withReadBuffer(
      options.socket,
      () => this.#parser?.space() ?? options.staging,
      (count, buffer) => this.#landed(count, buffer),
      options.staging,
    );
    this.#socket = this.#rawSocket;
    this.#rawSocket.setNoDelay(true);
    this.#rawSocket.on('close', () => void this.gone());
    this.#listen(this.#rawSocket);
    this.#handshake.greet();
  }

  /** The export that the client chose; null in the handshake. */
  get export(): NbdExport | null {
    return this.#export;
  }

  /** Of the connection below TLS: for `Guest.movedBytes`. */
  get bytesRead(): number {
    return this.#rawSocket.bytesRead;
  }

  /** What it has to show while it has asked for nothing: for `Guest.shows`. */
  shows(): number {
    if (this.#session !== null) return AGREED;
    return this.#socket === this.#rawSocket ? NOTHING_SHOWN : ENCRYPTS;
  }

  /** Ends the connection at once, and says why in the log. */
  drop(reason: string): void {
    if (this.#gone !== null) return;
    this.#logger.warn({ reason }, 'NBD: connection dropped');
    void this.gone();
  }

  /**
   * Another client begins with the export: what this one had sent and is not read yet must not be done after
   * what that one does, if nobody is there any more who could be told of it.
   */
  dropIfHungUp(): void {
    if (this.#gone === null && hasHungUp(this.#rawSocket))
      this.drop('the client has gone, and another begins');
  }

  /** Drops the connection; resolves when none of its device calls is under way any more. */
  gone(): Promise<void> {
    this.#gone ??= (async () => {
      this.#ending = true;
      this.#cancelTimer();
      this.#rest = NOTHING;
      this.#session?.leave();
      this.#socket.destroy();
      if (!this.#rawSocket.closed) {
        this.#rawSocket.destroy();
        await new Promise<void>((resolve) => this.#rawSocket.once('close', resolve));
      }
      this.#writer?.close();
      await this.#session?.close();
      this.#account.close();
      this.#visit.end();
      this.#seat?.end();
      this.#onClose(this);
    })();
    return this.#gone;
  }

  #listen(socket: Socket): void {
    socket.on('data', (bytes: Buffer) => this.#received(bytes));
    socket.on('error', (error) => this.#logger.debug({ error: messageOf(error) }, 'NBD: socket error'));
  }

  /** Bytes of the raw socket, in a buffer that we chose. */
  #landed(count: number, buffer: Uint8Array): void {
    if (this.#ending) return;
    if (buffer === this.#staging) {
      this.#received(this.#staging.subarray(0, count), true);
      return;
    }
    this.#receivedBytes += count;
    this.#lookOut.seen();
    this.#parser!.landed(count);
    this.#steps();
  }

  #received(bytes: Buffer, borrowed = false): void {
    if (this.#ending) return;
    this.#receivedBytes += bytes.length;
    this.#lookOut.seen();
    if (this.#session === null) this.#visit.advances();
    if (this.#restAt < this.#rest.length) {
      // A paused stream may still have had a chunk in hand.
      this.#rest = Buffer.concat([this.#rest.subarray(this.#restAt), bytes]);
      this.#restAt = 0;
      return;
    }
    this.#rest = bytes;
    this.#restAt = 0;
    this.#pump(borrowed);
    this.#steps();
    // What has to wait cannot wait in a buffer of others.
    if (borrowed && this.#restAt < this.#rest.length) {
      this.#rest = Buffer.from(this.#rest.subarray(this.#restAt));
      this.#restAt = 0;
    }
    this.#chargeRest();
  }

  /** What waits is input that the peer makes us hold. */
  #chargeRest(): void {
    if (this.#rest.length === this.#restBytes) return;
    this.#account.release(this.#restBytes);
    this.#restBytes = this.#rest.length;
    this.#account.charge(this.#restBytes);
  }

  /** Takes of what was received as much as there is room for. */
  #pump(borrowed = false): void {
    if (this.#pumping || this.#ending) return;
    this.#pumping = true;
    try {
      if (this.#parser === null) this.#shakeHands();
      if (this.#parser !== null) this.#restAt = this.#parser.push(this.#rest, this.#restAt, borrowed);
    } catch (error) {
      this.drop(messageOf(error));
    } finally {
      this.#pumping = false;
    }
    const left = this.#restAt < this.#rest.length;
    const full = left || (this.#parser === null ? !this.#takesMore : this.#parser.waits);
    // What was answered at once goes out at once.
    this.#writer?.flush();
    if (!left) {
      this.#rest = NOTHING;
      this.#restAt = 0;
      this.#chargeRest();
    }
    if (full !== this.#paused && !this.#ending) {
      this.#paused = full;
      if (full) stopReading(this.#socket);
      else startReading(this.#socket);
    }
  }

  /** A request more, or enough of a payload: it works. */
  #steps(): void {
    const seat = this.#seat;
    if (seat === null) return;
    const asked = this.#session!.requestsAsked;
    if (asked === this.#stepRequests) {
      const movedBytes = this.#receivedBytes + takenBytes(this.#rawSocket, 0);
      if (movedBytes - this.#stepBytes < STEP_BYTES) return;
      this.#stepBytes = movedBytes;
    }
    this.#stepRequests = asked;
    seat.advances();
  }

  /**
   * For `Guest.shows`: null while it works, or has worked much and not long ago. Else how often what it had
   * asked for doubled, so that a crowd that asks once and sits there goes before a disk that is in use and
   * idle for a moment.
   */
  #worksFor(seat: Stay): number | null {
    const session = this.#session!;
    const { requestsAsked } = session;
    if (session.deviceCalls > 0) return null;
    const { stillMs } = seat;
    this.#steps();
    // It takes what it asked for.
    if (seat.stillMs < stillMs) return null;
    if (requestsAsked >= ESTABLISHED_REQUESTS && seat.stillMs < ESTABLISHED_IDLE_AFTER_MS) return null;
    return Math.floor(Math.log2(Math.max(1, requestsAsked)));
  }

  /** From its first request on it has a place of another kind. True when it has it. */
  #hasPlace(): boolean {
    if (this.#seat !== null) return this.#seat.state === 'in';
    this.#seat = this.#seats.come(
      {
        key: this.#address,
        shows: () => this.#worksFor(this.#seat!),
        turnOut: (reason) => this.drop(reason),
      },
      (seat) => {
        this.#seat = seat;
        this.#visit.end();
        this.#session!.room();
      },
    );
    if (this.#seat === null) {
      this.drop('too many clients wait for a place');
      return false;
    }
    return this.#seat.state === 'in';
  }

  /** The client takes the answers of its handshake. */
  get #takesMore(): boolean {
    return this.#answerBytes <= this.#limits.handshakeOutputBytesMax;
  }

  #answer(bytes: Buffer): void {
    const heldBytes = Math.max(bytes.length, OBJECT_BYTES);
    this.#account.charge(heldBytes);
    this.#answerBytes += heldBytes;
    this.#socket.write(bytes, () => {
      this.#account.release(heldBytes);
      this.#answerBytes -= heldBytes;
      if (this.#paused) this.#pump();
    });
  }

  #shakeHands(): void {
    const { at, step } = this.#handshake.push(this.#rest, this.#restAt);
    this.#restAt = at;
    switch (step.next) {
      case 'more':
        break;
      case 'tls':
        if (at < this.#rest.length) throw protocolError('bytes in the clear after STARTTLS');
        this.#startTls();
        break;
      case 'transmission':
        this.#begin(step.agreement);
        break;
      case 'end':
        this.#end(step.reason);
        break;
    }
  }

  #startTls(): void {
    const raw = this.#rawSocket;
    raw.removeAllListeners('data');
    raw.pause();
    // Written before, so answered before: the empty write says when.
    raw.write(NOTHING, () => {
      if (this.#ending) return;
      this.#tls!.begin(raw, (result) => {
        if (result instanceof Error) {
          this.drop(`TLS failed: ${messageOf(result)}`);
          return;
        }
        if (this.#ending) {
          result.destroy();
          return;
        }
        this.#socket = result;
        this.#handshake.secured();
        this.#listen(result);
        result.on('close', () => void this.gone());
      });
    });
  }

  #begin(agreement: Agreement): void {
    this.#cancelTimer();
    this.#export = agreement.export;
    this.#onBegin(this);
    this.#sink = socketSink(this.#socket);
    this.#writer = new ChunkWriter(this.#sink.send, this.#pool, this.#account);
    const session = new ServerSession({
      agreement,
      writer: this.#writer,
      pool: this.#pool,
      account: this.#account,
      limits: this.#limits,
      logger: this.#logger,
      statistics: this.#statistics,
      hasPlace: () => this.#hasPlace(),
      onRoom: () => this.#pump(),
      onEnd: (reason) => this.#end(reason),
    });
    this.#session = session;
    this.#parser = new RequestParser(session, {
      extended: agreement.mode === 'extended',
      payloadBytesMax: this.#limits.payloadBytesMax,
    });
    this.#logger.info(
      { export: agreement.export.name, mode: agreement.mode, tls: this.#socket !== this.#rawSocket },
      'NBD: transmission begins',
    );
  }

  /**
   * The rest of a request that we read, the taking of answers. Not a request that waits for room, nor one
   * that the device has.
   */
  #debt(): Debt {
    if (this.#ending || this.#parser === null) return 'nothing';
    const input = !this.#paused && this.#parser.owed;
    if (this.#writer!.queuedBytes > 0) return input ? 'both' : 'output';
    return input ? 'input' : 'nothing';
  }

  /** Closes once what is queued has been sent, or after a short while. */
  #end(reason: string): void {
    if (this.#ending) return;
    this.#ending = true;
    this.#logger.info({ reason }, 'NBD: connection ends');
    this.#cancelTimer();
    this.#writer?.finish();
    if (this.#sink === null) this.#socket.end();
    else this.#sink.end();
    // What still comes is not looked at, but has to be read for the end of it to be seen.
    startReading(this.#socket);
    this.#cancelTimer = this.#clock.timer(LINGER_MS, () => void this.gone());
  }
}
