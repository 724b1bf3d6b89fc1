import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Session } from '../remote/dialect.ts';
import type { RemoteCommand, RemoteRequest } from '../remote/request.ts';
import {
  ASYNC_EVENT,
  LOGOUT_REASON,
  nameOf,
  OPCODE,
  REJECT_REASON,
  RESERVED_TAG,
  RESPONSE,
} from './constants.ts';
import { protocolError } from './errors.ts';
import { InitiatorLogin, type InitiatorLoginOptions, type LoginSend } from './login-initiator.ts';
import type { SessionParameters } from './negotiation.ts';
import {
  decodeAsyncMessage,
  decodeDataIn,
  decodeLoginResponse,
  decodeNopIn,
  decodeReadyToTransfer,
  decodeReject,
  decodeScsiResponse,
  encodeDataOut,
  encodeLoginRequest,
  encodeLogoutRequest,
  encodeNopOut,
  encodeScsiCommand,
  initiatorTaskTagOf,
  opcodeOf,
} from './pdu.ts';
import { PduParser, type PduSink } from './pdu-parser.ts';
import type { PduWriter } from './pdu-writer.ts';
import { decodeSense, type Sense } from './scsi/sense.ts';
import { serialAdd, serialDistance } from './serial-number.ts';

/**
 * One session of the initiator on one connection, without I/O: bytes go in through `parser`, PDUs out through
 * the writer. It is made for one connection and ends with it; whoever owns it makes the next one and sends
 * again what was not answered.
 *
 *   login ─ready─→ full feature ─(logout)─→ over       any state ─(error, silence)─→ over
 */

/** What a target is asked to do. */
export type ScsiCommand = RemoteCommand & {
  /** OPERATION, for errors. */
  readonly operation: number;
  readonly direction: 'in' | 'out' | 'none';
  /** The target answers with as much as it likes, up to the size of the buffer. */
  readonly answers: boolean;
  /** Fills a CDB of 16 zeros. */
  encode(cdb: Buffer, lba: number, blocks: number, bufferBytes: number): void;
};

export type InitiatorTask = RemoteRequest<ScsiCommand>;

export type InitiatorSessionOptions = {
  writer: PduWriter;
  login: InitiatorLoginOptions;
  lun: number;
  /** Our MaxRecvDataSegmentLength. */
  dataSegmentBytesMax: number;
  /** A silent connection is pinged after this … */
  keepAliveIntervalMs: number;
  /** … and given up when it stays silent for so long after. */
  keepAliveTimeoutMs: number;
  clock: Clock;
  logger: Logger;
  /** Login is done; commands may be sent. */
  onReady: () => void;
  /** There may be room in the command window. */
  onRoom: () => void;
  /**
   * `sense` is there with status CHECK CONDITION only. `residualBytes`: more (positive) or less (negative)
   * than expected, as the target counts.
   */
  onAnswered: (task: InitiatorTask, status: number, sense: Sense | null, residualBytes: number) => void;
  /** The kernel has taken a payload. */
  onSent: (task: InitiatorTask) => void;
  /** The session is over. Called once. */
  onOver: (error: GodwitError) => void;
};

/** Commands on the wire at the very most, whatever window the target opens. */
const WINDOW_MAX = 1024;
const PINGS_QUEUED_MAX = 4096;
const SCRATCH_BYTES = 64 * 1024;

export class InitiatorSession implements PduSink, Session<ScsiCommand> {
  readonly parser: PduParser;
  readonly #options: InitiatorSessionOptions;
  readonly #writer: PduWriter;
  readonly #login: InitiatorLogin;
  #parameters: SessionParameters | null = null;
  #over = false;
  #scratch: Buffer | null = null;
  #cmdSn = 1;
  #maxCmdSn = 1;
  #expStatSn = 0;
  #nextTag = 1;
  /** In the order of sending. */
  readonly #tasks = new Map<number, InitiatorTask>();
  #logoutTag: number | null = null;
  /** Of the unit, as soon as it is known: logical block addresses are counted in it. */
  blockBytes = 512;
  #heard = false;
  #heardEver = false;
  /** Pings of the target that were answered since nothing was queued for it. */
  #pingsQueued = 0;
  #pinged = false;
  #cancelTimer: () => void = () => {};

  constructor(options: InitiatorSessionOptions) {
    this.#options = options;
    this.#writer = options.writer;
    this.#login = new InitiatorLogin(options.login);
    this.parser = new PduParser(this, { dataSegmentBytesMax: options.dataSegmentBytesMax });
  }

  /** The connection is there: sends the first login request. */
  start(): void {
    this.#sendLogin(this.#login.start());
  }

  /** The target has sent something. */
  get hasHeard(): boolean {
    return this.#heardEver;
  }

