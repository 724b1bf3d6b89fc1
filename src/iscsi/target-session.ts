import { assert } from '../base/assert.ts';
import { type BufferLease, BufferPool } from '../base/buffer-pool.ts';
import { type ClientAccount, OBJECT_BYTES } from '../base/client-account.ts';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import {
  ASYNC_EVENT,
  LOGOUT_REASON,
  LOGOUT_RESPONSE,
  nameOf,
  OPCODE,
  REJECT_REASON,
  RESERVED_TAG,
  RESPONSE,
  TASK_FUNCTION,
  TASK_RESPONSE,
} from './constants.ts';
import { protocolError } from './errors.ts';
import type { TargetLimits } from './limits.ts';
import type { SessionParameters } from './negotiation.ts';
import {
  decodeDataOut,
  decodeLogoutRequest,
  decodeNopOut,
  decodeScsiCommand,
  decodeTaskManagementRequest,
  decodeTextRequest,
  encodeAsyncMessage,
  encodeDataIn,
  encodeLogoutResponse,
  encodeNopIn,
  encodeReadyToTransfer,
  encodeReject,
  encodeScsiResponse,
  encodeTaskManagementResponse,
  encodeTextResponse,
  initiatorTaskTagOf,
  opcodeOf,
  type ScsiCommandPdu,
  type TargetCounters,
} from './pdu.ts';
import type { PduSink } from './pdu-parser.ts';
import { INLINE_BYTES_MAX, type PduWriter } from './pdu-writer.ts';
import { type Command, decodeCommand } from './scsi/command.ts';
import { type LogicalUnit, Nexus, planForNoUnit } from './scsi/logical-unit.ts';
import { answer, DONE, deviceFailed, type Plan, type Result, refuse } from './scsi/plan.ts';
import { encodeSense, type Sense, STATUS } from './scsi/sense.ts';
import { serialAdd, serialDistance } from './serial-number.ts';
import { formatTextKeys, parseTextKeys, type TextPair } from './text-keys.ts';

/**
 * The full feature phase of one session at the target (RFC 7143 sections 4 and 11): PDUs in, PDUs out through
 * the writer. One connection a session, error recovery level 0.
 *
 *   command arrives ─ plan ─┬─ answer or sense ──────────────────────────────────────────────→ response
 *                           ├─ read:   [held in standby] ─ [waits for output room] ─ running ─→ Data-In + status
 *                           ├─ write:  collecting (data, then R2Ts) ─ [held] ─ running ─→ response
 *                           └─ other:  [held] ─ running ──────────────────────────────────────→ response
 *
 * All is held in standby, and what may change something while a session that this one replaced still does.
 *
 * A task is in `#tasks` from arrival to response; an aborted one leaves without a response, once its device
 * call has settled.
 *
 * The buffer of a transfer is the task's, who holds its lease, from the R2T to the end of the device call, or
 * from the device call to the last byte on the socket. A task that ends while the parser is in the middle of
 * a payload for it leaves the buffer to `#landing`, and that gives it back when the payload is over or the
 * connection is gone: nobody else's data may be where its rest will land.
 */
type Task = {
  readonly initiatorTaskTag: number;
  readonly lun: number;
  readonly immediate: boolean;
  readonly expectedBytes: number;
  plan: Plan;
  state: 'collecting' | 'swallowing' | 'held' | 'waiting' | 'running';
  aborted: boolean;
  /** More (positive) or less (negative) than the initiator expected to move. */
  residualBytes: number;
  /** Bytes that move: the smaller of what the command says and what the initiator expects. */
  transferBytes: number;
  // Writes only.
  buffer: Buffer;
  lease: BufferLease | null;
  /** The peer has data to send for it: announced, or asked for. */
  owed: boolean;
  /** What the task makes us hold, as the account of the peer counts it. */
  chargedBytes: number;
  receivedBytes: number;
  /** Number of the next Data-Out in its sequence: from 0 for unsolicited data and for each R2T. */
  dataSn: number;
  r2tSn: number;
  r2t: { tag: number; endBytes: number } | null;
  /** Told when an aborted task is gone. */
  waiters: (() => void)[];
};

export type SendTargetsAnswer = (which: string) => TextPair[];

export type TargetSessionOptions = {
  writer: PduWriter;
  pool: BufferPool;
  account: ClientAccount;
  parameters: SessionParameters;
  /** null: a discovery session, which has no logical unit. */
  unit: { lun: number; unit: LogicalUnit } | null;
  /** SCSI name of the initiator port, as in scsi/reservations.ts. */
  port: string;
  sendTargets: SendTargetsAnswer;
  /** The next command's number and the next status number, as login left them. */
  expCmdSn: number;
  statSn: number;
  cid: number;
  limits: TargetLimits;
  clock: Clock;
  logger: Logger;
  /** Closes the connection after what is queued has been sent. */
  onEnd: (reason: string) => void;
  /** False while we do not read from the peer: its silence is ours then. */
  isReading: () => boolean;
  /**
   * Resolves when the sessions that this one replaces change nothing any more. What this one changes waits
   * for it, so that no old write lands on a new one. null: they do not.
   */
  follows: Promise<unknown> | null;
};

const NOTHING = Buffer.alloc(0);

export class TargetSession implements PduSink {
  readonly #writer: PduWriter;
  readonly #pool: BufferPool;
  readonly #account: ClientAccount;
  readonly #parameters: SessionParameters;
  readonly #unit: LogicalUnit | null;
  readonly #nexus: Nexus;
  readonly #lun: number;
  readonly #options: TargetSessionOptions;
  readonly #limits: TargetLimits;
  readonly #segmentBytes: number;

