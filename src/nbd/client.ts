import { BufferPool } from '../base/buffer-pool.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { peerPatience } from '../base/peer-patience.ts';
import type { Random } from '../base/random.ts';
import { RequestQueue } from '../base/request-queue.ts';
import type { BlockDevice, Extent } from '../block/block-device.ts';
import { checkRange, closedError, ExtentList, readOnlyError } from '../block/range.ts';
import { NbdConnection, type NbdTls } from './client-connection.ts';
import { list, type NbdListedExport, negotiate, type RemoteExport } from './client-handshake.ts';
import { type NbdFailure, type NbdRequest, NbdSession } from './client-session.ts';
import type { NbdAddress } from './client-uri.ts';
import { ALLOCATION_STATE, COMMAND, COMMAND_FLAG, NBD_ERROR, nameOf, TRANSMISSION_FLAG } from './protocol.ts';

/**
 * An export of an NBD server as a block device. Connections may come and go: what was not answered is sent
 * again on the next one, and whoever reads only sees that it takes longer.
 *
 *   connecting ──→ connected ⇄ lost        any ──close──→ closed        any ──export changed──→ failed
 *
 * It is connected while at least one of its connections is.
 */
export type NbdClientState = 'connecting' | 'connected' | 'lost' | 'failed' | 'closed';

/**
 * guest: somebody waits for it. background: it goes when no guest request waits, and never takes the last
 * quarter of the queue.
 */
export type NbdReadOptions = { priority?: 'guest' | 'background'; signal?: AbortSignal };

/** What tells an export from another. */
export type NbdIdentity = {
  lengthBytes: number;
  name: string;
  description: string;
  minimumBlockBytes: number;
};

export type NbdClientOptions = {
  address: NbdAddress;
  /** Default '': the server's default export. */
  exportName?: string;
  /** Default: off. */
  tls?: NbdTls;
  clock: Clock;
  random: Random;
  logger: Logger;
  /** What the export must be, from the first connection on; anything else is `NBD_EXPORT_CHANGED`. */
  expected?: Pick<NbdIdentity, 'lengthBytes'> & Partial<NbdIdentity>;
  /** Default true: refuses writes, whatever the server would take. */
  readOnly?: boolean;
  /**
   * Connections at once, 1 to 16, where the server allows more than one (NBD_FLAG_CAN_MULTI_CONN). Default 1.
   */
  connections?: number;
  /** Requests at once over all connections, 1 to 1024. Default 64. */
  queueDepth?: number;
  /** Largest single READ or WRITE; longer ones are split. Default 1 MiB. */
  transferBytesMax?: number;
  /**
   * From dialling to the end of the handshake. Default 10 s; doubles, up to eight times, as long as the
   * server is silent.
   */
  handshakeTimeoutMs?: number;
  /** Silence after which the server is asked for its first block. Default 3 s. */
  keepAliveIntervalMs?: number;
  /** How long that may take while nothing else is under way. Default 5 s; doubles like the handshake's. */
  keepAliveTimeoutMs?: number;
  /**
   * How long a request may take before its connection is given up; doubles with each replay of the request.
   * Default 15 s.
   */
  requestTimeoutMs?: number;
  /** First and longest pause between attempts to connect. Default 50 ms and 3 s. */
  backoffMs?: number;
  backoffMsMax?: number;
};

export type NbdClientStatistics = {
  connections: number;
  inFlight: number;
  queued: number;
  /** How long the oldest request has been waiting. 0: none. */
  oldestWaitMs: number;
  bytesRead: number;
  bytesWritten: number;
  reconnects: number;
  /** Requests that were sent again after a lost connection. */
  replayed: number;
};

type Task = NbdRequest & {
  readonly background: boolean;
  readonly startedMs: number;
  /** Tries that ended in an error of the server that may pass. */
  failures: number;
  resolve: () => void;
  reject: (error: unknown) => void;
};

/** A place for one connection at a time. */
type Lane = {
  session: NbdSession | null;
  connection: NbdConnection<RemoteExport> | null;
  hadSession: boolean;
  /** `peerPatience`. */
  patience: number;
};

