import { Socket } from 'node:net';
import { type ConnectionOptions, type TLSSocket, connect as tlsConnect } from 'node:tls';
import { BufferPool } from '../base/buffer-pool.ts';
import { ChunkWriter } from '../base/chunk-writer.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { peerPatience } from '../base/peer-patience.ts';
import type { Random } from '../base/random.ts';
import { RequestQueue } from '../base/request-queue.ts';
import { socketSink } from '../base/socket-sink.ts';
import type { BlockDevice, Extent } from '../block/block-device.ts';
import { checkRange, closedError, ExtentList, readOnlyError } from '../block/range.ts';
import type { TlsIdentity } from '../sys/tls-identity.ts';
import { nameOf } from './constants.ts';
import { protocolError } from './errors.ts';
import { InitiatorSession, type InitiatorTask, UNSENT } from './initiator-session.ts';
import type { ChapCredentials } from './login-initiator.ts';
import { PduWriter } from './pdu-writer.ts';
import {
  encodeGetLbaStatus,
  encodeInquiry,
  encodeModeSense6,
  encodeReadCapacity16,
  encodeReadWrite16,
  encodeSynchronizeCache16,
  encodeWriteSame16,
  OPERATION,
} from './scsi/command.ts';
import { PAGE } from './scsi/inquiry.ts';
import { describeSense, SENSE, SENSE_KEY, type Sense, STATUS } from './scsi/sense.ts';

/**
 * A remote logical unit as a block device. The connection may come and go: what was not answered is sent
 * again on the next one, and whoever reads only sees that it takes longer.
 *
 *   connecting ──→ connected ⇄ lost        any ──close──→ closed        any ──target changed──→ failed
 */
export type InitiatorState = 'connecting' | 'connected' | 'lost' | 'failed' | 'closed';

/**
 * guest: somebody waits for it. background: it goes when no guest command waits, and never takes the last
 * quarter of the queue.
 */
export type ReadPriority = 'guest' | 'background';
export type ReadOptions = { priority?: ReadPriority; signal?: AbortSignal };

/** What tells a unit from another. */
export type UnitIdentity = {
  lengthBytes: number;
  blockBytes: number;
  /** Unit serial number (VPD page 80), or '' where there is none. */
  serial: string;
  /** Designators of the unit (VPD page 83) in hexadecimal, or '' where there are none. */
  designators: string;
};

/**
 * Where a target is. With `tls` both sides show a certificate before the login begins; the target's must name
 * `host`.
 */
export type Portal = { host: string; port: number; tls?: TlsIdentity };

export type InitiatorOptions = {
  /** Tried in turn. */
  portals: readonly Portal[];
  targetIqn: string;
  initiatorIqn: string;
  chap?: ChapCredentials | null;
  /** Default 0. */
  lun?: number;
  clock: Clock;
  random: Random;
  logger: Logger;
  /** What the unit must be; anything else is `ISCSI_TARGET_CHANGED`. */
  expected?: { lengthBytes: number; blockBytes?: number; serial?: string; designators?: string };
  /** Default true: refuses writes, whatever the target would take. */
  readOnly?: boolean;
  /**
   * CRC32C on headers and data. TCP's own checksum is weak; on a path with TLS or on loopback they only cost.
   * Default false.
   */
  digests?: boolean;
  /** Commands at once, 1 to 1024. Default 64. */
  queueDepth?: number;
  /** Largest single READ or WRITE; longer ones are split. Default 1 MiB. */
  transferBytesMax?: number;
  /** From dialling to a checked unit. Default 10 s. */
  loginTimeoutMs?: number;
  /** Silence after which the target is pinged. Default 3 s. */
  keepAliveIntervalMs?: number;
  /** Silence after a ping after which the connection is given up. Default 5 s. */
  keepAliveTimeoutMs?: number;
  /** First and longest pause between attempts to connect. Default 50 ms and 3 s. */
  backoffMs?: number;
  backoffMsMax?: number;
};

export type InitiatorStatistics = {
  inFlight: number;
  queued: number;
  /** How long the oldest command has been waiting. 0: none. */
  oldestWaitMs: number;
  bytesRead: number;
  bytesWritten: number;
  reconnects: number;
  /** Commands that were sent again after a lost connection. */
  replayed: number;
};

type Task = InitiatorTask & {
  readonly background: boolean;
  readonly startedMs: number;
  attempts: number;
  /** Part of a look at the unit. */
  readonly looks: boolean;
  /**
   * Connections that ended while it was under way; of these the target ended so many while nothing else was.
   */
  losses: number;
  lossesAlone: number;
  resolve: () => void;
  reject: (error: unknown) => void;
};

type Unit = UnitIdentity & {
  writeProtected: boolean;
  zeroesUnmapped: boolean;
  unmapsByWriteSame: boolean;
  transferBytesMax: number;
  writeSameBytesMax: number;
};

const DEFAULTS = {
  queueDepth: 64,
  transferBytesMax: 1024 * 1024,
  loginTimeoutMs: 10_000,
  keepAliveIntervalMs: 3_000,
  keepAliveTimeoutMs: 5_000,
  backoffMs: 50,
  backoffMsMax: 3_000,
};
const DATA_SEGMENT_BYTES = 1024 * 1024;
const BURST_BYTES = 1024 * 1024;
/** A command that the target aborts again and again is given up; one that it is too busy for is not. */
const ATTEMPTS_MAX = 16;
const RETRY_MS = 100;
/**
 * The unit is looked at so often while it is used, whether the target has said that something changed or not.
 */
const LOOK_EVERY_MS = 5_000;
/** A command that lost so many connections is sent alone … */
const LOSSES_MAX = 3;
/** … and given up when the target has ended so many while it was alone. */
const LOSSES_ALONE_MAX = 6;
const LOGOUT_TIMEOUT_MS = 1_000;
const LBA_STATUS_DESCRIPTORS_MAX = 512;
const WRITE_SAME_BYTES_MAX = 32 * 1024 * 1024;

