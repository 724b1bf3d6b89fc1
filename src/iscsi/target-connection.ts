import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import type { BufferPool } from '../base/buffer-pool.ts';
import { ChunkWriter } from '../base/chunk-writer.ts';
import type { ClientAccount, ClientBook, Debt } from '../base/client-account.ts';
import { clientAddressOf } from '../base/client-address.ts';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { LookOut } from '../base/look-out.ts';
import type { Random } from '../base/random.ts';
import { withReadBuffer } from '../base/read-buffer.ts';
import { type SocketSink, socketSink } from '../base/socket-sink.ts';
import { startReading, stopReading } from '../base/stopped-reads.ts';
import { TurnPortion } from '../base/turn.ts';
import { LOGIN_STATUS, nameOf, OPCODE } from './constants.ts';
import { protocolError } from './errors.ts';
import type { TargetLimits } from './limits.ts';
import {
  type Admission,
  type LoginNames,
  type LoginOutcome,
  type LoginStep,
  TargetLogin,
} from './login-target.ts';
import { decodeLoginRequest, encodeLoginResponse, type LoginRequestPdu, opcodeOf } from './pdu.ts';
import { PduParser } from './pdu-parser.ts';
import { PduWriter } from './pdu-writer.ts';
import { serialAdd } from './serial-number.ts';
import type { TargetSession } from './target-session.ts';

/** What a connection asks of the target that it belongs to. */
export type ConnectionHost = {
  admit: (names: LoginNames) => Admission;
  /**
   * Makes the session that a successful login asked for; a predecessor of the same name and ISID is gone when
   * this resolves. A number is the login status to refuse with.
   */
  begin: (
    outcome: LoginOutcome,
    wiring: SessionWiring,
  ) => Promise<{ session: TargetSession; tsih: number } | { refuse: number }>;
  /** For how long the refusal is to be held back. */
  loginFailed: (address: string) => number;
  /** A request of a login came. */
  loginAdvances: () => void;
  loginSucceeded: (address: string) => void;
  onClose: (connection: TargetConnection) => void;
};

export type SessionWiring = {
  writer: PduWriter;
  logger: Logger;
  expCmdSn: number;
  statSn: number;
  account: ClientAccount;
  isReading: () => boolean;
  onEnd: (reason: string) => void;
  connection: TargetConnection;
};

const NOTHING = Buffer.alloc(0);
/**
 * Until the login is over an initiator sends 8 KiB at most (RFC 7143 section 13.12). What is longer than a
 * text may be is refused; this would have to be kept first.
 */
const LOGIN_SEGMENT_BYTES_MAX = 64 * 1024;
/**
 * PDUs of one peer in a turn of the event loop: more than a queue of commands and what belongs to them, and
 * less than a millisecond of work.
 */
const TURN_PDUS_MAX = 128;
/** How long a peer may take to read our last words and close. */
const LINGER_MS = 2_000;

/**
 * One TCP connection to the target: login first, then the PDUs go to its session. Whatever goes wrong on it
 * ends it, and only it.
 *
 * Nothing more is read while the session takes no more, in a login while the peer leaves our answers lying,
 * and when it has had its portion of the turn: `#rest` is what was read and not looked at.
 */
export class TargetConnection {
  /** Of what counts as one peer. */
  readonly address: string;
  readonly #socket: Socket;
  readonly #host: ConnectionHost;
  readonly #limits: TargetLimits;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #sink: SocketSink;
  readonly #writer: PduWriter;
  readonly #parser: PduParser;
  readonly #lookOut: LookOut;
  readonly #account: ClientAccount;
  readonly #staging: Buffer;
  readonly #login: TargetLogin;
  readonly #portion = new TurnPortion(TURN_PDUS_MAX, () => this.#roomAgain());
  #session: TargetSession | null = null;
  #statSn: number | null = null;
  #cancelDeadline: () => void;
  /** A request is being worked on; the initiator has to wait for the response before it sends another. */
  #busy = false;
  /** What could not be taken yet. */
  #rest: Buffer = NOTHING;
  #paused = false;
  #pumping = false;
  #receivedBytes = 0;
  #closed = false;
  #gone: Promise<void> | null = null;