const DEFAULTS = {
  exportName: '',
  tls: { mode: 'off' } as NbdTls,
  readOnly: true,
  connections: 1,
  queueDepth: 64,
  transferBytesMax: 1024 * 1024,
  handshakeTimeoutMs: 10_000,
  keepAliveIntervalMs: 3_000,
  keepAliveTimeoutMs: 5_000,
  requestTimeoutMs: 15_000,
  backoffMs: 50,
  backoffMsMax: 3_000,
};
/** Loop devices, and every disk, have sectors of no less. */
const BLOCK_BYTES_MIN = 512;
const BLOCK_BYTES_MAX = 4096;
const SLABS_KEPT_BYTES = 2 * 1024 * 1024;
/**
 * One request that carries no data: WRITE_ZEROES, TRIM, BLOCK_STATUS. Bounded, so that none of them keeps
 * others waiting for long.
 */
const EFFECT_BYTES_MAX = 256 * 1024 * 1024;
const STATUS_BYTES_MAX = 2 * 2 ** 30;
/** A request that the server has no memory for is tried again, so often. */
const FAILURES_MAX = 16;
const RETRY_MS = 100;
const DISCONNECT_TIMEOUT_MS = 1_000;

export class NbdClient implements BlockDevice {
  readonly #options: Required<Omit<NbdClientOptions, 'expected'>> & Pick<NbdClientOptions, 'expected'>;
  readonly #logger: Logger;
  readonly #clock: Clock;
  readonly #pool = new BufferPool(SLABS_KEPT_BYTES);
  readonly #queue: RequestQueue<Task>;
  readonly #listeners = new Set<(state: NbdClientState) => void>();
  readonly #closing = new AbortController();
  readonly #lanes: Lane[] = [];
  readonly #loops: Promise<void>[] = [];

  #state: NbdClientState = 'connecting';
  #lostSinceMs: number | null = null;
  #lastError: GodwitError | null = null;
  #export: RemoteExport | null = null;
  #inFlight = 0;
  #delayedRetries = 0;
  #answers = 0;
  #failure: GodwitError | null = null;
  readonly #statistics = { bytesRead: 0, bytesWritten: 0, reconnects: 0, replayed: 0 };

  private constructor(options: NbdClientOptions) {
    this.#options = { ...DEFAULTS, ...options };
    this.#clock = options.clock;
    this.#logger = options.logger.child({ exportName: this.#options.exportName });
    this.#queue = new RequestQueue(this.#options.queueDepth);
  }

  /**
   * Resolves once the export is there and checked. Network errors are tried again for `timeoutMs` (default 30
   * s) or until `signal`; a refusal rejects at once.
   */
  static async connect(
    options: NbdClientOptions,
    wait: { timeoutMs?: number; signal?: AbortSignal } = {},
  ): Promise<NbdClient> {
    const client = new NbdClient(options);
    await new Promise<void>((resolve, reject) => {
      const settle = (error: unknown): void => {
        cancel();
        unsubscribe();
        wait.signal?.removeEventListener('abort', onAbort);
        if (error === null) resolve();
        else void client.close().then(() => reject(error));
      };
      const onAbort = (): void => settle(wait.signal!.reason);
      const cancel = options.clock.timer(wait.timeoutMs ?? 30_000, () =>
        settle(client.lastError ?? unreachableError()),
      );
      const unsubscribe = client.onStateChange((state) => {
        if (state === 'connected') settle(null);
        else if (state === 'failed') settle(client.lastError);
      });
      if (wait.signal?.aborted) {
        onAbort();
        return;
      }
      wait.signal?.addEventListener('abort', onAbort, { once: true });
      client.#start(true);
    });
    return client;
  }

  /**
   * A device at once, connected in the background: for whoever knows what the export is and has to come up
   * while it is away. Reads wait for it.
   */
  static open(options: NbdClientOptions & { expected: { lengthBytes: number } }): NbdClient {
    const client = new NbdClient(options);
    client.#start(false);
    return client;
  }