  /** How many more commands the target takes now. */
  get room(): number {
    if (this.#parameters === null || this.#over || this.#logoutTag !== null) return 0;
    const window = serialDistance(this.#maxCmdSn, this.#cmdSn) + 1;
    return Math.max(0, Math.min(window, WINDOW_MAX - this.#tasks.size));
  }

  get hasRoom(): boolean {
    return this.room > 0;
  }

  /** Only when `hasRoom`. `onAnswered` follows unless the session ends before. */
  send(task: InitiatorTask): void {
    assert(this.hasRoom, 'the command window is open');
    const parameters = this.#parameters!;
    const tag = this.#takeTag();
    this.#tasks.set(tag, task);
    const { command, buffer } = task;
    const out = command.direction === 'out';
    const immediateBytes =
      out && parameters.immediateData
        ? Math.min(buffer.length, parameters.firstBurstBytes, parameters.peerDataSegmentBytes)
        : 0;
    if (out) task.movedBytes = immediateBytes;
    const header = this.#writer.begin();
    encodeScsiCommand(header, {
      immediate: false,
      // Beyond the immediate data nothing goes unasked: the target says when with an R2T.
      final: true,
      reads: command.direction === 'in',
      writes: out,
      lun: this.#options.lun,
      initiatorTaskTag: tag,
      expectedBytes: buffer.length,
      cmdSn: this.#cmdSn,
      expStatSn: this.#expStatSn,
    });
    const { blockBytes } = this;
    command.encode(
      header.subarray(32),
      task.offsetBytes / blockBytes,
      task.lengthBytes / blockBytes,
      buffer.length,
    );
    this.#cmdSn = serialAdd(this.#cmdSn, 1);
    if (immediateBytes === 0) this.#writer.end();
    else this.#payload(task, 0, immediateBytes);
  }

  /** Asks the target to end the session; `onOver` follows. */
  logout(): void {
    if (this.#over || this.#parameters === null || this.#logoutTag !== null) return;
    this.#logoutTag = this.#takeTag();
    encodeLogoutRequest(this.#writer.begin(), {
      immediate: true,
      reason: LOGOUT_REASON.closeSession,
      initiatorTaskTag: this.#logoutTag,
      cid: 0,
      cmdSn: this.#cmdSn,
      expStatSn: this.#expStatSn,
    });
    this.#writer.end();
  }

  /** Ends the session from our side. */
  fail(error: GodwitError): void {
    if (this.#over) return;
    this.#over = true;
    this.#cancelTimer();
    this.#options.onOver(error);
  }

  /**
   * Where the next bytes should land. Of a session that is over nothing lands in a caller's buffer any more.
   */
  space(): Uint8Array {
    if (!this.#over) return this.parser.space();
    this.#scratch ??= Buffer.allocUnsafeSlow(SCRATCH_BYTES);
    return this.#scratch;
  }

  /** Bytes have landed in `space()`. */
  landed(count: number): void {
    if (this.#over) return;
    this.#heard = true;
    this.#heardEver = true;
    try {
      this.parser.landed(count);
    } catch (error) {
      this.fail(error instanceof GodwitError ? error : protocolError(String(error)));
    }
  }

  // --- PduSink
  // -------------------------------------------------------------------------------------------------------

  destination(header: Buffer, lengthBytes: number): Uint8Array | null {
    if (opcodeOf(header) !== OPCODE.dataIn) return null;
    const task = this.#tasks.get(initiatorTaskTagOf(header));
    const start = header.readUInt32BE(40);
    if (task === undefined || task.command.direction !== 'in')
      throw protocolError('data for a command that reads nothing');
    if (start !== task.movedBytes) {
      throw protocolError('data out of order', { offset: start, expected: task.movedBytes });
    }
    if (start + lengthBytes > task.buffer.length) {
      throw protocolError('more data than asked for', {
        offset: start,
        lengthBytes,
        expected: task.buffer.length,
      });
    }
    return task.buffer.subarray(start, start + lengthBytes);
  }

  pdu(header: Buffer, _ahs: Buffer, data: Uint8Array): void {
    if (this.#over) return;
    const opcode = opcodeOf(header);
    if (this.#parameters === null) {
      if (opcode !== OPCODE.loginResponse) {
        throw protocolError('first PDU is not a login response', { opcode: nameOf(OPCODE, opcode) });
      }
      this.#loginResponse(header, data);
      return;
    }
    switch (opcode) {
      case OPCODE.dataIn:
        this.#dataIn(header, data);
        break;
      case OPCODE.scsiResponse:
        this.#scsiResponse(header, data);
        break;
      case OPCODE.readyToTransfer:
        this.#readyToTransfer(header);
        break;
      case OPCODE.nopIn:
        this.#nopIn(header);
        break;
      case OPCODE.asyncMessage:
        this.#asyncMessage(header);
        break;
      case OPCODE.logoutResponse:
        if (initiatorTaskTagOf(header) !== this.#logoutTag)
          throw protocolError('logout response without a request');
        this.fail(overError('logged out'));
        return;
      case OPCODE.reject:
        throw protocolError('target rejected a PDU', {
          reason: nameOf(REJECT_REASON, decodeReject(header).reason),
        });
      default:
        throw protocolError('unexpected PDU', { opcode: nameOf(OPCODE, opcode) });
    }
    if (!this.#over && this.hasRoom) this.#options.onRoom();
  }

  // --- login
  // ---------------------------------------------------------------------------------------------------------

  #sendLogin(send: LoginSend): void {
    encodeLoginRequest(this.#writer.begin(), {
      ...send.request,
      initiatorTaskTag: 0,
      cmdSn: this.#cmdSn,
      expStatSn: this.#expStatSn,
    });
    this.#writer.end(send.data);
  }

  #loginResponse(header: Buffer, data: Uint8Array): void {
    const response = decodeLoginResponse(header);
    this.#expStatSn = serialAdd(response.statSn, 1);
    const step = this.#login.step(response, data);
    if ('send' in step) {
      this.#sendLogin(step.send);
      return;
    }
    const { parameters } = step.done;
    this.#parameters = parameters;
    this.#cmdSn = response.expCmdSn;
    this.#maxCmdSn = response.maxCmdSn;
    this.#writer.headerDigest = parameters.headerDigest;
    this.#writer.dataDigest = parameters.dataDigest;
    this.parser.headerDigest = parameters.headerDigest;
    this.parser.dataDigest = parameters.dataDigest;
    this.#armTimer(this.#options.keepAliveIntervalMs);
    this.#options.onReady();
  }

  // --- full feature phase
  // --------------------------------------------------------------------------------------------

  #dataIn(header: Buffer, data: Uint8Array): void {
    const pdu = decodeDataIn(header);
    const task = this.#tasks.get(pdu.initiatorTaskTag);
    // With data the parser has asked `destination` already; a PDU without any has not come by there.
    if (task === undefined || task.command.direction !== 'in') {
      throw protocolError('data for a command that reads nothing');
    }
    task.movedBytes += data.length;
    this.#window(pdu.expCmdSn, pdu.maxCmdSn);
    if (!pdu.hasStatus) return;
    this.#status(pdu.statSn);
    this.#answered(pdu.initiatorTaskTag, task, pdu.status, null, pdu.residualBytes);
  }

  #scsiResponse(header: Buffer, data: Uint8Array): void {
    const pdu = decodeScsiResponse(header);
    const task = this.#tasks.get(pdu.initiatorTaskTag);
    if (task === undefined) throw protocolError('response to an unknown command');
    this.#window(pdu.expCmdSn, pdu.maxCmdSn);
    this.#status(pdu.statSn);
    if (pdu.response !== RESPONSE.commandCompleted) {
      throw protocolError('command was not completed by the target', { response: pdu.response });
    }
    const senseBytes = data.length >= 2 ? (data[0]! << 8) | data[1]! : 0;
    const sense = senseBytes === 0 ? null : decodeSense(data.subarray(2, 2 + senseBytes));
    this.#answered(pdu.initiatorTaskTag, task, pdu.status, sense, pdu.residualBytes);
  }

  #answered(
    tag: number,
    task: InitiatorTask,
    status: number,
    sense: Sense | null,
    residualBytes: number,
  ): void {
    this.#tasks.delete(tag);
    this.#options.onAnswered(task, status, sense, residualBytes);
  }

  #payload(task: InitiatorTask, from: number, to: number): void {
    task.unsentParts += 1;
    this.#writer.end(task.buffer.subarray(from, to), () => this.#options.onSent(task));
  }

  #readyToTransfer(header: Buffer): void {
    const pdu = decodeReadyToTransfer(header);
    const parameters = this.#parameters!;
    this.#window(pdu.expCmdSn, pdu.maxCmdSn);
    const task = this.#tasks.get(pdu.initiatorTaskTag);
    if (task === undefined || task.command.direction !== 'out')
      throw protocolError('R2T for a command that writes nothing');
    const end = pdu.bufferOffset + pdu.desiredBytes;
    // DataSequenceInOrder, and no recovery of lost data at level 0: so a target cannot make us queue the same
    // bytes again and again.
    if (pdu.bufferOffset !== task.movedBytes) {
      throw protocolError('R2T out of order', { offset: pdu.bufferOffset, expected: task.movedBytes });
    }
    if (pdu.desiredBytes === 0 || pdu.desiredBytes > parameters.maxBurstBytes || end > task.buffer.length) {
      throw protocolError('R2T outside the data', {
        offset: pdu.bufferOffset,
        desiredBytes: pdu.desiredBytes,
      });
    }
    task.movedBytes = end;
    let offset = pdu.bufferOffset;
    for (let dataSn = 0; offset < end; dataSn += 1) {
      const next = Math.min(offset + parameters.peerDataSegmentBytes, end);
      encodeDataOut(this.#writer.begin(), {
        final: next === end,
        lun: this.#options.lun,
        initiatorTaskTag: pdu.initiatorTaskTag,
        targetTransferTag: pdu.targetTransferTag,
        expStatSn: this.#expStatSn,
        dataSn,
        bufferOffset: offset,
      });
      this.#payload(task, offset, next);
      offset = next;
    }
  }

  #nopIn(header: Buffer): void {
    const pdu = decodeNopIn(header);
    this.#window(pdu.expCmdSn, pdu.maxCmdSn);
    if (pdu.initiatorTaskTag !== RESERVED_TAG) this.#status(pdu.statSn);
    if (pdu.targetTransferTag === RESERVED_TAG) return;
    // A target that pings and does not take the answers would fill our memory with them.
    if (this.#writer.queuedBytes === 0) this.#pingsQueued = 0;
    this.#pingsQueued += 1;
    if (this.#pingsQueued > PINGS_QUEUED_MAX) throw protocolError('more pings than answers are taken');
    this.#nopOut(RESERVED_TAG, pdu.targetTransferTag);
  }

  #nopOut(initiatorTaskTag: number, targetTransferTag: number): void {
    encodeNopOut(this.#writer.begin(), {
      immediate: true,
      initiatorTaskTag,
      targetTransferTag,
      cmdSn: this.#cmdSn,
      expStatSn: this.#expStatSn,
    });
    this.#writer.end();
  }