  #expCmdSn: number;
  #statSn: number;
  readonly #tasks = new Map<number, Task>();
  #immediateTasks = 0;
  /**
   * Task management functions that are not answered yet: they wait for device calls, and the device may hang.
   */
  #immediateFunctions = 0;
  #queuedFunctions = 0;
  /** Tasks that wait for `open`, or for the end of what sessions before this one change. */
  #held: Task[] = [];
  #follows: boolean;
  /** Reads that wait until the peer has taken what is queued. */
  #waitingReads: Task[] = [];
  /** Writes that wait for a buffer. */
  #waitingWrites: Task[] = [];
  #readBytesRunning = 0;
  /**
   * Where the parser puts the payload that it is in the middle of. `orphan`: its task is gone meanwhile, and
   * the buffer is ours to give back.
   */
  #landing: { lease: BufferLease; orphanBytes: number | null } | null = null;
  #collecting = 0;
  #dataOutBytes = 0;
  #writeBytesHeld = 0;
  #nextTransferTag = 1;
  #text: { parts: Buffer[]; bytes: number } = { parts: [], bytes: 0 };
  #textAnswer: { tag: number; rest: Buffer } | null = null;
  readonly #changesEnded = Promise.withResolvers<void>();
  #mayChange = true;
  #ended = false;
  #logoutStarted = false;
  #lastReceivedMs: number;
  #lastCommandMs: number;
  #writtenBytes = 0;
  #nopSentMs: number | null = null;
  #cancelTimer: (() => void) | null = null;
  /** Payload bytes sent for reads. */
  bytesServed = 0;