  /**
   * What the server has, in its order. Rejects with the errors of a connection; `NBD_REFUSED` where the
   * server does not tell.
   */
  static listExports(
    options: Pick<NbdClientOptions, 'address' | 'tls' | 'clock'> & { timeoutMs?: number },
  ): Promise<NbdListedExport[]> {
    const tls = options.tls ?? DEFAULTS.tls;
    return new Promise((resolve, reject) => {
      const timeoutMs = options.timeoutMs ?? DEFAULTS.handshakeTimeoutMs;
      const connection = new NbdConnection<NbdListedExport[]>({
        address: options.address,
        tls,
        handshake: list({ tls: tls.mode }),
        pool: new BufferPool(0),
        onReady: (exports) => {
          cancel();
          resolve(exports);
          const cancelEnd = options.clock.timer(DISCONNECT_TIMEOUT_MS, () => connection.destroy());
          void connection.end().then(cancelEnd);
          // The server answers ABORT and hangs up; whether it does is of no interest.
          const ignore = (): void => {};
          const staging = Buffer.alloc(64);
          return { space: () => staging, landed: ignore, push: ignore };
        },
        onOver: (error) => {
          cancel();
          reject(error);
        },
      });
      const cancel = options.clock.timer(timeoutMs, () => {
        connection.destroy();
        reject(handshakeTimeoutError(options.address, timeoutMs));
      });
    });
  }

  // --- what it is
  // ----------------------------------------------------------------------------------------------------

