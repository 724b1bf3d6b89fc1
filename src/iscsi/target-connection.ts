import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import type { BufferPool } from '../base/buffer-pool.ts';
import { ChunkWriter } from '../base/chunk-writer.ts';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { LookOut } from '../base/look-out.ts';
import type { Random } from '../base/random.ts';
import { withReadBuffer } from '../base/read-buffer.ts';
import { socketSink } from '../base/socket-sink.ts';
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
   * Makes the session that a successful login asked for; a predecessor of the same name and ISID is gone when this resolves. A number is
   * the login status to refuse with.
   */
  begin: (
    outcome: LoginOutcome,
    wiring: SessionWiring,
  ) => Promise<{ session: TargetSession; tsih: number } | { refuse: number }>;
  /** Milliseconds to wait before a login from this address is looked at. */
  loginDelayMs: (address: string) => number;
  loginFailed: (address: string) => void;
  loginSucceeded: (address: string) => void;
  onClose: (connection: TargetConnection) => void;
};

export type SessionWiring = {
  writer: PduWriter;
  logger: Logger;
  expCmdSn: number;
  statSn: number;
  onEnd: (reason: string) => void;
  connection: TargetConnection;
};

/** How long a peer may take to read our last words and close. */
const LINGER_MS = 2_000;

/**
 * One TCP connection to the target: login first, then the PDUs go to its session. Whatever goes wrong on it ends it, and only it.
 */
export class TargetConnection {
  readonly address: string;
  readonly #socket: Socket;
  readonly #host: ConnectionHost;
  readonly #limits: TargetLimits;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #writer: PduWriter;
  readonly #parser: PduParser;
  readonly #lookOut: LookOut;
  readonly #login: TargetLogin;
  #session: TargetSession | null = null;
  #statSn: number | null = null;
  #cancelDeadline: () => void;
  /** A request is being worked on; the initiator has to wait for the response before it sends another. */
  #busy = false;
  #delayed = false;
  #closed = false;
  #gone: Promise<void> | null = null;

  constructor(options: {
    socket: Socket;
    host: ConnectionHost;
    limits: TargetLimits;
    pool: BufferPool;
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
      },
      { dataSegmentBytesMax: limits.dataSegmentBytesMax, staging: options.staging },
    );
    const { socket, address } = this.#adopt(options.socket, options.staging);
    this.#socket = socket;
    this.#host = options.host;
    this.#limits = limits;
    this.#clock = options.clock;
    this.address = address;
    this.#logger = options.logger.child({ peer: `${this.address}:${socket.remotePort ?? 0}` });
    this.#writer = new PduWriter(new ChunkWriter(socketSink(socket), options.pool));
    this.#login = new TargetLogin({
      admit: options.host.admit,
      random: options.random,
      textBytesMax: limits.textBytesMax,
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

  get session(): TargetSession | null {
    return this.#session;
  }

  /** Closes once what is queued has been sent, or after a short while. */
  end(reason: string): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#logger.info({ reason }, 'iSCSI: connection ends');
    this.#cancelDeadline();
    this.#writer.finish();
    // Nothing that comes from now on is looked at.
    this.#socket.end();
    const cancel = this.#clock.timer(LINGER_MS, () => this.#socket.destroy());
    this.#socket.once('close', cancel);
  }

  destroy(): void {
    this.#closed = true;
    this.#cancelDeadline();
    this.#socket.destroy();
  }

  /** Drops the connection; resolves when its session has no device call under way any more. */
  gone(): Promise<void> {
    this.#gone ??= (async () => {
      this.destroy();
      this.#writer.close();
      await this.#session?.close();
      this.#host.onClose(this);
    })();
    return this.#gone;
  }

  /** Bytes land where the parser wants them: a payload in the buffer that is written from. TLS decrypts into buffers of its own. */
  #adopt(accepted: Socket, staging: Buffer): { socket: Socket; address: string } {
    // Asked for before the handle moves.
    const address = accepted.remoteAddress ?? 'unknown';
    if (accepted instanceof TLSSocket) {
      accepted.on('data', (bytes: Buffer) => this.#received(() => this.#parser.push(bytes)));
      return { socket: accepted, address };
    }
    const socket = withReadBuffer(
      accepted,
      () => this.#parser.space(),
      (count) => this.#received(() => this.#parser.landed(count)),
      staging,
    );
    return { socket, address };
  }

  #received(parse: () => void): void {
    this.#lookOut.seen();
    this.#guard(parse);
  }

  #loginPdu(header: Buffer, data: Uint8Array): void {
    if (this.#closed) return;
    if (opcodeOf(header) !== OPCODE.loginRequest) {
      throw protocolError('first PDU is not a login request', { opcode: nameOf(OPCODE, opcodeOf(header)) });
    }
    if (this.#busy) throw protocolError('login request before the last one was answered');
    this.#busy = true;
    const request = decodeLoginRequest(header);
    const delayMs = this.#delayed ? 0 : this.#host.loginDelayMs(this.address);
    this.#delayed = true;
    if (delayMs === 0) this.#loginStep(request, data);
    else this.#clock.timer(delayMs, () => this.#guard(() => this.#loginStep(request, data)));
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
    if (
      status === LOGIN_STATUS.authenticationFailure ||
      status === LOGIN_STATUS.authorizationFailure ||
      status === LOGIN_STATUS.notFound
    ) {
      this.#host.loginFailed(this.address);
    }
    this.#logger.warn(
      {
        initiator: this.#login.names?.initiatorName ?? null,
        target: this.#login.names?.targetName ?? null,
        status: nameOf(LOGIN_STATUS, status),
        reason: step.reason,
      },
      'iSCSI: login refused',
    );
    this.#respond(request, { ...step, data: Buffer.alloc(0) }, 0);
    this.end('login refused');
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