export class IscsiInitiator implements BlockDevice {
  readonly #options: Required<Omit<InitiatorOptions, 'expected' | 'chap'>> &
    Pick<InitiatorOptions, 'expected' | 'chap'>;
  readonly #logger: Logger;
  readonly #clock: Clock;
  readonly #pool = new BufferPool(4 * 1024 * 1024);
  readonly #isid: Buffer;
  readonly #queue: RequestQueue<Task>;
  readonly #listeners = new Set<(state: InitiatorState) => void>();
  readonly #closing = new AbortController();

  #state: InitiatorState = 'connecting';
  #lostSinceMs: number | null = null;
  #lastError: GodwitError | null = null;
  #unit: Unit | null = null;
  #session: InitiatorSession | null = null;
  #socket: Socket | null = null;
  #portal = 0;
  /** Commands that the target has put off: they are sent again after a while, or after a look at the unit. */
  readonly #putOff = new Set<Task>();
  #trouble: GodwitError | null = null;
  /** Sent when nothing else is under way: it may be what the target ends connections for. */
  #suspect: Task | null = null;
  #look: Promise<void> = Promise.resolve();
  #nextLook: Promise<void> | null = null;
  #lookedAtMs = 0;
  #answers = 0;
  /** `peerPatience`. */
  #patience = 1;
  #failure: GodwitError | null = null;
  #loop: Promise<void> | null = null;
  readonly #statistics = { bytesRead: 0, bytesWritten: 0, reconnects: 0, replayed: 0 };

  private constructor(options: InitiatorOptions) {
    if (options.chap?.mutual !== undefined && options.chap.mutual.secret === options.chap.secret) {
      // Whoever answers there could send our own challenge to us and have the answer.
      throw new GodwitError('ISCSI_BAD_GRANT', 'The two directions of mutual CHAP must not share a secret', {
        values: { initiatorIqn: options.initiatorIqn },
        nextAction: 'Make another secret for one of them.',
      });
    }
    this.#options = { ...DEFAULTS, lun: 0, readOnly: true, digests: false, ...options };
    this.#clock = options.clock;
    this.#logger = options.logger.child({ targetIqn: options.targetIqn });
    // RFC 7143 section 10.1.2.1: type 10b, random, qualifier 0. Kept for life, so that a new login replaces
    // the old session.
    this.#isid = Buffer.concat([Buffer.from([0x80]), Buffer.from(options.random.bytes(3)), Buffer.alloc(2)]);
    this.#queue = new RequestQueue(this.#options.queueDepth);
  }

  /**
   * Resolves once the unit is there and checked. Network errors are tried again for `timeoutMs` (default 30
   * s) or until `signal`; a refusal rejects at once.
   */
  static async connect(
    options: InitiatorOptions,
    wait: { timeoutMs?: number; signal?: AbortSignal } = {},
  ): Promise<IscsiInitiator> {
    const initiator = new IscsiInitiator(options);
    const timeoutMs = wait.timeoutMs ?? 30_000;
    await new Promise<void>((resolve, reject) => {
      const settle = (error: unknown): void => {
        cancel();
        unsubscribe();
        wait.signal?.removeEventListener('abort', onAbort);
        if (error === null) resolve();
        else void initiator.close().then(() => reject(error));
      };
      const onAbort = (): void => settle(wait.signal!.reason);
      const cancel = options.clock.timer(timeoutMs, () =>
        settle(initiator.lastError ?? unreachableError(options)),
      );
      const unsubscribe = initiator.onStateChange((state) => {
        if (state === 'connected') settle(null);
        else if (state === 'failed') settle(initiator.lastError);
      });
      if (wait.signal?.aborted) onAbort();
      else wait.signal?.addEventListener('abort', onAbort, { once: true });
      initiator.#start(true);
    });
    return initiator;
  }

  /**
   * A device at once, connected in the background: for whoever knows what the unit is and has to come up
   * while it is away. Reads wait for it.
   */
  static open(options: InitiatorOptions & { expected: { lengthBytes: number } }): IscsiInitiator {
    const initiator = new IscsiInitiator(options);
    initiator.#start(false);
    return initiator;
  }

  // --- what it is
  // ----------------------------------------------------------------------------------------------------