  constructor(options: TargetSessionOptions) {
    this.#options = options;
    this.#writer = options.writer;
    this.#pool = options.pool;
    this.#account = options.account;
    this.#parameters = options.parameters;
    this.#unit = options.unit?.unit ?? null;
    this.#lun = options.unit?.lun ?? -1;
    this.#nexus = new Nexus({
      port: options.port,
      abortTasks: () => this.#abortAll(),
      end: (reason) => this.#end(reason),
    });
    this.#unit?.join(this.#nexus);
    this.#limits = options.limits;
    this.#expCmdSn = options.expCmdSn;
    this.#statSn = options.statSn;
    this.#segmentBytes = Math.min(options.parameters.peerDataSegmentBytes, options.parameters.maxBurstBytes);
    this.#lastReceivedMs = options.clock.monotonicMs();
    this.#lastCommandMs = this.#lastReceivedMs;
    this.#follows = options.follows !== null;
    void options.follows?.then(() => {
      this.#follows = false;
      this.open();
    });
    this.#armTimer();
  }

  /** Reads that have no response yet. */
  get readCount(): number {
    let count = 0;
    for (const { plan } of this.#tasks.values()) if (plan.kind === 'read') count += 1;
    return count;
  }

  /** The peer has data to send that we asked for, or that it announced. */
  get collects(): boolean {
    return this.#collecting > 0;
  }

  /** Bytes of such data that came, since the beginning. */
  get dataOutBytes(): number {
    return this.#dataOutBytes;
  }

  /** When the last command came, on the monotonic clock; null: some are under way. */
  get idleSinceMs(): number | null {
    return this.#tasks.size === 0 ? this.#lastCommandMs : null;
  }

  // --- PduSink
  // -------------------------------------------------------------------------------------------------------

  /**
   * What is queued for the peer has a bound; so has what it holds, but data that it owes us is always taken:
   * it fills what is held already.
   */
  takesMore(): boolean {
    if (this.#writer.queuedBytes > this.#limits.outputBytesMax + this.#limits.transferBytesMax) return false;
    return this.collects || !this.#account.full;
  }

  destination(header: Buffer, lengthBytes: number): Uint8Array | null {
    if (opcodeOf(header) !== OPCODE.dataOut) return null;
    const pdu = decodeDataOut(header);
    const task = this.#tasks.get(pdu.initiatorTaskTag);
    if (task === undefined || task.state !== 'collecting') return null;
    const start = pdu.bufferOffset;
    if (start !== task.receivedBytes || start + lengthBytes > task.buffer.length) return null;
    if (task.lease !== null) this.#landing = { lease: task.lease, orphanBytes: null };
    return task.buffer.subarray(start, start + lengthBytes);
  }

  /** `count` bytes of a payload landed in place. */
  landed(count: number): void {
    if (this.#landing !== null) this.#dataOutBytes += count;
  }

  /** Throws `ISCSI_PROTOCOL` when the peer breaks the rules; the connection is to be dropped then. */
  pdu(header: Buffer, ahs: Buffer, data: Uint8Array): void {
    this.#landingEnds();
    if (this.#ended) return;
    this.#lastReceivedMs = this.#options.clock.monotonicMs();
    this.#nopSentMs = null;
    const opcode = opcodeOf(header);
    switch (opcode) {
      case OPCODE.scsiCommand:
        this.#scsiCommand(header, ahs, data);
        return;
      case OPCODE.dataOut:
        this.#dataOut(header, data);
        return;
      case OPCODE.nopOut:
        this.#nopOut(header, data);
        return;
      case OPCODE.taskManagementRequest:
        this.#taskManagement(header);
        return;
      case OPCODE.textRequest:
        this.#textRequest(header, data);
        return;
      case OPCODE.logoutRequest:
        this.#logout(header);
        return;
      case OPCODE.snackRequest:
        this.#reject(header, REJECT_REASON.snackReject);
        return;
      case OPCODE.loginRequest:
        throw protocolError('login request in the full feature phase');
      default:
        this.#options.logger.warn({ opcode: nameOf(OPCODE, opcode) }, 'iSCSI: unknown opcode');
        this.#reject(header, REJECT_REASON.commandNotSupported);
    }
  }

  // --- from the outside
  // ----------------------------------------------------------------------------------------------

  /** The unit has left standby, or a session before this one has ended: what was held for it runs. */
  open(): void {
    const held = this.#held;
    this.#held = [];
    for (const task of held) this.#start(task);
  }

  /** There may be room in the writer, or in the account. */
  pump(): void {
    this.#pumpWrites();
    this.#pumpReads();
  }

  /** The socket is closed: nothing lands any more. After `close`. */
  disconnected(): void {
    this.#landingEnds();
  }

  /** Tells the initiator that the session is over, and closes it. */
  drop(reason: string): void {
    if (this.#ended) return;
    encodeAsyncMessage(this.#writer.begin(), {
      event: ASYNC_EVENT.sessionDropped,
      parameter1: 0,
      parameter2: 0,
      parameter3: 0,
      ...this.#countersWithStatus(),
    });
    this.#writer.end();
    this.#end(reason);
  }

  /**
   * After `close`: no device call of this session that may change something is under way any more, so a
   * successor cannot be overtaken by an old write. Reads may be.
   */
  get changesEnded(): Promise<void> {
    return this.#changesEnded.promise;
  }

  /** Not yet. */
  get mayChange(): boolean {
    return this.#mayChange;
  }

  /** The connection is gone. Resolves when no device call of this session is under way any more. */
  async close(): Promise<void> {
    this.#ended = true;
    this.#cancelTimer?.();
    this.#waitingWrites = [];
    const tasks = [...this.#tasks.values()];
    const isRead = ({ plan }: Task): boolean => plan.kind === 'read';
    const reads = Promise.all(tasks.filter(isRead).map((task) => this.#abort(task)));
    await Promise.all(tasks.filter((task) => !isRead(task)).map((task) => this.#abort(task)));
    // Not before: what it held by RESERVE(6) is free for others when none of its writes is under way.
    this.#unit?.leave(this.#nexus);
    this.#mayChange = false;
    this.#changesEnded.resolve();
    await reads;
  }

  // --- SCSI commands
  // -------------------------------------------------------------------------------------------------

  #scsiCommand(header: Buffer, ahs: Buffer, data: Uint8Array): void {
    const pdu = decodeScsiCommand(header);
    if (!this.#takeCmdSn(pdu.cmdSn, pdu.immediate)) return;
    if (this.#unit === null) {
      this.#reject(header, REJECT_REASON.commandNotSupported);
      return;
    }
    if (this.#tasks.has(pdu.initiatorTaskTag)) {
      this.#reject(header, REJECT_REASON.taskInProgress);
      return;
    }
    if (pdu.immediate && this.#immediateTasks >= this.#limits.immediateMax) {
      this.#reject(header, REJECT_REASON.immediateCommandReject);
      return;
    }
    if (data.length > 0 && (!pdu.writes || !this.#parameters.immediateData)) {
      throw protocolError('immediate data that was not agreed on');
    }
    if (data.length > Math.min(this.#parameters.firstBurstBytes, pdu.expectedBytes)) {
      throw protocolError('immediate data exceeds the first burst', { dataBytes: data.length });
    }
    if (!pdu.final && (!pdu.writes || this.#parameters.initialR2t)) {
      throw protocolError('unsolicited data that was not agreed on');
    }
    this.#lastCommandMs = this.#lastReceivedMs;
    const task: Task = {
      initiatorTaskTag: pdu.initiatorTaskTag,
      lun: pdu.lun,
      immediate: pdu.immediate,
      expectedBytes: pdu.expectedBytes,
      plan: DONE,
      state: 'running',
      aborted: false,
      residualBytes: 0,
      transferBytes: 0,
      buffer: NOTHING,
      lease: null,
      owed: false,
      chargedBytes: OBJECT_BYTES,
      receivedBytes: 0,
      dataSn: 0,
      r2tSn: 0,
      r2t: null,
      waiters: [],
    };
    this.#tasks.set(task.initiatorTaskTag, task);
    this.#account.charge(OBJECT_BYTES);
    if (pdu.immediate) this.#immediateTasks += 1;
    // An additional header is an extended CDB or a bidirectional read length; neither kind of command is
    // supported.
    task.plan = ahs.length > 0 ? refuse('invalidOpcode') : this.#plan(pdu.lun, header.subarray(32, 48));
    const sentBytes = pdu.final ? data.length : Math.min(pdu.expectedBytes, this.#parameters.firstBurstBytes);
    if (sentBytes > 0 && !this.#charge(task, sentBytes)) {
      task.plan = { kind: 'status', status: STATUS.taskSetFull };
    }
    this.#begin(task, pdu, data);
  }

  /** Counts what a task makes us hold. False: not now. */
  #charge(task: Task, bytes: number): boolean {
    if (!this.#account.take(bytes)) return false;
    task.chargedBytes += bytes;
    return true;
  }

  #plan(lun: number, cdb: Buffer): Plan {
    const command = decodeCommand(cdb);
    if (command.kind === 'report-luns') return this.#reportLuns(command);
    if (lun !== this.#lun) return planForNoUnit(command);
    return this.#unit!.plan(command, this.#nexus);
  }

  /** 0-3 list length, 8- one LUN of 8 bytes each. Well-known units (select 1): none. SPC-4 section 6.33. */
  #reportLuns(command: Command & { kind: 'report-luns' }): Plan {
    if (command.select > 2 || command.allocationBytes < 16) return refuse('invalidFieldInCdb');
    const bytes = Buffer.alloc(command.select === 1 ? 8 : 16);
    if (command.select !== 1) {
      bytes.writeUInt32BE(8, 0);
      bytes[this.#lun < 256 ? 9 : 8] = this.#lun;
    }
    return answer(bytes, command.allocationBytes);
  }

  /** Decides what moves, and what has to arrive before the task can start. */
  #begin(task: Task, pdu: ScsiCommandPdu, data: Uint8Array): void {
    const plan = task.plan;
    if (plan.kind === 'write' || plan.kind === 'take') {
      const offered = pdu.writes ? pdu.expectedBytes : 0;
      task.residualBytes = plan.lengthBytes - pdu.expectedBytes;
      task.transferBytes = Math.min(plan.lengthBytes, offered);
      if (data.length >= task.transferBytes && pdu.final) {
        task.buffer = asBuffer(data).subarray(0, task.transferBytes);
        task.receivedBytes = task.transferBytes;
        this.#start(task);
        return;
      }
      task.state = 'collecting';
      if (pdu.final) {
        task.buffer = asBuffer(data);
        task.receivedBytes = data.length;
        this.#solicit(task);
        return;
      }
      // More unsolicited data follows, at most the first burst.
      this.#owed(task, true);
      task.buffer = Buffer.allocUnsafe(Math.min(pdu.expectedBytes, this.#parameters.firstBurstBytes));
      task.buffer.set(data);
      task.receivedBytes = data.length;
      return;
    }
    if (!pdu.final) {
      // Refused already, but the data is on its way.
      task.state = 'swallowing';
      this.#owed(task, true);
      return;
    }
    if (plan.kind === 'read') {
      task.residualBytes = plan.lengthBytes - pdu.expectedBytes;
      task.transferBytes = pdu.reads ? Math.min(plan.lengthBytes, pdu.expectedBytes) : 0;
    }
    this.#start(task);
  }

  #start(task: Task): void {
    const plan = task.plan;
    const mayChange = plan.kind === 'write' || ((plan.kind === 'run' || plan.kind === 'take') && plan.medium);
    const touchesMedium = plan.kind === 'read' || mayChange;
    if ((touchesMedium && this.#unit!.standby) || (mayChange && this.#follows)) {
      task.state = 'held';
      this.#held.push(task);
      return;
    }
    switch (plan.kind) {
      case 'answer':
      case 'sense':
      case 'status':
        this.#sendResult(task, plan);
        return;
      case 'read':
        if (this.#outputIsFull() || this.#waitingReads.length > 0 || !this.#read(task, plan.offsetBytes)) {
          task.state = 'waiting';
          this.#waitingReads.push(task);
        }
        return;
      case 'write':
        this.#write(task, plan);
        return;
      case 'run':
        this.#run(task, plan.run());
        return;
      case 'take':
        if (task.transferBytes < plan.lengthBytes) this.#sendResult(task, refuse('parameterListLength'));
        else if (task.residualBytes < 0) this.#sendResult(task, refuse('invalidFieldInCdb'));
        else this.#run(task, plan.run(task.buffer));
        return;
    }
  }

  #run(task: Task, work: Promise<Result>): void {
    task.state = 'running';
    void work
      .catch((error): Result => deviceFailed(error, 'write'))
      .then((result) => this.#settled(task, result));
  }

  #settled(task: Task, result: Result): void {
    if (task.aborted || this.#ended) {
      this.#remove(task);
      return;
    }
    if (result.kind === 'sense' && result.cause !== undefined) {
      this.#options.logger.error({ error: messageOf(result.cause) }, 'iSCSI: command failed');
    }
    this.#sendResult(task, result);
  }

  // --- reads
  // ---------------------------------------------------------------------------------------------------------

  #outputIsFull(): boolean {
    return this.#writer.queuedBytes + this.#readBytesRunning > this.#limits.outputBytesMax;
  }

  #pumpReads(): void {
    while (this.#waitingReads.length > 0 && !this.#outputIsFull() && !this.#ended) {
      const task = this.#waitingReads[0]!;
      assert(task.plan.kind === 'read', 'only reads wait for output');
      if (!this.#read(task, task.plan.offsetBytes)) return;
      this.#waitingReads.shift();
    }
  }

  /** False: there is no room for it in the account now. */
  #read(task: Task, offsetBytes: number): boolean {
    const { device, blockBytes } = this.#unit!;
    const bytes = task.transferBytes;
    if (bytes === 0) {
      this.#sendStatus(task, STATUS.good);
      return true;
    }
    if (this.#readInline(task, offsetBytes)) return true;
    // The initiator may expect less than whole blocks; the device gives whole ones.
    const readBytes = Math.ceil(bytes / blockBytes) * blockBytes;
    const heldBytes = BufferPool.sizeOf(readBytes);
    if (!this.#account.take(heldBytes)) return false;
    task.state = 'running';
    const lease = this.#pool.lease(readBytes);
    const into = lease.bytes.subarray(0, readBytes);
    const release = (): void => {
      lease.release();
      this.#account.release(heldBytes);
    };
    try {
      if (device.readNow?.(offsetBytes, into) === true) {
        this.#sendRead(task, into, release);
        return true;
      }
    } catch (error) {
      release();
      this.#readFailed(task, error);
      return true;
    }
    this.#readBytesRunning += readBytes;
    device.read(offsetBytes, into).then(
      () => {
        this.#readBytesRunning -= readBytes;
        if (task.aborted || this.#ended) {
          release();
          this.#remove(task);
        } else {
          this.#sendRead(task, into, release);
        }
        this.#pumpReads();
      },
      (error) => {
        this.#readBytesRunning -= readBytes;
        release();
        if (task.aborted || this.#ended) this.#remove(task);
        else this.#readFailed(task, error);
        this.#pumpReads();
      },
    );
    return true;
  }

  /**
   * The read of what is at hand: header and data side by side in the slab, done at once. False: not possible.
   */
  #readInline(task: Task, offsetBytes: number): boolean {
    const { device, blockBytes } = this.#unit!;
    const bytes = task.transferBytes;
    if (
      bytes > INLINE_BYTES_MAX ||
      bytes > this.#segmentBytes ||
      bytes % blockBytes !== 0 ||
      device.readNow === undefined
    ) {
      return false;
    }
    const header = this.#writer.begin();
    let done: boolean;
    try {
      done = device.readNow(offsetBytes, this.#writer.inline(bytes));
    } catch (error) {
      this.#writer.cancel();
      this.#readFailed(task, error);
      return true;
    }
    if (!done) {
      this.#writer.cancel();
      return false;
    }
    this.#remove(task);
    this.#encodeDataIn(header, task, 0, 0, true, true);
    this.#writer.end();
    this.bytesServed += bytes;
    return true;
  }

  #readFailed(task: Task, error: unknown): void {
    this.#options.logger.error({ error: messageOf(error) }, 'iSCSI: read failed');
    this.#sendResult(task, deviceFailed(error, 'read'));
  }

  /**
   * Sends a read as Data-In PDUs of at most the peer's segment size, in bursts; the last one carries the
   * status.
   */
  #sendRead(task: Task, data: Buffer, release: () => void): void {
    const bytes = task.transferBytes;
    const burstBytes = this.#parameters.maxBurstBytes;
    this.#remove(task);
    let dataSn = 0;
    let offset = 0;
    while (offset < bytes) {
      const burstEnd = Math.min(bytes, Math.floor(offset / burstBytes) * burstBytes + burstBytes);
      const end = Math.min(offset + this.#segmentBytes, burstEnd);
      const last = end === bytes;
      this.#encodeDataIn(this.#writer.begin(), task, dataSn, offset, end === burstEnd, last);
      this.#writer.end(data.subarray(offset, end), last ? release : undefined);
      dataSn += 1;
      offset = end;
    }
    this.bytesServed += bytes;
  }

  #encodeDataIn(
    header: Buffer,
    task: Task,
    dataSn: number,
    bufferOffset: number,
    final: boolean,
    last: boolean,
  ): void {
    const counters = last ? this.#countersWithStatus() : this.#counters();
    encodeDataIn(header, {
      final,
      hasStatus: last,
      status: STATUS.good,
      initiatorTaskTag: task.initiatorTaskTag,
      dataSn,
      bufferOffset,
      residualBytes: task.residualBytes,
      statSn: counters.statSn,
      expCmdSn: counters.expCmdSn,
      maxCmdSn: counters.maxCmdSn,
    });
  }

  // --- writes
  // --------------------------------------------------------------------------------------------------------

  /** Asks for the next burst of a write, when there is a buffer for it. */
  #solicit(task: Task): void {
    if (task.lease === null && (this.#waitingWrites.length > 0 || !this.#hasBuffer(task))) {
      this.#waitingWrites.push(task);
      return;
    }
    this.#sendReadyToTransfer(task);
  }

  #pumpWrites(): void {
    while (this.#waitingWrites.length > 0 && !this.#ended && this.#hasBuffer(this.#waitingWrites[0]!)) {
      this.#sendReadyToTransfer(this.#waitingWrites.shift()!);
    }
  }

  /** The buffer for all that the write transfers. False: there is no room for it now. */
  #hasBuffer(task: Task): boolean {
    const bytes = BufferPool.sizeOf(task.transferBytes);
    if (this.#writeBytesHeld > 0 && this.#writeBytesHeld + bytes > this.#limits.writeBytesMax) return false;
    if (!this.#charge(task, bytes)) return false;
    task.lease = this.#pool.lease(task.transferBytes);
    this.#writeBytesHeld += bytes;
    this.#owed(task, true);
    const buffer = task.lease.bytes.subarray(0, task.transferBytes);
    buffer.set(task.buffer.subarray(0, task.receivedBytes));
    task.buffer = buffer;
    return true;
  }

  #sendReadyToTransfer(task: Task): void {
    const desiredBytes = Math.min(task.transferBytes - task.receivedBytes, this.#parameters.maxBurstBytes);
    const tag = this.#transferTag();
    task.r2t = { tag, endBytes: task.receivedBytes + desiredBytes };
    encodeReadyToTransfer(this.#writer.begin(), {
      lun: task.lun,
      initiatorTaskTag: task.initiatorTaskTag,
      targetTransferTag: tag,
      r2tSn: task.r2tSn,
      bufferOffset: task.receivedBytes,
      desiredBytes,
      ...this.#counters(),
    });
    this.#writer.end();
    task.r2tSn += 1;
    task.dataSn = 0;
  }

  #dataOut(header: Buffer, data: Uint8Array): void {
    const pdu = decodeDataOut(header);
    const task = this.#tasks.get(pdu.initiatorTaskTag);
    // Data for a task that was aborted or refused meanwhile.
    if (task === undefined) return;
    this.#dataOutBytes += data.length;
    if (task.state === 'swallowing') {
      if (pdu.final) this.#collected(task);
      return;
    }
    if (task.state !== 'collecting') throw protocolError('data for a command that takes none');
    if (pdu.bufferOffset !== task.receivedBytes) {
      throw protocolError('data out of order', { offset: pdu.bufferOffset, expected: task.receivedBytes });
    }
    if (pdu.dataSn !== task.dataSn) {
      // A data PDU is missing (RFC 7143 section 7.8). What is left of the sequence is swallowed, then the
      // command fails.
      task.plan = refuse('protocolServiceCrcError');
      task.state = 'swallowing';
      if (pdu.final) this.#collected(task);
      return;
    }
    task.dataSn += 1;
    const end = task.receivedBytes + data.length;
    if (pdu.targetTransferTag === RESERVED_TAG) {
      if (task.r2t !== null || end > task.buffer.length)
        throw protocolError('more unsolicited data than agreed on');
      this.#store(task, data);
      if (!pdu.final) return;
      task.transferBytes = Math.min(task.transferBytes, task.expectedBytes);
      if (task.receivedBytes >= task.transferBytes) {
        task.buffer = task.buffer.subarray(0, task.transferBytes);
        this.#collected(task);
      } else {
        this.#owed(task, false);
        this.#solicit(task);
      }
      return;
    }
    const r2t = task.r2t;
    if (r2t === null || r2t.tag !== pdu.targetTransferTag)
      throw protocolError('data with an unknown transfer tag');
    if (end > r2t.endBytes || (pdu.final && end !== r2t.endBytes)) {
      throw protocolError('data does not fit the transfer that was asked for');
    }
    this.#store(task, data);
    if (end < r2t.endBytes) return;
    task.r2t = null;
    if (task.receivedBytes < task.transferBytes) this.#sendReadyToTransfer(task);
    else this.#collected(task);
  }

  /** All that the peer owed for it has come. */
  #collected(task: Task): void {
    this.#owed(task, false);
    this.#start(task);
  }

  #owed(task: Task, owed: boolean): void {
    if (task.owed === owed) return;
    task.owed = owed;
    this.#collecting += owed ? 1 : -1;
  }

  /** The parser has put it in place already, unless the buffer was not known then. */
  #store(task: Task, data: Uint8Array): void {
    const inPlace =
      data.buffer === task.buffer.buffer && data.byteOffset === task.buffer.byteOffset + task.receivedBytes;
    if (!inPlace) task.buffer.set(data, task.receivedBytes);
    task.receivedBytes += data.length;
  }

  #write(task: Task, plan: Plan & { kind: 'write' }): void {
    const { medium, blockBytes } = this.#unit!;
    // An initiator that sends less than it asked to write gets the whole blocks written that came.
    const bytes = Math.floor(task.transferBytes / blockBytes) * blockBytes;
    const from = task.buffer.subarray(0, bytes);
    if (plan.after === 'nothing' && bytes > 0 && medium.writeNow(plan.offsetBytes, from)) {
      this.#sendStatus(task, STATUS.good);
      return;
    }
    this.#run(task, medium.write(plan.offsetBytes, from, plan.after));
  }

  // --- answers
  // -------------------------------------------------------------------------------------------------------

  #sendResult(task: Task, result: Result): void {
    if (result.kind === 'sense') {
      this.#sendStatus(task, STATUS.checkCondition, result.sense);
    } else if (result.kind === 'status') {
      this.#sendStatus(task, result.status);
    } else if (result.data.length === 0) {
      this.#sendStatus(task, STATUS.good);
    } else {
      task.residualBytes = result.data.length - task.expectedBytes;
      task.transferBytes = Math.min(result.data.length, task.expectedBytes);
      if (task.transferBytes === 0) {
        this.#sendStatus(task, STATUS.good);
        return;
      }
      const bytes = result.data.length;
      this.#account.charge(bytes);
      this.#sendRead(task, result.data, () => this.#account.release(bytes));
    }
  }

  #sendStatus(task: Task, status: number, sense: Sense | null = null): void {
    // Nothing moved in a command that failed or has no data.
    const failed = status !== STATUS.good && status !== STATUS.conditionMet;
    if (failed || task.transferBytes === 0) {
      const wanted = failed ? 0 : Math.max(0, task.residualBytes + task.expectedBytes);
      task.residualBytes = wanted - task.expectedBytes;
    }
    const dataSn = task.r2tSn;
    this.#remove(task);
    encodeScsiResponse(this.#writer.begin(), {
      initiatorTaskTag: task.initiatorTaskTag,
      response: RESPONSE.commandCompleted,
      status,
      residualBytes: task.residualBytes,
      expDataSn: dataSn,
      ...this.#countersWithStatus(),
    });
    if (sense === null) {
      this.#writer.end();
      return;
    }
    const bytes = encodeSense(sense, this.#unit?.senseFormat);
    const segment = Buffer.alloc(2 + bytes.length);
    segment.writeUInt16BE(bytes.length, 0);
    segment.set(bytes, 2);
    this.#writer.end(segment);
  }

  /** The task is over: its tag, its place in the window and its buffer are free again. */
  #remove(task: Task): void {
    if (!this.#tasks.delete(task.initiatorTaskTag)) return;
    if (task.immediate) this.#immediateTasks -= 1;
    this.#owed(task, false);
    const { lease } = task;
    if (lease !== null) {
      const bytes = lease.bytes.length;
      this.#writeBytesHeld -= bytes;
      task.lease = null;
      if (this.#landing?.lease === lease) {
        this.#landing.orphanBytes = bytes;
        task.chargedBytes -= bytes;
      } else {
        lease.release();
      }
    }
    task.buffer = NOTHING;
    this.#account.release(task.chargedBytes);
    if (lease !== null) this.#pumpWrites();
    for (const waiter of task.waiters) waiter();
  }

  /** The parser writes there no more. */
  #landingEnds(): void {
    const landing = this.#landing;
    this.#landing = null;
    if (landing === null || landing.orphanBytes === null) return;
    landing.lease.release();
    this.#account.release(landing.orphanBytes);
  }

  // --- numbers
  // -------------------------------------------------------------------------------------------------------

  /**
   * True: this is the next command. False: outside the window or a duplicate, to be ignored (RFC 7143 section
   * 4.2.2.1). A gap inside the window cannot happen on one connection.
   */
  #takeCmdSn(cmdSn: number, immediate: boolean): boolean {
    if (immediate) return true;
    const distance = serialDistance(cmdSn, this.#expCmdSn);
    if (distance === 0 && serialDistance(this.#maxCmdSn(), cmdSn) >= 0) {
      this.#expCmdSn = serialAdd(this.#expCmdSn, 1);
      return true;
    }
    if (distance > 0 && serialDistance(this.#maxCmdSn(), cmdSn) >= 0) {
      throw protocolError('command number skips some', { cmdSn, expected: this.#expCmdSn });
    }
    this.#options.logger.warn(
      { cmdSn, expected: this.#expCmdSn },
      'iSCSI: command outside the window is ignored',
    );
    return false;
  }

  #maxCmdSn(): number {
    const taken = this.#tasks.size - this.#immediateTasks + this.#queuedFunctions;
    const free = this.#limits.queueDepth - taken;
    return serialAdd(this.#expCmdSn, free - 1);
  }

  #counters(): TargetCounters {
    return { statSn: this.#statSn, expCmdSn: this.#expCmdSn, maxCmdSn: this.#maxCmdSn() };
  }

  #countersWithStatus(): TargetCounters {
    const counters = this.#counters();
    this.#statSn = serialAdd(this.#statSn, 1);
    return counters;
  }

  #transferTag(): number {
    const tag = this.#nextTransferTag;
    this.#nextTransferTag = tag >= 0xfffffffe ? 1 : tag + 1;
    return tag;
  }

  // --- the other requests
  // --------------------------------------------------------------------------------------------

  #nopOut(header: Buffer, data: Uint8Array): void {
    const pdu = decodeNopOut(header);
    if (pdu.initiatorTaskTag === RESERVED_TAG) {
      // The answer to our ping, or a ping that wants no answer. It has a number only when it is not
      // immediate.
      if (!pdu.immediate) this.#takeCmdSn(pdu.cmdSn, false);
      return;
    }
    if (!this.#takeCmdSn(pdu.cmdSn, pdu.immediate)) return;
    encodeNopIn(this.#writer.begin(), {
      initiatorTaskTag: pdu.initiatorTaskTag,
      targetTransferTag: RESERVED_TAG,
      ...this.#countersWithStatus(),
    });
    if (data.length === 0) {
      this.#writer.end();
      return;
    }
    this.#account.charge(data.length);
    this.#writer.end(data.subarray(0, this.#parameters.peerDataSegmentBytes), () =>
      this.#account.release(data.length),
    );
  }

  #taskManagement(header: Buffer): void {
    const pdu = decodeTaskManagementRequest(header);
    if (!this.#takeCmdSn(pdu.cmdSn, pdu.immediate)) return;
    if (pdu.immediate && this.#immediateFunctions >= this.#limits.immediateMax) {
      this.#reject(header, REJECT_REASON.immediateCommandReject);
      return;
    }
    if (pdu.immediate) this.#immediateFunctions += 1;
    else this.#queuedFunctions += 1;
    this.#account.charge(OBJECT_BYTES);
    const respond = (response: number): void => {
      if (pdu.immediate) this.#immediateFunctions -= 1;
      else this.#queuedFunctions -= 1;
      this.#account.release(OBJECT_BYTES);
      if (this.#ended) return;
      encodeTaskManagementResponse(this.#writer.begin(), {
        initiatorTaskTag: pdu.initiatorTaskTag,
        response,
        ...this.#countersWithStatus(),
      });
      this.#writer.end();
    };
    const name = nameOf(TASK_FUNCTION, pdu.function);
    this.#options.logger.info({ function: name }, 'iSCSI: task management');
    const wholeTarget =
      pdu.function === TASK_FUNCTION.targetWarmReset || pdu.function === TASK_FUNCTION.targetColdReset;
    if (!wholeTarget && pdu.lun !== this.#lun) {
      respond(TASK_RESPONSE.lunDoesNotExist);
      return;
    }
    switch (pdu.function) {
      case TASK_FUNCTION.abortTask: {
        const task = this.#tasks.get(pdu.referencedTaskTag);
        if (task === undefined) respond(TASK_RESPONSE.taskDoesNotExist);
        else void this.#abort(task).then(() => respond(TASK_RESPONSE.complete));
        return;
      }
      case TASK_FUNCTION.abortTaskSet:
      case TASK_FUNCTION.clearTaskSet:
        // Each session has a task set of its own (TST 001b would say so; one session is the rule here).
        void this.#abortAll().then(() => respond(TASK_RESPONSE.complete));
        return;
      case TASK_FUNCTION.logicalUnitReset:
      case TASK_FUNCTION.targetWarmReset:
      case TASK_FUNCTION.targetColdReset:
        void (this.#unit?.reset() ?? Promise.resolve()).then(() => {
          respond(TASK_RESPONSE.complete);
          // RFC 7143 section 11.5.1: a cold reset ends every session, this one included.
          if (pdu.function === TASK_FUNCTION.targetColdReset) this.#unit?.endAll('target cold reset');
        });
        return;
      case TASK_FUNCTION.taskReassign:
        respond(TASK_RESPONSE.reassignmentNotSupported);
        return;
      default:
        respond(TASK_RESPONSE.notSupported);
    }
  }

  /** Resolves when the task is gone: at once unless a device call is under way. */
  #abort(task: Task): Promise<void> {
    if (task.aborted || task.state === 'running') {
      task.aborted = true;
      return new Promise((resolve) => task.waiters.push(resolve));
    }
    task.aborted = true;
    this.#held = this.#held.filter((other) => other !== task);
    this.#waitingReads = this.#waitingReads.filter((other) => other !== task);
    this.#waitingWrites = this.#waitingWrites.filter((other) => other !== task);
    this.#remove(task);
    return Promise.resolve();
  }

  async #abortAll(): Promise<void> {
    const tasks = [...this.#tasks.values()];
    // Nobody may move up into a place that is about to be aborted too.
    this.#waitingWrites = [];
    await Promise.all(tasks.map((task) => this.#abort(task)));
  }

  #textRequest(header: Buffer, data: Uint8Array): void {
    const pdu = decodeTextRequest(header);
    if (!this.#takeCmdSn(pdu.cmdSn, pdu.immediate)) return;
    const respond = (text: Buffer, complete: boolean, continues: boolean, tag: number): void => {
      encodeTextResponse(this.#writer.begin(), {
        final: complete,
        continues,
        initiatorTaskTag: pdu.initiatorTaskTag,
        targetTransferTag: tag,
        ...this.#countersWithStatus(),
      });
      this.#writer.end(text);
    };
    const segment = (text: Buffer): void => {
      const bytes = this.#parameters.peerDataSegmentBytes;
      if (text.length <= bytes) {
        this.#textAnswer = null;
        respond(text, true, false, RESERVED_TAG);
        return;
      }
      this.#textAnswer = { tag: this.#transferTag(), rest: text.subarray(bytes) };
      respond(text.subarray(0, bytes), false, true, this.#textAnswer.tag);
    };
    if (this.#textAnswer !== null && pdu.targetTransferTag === this.#textAnswer.tag) {
      segment(this.#textAnswer.rest);
      return;
    }
    // A part of no bytes costs something too, and there may be many.
    this.#text.bytes += Math.max(data.length, OBJECT_BYTES);
    if (this.#text.bytes > this.#limits.textBytesMax) throw protocolError('text is too long');
    this.#text.parts.push(asBuffer(data));
    if (pdu.continues) {
      respond(NOTHING, false, false, this.#transferTag());
      return;
    }
    const text = Buffer.concat(this.#text.parts);
    this.#text = { parts: [], bytes: 0 };
    const answers: TextPair[] = [];
    for (const [key, value] of parseTextKeys(text)) {
      if (key === 'SendTargets') answers.push(...this.#options.sendTargets(value));
      else answers.push([key, 'NotUnderstood']);
    }
    segment(formatTextKeys(answers));
  }

  #logout(header: Buffer): void {
    const pdu = decodeLogoutRequest(header);
    if (!this.#takeCmdSn(pdu.cmdSn, pdu.immediate)) return;
    if (this.#logoutStarted) return;
    let response: number = LOGOUT_RESPONSE.success;
    if (pdu.reason === LOGOUT_REASON.removeForRecovery) response = LOGOUT_RESPONSE.recoveryNotSupported;
    else if (pdu.reason !== LOGOUT_REASON.closeSession && pdu.cid !== this.#options.cid) {
      response = LOGOUT_RESPONSE.cidNotFound;
    }
    const leaves = response === LOGOUT_RESPONSE.success;
    this.#logoutStarted = leaves;
    const settled = leaves ? this.#abortAll() : Promise.resolve();
    void settled.then(() => {
      if (this.#ended) return;
      encodeLogoutResponse(this.#writer.begin(), {
        initiatorTaskTag: pdu.initiatorTaskTag,
        response,
        ...this.#countersWithStatus(),
      });
      this.#writer.end();
      if (leaves) this.#end('logout');
    });
  }

  #reject(header: Buffer, reason: number): void {
    this.#options.logger.warn(
      {
        reason: nameOf(REJECT_REASON, reason),
        opcode: nameOf(OPCODE, opcodeOf(header)),
        initiatorTaskTag: initiatorTaskTagOf(header),
      },
      'iSCSI: PDU rejected',
    );
    const copy = Buffer.from(header);
    encodeReject(this.#writer.begin(), { reason, ...this.#countersWithStatus() });
    this.#writer.end(copy);
  }

  // --- liveness
  // ------------------------------------------------------------------------------------------------------

  #armTimer(): void {
    const { clock } = this.#options;
    const waitMs = this.#nopSentMs === null ? this.#limits.nopIntervalMs : this.#limits.nopTimeoutMs;
    this.#cancelTimer = clock.timer(waitMs, () => {
      if (this.#ended) return;
      const nowMs = clock.monotonicMs();
      // Taking what is queued is a sign of life too: a ping at the end of it has not arrived. And that we do
      // not read is no sign of death.
      const { queuedBytes, writtenBytes } = this.#writer;
      const takes = queuedBytes > 0 && writtenBytes !== this.#writtenBytes;
      this.#writtenBytes = writtenBytes;
      if (takes || !this.#options.isReading()) {
        this.#lastReceivedMs = nowMs;
        this.#nopSentMs = null;
      }
      if (this.#nopSentMs !== null && nowMs - this.#nopSentMs >= this.#limits.nopTimeoutMs) {
        this.#end('peer does not answer');
        return;
      }
      if (this.#nopSentMs === null && nowMs - this.#lastReceivedMs >= this.#limits.nopIntervalMs) {
        this.#nopSentMs = nowMs;
        encodeNopIn(this.#writer.begin(), {
          initiatorTaskTag: RESERVED_TAG,
          targetTransferTag: this.#transferTag(),
          ...this.#counters(),
        });
        this.#writer.end();
      }
      this.#armTimer();
    });
  }

  #end(reason: string): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#cancelTimer?.();
    this.#writer.flush();
    this.#options.onEnd(reason);
  }
}

function asBuffer(data: Uint8Array): Buffer {
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}
