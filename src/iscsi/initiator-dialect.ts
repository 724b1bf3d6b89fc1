import { Socket } from 'node:net';
import { type ConnectionOptions, type TLSSocket, connect as tlsConnect } from 'node:tls';
import { BufferPool } from '../base/buffer-pool.ts';
import { ChunkWriter } from '../base/chunk-writer.ts';
import { GodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import { socketSink } from '../base/socket-sink.ts';
import type { Ask, Dialect, Failure, Link, Piece, SessionHost, Zeroing } from '../remote/dialect.ts';
import type { RemoteOptions } from '../remote/remote-disk.ts';
import { RemoteRequest, type RequestParts } from '../remote/request.ts';
import type { TlsIdentity } from '../sys/tls-identity.ts';
import {
  type Answer,
  busyError,
  commandError,
  isIllegalRequest,
  isRecovered,
  judge,
  outcomeOf,
} from './command-outcome.ts';
import { protocolError } from './errors.ts';
import { InitiatorSession, type InitiatorTask, type ScsiCommand } from './initiator-session.ts';
import {
  IDENTITY_QUESTIONS,
  identityOf,
  lbaStatusBuffer,
  lbaStatusPieces,
  type Question,
  SCSI,
  UNIT_QUESTIONS,
  type Unit,
  type UnitIdentity,
  unitOf,
  zeroesUnmapped,
} from './initiator-unit.ts';
import type { ChapCredentials, InitiatorLoginOptions } from './login-initiator.ts';
import { PduWriter } from './pdu-writer.ts';
import { describeSense, SENSE_KEY, STATUS } from './scsi/sense.ts';

/**
 * Where a target is. With `tls` both sides show a certificate before the login begins; the target's must name
 * `host`.
 */
export type Portal = { host: string; port: number; tls?: TlsIdentity };

export type InitiatorOptions = RemoteOptions & {
  /** Tried in turn. */
  portals: readonly Portal[];
  targetIqn: string;
  initiatorIqn: string;
  chap?: ChapCredentials | null;
  /** Default 0. */
  lun?: number;
  /** What the unit must be; anything else is `ISCSI_TARGET_CHANGED`. */
  expected?: { lengthBytes: number; blockBytes?: number; serial?: string; designators?: string };
  /**
   * CRC32C on headers and data. TCP's own checksum is weak; on a path with TLS or on loopback they only cost.
   * Default false.
   */
  digests?: boolean;
  /** Largest single READ or WRITE; longer ones are split. Default 1 MiB. */
  transferBytesMax?: number;
  /** From dialling to a checked unit. Default 10 s. */
  loginTimeoutMs?: number;
  /** Silence after which the target is pinged. Default 3 s. */
  keepAliveIntervalMs?: number;
  /** Silence after a ping after which the connection is given up. Default 5 s. */
  keepAliveTimeoutMs?: number;
};

/** With every default filled in. */
export type IscsiDialectOptions = Required<Omit<InitiatorOptions, OfTheDisk | 'chap' | 'expected'>> & {
  chap: ChapCredentials | null;
  expected: InitiatorOptions['expected'] | null;
};
type OfTheDisk = Exclude<keyof RemoteOptions, 'clock' | 'random' | 'logger'> | 'loginTimeoutMs';

type Host = SessionHost<Unit, ScsiCommand>;

const DATA_SEGMENT_BYTES = 1024 * 1024;
const BURST_BYTES = 1024 * 1024;
const TEXT_BYTES_MAX = 64 * 1024;
const SLABS_KEPT_BYTES = 4 * 1024 * 1024;
const BLOCK_BYTES_UNKNOWN = 512;
/** What every target takes, until this one has said what it takes. */
const TRANSFER_BYTES_UNKNOWN = 64 * 1024;
/** A question before the unit is known is asked so often. */
const ATTEMPTS_MAX = 16;
const RETRY_MS = 100;

/** How a logical unit of an iSCSI target is reached: docs/iscsi.md. */
export class IscsiDialect implements Dialect<Unit, ScsiCommand> {
  readonly name = 'iSCSI';
  readonly codes = { lost: 'ISCSI_CONNECTION_LOST', changed: 'ISCSI_TARGET_CHANGED' };
  readonly reads = SCSI.read;
  readonly writes = SCSI.write;
  readonly #options: IscsiDialectOptions;
  readonly #pool = new BufferPool(SLABS_KEPT_BYTES);
  /**
   * RFC 7143 section 10.1.2.1: type 10b, random, qualifier 0. Kept for life, so that a new login replaces the
   * old session.
   */
  readonly #isid: Buffer;

  constructor(options: IscsiDialectOptions) {
    this.#options = options;
    this.#isid = Buffer.concat([Buffer.from([0x80]), Buffer.from(options.random.bytes(3)), Buffer.alloc(2)]);
  }

  get placeCount(): number {
    return this.#options.portals.length;
  }

  place(index: number): { host: string; port: number } {
    const { host, port } = this.#options.portals[index]!;
    return { host, port };
  }

  sessionsMax(): number {
    return 1;
  }

  // --- what the unit takes

  /** WRITE (16) has FUA; not every target that takes it keeps it, so a flush follows instead. */
  durableWrites(): null {
    return null;
  }

  flushes(): ScsiCommand {
    return SCSI.synchronizeCache;
  }

  /**
   * By WRITE SAME with UNMAP and not by the UNMAP command: only with the former must the range read as zeros
   * afterwards, whatever the target thinks of its alignment.
   */
  zeroes(unit: Unit, mayPunch: boolean): Zeroing<ScsiCommand> {
    return {
      command: mayPunch && unit.unmapsByWriteSame ? SCSI.writeSameUnmap : SCSI.writeSame,
      stepBytes: unit.writeSameBytesMax,
      payload: new Uint8Array(unit.blockBytes),
    };
  }

  isUnsupported(error: unknown): boolean {
    return isIllegalRequest(error);
  }

  writable(unit: Unit | null): boolean {
    return unit?.writeProtected !== true;
  }

  transferBytesMax(unit: Unit | null): number {
    return unit?.transferBytesMax ?? Math.min(this.#options.transferBytesMax, TRANSFER_BYTES_UNKNOWN);
  }

  /** By GET LBA STATUS. All data where the target cannot tell, or where its holes do not read as zeros. */
  async pieces(
    ask: Ask<ScsiCommand>,
    unit: Unit,
    offsetBytes: number,
    lengthBytes: number,
    limit: number,
  ): Promise<Piece[]> {
    const everything: Piece[] = [{ lengthBytes, kind: 'data' }];
    if (!unit.zeroesUnmapped) return everything;
    const buffer = lbaStatusBuffer(limit);
    try {
      const { movedBytes } = await ask({ command: SCSI.getLbaStatus, offsetBytes, lengthBytes: 0, buffer });
      const pieces = lbaStatusPieces(buffer, movedBytes, offsetBytes, unit.blockBytes);
      return pieces.length === 0 ? everything : pieces;
    } catch (error) {
      if (isIllegalRequest(error)) return everything;
      throw error;
    }
  }

  // --- which unit it is

  async look(ask: Ask<ScsiCommand>, known: () => Unit): Promise<void> {
    const answers = await Promise.all(
      IDENTITY_QUESTIONS.map(async ({ command, bytes }) => {
        const buffer = Buffer.alloc(bytes);
        try {
          const { movedBytes } = await ask({ command, offsetBytes: 0, lengthBytes: 0, buffer });
          return buffer.subarray(0, movedBytes);
        } catch (error) {
          if (isIllegalRequest(error)) return null;
          throw error;
        }
      }),
    );
    const changed = this.changed(identityOf(answers), known());
    if (changed !== null) throw changed;
    // What was taken for zeros since the last look may be anything.
    if (known().zeroesUnmapped && !zeroesUnmapped(answers[0]!)) {
      throw new GodwitError(
        'ISCSI_TARGET_CHANGED',
        'The iSCSI target says no longer that its holes are zeros',
        {
          values: { missing: 'LBPRZ' },
          retry: 'never',
          nextAction: 'Find out what was done to the provisioning of the unit, and connect again.',
        },
      );
    }
  }

  takes(unit: Unit, { command, lengthBytes }: RequestParts<ScsiCommand>): boolean {
    switch (command) {
      case SCSI.read:
      case SCSI.write:
        return lengthBytes <= unit.transferBytesMax;
      case SCSI.writeSame:
        return lengthBytes <= unit.writeSameBytesMax;
      case SCSI.writeSameUnmap:
        return lengthBytes <= unit.writeSameBytesMax && unit.unmapsByWriteSame;
      case SCSI.getLbaStatus:
        return unit.zeroesUnmapped;
      default:
        return true;
    }
  }

  changed(seen: UnitIdentity, known: UnitIdentity | null): GodwitError | null {
    const { expected } = this.#options;
    const blockBytes = expected ? (expected.blockBytes ?? BLOCK_BYTES_UNKNOWN) : seen.blockBytes;
    const wanted: UnitIdentity = known ?? { ...seen, ...expected, blockBytes };
    const keys = ['lengthBytes', 'blockBytes', 'serial', 'designators'] as const;
    if (keys.every((key) => seen[key] === wanted[key])) return null;
    return new GodwitError('ISCSI_TARGET_CHANGED', 'The iSCSI target is not the unit that was expected', {
      values: {
        expectedLengthBytes: wanted.lengthBytes,
        lengthBytes: seen.lengthBytes,
        expectedBlockBytes: wanted.blockBytes,
        blockBytes: seen.blockBytes,
        expectedSerial: wanted.serial,
        serial: seen.serial,
        expectedDesignators: wanted.designators,
        designators: seen.designators,
      },
      retry: 'never',
      nextAction:
        'Nothing is read from it. Find out what is served under this name now, and connect again to the right one.',
    });
  }

  // --- connections

  dial(place: number, host: Host): Link {
    const portal = this.#options.portals[place]!;
    const writer = new PduWriter(new ChunkWriter((chunks, done) => sink.send(chunks, done), this.#pool));
    let isLeaving = false;
    /** Questions of the probe, which are nobody else's. */
    const probes = new Map<InitiatorTask, (answer: Answer) => void>();
    const session = new InitiatorSession({
      writer,
      login: this.#login(),
      lun: this.#options.lun,
      dataSegmentBytesMax: DATA_SEGMENT_BYTES,
      keepAliveIntervalMs: this.#options.keepAliveIntervalMs,
      keepAliveTimeoutMs: this.#options.keepAliveTimeoutMs * host.patience,
      clock: this.#options.clock,
      logger: this.#options.logger,
      onReady: () => void this.#probe(session, probes, host),
      onRoom: () => host.room(),
      onAnswered: (task, status, sense, residualBytes) => {
        const answer = { status, sense, residualBytes };
        const probe = probes.get(task);
        if (probe === undefined) host.answered(task, this.#outcome(session, task, answer));
        else probe(answer);
      },
      onSent: (task) => host.sent(task),
      onOver: (error) => {
        host.over(error);
        if (isLeaving) socket.destroy();
      },
    });
    const socket = dialPortal(portal, session);
    const sink = socketSink(socket);
    return {
      destroy: () => {
        socket.destroy();
        session.fail(protocolError('the connection is over'));
        writer.close();
      },
      leave: () =>
        new Promise((resolve) => {
          if (socket.destroyed) resolve();
          else {
            isLeaving = true;
            socket.once('close', () => resolve());
            session.logout();
          }
        }),
    };
  }

  #login(): InitiatorLoginOptions {
    const { initiatorIqn, targetIqn, chap, random, digests } = this.#options;
    return {
      initiatorName: initiatorIqn,
      targetName: targetIqn,
      chap,
      isid: this.#isid,
      random,
      textBytesMax: TEXT_BYTES_MAX,
      proposal: {
        HeaderDigest: digests ? 'CRC32C,None' : 'None',
        DataDigest: digests ? 'CRC32C,None' : 'None',
        MaxConnections: '1',
        InitialR2T: 'Yes',
        ImmediateData: 'Yes',
        MaxRecvDataSegmentLength: String(DATA_SEGMENT_BYTES),
        MaxBurstLength: String(BURST_BYTES),
        FirstBurstLength: String(64 * 1024),
        DefaultTime2Wait: '0',
        DefaultTime2Retain: '0',
        MaxOutstandingR2T: '1',
        DataPDUInOrder: 'Yes',
        DataSequenceInOrder: 'Yes',
        ErrorRecoveryLevel: '0',
      },
    };
  }

  #outcome(session: InitiatorSession, task: InitiatorTask, answer: Answer): Failure | null {
    if (isRecovered(answer)) {
      const sense = describeSense(answer.sense!);
      this.#options.logger.warn({ sense }, 'iSCSI: the target recovered an error');
    }
    return outcomeOf(task, answer, session.blockBytes);
  }

  /**
   * Asks for everything that tells the unit. A reconnection waits for it, so the questions go side by side.
   */
  async #probe(
    session: InitiatorSession,
    probes: Map<InitiatorTask, (answer: Answer) => void>,
    host: Host,
  ): Promise<void> {
    const answers: (Buffer | null)[] = UNIT_QUESTIONS.map(() => null);
    let next = 0;
    const lane = async (): Promise<void> => {
      while (next < UNIT_QUESTIONS.length) {
        const index = next;
        next += 1;
        answers[index] = await this.#question(session, probes, UNIT_QUESTIONS[index]!, 0);
      }
    };
    try {
      // As many at once as the target's window takes.
      const lanes = Math.max(1, Math.min(session.room, UNIT_QUESTIONS.length));
      await Promise.all(Array.from({ length: lanes }, lane));
      const unit = unitOf(answers, this.#options.transferBytesMax);
      session.blockBytes = unit.blockBytes;
      host.ready(session, unit);
    } catch (error) {
      session.fail(this.typed(error));
    }
  }

  /**
   * The answer, or null where the target does not support the question. Unit attentions of a new session are
   * passed over.
   */
  #question(
    session: InitiatorSession,
    probes: Map<InitiatorTask, (answer: Answer) => void>,
    { command, bytes }: Question,
    attempt: number,
  ): Promise<Buffer | null> {
    return new Promise((resolve, reject) => {
      if (!session.hasRoom) {
        reject(protocolError('the command window is too small'));
        return;
      }
      const buffer = Buffer.alloc(bytes);
      const task: InitiatorTask = new RemoteRequest(command, 0, 0, buffer, 0, () => {}, reject);
      probes.set(task, ({ status, sense }) => {
        probes.delete(task);
        if (status === STATUS.good) resolve(buffer.subarray(0, task.movedBytes));
        else if (sense?.key === SENSE_KEY.illegalRequest) resolve(null);
        else if (attempt < ATTEMPTS_MAX) {
          this.#options.clock.timer(judge(status, sense) === 'wait' ? RETRY_MS : 0, () => {
            this.#question(session, probes, { command, bytes }, attempt + 1).then(resolve, reject);
          });
        } else if (judge(status, sense) === 'wait') reject(busyError(task, status, sense));
        else reject(protocolError('target does not answer about itself', { status }));
      });
      session.send(task);
    });
  }

  // --- errors

  unreachable(): GodwitError {
    return new GodwitError('ISCSI_CONNECTION_LOST', 'The iSCSI target was not reached in time', {
      values: { targetIqn: this.#options.targetIqn },
      nextAction: 'Check the address, and that the target is up.',
    });
  }

  timedOut(place: number, timeoutMs: number): GodwitError {
    return new GodwitError('ISCSI_LOGIN_TIMEOUT', 'The iSCSI target did not complete the login in time', {
      values: { ...this.place(place), timeoutMs },
      retry: 'later',
      nextAction: 'Check the network and the host of the target; the login is tried again.',
    });
  }

  poisoned(task: InitiatorTask, { blockBytes }: Unit): GodwitError {
    const message = 'The iSCSI target ends the connection whenever it gets this command';
    return commandError(task, blockBytes, message, { connections: task.losses });
  }

  typed(error: unknown): GodwitError {
    return error instanceof GodwitError ? error : internalError(error);
  }
}

/** Bytes land where the session wants them: a payload in the caller's buffer, with no copy in between. */
function dialPortal(portal: Portal, session: InitiatorSession): Socket {
  const onread = {
    buffer: () => session.space(),
    callback: (count: number) => {
      session.landed(count);
      return true;
    },
  };
  const { host, port, tls } = portal;
  // Node's types leave out that TLS sockets take `onread` too.
  const secure = { host, port, onread, ...tls?.clientOptions() } as ConnectionOptions;
  const socket = tls === undefined ? new Socket({ onread }) : tlsConnect(secure);
  const lost = (error: Error | null): void => session.fail(lostError(portal, socket, session, error));
  socket.once(tls === undefined ? 'connect' : 'secureConnect', () => session.start());
  socket.on('error', lost);
  socket.once('end', () => lost(null));
  socket.once('close', () => lost(null));
  socket.setNoDelay(true);
  if (tls === undefined) socket.connect({ host, port });
  return socket;
}

/** Why a socket ended. A handshake that failed for its certificates does not get better by trying again. */
function lostError(
  portal: Portal,
  socket: Socket | TLSSocket,
  session: InitiatorSession,
  error: Error | null,
): GodwitError {
  const { host, port } = portal;
  const systemCode = systemErrorCode(error) ?? null;
  if (portal.tls !== undefined && !session.hasHeard) {
    // OpenSSL's errors come from no system call. A target that does not take our certificate ends the
    // connection after the handshake.
    const refused = error !== null && !('syscall' in error);
    const dropped = (socket as TLSSocket).authorized && (error === null || systemCode === 'ECONNRESET');
    if (refused || dropped) {
      const why = refused ? messageOf(error) : 'it ended the connection after the handshake';
      return new GodwitError('ISCSI_TLS_REFUSED', `No TLS connection to the iSCSI target: ${why}`, {
        values: { host, port, reason: systemCode, certFile: portal.tls.files.certFile },
        retry: 'never',
        nextAction:
          'Both certificates must be signed by the CA that the other side has, be valid today, and name the address.',
        cause: error,
      });
    }
  }
  return new GodwitError(
    'ISCSI_CONNECTION_LOST',
    `The connection to the iSCSI target is lost: ${error?.message ?? 'closed'}`,
    {
      values: { host, port, systemCode },
      nextAction:
        'It is made anew by itself; check the network and the host of the target if that takes long.',
      cause: error,
    },
  );
}

function internalError(error: unknown): GodwitError {
  return new GodwitError('ISCSI_INTERNAL', `iSCSI: ${messageOf(error)}`, {
    nextAction: 'This is unexpected; report it with the log.',
    cause: error,
  });
}