  #asyncMessage(header: Buffer): void {
    const pdu = decodeAsyncMessage(header);
    this.#window(pdu.expCmdSn, pdu.maxCmdSn);
    this.#status(pdu.statSn);
    this.#options.logger.info({ event: nameOf(ASYNC_EVENT, pdu.event) }, 'iSCSI: message from the target');
    switch (pdu.event) {
      case ASYNC_EVENT.logoutRequested:
        this.logout();
        return;
      case ASYNC_EVENT.connectionDropped:
      case ASYNC_EVENT.sessionDropped:
        this.fail(overError('the target ended the session'));
        return;
      case ASYNC_EVENT.tasksTerminated:
        // Some commands will never be answered; a new session replays them all.
        this.fail(overError('the target terminated commands'));
        return;
      default:
    }
  }

  // --- numbers and liveness
  // ------------------------------------------------------------------------------------------

  /** RFC 7143 section 4.2.2.1: the window never shrinks; a MaxCmdSN below ExpCmdSN - 1 is ignored. */
  #window(expCmdSn: number, maxCmdSn: number): void {
    if (serialDistance(maxCmdSn, expCmdSn) < -1) return;
    if (serialDistance(maxCmdSn, this.#maxCmdSn) > 0) this.#maxCmdSn = maxCmdSn;
  }

  #status(statSn: number): void {
    this.#expStatSn = serialAdd(statSn, 1);
  }

  #takeTag(): number {
    let tag = this.#nextTag;
    while (this.#tasks.has(tag)) tag = tag >= 0x7fffffff ? 1 : tag + 1;
    this.#nextTag = tag >= 0x7fffffff ? 1 : tag + 1;
    return tag;
  }

  /**
   * Silence for an interval is answered with a ping, silence after the ping ends the session. Any byte counts
   * as life. Counting in rounds instead of comparing times keeps a process that was itself asleep from
   * blaming its peer.
   */
  #armTimer(delayMs: number): void {
    this.#cancelTimer = this.#options.clock.timer(delayMs, () => {
      if (this.#over) return;
      if (this.#heard) {
        this.#heard = false;
        this.#pinged = false;
        this.#armTimer(this.#options.keepAliveIntervalMs);
        return;
      }
      if (this.#pinged) {
        this.fail(
          new GodwitError('ISCSI_SILENT', 'The iSCSI target does not answer', {
            values: { waitedMs: this.#options.keepAliveTimeoutMs, inFlight: this.#tasks.size },
            retry: 'later',
            nextAction: 'The connection is made anew; check the network and the host of the target.',
          }),
        );
        return;
      }
      this.#pinged = true;
      this.#nopOut(this.#takeTag(), RESERVED_TAG);
      this.#armTimer(this.#options.keepAliveTimeoutMs);
    });
  }
}

function overError(message: string): GodwitError {
  return new GodwitError('ISCSI_SESSION_OVER', `iSCSI: ${message}`, {
    nextAction: 'The initiator logs in again by itself, as long as its grant is good.',
  });
}