  get lengthBytes(): number {
    return this.#export?.lengthBytes ?? this.#options.expected!.lengthBytes;
  }
  /** At least 512 bytes; the server's minimum block size where that is larger, at most 4096: see `write`. */
  get blockBytes(): number {
    const minimumBytes = this.#export?.minimumBlockBytes ?? BLOCK_BYTES_MIN;
    return Math.min(BLOCK_BYTES_MAX, Math.max(BLOCK_BYTES_MIN, minimumBytes));
  }
  get writable(): boolean {
    return !this.#options.readOnly && !this.#has(TRANSMISSION_FLAG.readOnly);
  }
  /** null until the first connection. */
  get identity(): NbdIdentity | null {
    return this.#export;
  }
  /** What the server said of the export, null until the first connection. */
  get export(): Readonly<RemoteExport> | null {
    return this.#export;
  }
  get state(): NbdClientState {
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
  get statistics(): NbdClientStatistics {
    const waiting = this.#queue.waiting();
    let connections = 0;
    for (const { session } of this.#lanes) {
      if (session === null) continue;
      connections += 1;
      waiting.push(...(session.unanswered() as Task[]));
    }
    let oldestMs = Number.POSITIVE_INFINITY;
    for (const task of waiting) oldestMs = Math.min(oldestMs, task.startedMs);
    return {
      connections,
      inFlight: this.#inFlight,
      queued: this.#queue.length + this.#delayedRetries,
      oldestWaitMs: waiting.length === 0 ? 0 : this.#clock.monotonicMs() - oldestMs,
      ...this.#statistics,
    };
  }
  /** Returns the function that ends the subscription. */
  onStateChange(listener: (state: NbdClientState) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  // --- BlockDevice
  // ---------------------------------------------------------------------------------------------------

  /**
   * Waits through outages. A signal takes effect while the read is queued; once it is on the wire it is
   * waited for.
   */
  read(offsetBytes: number, into: Uint8Array, options?: NbdReadOptions): Promise<void> {
    try {
      checkRange(this, offsetBytes, into.length);
    } catch (error) {
      return Promise.reject(error);
    }
    if (this.#isUnaligned(offsetBytes, into.length)) return this.#readWidened(offsetBytes, into, options);
    return this.#transfer(COMMAND.read, 0, offsetBytes, into, options);
  }

  /**
   * `fua`: resolves when the data is durable. Where the server's minimum block is larger than 4096 bytes, a
   * write that is not made of whole ones rejects with `NBD_UNALIGNED`: to read, change and write back would
   * undo what another client wrote in between.
   */
  async write(offsetBytes: number, from: Uint8Array, options: { fua?: boolean } = {}): Promise<void> {
    this.#checkMutation(offsetBytes, from.length);
    const byFlag = options.fua === true && this.#has(TRANSMISSION_FLAG.sendFua);
    await this.#transfer(COMMAND.write, byFlag ? COMMAND_FLAG.fua : 0, offsetBytes, from);
    if (options.fua === true && !byFlag) await this.flush();
  }

  /** Nothing to do where the server knows no FLUSH: it says by that that it keeps nothing back. */
  async flush(): Promise<void> {
    if (this.#failure !== null) throw this.#failure;
    if (!this.writable) return;
    // Before the first connection nothing has been written.
    if (!this.#has(TRANSMISSION_FLAG.sendFlush)) return;
    await this.#command(COMMAND.flush, 0, 0, 0, null);
  }

  /**
   * By WRITE_ZEROES, which lets the server make a hole, and not by TRIM: after TRIM the range may read as
   * anything, its old content included, and by the contract of a block device it reads as zeros.
   */
  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkMutation(offsetBytes, lengthBytes);
    await this.#writeZeroes(offsetBytes, lengthBytes, 0);
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkMutation(offsetBytes, lengthBytes);
    await this.#writeZeroes(offsetBytes, lengthBytes, COMMAND_FLAG.noHole);
  }

  /**
   * The protocol's own TRIM: a hint after which the range reads as anything. Nothing happens where the server
   * does not know it.
   */
  async trim(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkMutation(offsetBytes, lengthBytes);
    if (!this.#has(TRANSMISSION_FLAG.sendTrim)) return;
    for (let at = 0; at < lengthBytes; at += EFFECT_BYTES_MAX) {
      const stepBytes = Math.min(EFFECT_BYTES_MAX, lengthBytes - at);
      await this.#command(COMMAND.trim, 0, offsetBytes + at, stepBytes, null);
    }
  }

  /**
   * By BLOCK_STATUS with base:allocation; all data where the server cannot tell. A hole is what the server
   * says reads as zeros; what is only not allocated may read as anything.
   */
  async extents(offsetBytes: number, lengthBytes: number, limitExtents: number): Promise<Extent[]> {
    checkRange(this, offsetBytes, lengthBytes);
    if (this.#failure !== null) throw this.#failure;
    const extents = new ExtentList(limitExtents);
    const end = offsetBytes + lengthBytes;
    let at = offsetBytes;
    while (at < end) {
      for (const piece of await this.#status(at, Math.min(STATUS_BYTES_MAX, end - at))) {
        if (!extents.add(at, piece.lengthBytes, piece.kind)) return extents.extents;
        at += piece.lengthBytes;
      }
    }
    return extents.extents;
  }

  /** Says good-bye where nothing is under way; everything that waits rejects with `BLOCK_CLOSED`. */
  async close(): Promise<void> {
    if (this.#state !== 'closed') {
      this.#failure ??= closedError();
      const tasks = this.#takeAll();
      const farewells = this.#lanes.map((lane) => this.#leave(lane));
      this.#setState('closed');
      this.#closing.abort();
      for (const task of tasks) task.reject(closedError());
      await Promise.all(farewells);
    }
    await Promise.all(this.#loops);
  }

  async #leave({ session, connection }: Lane): Promise<void> {
    if (connection === null) return;
    if (session === null || session.inFlight > 0) {
      // At once: nothing may land in a buffer after its read has been rejected.
      connection.destroy();
      return;
    }
    session.disconnect();
    const cancel = this.#clock.timer(DISCONNECT_TIMEOUT_MS, () => connection.destroy());
    await connection.end();
    cancel();
  }

  // --- requests
  // ------------------------------------------------------------------------------------------------------

  #has(flag: number): boolean {
    return this.#export !== null && (this.#export.transmissionFlags & flag) !== 0;
  }

  #checkMutation(offsetBytes: number, lengthBytes: number): void {
    if (this.#failure !== null) throw this.#failure;
    checkRange(this, offsetBytes, lengthBytes);
    if (!this.writable) throw readOnlyError();
    if (!this.#isUnaligned(offsetBytes, lengthBytes)) return;
    throw new GodwitError('NBD_UNALIGNED', 'the NBD server writes in larger blocks than this', {
      values: { offsetBytes, lengthBytes, minimumBlockBytes: this.#export!.minimumBlockBytes },
      nextAction: 'Write whole blocks of that size, or set a smaller minimum at the server.',
    });
  }

  /** Only where the server's minimum is above what a block device may ask for. */
  #isUnaligned(offsetBytes: number, lengthBytes: number): boolean {
    const minimumBytes = this.#export?.minimumBlockBytes ?? 1;
    return (
      minimumBytes > BLOCK_BYTES_MAX && (offsetBytes % minimumBytes !== 0 || lengthBytes % minimumBytes !== 0)
    );
  }

  async #readWidened(offsetBytes: number, into: Uint8Array, options?: NbdReadOptions): Promise<void> {
    const minimumBytes = this.#export!.minimumBlockBytes;
    const start = offsetBytes - (offsetBytes % minimumBytes);
    const end = Math.min(
      this.lengthBytes,
      Math.ceil((offsetBytes + into.length) / minimumBytes) * minimumBytes,
    );
    const wide = Buffer.allocUnsafe(end - start);
    await this.#transfer(COMMAND.read, 0, start, wide, options);
    into.set(wide.subarray(offsetBytes - start, offsetBytes - start + into.length));
  }

  #transfer(
    type: number,
    flags: number,
    offsetBytes: number,
    buffer: Uint8Array,
    options?: NbdReadOptions,
  ): Promise<void> {
    if (buffer.length === 0) {
      return this.#failure === null ? Promise.resolve() : Promise.reject(this.#failure);
    }
    const partBytes = this.#partBytes();
    if (buffer.length <= partBytes) {
      return this.#command(type, flags, offsetBytes, buffer.length, buffer, options);
    }
    const parts: Promise<void>[] = [];
    for (let at = 0; at < buffer.length; at += partBytes) {
      const part = buffer.subarray(at, Math.min(at + partBytes, buffer.length));
      parts.push(this.#command(type, flags, offsetBytes + at, part.length, part, options));
    }
    return allSettled(parts);
  }

  /** Longest payload of one request; until the server has said what it takes, what every server does. */
  #partBytes(): number {
    const export_ = this.#export;
    if (export_ === null) return Math.min(this.#options.transferBytesMax, 64 * 1024);
    const bytes = Math.min(this.#options.transferBytesMax, export_.maximumBlockBytes);
    const unit = Math.max(this.blockBytes, export_.minimumBlockBytes);
    return Math.max(unit, bytes - (bytes % unit));
  }

  async #writeZeroes(offsetBytes: number, lengthBytes: number, flags: number): Promise<void> {
    const end = offsetBytes + lengthBytes;
    for (let at = offsetBytes; at < end; ) {
      const stepBytes = Math.min(EFFECT_BYTES_MAX, end - at);
      if (this.#has(TRANSMISSION_FLAG.sendWriteZeroes)) {
        await this.#command(COMMAND.writeZeroes, flags, at, stepBytes, null);
      } else await this.#writeZeroBuffer(at, stepBytes);
      at += stepBytes;
    }
  }

  /** For servers without WRITE_ZEROES. */
  async #writeZeroBuffer(offsetBytes: number, lengthBytes: number): Promise<void> {
    const zeros = new Uint8Array(Math.min(lengthBytes, this.#partBytes()));
    for (let at = 0; at < lengthBytes; at += zeros.length) {
      const part = zeros.subarray(0, Math.min(zeros.length, lengthBytes - at));
      await this.#transfer(COMMAND.write, 0, offsetBytes + at, part);
    }
  }

  /**
   * Pieces from `offsetBytes` on without gaps, in whole blocks, at most to the end of the range and never
   * none.
   */
  async #status(offsetBytes: number, lengthBytes: number): Promise<Pick<Extent, 'lengthBytes' | 'kind'>[]> {
    // Whether the server can tell is known after the first connection.
    if (this.#export === null)
      await this.#command(COMMAND.read, 0, 0, this.blockBytes, Buffer.alloc(this.blockBytes));
    if (this.#export!.allocationContextId === null) return [{ lengthBytes, kind: 'data' }];
    const unit = Math.max(1, this.#export!.minimumBlockBytes);
    const start = offsetBytes - (offsetBytes % unit);
    const stop = Math.min(this.lengthBytes, Math.ceil((offsetBytes + lengthBytes) / unit) * unit);
    const answer = await this.#ask(COMMAND.blockStatus, start, stop - start);
    const pieces: Pick<Extent, 'lengthBytes' | 'kind'>[] = [];
    const end = offsetBytes + lengthBytes;
    let at = offsetBytes;
    let position = start;
    for (const { lengthBytes: extentBytes, state } of answer) {
      position = Math.min(end, position + extentBytes);
      // A border inside of a block makes the whole block data.
      const isHole = (state & ALLOCATION_STATE.zero) !== 0;
      const border = position === end ? end : position - (position % this.blockBytes);
      const upTo =
        isHole || position === end
          ? border
          : Math.min(end, Math.ceil(position / this.blockBytes) * this.blockBytes);
      if (upTo > at) {
        pieces.push({ lengthBytes: upTo - at, kind: isHole ? 'hole' : 'data' });
        at = upTo;
      }
      if (position >= end) break;
    }
    if (at === offsetBytes)
      pieces.push({ lengthBytes: Math.min(lengthBytes, this.blockBytes), kind: 'data' });
    return pieces;
  }

  #ask(type: number, offsetBytes: number, lengthBytes: number): Promise<NonNullable<NbdRequest['extents']>> {
    return new Promise((resolve, reject) => {
      const task = this.#task(
        type,
        0,
        offsetBytes,
        lengthBytes,
        null,
        false,
        () => resolve(task.extents!),
        reject,
      );
      this.#enqueue(task);
    });
  }

  #command(
    type: number,
    flags: number,
    offsetBytes: number,
    lengthBytes: number,
    buffer: Uint8Array | null,
    options?: NbdReadOptions,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      const background = options?.priority === 'background';
      const task = this.#task(type, flags, offsetBytes, lengthBytes, buffer, background, resolve, reject);
      if (options?.signal !== undefined) this.#queue.withdrawOnAbort(task, options.signal);
      this.#enqueue(task);
    });
  }

  #task(
    type: number,
    flags: number,
    offsetBytes: number,
    lengthBytes: number,
    buffer: Uint8Array | null,
    background: boolean,
    resolve: () => void,
    reject: (error: unknown) => void,
  ): Task {
    const task: Task = {
      type,
      flags,
      offsetBytes,
      lengthBytes,
      buffer,
      attempts: 0,
      extents: null,
      finish: (failure) => this.#finish(task, failure),
      background,
      startedMs: this.#clock.monotonicMs(),
      failures: 0,
      resolve,
      reject,
    };
    return task;
  }

  #enqueue(task: Task): void {
    if (this.#failure !== null) {
      task.reject(this.#failure);
      return;
    }
    this.#queue.push(task);
    this.#pump();
  }

  /** Each on the connection with the least to do. */
  #pump(): void {
    while (this.#inFlight < this.#options.queueDepth) {
      const lane = this.#idlest();
      if (lane === null) return;
      const task = this.#queue.take();
      if (task === null) return;
      this.#inFlight += 1;
      lane.session!.send(task);
    }
  }

  #idlest(): Lane | null {
    let best: Lane | null = null;
    for (const lane of this.#lanes) {
      if (lane.session?.hasRoom !== true) continue;
      if (best === null || lane.session.inFlight < best.session!.inFlight) best = lane;
    }
    return best;
  }