  get lengthBytes(): number {
    return this.#unit?.lengthBytes ?? this.#options.expected!.lengthBytes;
  }
  get blockBytes(): number {
    return this.#unit?.blockBytes ?? this.#options.expected?.blockBytes ?? 512;
  }
  get writable(): boolean {
    return !this.#options.readOnly && this.#unit?.writeProtected !== true;
  }
  /** null until the first connection. */
  get identity(): UnitIdentity | null {
    return this.#unit;
  }
  get state(): InitiatorState {
    return this.#state;
  }
  /** On the monotonic clock; null while connected. */
  get lostSinceMs(): number | null {
    return this.#lostSinceMs;
  }
  /** Why the last connection or attempt ended. Kept after a reconnection. */
  get lastError(): GodwitError | null {
    return this.#lastError;
  }
  /** Why commands wait although there is a connection: the target puts them off. null: they do not. */
  get trouble(): GodwitError | null {
    return this.#trouble;
  }
  get statistics(): InitiatorStatistics {
    const waiting = [
      ...((this.#session?.unanswered() ?? []) as Task[]),
      ...this.#queue.waiting(),
      ...this.#putOff,
      ...(this.#suspect === null ? [] : [this.#suspect]),
    ];
    let oldestMs = Number.POSITIVE_INFINITY;
    for (const task of waiting) oldestMs = Math.min(oldestMs, task.startedMs);
    return {
      inFlight: this.#session?.inFlight ?? 0,
      queued: this.#queue.length + this.#putOff.size,
      oldestWaitMs: waiting.length === 0 ? 0 : this.#clock.monotonicMs() - oldestMs,
      ...this.#statistics,
    };
  }
  /** Returns the function that ends the subscription. */
  onStateChange(listener: (state: InitiatorState) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Looks at the unit: resolves when a look that began after this call found the unit that it was. What was
   * read before this call came from that unit then. Many calls share a look. Rejects with
   * `ISCSI_TARGET_CHANGED`, after which nothing is read any more, or `BLOCK_CLOSED`.
   */
  vouch(): Promise<void> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    this.#nextLook ??= this.#look.then(() => {
      this.#nextLook = null;
      const look = this.#lookNow();
      this.#look = look.catch(() => {});
      return look;
    });
    return this.#nextLook;
  }

  async #lookNow(): Promise<void> {
    this.#lookedAtMs = this.#clock.monotonicMs();
    const identity = await Promise.all(
      IDENTITY_QUESTIONS.map(async ([encode, bytes]) => {
        const cdb = Buffer.alloc(16);
        encode(cdb, bytes);
        const into = Buffer.alloc(bytes);
        try {
          return into.subarray(0, await this.#answer(cdb, into, true));
        } catch (error) {
          if (isIllegalRequest(error)) return null;
          throw error;
        }
      }),
    );
    try {
      this.#checkUnit(identityOf(identity[0]!, identity[1]!, identity[2]!));
    } catch (error) {
      if (!isGodwitError(error, 'ISCSI_TARGET_CHANGED')) {
        // A unit that does not say what it is: the next connection asks again, and the waiting goes on.
        this.#session?.fail(error instanceof GodwitError ? error : internalError(error));
        await this.#clock.sleep(RETRY_MS, this.#closing.signal).catch(() => {});
        if (this.#failure !== null) throw this.#failure;
        return this.#lookNow();
      }
      // The socket first: nothing may land in a buffer after its read has been rejected.
      this.#socket?.destroy();
      this.#fail(error);
      throw error;
    }
  }

  // --- BlockDevice
  // ---------------------------------------------------------------------------------------------------

  /**
   * Waits through outages. A signal takes effect while the read is queued; once it is on the wire it is
   * waited for.
   */
  read(offsetBytes: number, into: Uint8Array, options?: ReadOptions): Promise<void> {
    try {
      checkRange(this, offsetBytes, into.length);
    } catch (error) {
      return Promise.reject(error);
    }
    return this.#transfer(OPERATION.read16, 'in', offsetBytes, into, options);
  }

  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    this.#checkMutation(offsetBytes, from.length);
    await this.#transfer(OPERATION.write16, 'out', offsetBytes, from);
  }

  async flush(): Promise<void> {
    if (!this.writable) {
      if (this.#failure !== null) throw this.#failure;
      return;
    }
    const cdb = Buffer.alloc(16);
    encodeSynchronizeCache16(cdb);
    await this.#command(cdb, 'none', NOTHING);
  }

  /**
   * By WRITE SAME with UNMAP and not by the UNMAP command: only with the former must the range read as zeros
   * afterwards, whatever the target thinks of its alignment.
   */
  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkMutation(offsetBytes, lengthBytes);
    await this.#writeSame(offsetBytes, lengthBytes, this.#unit?.unmapsByWriteSame === true);
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkMutation(offsetBytes, lengthBytes);
    await this.#writeSame(offsetBytes, lengthBytes, false);
  }

  /** By GET LBA STATUS. All data where the target cannot tell, or where its holes do not read as zeros. */
  async extents(offsetBytes: number, lengthBytes: number, limitExtents: number): Promise<Extent[]> {
    checkRange(this, offsetBytes, lengthBytes);
    const list = new ExtentList(limitExtents);
    const end = offsetBytes + lengthBytes;
    let at = offsetBytes;
    while (at < end) {
      const pieces = await this.#lbaStatus(at, limitExtents - list.extents.length + 1);
      const before = at;
      for (const piece of pieces) {
        const stop = Math.min(end, piece.offsetBytes + piece.lengthBytes);
        if (!list.add(at, stop - at, piece.kind)) return list.extents;
        at = Math.max(at, stop);
        if (at === end) return list.extents;
      }
      if (at === before) list.add(at, end - at, 'data');
      if (at === before) break;
    }
    return list.extents;
  }

  /** Logs out where nothing is under way; everything that waits rejects with `BLOCK_CLOSED`. */
  async close(): Promise<void> {
    if (this.#state === 'closed') {
      await this.#loop;
      return;
    }
    const session = this.#session;
    const idle = session !== null && session.inFlight === 0;
    this.#failure ??= closedError();
    if (idle) {
      session.logout();
      const cancel = this.#clock.timer(LOGOUT_TIMEOUT_MS, () => this.#socket?.destroy());
      this.#setState('closed');
      this.#closing.abort();
      this.#rejectAll(this.#failure);
      await this.#loop;
      cancel();
      return;
    }
    // The socket first: nothing may land in a buffer after its read has been rejected.
    this.#socket?.destroy();
    this.#setState('closed');
    this.#closing.abort();
    this.#rejectAll(this.#failure);
    await this.#loop;
  }

  // --- commands
  // ------------------------------------------------------------------------------------------------------

  #checkMutation(offsetBytes: number, lengthBytes: number): void {
    if (this.#failure !== null) throw this.#failure;
    checkRange(this, offsetBytes, lengthBytes);
    if (!this.writable) throw readOnlyError();
  }

  #transfer(
    operation: number,
    direction: 'in' | 'out',
    offsetBytes: number,
    buffer: Uint8Array,
    options?: ReadOptions,
  ): Promise<void> {
    if (buffer.length === 0)
      return this.#failure === null ? Promise.resolve() : Promise.reject(this.#failure);
    const partBytes = this.#unit?.transferBytesMax ?? this.#partBytesUnknown();
    if (buffer.length <= partBytes) return this.#part(operation, direction, offsetBytes, buffer, options);
    const parts: Promise<void>[] = [];
    for (let at = 0; at < buffer.length; at += partBytes) {
      const part = buffer.subarray(at, Math.min(at + partBytes, buffer.length));
      parts.push(this.#part(operation, direction, offsetBytes + at, part, options));
    }
    return allSettled(parts);
  }

  /** What every target takes, until this one has said what it takes. */
  #partBytesUnknown(): number {
    return Math.min(this.#options.transferBytesMax, 64 * 1024);
  }

  #part(
    operation: number,
    direction: 'in' | 'out',
    offsetBytes: number,
    buffer: Uint8Array,
    options?: ReadOptions,
  ): Promise<void> {
    const cdb = Buffer.allocUnsafe(16).fill(0);
    encodeReadWrite16(cdb, operation, offsetBytes / this.blockBytes, buffer.length / this.blockBytes);
    return this.#command(cdb, direction, buffer, options);
  }