  constructor(options: {
    socket: Socket;
    host: ConnectionHost;
    limits: TargetLimits;
    pool: BufferPool;
    clients: ClientBook;
    /** Shared by the connections of one target: nothing stays in it. */
    staging: Buffer;
    lookOut: LookOut;
    clock: Clock;
    random: Random;
    logger: Logger;
  }) {
    const { limits } = options;
    this.#lookOut = options.lookOut;
    this.#parser = new PduParser(
      {
        destination: (header, lengthBytes) => this.#session?.destination(header, lengthBytes) ?? null,
        pdu: (header, ahs, data) => {
          if (this.#session !== null) this.#session.pdu(header, ahs, data);
          else this.#loginPdu(header, data);
        },
        takesMore: () => this.#takesMore(),
      },
      {
        dataSegmentBytesMax: Math.min(limits.dataSegmentBytesMax, LOGIN_SEGMENT_BYTES_MAX),
        staging: options.staging,
      },
    );
    this.#staging = options.staging;
    this.#host = options.host;
    this.#limits = limits;
    this.#clock = options.clock;
    // Asked for before the handle moves.
    const { remoteAddress = 'unknown' } = options.socket;
    this.address = clientAddressOf(remoteAddress);
    const socket = this.#adopt(options.socket, options.staging);
    this.#socket = socket;
    this.#account = options.clients.open({
      address: this.address,
      debt: () => this.#debt(),
      movedBytes: (direction) => this.#movedBytes(direction),
      onRoom: () => this.#roomAgain(),
      drop: (reason) => {
        this.#logger.warn({ reason }, 'iSCSI: connection dropped');
        this.destroy();
      },
    });
    this.#logger = options.logger.child({ peer: `${remoteAddress}:${socket.remotePort ?? 0}` });
    this.#sink = socketSink(socket);
    this.#writer = new PduWriter(new ChunkWriter(this.#sink.send, options.pool, this.#account));
    this.#writer.onDrain = () => this.#roomAgain();
    this.#login = new TargetLogin({
      admit: options.host.admit,
      random: options.random,
      textBytesMax: limits.textBytesMax,
      requestsMax: limits.loginRequestsMax,
      dataSegmentBytes: limits.dataSegmentBytesMax,
      proposal: {
        HeaderDigest: 'None,CRC32C',
        DataDigest: 'None,CRC32C',
        MaxConnections: '1',
        InitialR2T: 'No',
        ImmediateData: 'Yes',
        MaxBurstLength: String(limits.burstBytesMax),
        FirstBurstLength: String(limits.firstBurstBytesMax),
        DefaultTime2Wait: '0',
        DefaultTime2Retain: '0',
        MaxOutstandingR2T: '1',
        DataPDUInOrder: 'Yes',
        DataSequenceInOrder: 'Yes',
        ErrorRecoveryLevel: '0',
        iSCSIProtocolLevel: '1',
      },
    });
    this.#cancelDeadline = options.clock.timer(limits.loginTimeoutMs, () => this.end('login took too long'));
    socket.setNoDelay(true);
    socket.on('error', (error) => this.#logger.debug({ error: messageOf(error) }, 'iSCSI: socket error'));
    socket.on('close', () => void this.gone());
  }

  get receivedBytes(): number {
    return this.#receivedBytes;
  }

  get session(): TargetSession | null {
    return this.#session;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Closes once what is queued has been sent, or after a short while. */
  end(reason: string): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#logger.info({ reason }, 'iSCSI: connection ends');
    this.#cancelDeadline();
    this.#writer.finish();
    // Nothing that comes from now on is looked at, but it has to be read for the end of it to be seen.
    this.#sink.end();
    startReading(this.#socket);
    const cancel = this.#clock.timer(LINGER_MS, () => this.#socket.destroy());
    this.#socket.once('close', cancel);
  }

  destroy(): void {
    this.#closed = true;
    this.#cancelDeadline();
    this.#socket.destroy();
  }

  /** Drops the connection; resolves when its session cannot change anything any more. */
  async silenced(): Promise<void> {
    const gone = this.gone();
    await Promise.race([gone, this.#session?.changesEnded ?? gone]);
  }

  /** Drops the connection; resolves when its session has no device call under way any more. */
  gone(): Promise<void> {
    this.#gone ??= (async () => {
      this.destroy();
      // The kernel reads from our buffers and writes to them until then.
      if (!this.#socket.closed) await new Promise<void>((resolve) => this.#socket.once('close', resolve));
      this.#writer.close();
      this.#rest = NOTHING;
      await this.#session?.close();
      this.#session?.disconnected();
      this.#account.close();
      this.#host.onClose(this);
    })();
    return this.#gone;
  }

  /**
   * Bytes land where the parser wants them: a payload in the buffer that is written from. TLS decrypts into
   * buffers of its own.
   */
  #adopt(accepted: Socket, staging: Buffer): Socket {
    if (accepted instanceof TLSSocket) {
      accepted.on('data', (bytes: Buffer) => this.#received(bytes, false));
      // It was accepted paused.
      accepted.resume();
      return accepted;
    }
    return withReadBuffer(
      accepted,
      // Of a connection that is ending nothing lands in anybody's buffer any more.
      () => (this.#closed ? staging : this.#parser.space()),
      (count, buffer) => {
        if (buffer === staging) this.#received(staging.subarray(0, count), true);
        else this.#landed(count);
      },
      staging,
    );
  }

  /** Another PDU is begun now. */
  #takesMore(): boolean {
    if (this.#portion.isSpent) return false;
    const takesMore =
      this.#session?.takesMore() ?? this.#writer.queuedBytes <= this.#limits.loginOutputBytesMax;
    if (takesMore) this.#portion.take();
    return takesMore;
  }

  #landed(count: number): void {
    if (this.#closed) return;
    this.#lookOut.seen();
    this.#receivedBytes += count;
    this.#session?.landed(count);
    this.#guard(() => this.#parser.landedInPlace(count));
  }

  /** `borrowed`: the bytes are in the staging buffer, and others land there next. */
  #received(bytes: Buffer, borrowed: boolean): void {
    if (this.#closed) return;
    this.#lookOut.seen();
    this.#receivedBytes += bytes.length;
    if (this.#rest.length > 0) {
      // A paused stream may still have had a chunk in hand.
      this.#setRest(Buffer.concat([this.#rest, bytes]));
      return;
    }
    let at = bytes.length;
    this.#pumping = true;
    this.#guard(() => {
      at = this.#parser.push(bytes);
    });
    this.#pumping = false;
    if (at === bytes.length) return;
    const rest = bytes.subarray(at);
    this.#setRest(borrowed ? Buffer.from(rest) : rest);
    this.#setPaused(true);
  }

  /** What waited may go on. */
  #roomAgain(): void {
    if (this.#closed) return;
    this.#session?.pump();
    if (this.#pumping || this.#rest.length === 0) return;
    this.#pumping = true;
    this.#guard(() => {
      const rest = this.#rest;
      const at = this.#parser.push(rest);
      if (at > 0) this.#setRest(rest.subarray(at));
    });
    this.#pumping = false;
    if (!this.#closed) this.#setPaused(this.#rest.length > 0);
  }

  #setRest(rest: Buffer): void {
    this.#account.release(this.#rest.length);
    this.#rest = rest.length === 0 ? NOTHING : rest;
    this.#account.charge(this.#rest.length);
  }

  #setPaused(paused: boolean): void {
    if (this.#closed || paused === this.#paused) return;
    this.#paused = paused;
    if (paused) stopReading(this.#socket);
    else startReading(this.#socket);
  }

  /** What the peer owes us. In a login its deadline is enough. */
  #debt(): Debt {
    const session = this.#session;
    if (session === null || this.#closed) return 'nothing';
    const output = this.#writer.queuedBytes > 0;
    const input = !this.#paused && (session.collects || !this.#parser.atBoundary);
    if (input) return output ? 'both' : 'input';
    return output ? 'output' : 'nothing';
  }

  #movedBytes(direction: 'input' | 'output'): number {
    if (direction === 'output') return this.#writer.writtenBytes;
    const session = this.#session;
    return session?.collects === true ? session.dataOutBytes : this.#receivedBytes;
  }

  #loginPdu(header: Buffer, data: Uint8Array): void {
    if (this.#closed) return;
    if (opcodeOf(header) !== OPCODE.loginRequest) {
      throw protocolError('first PDU is not a login request', { opcode: nameOf(OPCODE, opcodeOf(header)) });
    }
    if (this.#busy) throw protocolError('login request before the last one was answered');
    this.#busy = true;
    this.#host.loginAdvances();
    this.#loginStep(decodeLoginRequest(header), data);
  }

  #guard(work: () => void): void {
    if (this.#closed) return;
    try {
      work();
    } catch (error) {
      this.#logger.warn({ error: messageOf(error) }, 'iSCSI: connection dropped');
      this.destroy();
    }
  }

  #loginStep(request: LoginRequestPdu, data: Uint8Array): void {
    this.#statSn ??= request.expStatSn;
    const step = this.#login.step(request, data);
    if (step.next === 'refused') {
      this.#refuse(request, step);
      return;
    }
    if (step.next === 'continue') {
      this.#respond(request, step, 0);
      this.#busy = false;
      return;
    }
    void this.#begin(request, step);
  }

  async #begin(request: LoginRequestPdu, step: LoginStep): Promise<void> {
    const outcome = step.outcome!;
    // The session's first status number comes after the one of the last login response.
    const wiring: SessionWiring = {
      writer: this.#writer,
      logger: this.#logger.child({ initiator: outcome.names.initiatorName }),
      expCmdSn: request.cmdSn,
      statSn: serialAdd(this.#statSn!, 1),
      account: this.#account,
      isReading: () => !this.#paused,
      onEnd: (reason) => this.end(reason),
      connection: this,
    };
    const begun = await this.#host.begin(outcome, wiring);
    if ('refuse' in begun) {
      if (!this.#closed) {
        this.#refuse(request, {
          ...step,
          response: { ...step.response, transit: false, status: begun.refuse },
        });
      }
      return;
    }
    this.#session = begun.session;
    if (this.#closed) {
      await begun.session.close();
      return;
    }
    this.#respond(request, step, begun.tsih);
    this.#cancelDeadline();
    // The response itself still goes without digests: they begin with the full feature phase.
    this.#writer.flush();
    const { headerDigest, dataDigest } = outcome.parameters;
    this.#writer.headerDigest = headerDigest;
    this.#writer.dataDigest = dataDigest;
    this.#parser.headerDigest = headerDigest;
    this.#parser.dataDigest = dataDigest;
    this.#parser.dataSegmentBytesMax = this.#limits.dataSegmentBytesMax;
    this.#busy = false;
    this.#host.loginSucceeded(this.address);
    this.#logger.info(
      { initiator: outcome.names.initiatorName, target: outcome.names.targetName, ...outcome.parameters },
      'iSCSI: session begins',
    );
  }

  #refuse(request: LoginRequestPdu, step: LoginStep): void {
    const { status } = step.response;
    // Only refusals that a guesser would get count against the address.
    const guessed =
      status === LOGIN_STATUS.authenticationFailure ||
      status === LOGIN_STATUS.authorizationFailure ||
      status === LOGIN_STATUS.notFound;
    const delayMs = guessed ? this.#host.loginFailed(this.address) : 0;
    this.#logger.warn(
      {
        initiator: this.#login.names?.initiatorName ?? null,
        target: this.#login.names?.targetName ?? null,
        status: nameOf(LOGIN_STATUS, status),
        reason: step.reason,
      },
      'iSCSI: login refused',
    );
    const tell = (): void => {
      if (this.#closed) return;
      this.#respond(request, { ...step, data: Buffer.alloc(0) }, 0);
      this.end('login refused');
    };
    if (delayMs === 0) tell();
    else this.#clock.timer(delayMs, tell);
  }

  #respond(request: LoginRequestPdu, step: LoginStep, tsih: number): void {
    const statSn = this.#statSn!;
    this.#statSn = serialAdd(statSn, 1);
    encodeLoginResponse(this.#writer.begin(), {
      ...step.response,
      tsih: step.next === 'done' && step.response.transit ? tsih : step.response.tsih,
      statSn,
      expCmdSn: request.cmdSn,
      maxCmdSn: serialAdd(request.cmdSn, this.#limits.queueDepth - 1),
    });
    this.#writer.end(step.data);
  }
}