  #finish(task: Task, failure: NbdFailure | null): void {
    this.#answers += 1;
    this.#inFlight -= 1;
    this.#queue.ended(task);
    if (failure === null) {
      if (task.type === COMMAND.read) this.#statistics.bytesRead += task.lengthBytes;
      else if (task.type === COMMAND.write) this.#statistics.bytesWritten += task.lengthBytes;
      task.resolve();
      return;
    }
    if (failure.error === NBD_ERROR.ESHUTDOWN) {
      // The server is on its way out; what it did not do goes to the one that comes after it.
      this.#queue.putBack([task]);
      for (const { session } of this.#lanes) session?.fail(shutdownError());
      return;
    }
    task.failures += 1;
    if (failure.error === NBD_ERROR.ENOMEM && task.failures < FAILURES_MAX) {
      this.#delayedRetries += 1;
      this.#clock.timer(RETRY_MS, () => {
        this.#delayedRetries -= 1;
        this.#enqueue(task);
      });
      return;
    }
    task.reject(errorOf(task, failure));
  }

  /** Everything that waits, sent or not. */
  #takeAll(): Task[] {
    const tasks = this.#queue.drain();
    for (const { session } of this.#lanes) tasks.push(...((session?.unanswered() ?? []) as Task[]));
    return tasks;
  }

  // --- connections
  // ---------------------------------------------------------------------------------------------------

  #setState(state: NbdClientState): void {
    if (this.#state === state || this.#state === 'closed') return;
    this.#state = state;
    if (state === 'connected') this.#lostSinceMs = null;
    else this.#lostSinceMs ??= this.#clock.monotonicMs();
    for (const listener of [...this.#listeners]) listener(state);
  }

  #start(refusalIsFatal: boolean): void {
    this.#lostSinceMs = this.#clock.monotonicMs();
    this.#addLane(refusalIsFatal);
  }

  #addLane(refusalIsFatal: boolean): void {
    const lane: Lane = { session: null, connection: null, hadSession: false, patience: 1 };
    this.#lanes.push(lane);
    this.#loops.push(this.#run(lane, refusalIsFatal));
  }

  async #run(lane: Lane, refusalIsFatal: boolean): Promise<void> {
    let attempt = 0;
    while (this.#failure === null) {
      const answersBefore = this.#answers;
      const error = await this.#serve(lane);
      if (this.#failure !== null) return;
      lane.patience = peerPatience(lane.patience, error);
      const refused = refusalIsFatal && this.#export === null && error.retry === 'never';
      if (error.code === 'NBD_EXPORT_CHANGED' || refused) {
        this.#fail(error);
        return;
      }
      this.#logger.warn(
        { attempt, code: error.code, error: error.message, ...error.values },
        'NBD: connection lost',
      );
      // A connection that carried something was good: begin anew. Else wait longer each time.
      if (this.#answers > answersBefore) attempt = 0;
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
    this.#lastError = error;
    this.#logger.error({ code: error.code, error: error.message, ...error.values }, 'NBD: device failed');
    for (const { connection } of this.#lanes) connection?.destroy();
    const tasks = this.#takeAll();
    for (const { session } of this.#lanes) session?.fail(error);
    for (const task of tasks) task.reject(error);
    this.#setState('failed');
  }

  /** One connection from dialling to its end. Answers why it ended. */
  async #serve(lane: Lane): Promise<GodwitError> {
    const { address, exportName, tls } = this.#options;
    const handshakeTimeoutMs = this.#options.handshakeTimeoutMs * lane.patience;
    const over = Promise.withResolvers<GodwitError>();
    const onClosing = (): void => over.resolve(closedError());
    this.#closing.signal.addEventListener('abort', onClosing, { once: true });
    const cancel = this.#clock.timer(handshakeTimeoutMs, () =>
      over.resolve(handshakeTimeoutError(address, handshakeTimeoutMs)),
    );
    const connection = new NbdConnection<RemoteExport>({
      address,
      tls,
      handshake: negotiate({ exportName, tls: tls.mode }),
      pool: this.#pool,
      onReady: (export_, writer) => {
        cancel();
        this.#checkExport(export_);
        const session = new NbdSession({
          export: export_,
          writer,
          clock: this.#clock,
          keepAliveIntervalMs: this.#options.keepAliveIntervalMs,
          keepAliveTimeoutMs: this.#options.keepAliveTimeoutMs * lane.patience,
          requestTimeoutMs: this.#options.requestTimeoutMs,
          onRoom: () => this.#pump(),
          onOver: (error) => over.resolve(error),
        });
        this.#joined(lane, session, export_);
        return session;
      },
      onOver: (error) => over.resolve(error),
    });
    lane.connection = connection;
    const error = await over.promise;
    cancel();
    this.#closing.signal.removeEventListener('abort', onClosing);
    if (this.#state !== 'closed') connection.destroy();
    if (this.#failure === null) this.#lastError = error;
    this.#left(lane, error);
    return error;
  }

  #joined(lane: Lane, session: NbdSession, export_: RemoteExport): void {
    const isFirst = this.#export === null;
    this.#export = export_;
    lane.session = session;
    if (lane.hadSession) this.#statistics.reconnects += 1;
    lane.hadSession = true;
    this.#logger.info({ lengthBytes: export_.lengthBytes, replyStyle: export_.replyStyle }, 'NBD: connected');
    if (isFirst && this.#has(TRANSMISSION_FLAG.canMultiConn)) {
      for (let count = 1; count < this.#options.connections; count += 1) this.#addLane(false);
    }
    this.#setState('connected');
    this.#pump();
  }

  #left(lane: Lane, error: GodwitError): void {
    const { session } = lane;
    lane.session = null;
    lane.connection = null;
    if (session === null) return;
    session.fail(error);
    if (this.#failure !== null) return;
    const unanswered = session.unanswered() as Task[];
    this.#inFlight -= unanswered.length;
    for (const task of unanswered) {
      task.attempts += 1;
      this.#queue.ended(task);
    }
    this.#statistics.replayed += unanswered.length;
    this.#queue.putBack(unanswered);
    if (this.#lanes.every((other) => other.session === null)) this.#setState('lost');
    else this.#pump();
  }

  /**
   * Throws `NBD_EXPORT_CHANGED` unless the export is the one that we know or expect;
   * `NBD_UNSUPPORTED_EXPORT`.
   */
  #checkExport(export_: RemoteExport): void {
    const unit = Math.min(BLOCK_BYTES_MAX, Math.max(BLOCK_BYTES_MIN, export_.minimumBlockBytes));
    if (export_.lengthBytes === 0 || export_.lengthBytes % unit !== 0) {
      throw new GodwitError(
        'NBD_UNSUPPORTED_EXPORT',
        `an NBD export of ${export_.lengthBytes} bytes is not made of whole blocks`,
        {
          values: { lengthBytes: export_.lengthBytes, blockBytes: unit },
          retry: 'never',
          nextAction:
            'Make the disk behind the export a multiple of 512 bytes long (nbdkit: --filter=truncate round-up=512).',
        },
      );
    }
    const known = this.#export;
    const { expected } = this.#options;
    const wantedLength = known?.lengthBytes ?? expected?.lengthBytes ?? export_.lengthBytes;
    const sameBlocks =
      known === null
        ? export_.minimumBlockBytes === (expected?.minimumBlockBytes ?? export_.minimumBlockBytes)
        : export_.minimumBlockBytes <= Math.max(this.blockBytes, known.minimumBlockBytes);
    const { name = export_.name, description = export_.description } = known ?? expected ?? {};
    const sameName = name === export_.name && description === export_.description;
    const readOnly = (flags: number): boolean => (flags & TRANSMISSION_FLAG.readOnly) !== 0;
    const sameAccess =
      known === null ||
      this.#options.readOnly ||
      readOnly(known.transmissionFlags) === readOnly(export_.transmissionFlags);
    if (export_.lengthBytes === wantedLength && sameBlocks && sameName && sameAccess) return;
    throw new GodwitError('NBD_EXPORT_CHANGED', 'The NBD export is not the one that was expected', {
      values: {
        expectedLengthBytes: wantedLength,
        lengthBytes: export_.lengthBytes,
        expectedName: name,
        name: export_.name,
        expectedDescription: description,
        description: export_.description,
      },
      retry: 'never',
      nextAction:
        'Nothing is read from it. Find out what is served under this name now, and connect again to the right one.',
    });
  }
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

function errorOf(task: Task, failure: NbdFailure): GodwitError {
  const error = nameOf(NBD_ERROR, failure.error);
  if (failure.error === NBD_ERROR.ENOSPC) {
    return new GodwitError('BLOCK_NO_SPACE', 'The NBD server has no space left', {
      nextAction: 'Make space on the host of the server.',
    });
  }
  if (failure.error === NBD_ERROR.EPERM && task.type !== COMMAND.read && task.type !== COMMAND.blockStatus) {
    return readOnlyError();
  }
  return new GodwitError('NBD_REQUEST_FAILED', `The NBD server failed a request (${error})`, {
    values: {
      request: nameOf(COMMAND, task.type),
      offsetBytes: task.offsetBytes,
      lengthBytes: task.lengthBytes,
      error,
      serverMessage: failure.message,
      errorOffsetBytes: failure.offsetBytes,
    },
    nextAction: 'Look at the log of the server for the cause; EIO means that its disk is failing.',
  });
}

function shutdownError(): GodwitError {
  return new GodwitError('NBD_CONNECTION_LOST', 'The NBD server is shutting down', {
    nextAction: 'The connection is made anew by itself when the server is back.',
  });
}

function unreachableError(): GodwitError {
  return new GodwitError('NBD_CONNECTION_LOST', 'The NBD server was not reached in time', {
    nextAction: 'Check the address, and that the server is up.',
  });
}

function handshakeTimeoutError(address: NbdAddress, timeoutMs: number): GodwitError {
  return new GodwitError('NBD_HANDSHAKE_TIMEOUT', 'The NBD server did not complete the handshake in time', {
    values: {
      ...('host' in address ? { host: address.host, port: address.port } : { path: address.path }),
      timeoutMs,
    },
    retry: 'later',
    nextAction: 'Check the network and the host of the server; the handshake is tried again.',
  });
}