  async #writeSame(offsetBytes: number, lengthBytes: number, unmap: boolean): Promise<void> {
    const zeros = new Uint8Array(this.blockBytes);
    const stepBytes = this.#unit?.writeSameBytesMax ?? WRITE_SAME_BYTES_MAX;
    for (let at = 0; at < lengthBytes; at += stepBytes) {
      const bytes = Math.min(stepBytes, lengthBytes - at);
      const cdb = Buffer.alloc(16);
      encodeWriteSame16(cdb, (offsetBytes + at) / this.blockBytes, bytes / this.blockBytes, unmap);
      try {
        await this.#command(cdb, 'out', zeros);
      } catch (error) {
        if (!isIllegalRequest(error)) throw error;
        await this.#writeZeroBuffer(offsetBytes + at, bytes);
      }
    }
  }

  /** For targets without WRITE SAME. */
  async #writeZeroBuffer(offsetBytes: number, lengthBytes: number): Promise<void> {
    const zeros = new Uint8Array(
      Math.min(lengthBytes, this.#unit?.transferBytesMax ?? this.#partBytesUnknown()),
    );
    for (let at = 0; at < lengthBytes; at += zeros.length) {
      await this.write(offsetBytes + at, zeros.subarray(0, Math.min(zeros.length, lengthBytes - at)));
    }
  }

  async #lbaStatus(offsetBytes: number, limit: number): Promise<Extent[]> {
    const everything: Extent[] = [{ offsetBytes, lengthBytes: this.lengthBytes - offsetBytes, kind: 'data' }];
    const room = Math.max(1, Math.min(limit, LBA_STATUS_DESCRIPTORS_MAX));
    const answer = Buffer.alloc(8 + 16 * room);
    const cdb = Buffer.alloc(16);
    encodeGetLbaStatus(cdb, offsetBytes / this.blockBytes, answer.length);
    let receivedBytes: number;
    try {
      receivedBytes = await this.#answer(cdb, answer);
    } catch (error) {
      if (isIllegalRequest(error)) return everything;
      throw error;
    }
    // What holes read as is known once the unit has been seen, which a command that was answered has made
    // sure of.
    if (this.#unit?.zeroesUnmapped !== true) return everything;
    const listed = Math.min(receivedBytes < 4 ? 0 : answer.readUInt32BE(0) + 4, receivedBytes);
    const extents: Extent[] = [];
    for (let at = 8; at + 16 <= listed; at += 16) {
      const lba = Number(answer.readBigUInt64BE(at));
      const start = Math.max(offsetBytes, lba * this.blockBytes);
      const end = (lba + answer.readUInt32BE(at + 8)) * this.blockBytes;
      const expected = extents.length === 0 ? offsetBytes : endOf(extents.at(-1)!);
      if (start !== expected || end <= start) break;
      const kind = (answer[at + 12]! & 0x0f) === 1 ? 'hole' : 'data';
      extents.push({ offsetBytes: start, lengthBytes: end - start, kind });
    }
    return extents;
  }

  /** A command that answers with as much as it likes, up to the size of `into`. */
  #answer(cdb: Buffer, into: Buffer, looks = false): Promise<number> {
    return new Promise((resolve, reject) => {
      const task = this.#task(cdb, 'in', into, false, () => resolve(task.receivedBytes), reject, looks);
      task.finish = (status, sense, residual) => this.#finish(task, status, sense, residual, true);
      this.#enqueue(task);
    });
  }

  #command(
    cdb: Buffer,
    direction: 'in' | 'out' | 'none',
    buffer: Uint8Array,
    options?: ReadOptions,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      const background = options?.priority === 'background';
      const task = this.#task(cdb, direction, buffer, background, resolve, reject);
      task.finish = (status, sense, residual) => this.#finish(task, status, sense, residual, false);
      if (options?.signal !== undefined) this.#queue.withdrawOnAbort(task, options.signal);
      this.#enqueue(task);
    });
  }

  #task(
    cdb: Buffer,
    direction: 'in' | 'out' | 'none',
    buffer: Uint8Array,
    background: boolean,
    resolve: () => void,
    reject: (error: unknown) => void,
    looks = false,
  ): Task {
    return {
      cdb,
      direction,
      buffer,
      ...UNSENT,
      finish: () => {},
      background,
      looks,
      startedMs: this.#clock.monotonicMs(),
      attempts: 0,
      losses: 0,
      lossesAlone: 0,
      resolve,
      reject,
    };
  }

  #enqueue(task: Task): void {
    if (this.#failure !== null) {
      task.reject(this.#failure);
      return;
    }
    this.#queue.push(task);
    this.#pump();
  }

  #pump(): void {
    const session = this.#session;
    if (session === null) return;
    while (session.hasRoom && session.inFlight < this.#options.queueDepth) {
      if (this.#suspect !== null) {
        // It goes alone, and nothing goes before it has been answered.
        if (session.inFlight > 0) return;
        session.send(this.#suspect);
        return;
      }
      const task = this.#queue.take();
      if (task === null) return;
      if (task.losses >= LOSSES_MAX) this.#suspect = task;
      else session.send(task);
    }
  }

  #finish(
    task: Task,
    status: number,
    sense: Sense | null,
    residualBytes: number,
    shortIsFine: boolean,
  ): void {
    this.#answers += 1;
    this.#queue.ended(task);
    if (this.#suspect === task) this.#suspect = null;
    task.losses = 0;
    task.lossesAlone = 0;
    // What the target could mend is data: it moved, and is right.
    const recovered = status === STATUS.checkCondition && sense?.key === SENSE_KEY.recoveredError;
    if (recovered) this.#logger.warn({ sense: describeSense(sense) }, 'iSCSI: the target recovered an error');
    if (status === STATUS.good || recovered) {
      const short = this.#shortfall(task, residualBytes, shortIsFine);
      if (short === null) this.#succeeded(task);
      else task.reject(short);
      return;
    }
    const verdict = judge(status, sense);
    task.attempts += 1;
    if (verdict === 'wait' || (verdict !== 'fail' && task.attempts < ATTEMPTS_MAX)) {
      this.#putAside(task, verdict, status, sense);
      return;
    }
    task.reject(errorOf(task, status, sense));
  }

  #succeeded(task: Task): void {
    if (this.#putOff.size === 0) this.#trouble = null;
    if (task.direction === 'in') this.#statistics.bytesRead += task.receivedBytes;
    else if (task.direction === 'out') this.#statistics.bytesWritten += task.buffer.length;
    task.resolve();
    if (!task.looks && this.#clock.monotonicMs() - this.#lookedAtMs >= LOOK_EVERY_MS) {
      this.#lookedAtMs = this.#clock.monotonicMs();
      void this.vouch().catch(() => {}); // it fails the device, and says so there
    }
  }

  /** Every byte has to have moved, as we count and as the target does. */
  #shortfall(task: Task, residualBytes: number, shortIsFine: boolean): GodwitError | null {
    if (task.direction === 'in' && !shortIsFine && task.receivedBytes !== task.buffer.length) {
      return commandError(task, 'The iSCSI target sent less than was asked for', {
        received: task.receivedBytes,
      });
    }
    if (task.direction === 'out' && (task.sentBytes !== task.buffer.length || residualBytes !== 0)) {
      return commandError(task, 'The iSCSI target acknowledged a write of which it did not take every byte', {
        taken: task.sentBytes,
        residual: residualBytes,
      });
    }
    return null;
  }

  /** It is sent again: at once, after a pause, or when the unit has been looked at. */
  #putAside(task: Task, verdict: 'retry' | 'wait' | 'verify', status: number, sense: Sense | null): void {
    this.#putOff.add(task);
    const again = (): void => {
      if (this.#putOff.delete(task)) this.#enqueue(task);
    };
    if (verdict === 'verify' && !task.looks) {
      this.vouch().then(again, () => {}); // a device that failed has rejected it
      return;
    }
    if (verdict === 'wait') this.#trouble = busyError(task, status, sense);
    this.#clock.timer(verdict === 'wait' ? RETRY_MS : 0, again);
  }

  #rejectAll(error: GodwitError): void {
    const tasks = [...((this.#session?.unanswered() ?? []) as Task[])];
    tasks.push(...this.#queue.drain(), ...this.#putOff);
    if (this.#suspect !== null) tasks.push(this.#suspect);
    this.#putOff.clear();
    this.#suspect = null;
    for (const task of tasks) task.reject(error);
  }

  // --- connection
  // ----------------------------------------------------------------------------------------------------

  #setState(state: InitiatorState): void {
    if (this.#state === state) return;
    this.#state = state;
    if (state === 'connected') this.#lostSinceMs = null;
    else this.#lostSinceMs ??= this.#clock.monotonicMs();
    for (const listener of [...this.#listeners]) listener(state);
  }

  #start(refusalIsFatal: boolean): void {
    this.#lostSinceMs = this.#clock.monotonicMs();
    this.#loop = this.#run(refusalIsFatal);
  }

  async #run(refusalIsFatal: boolean): Promise<void> {
    let attempt = 0;
    while (this.#failure === null) {
      const portal = this.#options.portals[this.#portal % this.#options.portals.length]!;
      const answersBefore = this.#answers;
      try {
        await this.#serve(portal);
      } catch (error) {
        if (this.#failure !== null) return;
        const known = error as GodwitError;
        this.#patience = peerPatience(this.#patience, known);
        const refused = known.retry === 'never';
        if (known.code === 'ISCSI_TARGET_CHANGED' || (refused && refusalIsFatal && this.#unit === null)) {
          this.#fail(known);
          return;
        }
        this.#logger.warn(
          { host: portal.host, port: portal.port, attempt, code: known.code, error: known.message },
          'iSCSI: connection lost',
        );
      }
      // A connection that carried something was good: begin anew. Else wait longer each time, and try the
      // next portal.
      if (this.#answers > answersBefore) attempt = 0;
      else this.#portal += 1;
      const ceilingMs = Math.min(
        this.#options.backoffMs * 2 ** Math.min(attempt, 20),
        this.#options.backoffMsMax,
      );
      attempt += 1;
      const delayMs = ceilingMs / 2 + this.#options.random.below(Math.ceil(ceilingMs / 2) + 1);
      try {
        await this.#clock.sleep(delayMs, this.#closing.signal);
      } catch {
        return;
      }
    }
  }

  #fail(error: GodwitError): void {
    this.#failure = error;
    this.#logger.error({ code: error.code, error: error.message, ...error.values }, 'iSCSI: device failed');
    this.#rejectAll(error);
    this.#setState('failed');
  }

  /** One connection from dialling to its end. Always throws a GodwitError that says why it ended. */
  async #serve(portal: Portal): Promise<never> {
    let over: (error: GodwitError) => void = () => {};
    const ended = new Promise<never>((_resolve, reject) => {
      over = reject;
    });
    // Whoever awaits it comes later.
    ended.catch(() => {});
    let ready: () => void = () => {};
    const loggedIn = new Promise<void>((resolve) => {
      ready = resolve;
    });
    const { session, socket, writer } = this.#dial(portal, ready, over);
    this.#socket = socket;
    const timeoutMs = this.#options.loginTimeoutMs * this.#patience;
    const cancel = this.#clock.timer(timeoutMs, () =>
      session.fail(
        new GodwitError('ISCSI_LOGIN_TIMEOUT', 'The iSCSI target did not complete the login in time', {
          values: { host: portal.host, port: portal.port, timeoutMs },
          retry: 'later',
          nextAction: 'Check the network and the host of the target; the login is tried again.',
        }),
      ),
    );
    try {
      await Promise.race([loggedIn, ended]);
      const unit = await Promise.race([this.#probe(session), ended]);
      cancel();
      this.#checkUnit(unit);
      this.#unit = unit;
      this.#session = session;
      if (this.#failure !== null) throw this.#failure;
      if (this.#lastError !== null) this.#statistics.reconnects += 1;
      this.#logger.info(
        { host: portal.host, port: portal.port, lengthBytes: unit.lengthBytes },
        'iSCSI: connected',
      );
      this.#setState('connected');
      this.#pump();
      return await ended;
    } catch (error) {
      const known = error instanceof GodwitError ? error : internalError(error);
      // Before the state changes, so that whoever is told of it finds the reason.
      if (this.#failure === null) this.#lastError = known;
      throw known;
    } finally {
      cancel();
      socket.destroy();
      writer.close();
      session.fail(protocolError('the connection is over'));
      this.#socket = null;
      if (this.#session === session) {
        this.#session = null;
        this.#queue.allEnded();
        if (this.#failure === null) {
          this.#putBack(session.unanswered() as Task[]);
          this.#setState('lost');
        }
      }
    }
  }

  /**
   * Commands without an answer go again, but for one that the target ends each connection for: that one
   * fails, by name, and the others go on.
   */
  #putBack(unanswered: Task[]): void {
    const alone = unanswered.length === 1 && isGodwitError(this.#lastError, 'ISCSI_CONNECTION_LOST');
    this.#statistics.replayed += unanswered.length;
    for (const task of unanswered) {
      task.losses += 1;
      if (alone) task.lossesAlone += 1;
    }
    const again = unanswered.filter((task) => task.lossesAlone < LOSSES_ALONE_MAX);
    // A suspect that was not sent yet has its place before all that waits.
    if (this.#suspect !== null && !unanswered.includes(this.#suspect)) again.push(this.#suspect);
    this.#suspect = null;
    this.#queue.putBack(again);
    for (const task of unanswered) {
      if (task.lossesAlone < LOSSES_ALONE_MAX) continue;
      task.reject(
        commandError(task, 'The iSCSI target ends the connection whenever it gets this command', {
          connections: task.losses,
        }),
      );
    }
  }

  #dial(
    portal: Portal,
    onReady: () => void,
    onOver: (error: GodwitError) => void,
  ): { session: InitiatorSession; socket: Socket; writer: PduWriter } {
    const writer = new PduWriter(new ChunkWriter((chunks, done) => sink.send(chunks, done), this.#pool));
    const session = new InitiatorSession({
      writer,
      login: {
        initiatorName: this.#options.initiatorIqn,
        targetName: this.#options.targetIqn,
        chap: this.#options.chap ?? null,
        isid: this.#isid,
        random: this.#options.random,
        textBytesMax: 64 * 1024,
        proposal: {
          HeaderDigest: this.#options.digests ? 'CRC32C,None' : 'None',
          DataDigest: this.#options.digests ? 'CRC32C,None' : 'None',
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
      },
      lun: this.#options.lun,
      dataSegmentBytesMax: DATA_SEGMENT_BYTES,
      keepAliveIntervalMs: this.#options.keepAliveIntervalMs,
      keepAliveTimeoutMs: this.#options.keepAliveTimeoutMs * this.#patience,
      clock: this.#clock,
      logger: this.#logger,
      onReady,
      onRoom: () => {
        if (this.#session === session) this.#pump();
      },
      onOver,
    });
    const onread = {
      // Bytes land where the parser wants them: a payload in the caller's buffer, with no copy in between.
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
    const sink = socketSink(socket);
    const lost = (error: Error | null): void => session.fail(lostError(portal, socket, session, error));
    socket.once(tls === undefined ? 'connect' : 'secureConnect', () => session.start());
    socket.on('error', lost);
    socket.once('end', () => lost(null));
    socket.once('close', () => lost(null));
    socket.setNoDelay(true);
    if (tls === undefined) socket.connect({ host, port });
    return { session, socket, writer };
  }

  /**
   * Asks for everything that tells the unit. A reconnection waits for it, so the questions go side by side.
   */
  async #probe(session: InitiatorSession): Promise<Unit> {
    const questions: Question[] = [
      ...IDENTITY_QUESTIONS,
      [(cdb, bytes) => encodeInquiry(cdb, PAGE.blockLimits, bytes), 64],
      [(cdb, bytes) => encodeInquiry(cdb, PAGE.logicalBlockProvisioning, bytes), 8],
      [encodeModeSense6, 255],
    ];
    const answers: (Buffer | null)[] = questions.map(() => null);
    let next = 0;
    const lane = async (): Promise<void> => {
      while (next < questions.length) {
        const index = next;
        next += 1;
        answers[index] = await this.#ask(session, ...questions[index]!, 0);
      }
    };
    // As many at once as the target's window takes.
    await Promise.all(Array.from({ length: Math.max(1, Math.min(session.room, questions.length)) }, lane));
    const [capacity, serial, designators, limits, provisioning, mode] = answers as [
      Buffer | null,
      Buffer | null,
      Buffer | null,
      Buffer | null,
      Buffer | null,
      Buffer | null,
    ];
    const identity = identityOf(capacity, serial, designators);
    const { blockBytes } = identity;
    const transferBlocks = limits !== null && limits.length >= 12 ? limits.readUInt32BE(8) : 0;
    const writeSameBlocks = limits !== null && limits.length >= 44 ? Number(limits.readBigUInt64BE(36)) : 0;
    const wholeBlocks = (bytes: number): number => Math.max(blockBytes, bytes - (bytes % blockBytes));
    this.#lookedAtMs = this.#clock.monotonicMs();
    return {
      ...identity,
      writeProtected: mode !== null && mode.length >= 4 && (mode[2]! & 0x80) !== 0,
      zeroesUnmapped: capacity!.length >= 15 && (capacity![14]! & 0xc0) === 0xc0,
      unmapsByWriteSame: provisioning !== null && provisioning.length >= 6 && (provisioning[5]! & 0x40) !== 0,
      transferBytesMax: wholeBlocks(
        Math.min(
          this.#options.transferBytesMax,
          transferBlocks === 0 ? Number.POSITIVE_INFINITY : transferBlocks * blockBytes,
        ),
      ),
      writeSameBytesMax: wholeBlocks(
        Math.min(
          WRITE_SAME_BYTES_MAX,
          writeSameBlocks === 0 ? Number.POSITIVE_INFINITY : writeSameBlocks * blockBytes,
        ),
      ),
    };
  }

  /**
   * The answer, or null where the target does not support the question. Unit attentions of a new session are
   * passed over.
   */
  #ask(
    session: InitiatorSession,
    encode: (cdb: Buffer, bytes: number) => void,
    bytes: number,
    attempt: number,
  ): Promise<Buffer | null> {
    return new Promise((resolve, reject) => {
      if (!session.hasRoom) {
        reject(protocolError('the command window is too small'));
        return;
      }
      const cdb = Buffer.alloc(16);
      encode(cdb, bytes);
      const buffer = Buffer.alloc(bytes);
      const task: InitiatorTask = {
        cdb,
        direction: 'in',
        buffer,
        ...UNSENT,
        finish: (status, sense) => {
          if (status === STATUS.good) resolve(buffer.subarray(0, task.receivedBytes));
          else if (sense?.key === SENSE_KEY.illegalRequest) resolve(null);
          else if (attempt < ATTEMPTS_MAX) {
            this.#clock.timer(judge(status, sense) === 'wait' ? RETRY_MS : 0, () => {
              this.#ask(session, encode, bytes, attempt + 1).then(resolve, reject);
            });
          } else reject(protocolError('target does not answer about itself', { status }));
        },
      };
      session.send(task);
    });
  }

  /** Throws `ISCSI_TARGET_CHANGED` unless the unit is the one that we know or expect. */
  #checkUnit(unit: UnitIdentity): void {
    const known = this.#unit;
    const { expected } = this.#options;
    const wantedLength = known?.lengthBytes ?? expected?.lengthBytes ?? unit.lengthBytes;
    const wantedBlock =
      known?.blockBytes ??
      expected?.blockBytes ??
      (expected === undefined ? unit.blockBytes : this.blockBytes);
    const wantedSerial = known?.serial ?? expected?.serial ?? unit.serial;
    const wantedDesignators = known?.designators ?? expected?.designators ?? unit.designators;
    if (
      unit.lengthBytes === wantedLength &&
      unit.blockBytes === wantedBlock &&
      unit.serial === wantedSerial &&
      unit.designators === wantedDesignators
    ) {
      return;
    }
    throw new GodwitError('ISCSI_TARGET_CHANGED', 'The iSCSI target is not the unit that was expected', {
      values: {
        expectedLengthBytes: wantedLength,
        lengthBytes: unit.lengthBytes,
        expectedBlockBytes: wantedBlock,
        blockBytes: unit.blockBytes,
        expectedSerial: wantedSerial,
        serial: unit.serial,
        expectedDesignators: wantedDesignators,
        designators: unit.designators,
      },
      retry: 'never',
      nextAction:
        'Nothing is read from it. Find out what is served under this name now, and connect again to the right one.',
    });
  }
}

const NOTHING = new Uint8Array(0);

type Question = [encode: (cdb: Buffer, bytes: number) => void, bytes: number];

/** What tells the unit from another. */
const IDENTITY_QUESTIONS: readonly Question[] = [
  [encodeReadCapacity16, 32],
  [(cdb, bytes) => encodeInquiry(cdb, PAGE.serialNumber, bytes), 255],
  [(cdb, bytes) => encodeInquiry(cdb, PAGE.identification, bytes), 1024],
];

/** Throws `ISCSI_PROTOCOL` where the unit does not say what it is. */
function identityOf(
  capacity: Buffer | null,
  serial: Buffer | null,
  designators: Buffer | null,
): UnitIdentity {
  if (capacity === null || capacity.length < 12) throw protocolError('target does not tell its capacity');
  for (const page of [serial, designators]) {
    // SPC-4 section 6.5.2: a peripheral qualifier that is not zero says that no unit is there.
    if (page !== null && page.length > 0 && page[0]! >> 5 !== 0) throw protocolError('no unit is there');
  }
  const blockBytes = capacity.readUInt32BE(8);
  const blocks = Number(capacity.readBigUInt64BE(0)) + 1;
  const lengthBytes = blocks * blockBytes;
  if (![512, 1024, 2048, 4096].includes(blockBytes) || !Number.isSafeInteger(lengthBytes)) {
    throw protocolError('target has an unsupported geometry', { blockBytes, blocks });
  }
  return {
    lengthBytes,
    blockBytes,
    // LIO counts a final zero byte.
    serial: pageOf(serial).toString('latin1').replaceAll('\0', '').trim(),
    designators: unitDesignators(pageOf(designators)),
  };
}

function endOf(extent: Extent): number {
  return extent.offsetBytes + extent.lengthBytes;
}

/**
 * Rejects with the first error, but only when no part is under way any more: the buffers are in use until
 * then.
 */
async function allSettled(parts: Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(parts)) {
    if (result.status === 'rejected') throw result.reason;
  }
}

/** The contents of a vital product data page. */
function pageOf(page: Buffer | null): Buffer {
  if (page === null || page.length < 4) return Buffer.alloc(0);
  return page.subarray(4, 4 + page.readUInt16BE(2));
}

/** Designators with association 0, the logical unit; those of ports differ by path. */
function unitDesignators(page: Buffer): string {
  const found: string[] = [];
  for (let at = 0; at + 4 <= page.length; at += 4 + page[at + 3]!) {
    if ((page[at + 1]! & 0x30) === 0)
      found.push(page.subarray(at + 4, at + 4 + page[at + 3]!).toString('hex'));
  }
  return found.join(' ');
}

/**
 * What to do about a command that did not succeed. retry: at once, a bounded number of times. wait: after a
 * pause, for as long as it takes. verify: when the unit has been looked at, a bounded number of times. fail:
 * tell the caller.
 */
function judge(status: number, sense: Sense | null): 'retry' | 'wait' | 'verify' | 'fail' {
  if (status === STATUS.busy || status === STATUS.taskSetFull) return 'wait';
  if (status === STATUS.taskAborted) return 'retry';
  if (status !== STATUS.checkCondition || sense === null) return 'fail';
  switch (sense.key) {
    case SENSE_KEY.unitAttention:
      return mayBeAnother(sense) ? 'verify' : 'retry';
    case SENSE_KEY.notReady:
      return sense.asc === SENSE.becomingReady.asc ? 'wait' : 'fail';
    case SENSE_KEY.abortedCommand:
      return 'retry';
    case SENSE_KEY.illegalRequest:
      return sense.asc === SENSE.logicalUnitNotSupported.asc ? 'verify' : 'fail';
    default:
      return 'fail';
  }
}

/**
 * Unit attentions after which it may be another disk: power on or reset (29/xx), operating conditions or
 * inquiry data changed (3F/xx), capacity (2A/09).
 */
function mayBeAnother({ asc }: Sense): boolean {
  const code = asc >> 8;
  return (
    code === SENSE.powerOnOrReset.asc >> 8 ||
    code === SENSE.targetOperatingConditionsChanged.asc >> 8 ||
    asc === SENSE.capacityChanged.asc
  );
}

function busyError(task: Task, status: number, sense: Sense | null): GodwitError {
  const why = sense === null ? nameOf(STATUS, status) : describeSense(sense);
  return new GodwitError('ISCSI_TARGET_BUSY', `The iSCSI target puts commands off: ${why}`, {
    values: {
      operation: nameOf(OPERATION, task.cdb[0]!),
      status: nameOf(STATUS, status),
      sense: sense === null ? null : describeSense(sense),
      tries: task.attempts,
    },
    nextAction:
      'The commands are sent again until it takes them. Look at the load and the log of the target; it says itself that it cannot.',
  });
}

function errorOf(task: Task, status: number, sense: Sense | null): GodwitError {
  if (sense?.key === SENSE_KEY.dataProtect) {
    if (sense.asc !== SENSE.spaceAllocationFailed.asc) return readOnlyError();
    return new GodwitError('BLOCK_NO_SPACE', 'The iSCSI target has no space left', {
      nextAction: 'Make space on the host of the target.',
    });
  }
  return commandError(task, 'The iSCSI target failed a command', {
    status: nameOf(STATUS, status),
    sense: sense === null ? null : describeSense(sense),
    senseKey: sense?.key ?? null,
  });
}

function commandError(
  task: Task,
  message: string,
  values: Record<string, string | number | null>,
): GodwitError {
  return new GodwitError('ISCSI_COMMAND_FAILED', message, {
    values: {
      operation: nameOf(OPERATION, task.cdb[0]!),
      lba: task.cdb.readUInt32BE(2) * 2 ** 32 + task.cdb.readUInt32BE(6),
      lengthBytes: task.buffer.length,
      ...values,
    },
    nextAction: 'Look at the log of the target for the cause; a medium error means that its disk is failing.',
  });
}

function isIllegalRequest(error: unknown): boolean {
  return isGodwitError(error, 'ISCSI_COMMAND_FAILED') && error.values.senseKey === SENSE_KEY.illegalRequest;
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

function unreachableError(options: InitiatorOptions): GodwitError {
  return new GodwitError('ISCSI_CONNECTION_LOST', 'The iSCSI target was not reached in time', {
    values: { targetIqn: options.targetIqn },
    nextAction: 'Check the address, and that the target is up.',
  });
}

function internalError(error: unknown): GodwitError {
  return new GodwitError('ISCSI_INTERNAL', `iSCSI: ${messageOf(error)}`, {
    nextAction: 'This is unexpected; report it with the log.',
    cause: error,
  });
}
