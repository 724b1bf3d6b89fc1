import type { Clock } from '../base/clock.ts';
import { type GodwitError, isGodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Random } from '../base/random.ts';
import type { BlockDevice, Extent } from '../block/block-device.ts';
import { checkRange, closedError, ExtentList, readOnlyError } from '../block/range.ts';
import type { Dialect, Piece, RemoteUnit, Session, Zeroing } from './dialect.ts';
import { type Carrier, Dispatcher } from './dispatcher.ts';
import { Lane } from './lane.ts';
import {
  isNotTaken,
  NO_BYTES,
  notTakenError,
  type RemoteCommand,
  RemoteRequest,
  type RequestParts,
} from './request.ts';

/**
 * A disk behind a network as a block device. Connections may come and go: what was not answered is sent again
 * on the next one, and whoever reads only sees that it takes longer.
 *
 *   connecting ──→ connected ⇄ lost      any ──close──→ closed      any ──another disk──→ failed
 *
 * It is connected while at least one of its lanes is.
 */
export type RemoteState = 'connecting' | 'connected' | 'lost' | 'failed' | 'closed';

/**
 * guest: somebody waits for it. background: it goes when no guest request waits, and never takes the last
 * quarter of the queue.
 */
export type ReadPriority = 'guest' | 'background';
export type ReadOptions = { priority?: ReadPriority; signal?: AbortSignal };

/** What every dialect's options have. */
export type RemoteOptions = {
  clock: Clock;
  random: Random;
  logger: Logger;
  /** Default true: refuses writes, whatever the disk would take. */
  readOnly?: boolean;
  /** Requests at once over all connections, 1 to 1024. Default 64. */
  queueDepth?: number;
  /** First and longest pause between attempts to connect. Default 50 ms and 3 s. */
  backoffMs?: number;
  backoffMsMax?: number;
};

/** For how long `connect` tries, and what ends it before. Default 30 s. */
export type ConnectWait = { timeoutMs?: number; signal?: AbortSignal };

export type RemoteStatistics = {
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

/** What does not vary with the protocol, and has no default in `RemoteOptions`. */
type Basis = {
  logger: Logger;
  connectTimeoutMs: number;
  /** What a device says of itself before it was reached. */
  expected: { lengthBytes: number; blockBytes?: number } | null;
};

const CONNECT_TIMEOUT_MS = 30_000;
const DEFAULTS = { readOnly: true, queueDepth: 64, backoffMs: 50, backoffMsMax: 3_000 };
const BLOCK_BYTES_UNKNOWN = 512;
/** The disk is looked at so often while it is used, whether it has said that something changed or not. */
const LOOK_EVERY_MS = 5_000;
const RETRY_MS = 100;

export class RemoteDisk<Unit extends RemoteUnit, Command extends RemoteCommand> implements BlockDevice {
  readonly #dialect: Dialect<Unit, Command>;
  readonly #options: Required<RemoteOptions> & Basis;
  readonly #clock: Clock;
  readonly #dispatcher: Dispatcher<Command>;
  readonly #listeners = new Set<(state: RemoteState) => void>();
  readonly #closing = new AbortController();
  readonly #lanes: Lane<Unit, Command>[] = [];
  /** Lanes that are cut and no longer among the others. */
  readonly #leaving = new Set<Promise<void>>();
  /** Resolves when the disk was reached for the first time. */
  readonly #reached = Promise.withResolvers<Unit>();

  #state: RemoteState = 'connecting';
  #lostSinceMs: number | null = null;
  #lastError: GodwitError | null = null;
  #unit: Unit | null = null;
  /** Lanes that have a session. */
  readonly #connected = new Set<Lane<Unit, Command>>();
  #reconnects = 0;
  #refusalIsFatal = false;
  #failure: GodwitError | null = null;
  #look: Promise<void> = Promise.resolve();
  #nextLook: Promise<void> | null = null;
  #lookedAtMs = 0;

  protected constructor(dialect: Dialect<Unit, Command>, options: RemoteOptions & Basis) {
    this.#dialect = dialect;
    this.#options = { ...DEFAULTS, ...options };
    this.#clock = options.clock;
    this.#reached.promise.catch(() => {}); // whoever waits for it is told
    this.#dispatcher = new Dispatcher({
      clock: options.clock,
      random: options.random,
      depth: this.#options.queueDepth,
      look: () => this.vouch(),
      onDone: () => this.#lookNowAndThen(),
      poisoned: (request) => dialect.poisoned(request, this.#unit!),
      notTaken: (request) => {
        this.#doOtherwise(request).then(
          () => request.resolve(),
          (error) => request.reject(error),
        );
      },
    });
  }

  /**
   * Resolves once the disk is there and checked. Network errors are tried again for `timeoutMs` or until
   * `signal`; a refusal rejects at once. One that rejects is closed.
   */
  protected async connected({ timeoutMs = CONNECT_TIMEOUT_MS, signal }: ConnectWait): Promise<this> {
    const ready = Promise.withResolvers<void>();
    const onAbort = (): void => ready.reject(signal!.reason);
    const cancel = this.#clock.timer(timeoutMs, () =>
      ready.reject(this.#lastError ?? this.#dialect.unreachable()),
    );
    const unsubscribe = this.onStateChange((state) => {
      if (state === 'connected') ready.resolve();
      else if (state === 'failed') ready.reject(this.#lastError);
    });
    if (signal?.aborted) onAbort();
    else {
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#refusalIsFatal = true;
      this.start();
    }
    try {
      await ready.promise;
      return this;
    } catch (error) {
      await this.close();
      throw error;
    } finally {
      cancel();
      unsubscribe();
      signal?.removeEventListener('abort', onAbort);
    }
  }

  /** Connects in the background. Once. */
  protected start(): this {
    this.#lostSinceMs = this.#clock.monotonicMs();
    this.#addLane();
    return this;
  }

  // --- what it is

  get lengthBytes(): number {
    return this.#unit?.lengthBytes ?? this.#options.expected!.lengthBytes;
  }
  get blockBytes(): number {
    return this.#unit?.blockBytes ?? this.#options.expected?.blockBytes ?? BLOCK_BYTES_UNKNOWN;
  }
  get writable(): boolean {
    return !this.#options.readOnly && this.#dialect.writable(this.#unit);
  }
  /** What the disk said of itself. null until it was reached. */
  get identity(): Unit | null {
    return this.#unit;
  }
  get state(): RemoteState {
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
  /**
   * Why the request that waits longest of those that were sent before still does: the peer put it off, or its
   * connection ended. null: none does.
   */
  get trouble(): GodwitError | null {
    return this.#dispatcher.trouble;
  }
  get statistics(): RemoteStatistics {
    return { ...this.#dispatcher.statistics, reconnects: this.#reconnects };
  }
  /** Returns the function that ends the subscription. */
  onStateChange(listener: (state: RemoteState) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  // --- BlockDevice

  /**
   * Waits through outages. A signal takes effect while the read is not on the wire; there it is waited for.
   */
  read(offsetBytes: number, into: Uint8Array, options?: ReadOptions): Promise<void> {
    try {
      checkRange(this, offsetBytes, into.length);
    } catch (error) {
      return Promise.reject(error);
    }
    return this.#transfer(this.#dialect.reads, offsetBytes, into, options);
  }

  /** `fua`: resolves when the data is durable. */
  async write(offsetBytes: number, from: Uint8Array, options: { fua?: boolean } = {}): Promise<void> {
    this.checkMutation(offsetBytes, from.length);
    const durable = options.fua === true ? this.#dialect.durableWrites(this.#unit) : null;
    await this.#transfer(durable ?? this.#dialect.writes, offsetBytes, from);
    if (options.fua === true && durable === null) await this.flush();
  }

  async flush(): Promise<void> {
    if (this.#failure !== null) throw this.#failure;
    if (!this.writable) return;
    const command = this.#dialect.flushes(await this.#unitNow());
    if (command !== null) await this.request(command);
  }

  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.checkMutation(offsetBytes, lengthBytes);
    await this.#zero(offsetBytes, lengthBytes, true);
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.checkMutation(offsetBytes, lengthBytes);
    await this.#zero(offsetBytes, lengthBytes, false);
  }

  /** All data where the peer cannot tell, or where its holes do not read as zeros. */
  async extents(offsetBytes: number, lengthBytes: number, limitExtents: number): Promise<Extent[]> {
    checkRange(this, offsetBytes, lengthBytes);
    if (this.#failure !== null) throw this.#failure;
    const list = new ExtentList(limitExtents);
    const end = offsetBytes + lengthBytes;
    let at = offsetBytes;
    while (at < end) {
      const room = limitExtents - list.extents.length + 1;
      for (const piece of await this.#pieces(at, end - at, room)) {
        const stop = Math.min(end, at + piece.lengthBytes);
        if (!list.add(at, stop - at, piece.kind)) return list.extents;
        at = stop;
      }
    }
    return list.extents;
  }

  async #pieces(offsetBytes: number, lengthBytes: number, limit: number): Promise<Piece[]> {
    try {
      const unit = await this.#unitNow();
      return await this.#dialect.pieces(this.#ask(false), unit, offsetBytes, lengthBytes, limit);
    } catch (error) {
      if (isNotTaken(error)) return [{ lengthBytes, kind: 'data' }];
      throw error;
    }
  }

  /** Says good-bye where nothing is under way; everything that waits rejects with `BLOCK_CLOSED`. */
  async close(): Promise<void> {
    if (this.#state !== 'closed') {
      this.#failure ??= closedError();
      // The wires first: nothing may land in a buffer after its read has been rejected.
      for (const lane of this.#lanes) lane.leave();
      this.#closing.abort();
      this.#dispatcher.end(this.#failure);
      this.#reached.reject(this.#failure);
      this.#setState('closed');
    }
    await Promise.all([...this.#lanes.map((lane) => lane.over()), ...this.#leaving]);
  }

  // --- which disk it is

  /**
   * Resolves when a look that began after this call found the disk that it was, at once where a session has
   * one disk for its life. What was read before this call came from that disk then. Many calls share a look.
   * Rejects with the dialect's `changed`, after which nothing is read any more, or `BLOCK_CLOSED`.
   */
  vouch(): Promise<void> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    if (this.#dialect.look === undefined) return Promise.resolve();
    this.#nextLook ??= this.#look.then(() => {
      this.#nextLook = null;
      const look = this.#lookNow();
      this.#look = look.catch(() => {});
      return look;
    });
    return this.#nextLook;
  }

  async #lookNow(): Promise<void> {
    await this.#reached.promise;
    for (;;) {
      this.#lookedAtMs = this.#clock.monotonicMs();
      try {
        await this.#dialect.look!(this.#ask(true), () => this.#unit!);
        return;
      } catch (error) {
        if (this.#failure !== null) throw this.#failure;
        if (isGodwitError(error, this.#dialect.codes.changed)) {
          this.#fail(error);
          throw error;
        }
        // A disk that does not say what it is: the next connection asks again, and the waiting goes on.
        this.#dispatcher.failSessions(this.#dialect.typed(error));
        await this.#clock.sleep(RETRY_MS, this.#closing.signal).catch(() => {});
        if (this.#failure !== null) throw this.#failure;
      }
    }
  }

  #lookNowAndThen(): void {
    if (this.#dialect.look === undefined) return;
    if (this.#clock.monotonicMs() - this.#lookedAtMs < LOOK_EVERY_MS) return;
    this.#lookedAtMs = this.#clock.monotonicMs();
    void this.vouch().catch(() => {}); // it fails the device, and says so there
  }

  // --- requests

  /** Throws unless the range may be changed. */
  protected checkMutation(offsetBytes: number, lengthBytes: number): void {
    if (this.#failure !== null) throw this.#failure;
    checkRange(this, offsetBytes, lengthBytes);
    if (!this.writable) throw readOnlyError();
  }

  #transfer(command: Command, offsetBytes: number, buffer: Uint8Array, options?: ReadOptions): Promise<void> {
    if (buffer.length === 0)
      return this.#failure === null ? Promise.resolve() : Promise.reject(this.#failure);
    const partBytes = this.#dialect.transferBytesMax(this.#unit);
    if (buffer.length <= partBytes) return this.request(command, offsetBytes, buffer.length, buffer, options);
    const parts: Promise<void>[] = [];
    for (let at = 0; at < buffer.length; at += partBytes) {
      const part = buffer.subarray(at, Math.min(at + partBytes, buffer.length));
      parts.push(this.request(command, offsetBytes + at, part.length, part, options));
    }
    return allSettled(parts);
  }

  /** One request, as long as it takes. */
  protected request(
    command: Command,
    offsetBytes = 0,
    lengthBytes = 0,
    buffer: Uint8Array = NO_BYTES,
    options?: ReadOptions,
  ): Promise<void> {
    const signal = options?.signal;
    if (signal?.aborted) return Promise.reject(signal.reason);
    return new Promise((resolve, reject) => {
      const startedMs = this.#clock.monotonicMs();
      const request = new RemoteRequest(
        command,
        offsetBytes,
        lengthBytes,
        buffer,
        startedMs,
        resolve,
        reject,
      );
      request.background = options?.priority === 'background';
      if (signal !== undefined) request.watch(signal, () => this.#dispatcher.withdraw(request));
      this.#dispatcher.submit(request);
    });
  }

  #ask(isLook: boolean): (parts: RequestParts<Command>) => Promise<RemoteRequest<Command>> {
    return ({ command, offsetBytes, lengthBytes, buffer }) =>
      new Promise((resolve, reject) => {
        const startedMs = this.#clock.monotonicMs();
        const done = (): void => resolve(request);
        const request = new RemoteRequest(command, offsetBytes, lengthBytes, buffer, startedMs, done, reject);
        request.isLook = isLook;
        this.#dispatcher.submit(request);
      });
  }

  /** The first block, which every disk has. */
  #probe({ blockBytes }: Unit): RemoteRequest<Command> {
    const ignore = (): void => {};
    const buffer = new Uint8Array(blockBytes);
    const nowMs = this.#clock.monotonicMs();
    const probe = new RemoteRequest(this.#dialect.reads, 0, blockBytes, buffer, nowMs, ignore, ignore);
    probe.isProbe = true;
    return probe;
  }

  async #zero(offsetBytes: number, lengthBytes: number, mayPunch: boolean): Promise<void> {
    const end = offsetBytes + lengthBytes;
    for (let at = offsetBytes; at < end; ) {
      const how = this.#dialect.zeroes(await this.#unitNow(), mayPunch);
      const stepBytes = Math.min(how?.stepBytes ?? end - at, end - at);
      if (how === null || !(await this.#zeroBy(how, at, stepBytes)))
        await this.#writeZeroBuffer(at, stepBytes);
      at += stepBytes;
    }
  }

  /** False: the peer does not know the command. */
  async #zeroBy(how: Zeroing<Command>, offsetBytes: number, lengthBytes: number): Promise<boolean> {
    try {
      await this.request(how.command, offsetBytes, lengthBytes, how.payload);
      return true;
    } catch (error) {
      if (isNotTaken(error) || this.#dialect.isUnsupported(error)) return false;
      throw error;
    }
  }

  async #writeZeroBuffer(offsetBytes: number, lengthBytes: number): Promise<void> {
    const zeros = new Uint8Array(Math.min(lengthBytes, this.#dialect.transferBytesMax(this.#unit)));
    for (let at = 0; at < lengthBytes; at += zeros.length) {
      const part = zeros.subarray(0, Math.min(zeros.length, lengthBytes - at));
      await this.#transfer(this.#dialect.writes, offsetBytes + at, part);
    }
  }

  /**
   * The disk came back, and takes a request no longer that was made for what it was: a durable write becomes
   * a write and a flush, a transfer that is too long shorter ones. All else has another way at whoever asks.
   * Throws `REMOTE_NOT_TAKEN`.
   */
  async #doOtherwise(request: RemoteRequest<Command>): Promise<void> {
    const { command, offsetBytes, buffer, background, signal } = request;
    const { reads, writes } = this.#dialect;
    const options: ReadOptions = {
      ...(background && { priority: 'background' }),
      ...(signal !== undefined && { signal }),
    };
    if (command.counts === 'write' && command !== writes) {
      await this.#transfer(writes, offsetBytes, buffer);
      await this.flush();
      return;
    }
    const isShorter = buffer.length > this.#dialect.transferBytesMax(this.#unit);
    if (!isShorter || (command !== reads && command !== writes)) throw notTakenError(request);
    await this.#transfer(command, offsetBytes, buffer, options);
  }

  // --- connections

  /** What the disk was when it was last reached, which may differ from what it was at first. */
  async #unitNow(): Promise<Unit> {
    await this.#reached.promise;
    return this.#unit!;
  }

  #addLane(): void {
    const { clock, random, logger, connectTimeoutMs, backoffMs, backoffMsMax } = this.#options;
    const lane: Lane<Unit, Command> = new Lane({
      ...{ dialect: this.#dialect, dispatcher: this.#dispatcher, clock, random, logger, connectTimeoutMs },
      backoff: { firstMs: backoffMs, maxMs: backoffMsMax },
      joined: (session, unit, isReconnection) => this.#joined(lane, session, unit, isReconnection),
      ended: (error) => this.#ended(lane, error),
    });
    this.#lanes.push(lane);
  }

  #joined(
    lane: Lane<Unit, Command>,
    session: Session<Command>,
    unit: Unit,
    isReconnection: boolean,
  ): Carrier<Command> {
    if (this.#failure !== null) throw this.#failure;
    const known = this.#unit;
    const changed = this.#dialect.changed(unit, known);
    if (changed !== null) throw changed;
    this.#unit = unit;
    this.#lookedAtMs = this.#clock.monotonicMs();
    if (known !== null && this.#dialect.areAlike?.(unit, known) === false) this.#leaveOthers(lane, unit);
    this.#connected.add(lane);
    if (isReconnection) this.#reconnects += 1;
    this.#options.logger.info(
      { lengthBytes: unit.lengthBytes, blockBytes: unit.blockBytes },
      `${this.#dialect.name}: connected`,
    );
    const takes = (request: RemoteRequest<Command>): boolean => this.#dialect.takes(unit, request);
    const carrier = this.#dispatcher.join(session, this.#probe(unit), takes);
    this.#reached.resolve(unit);
    while (this.#lanes.length < this.#dialect.sessionsMax(unit)) this.#addLane();
    this.#setState('connected');
    return carrier;
  }

  /**
   * The disk has changed what it can do: sessions from before are over, since what holds for one of them need
   * not hold for the other (a flush, above all), and there are as many as there may be now.
   */
  #leaveOthers(lane: Lane<Unit, Command>, unit: Unit): void {
    const others = this.#lanes.filter((other) => other !== lane);
    for (const surplus of others.splice(Math.max(0, this.#dialect.sessionsMax(unit) - 1))) {
      surplus.cut();
      this.#connected.delete(surplus);
      this.#lanes.splice(this.#lanes.indexOf(surplus), 1);
      const over = surplus.over().then(() => void this.#leaving.delete(over));
      this.#leaving.add(over);
    }
    this.#dispatcher.failSessions(this.#dialect.typed('the disk can do other things than it could before'));
  }

  #ended(lane: Lane<Unit, Command>, error: GodwitError): boolean {
    const hadSession = this.#connected.delete(lane);
    if (this.#failure !== null) return true;
    // Before the state changes, so that whoever is told of it finds the reason.
    this.#lastError = error;
    const isRefused = this.#refusalIsFatal && this.#unit === null && error.retry === 'never';
    if (error.code === this.#dialect.codes.changed || isRefused) {
      this.#fail(error);
      return true;
    }
    if (hadSession && this.#connected.size === 0) this.#setState('lost');
    return false;
  }

  #fail(error: GodwitError): void {
    this.#failure = error;
    this.#lastError = error;
    const { name } = this.#dialect;
    this.#options.logger.error(
      { code: error.code, error: error.message, ...error.values },
      `${name}: device failed`,
    );
    for (const lane of this.#lanes) lane.cut();
    this.#closing.abort();
    this.#dispatcher.end(error);
    this.#reached.reject(error);
    this.#setState('failed');
  }

  #setState(state: RemoteState): void {
    if (this.#state === state || this.#state === 'closed') return;
    this.#state = state;
    if (state === 'connected') this.#lostSinceMs = null;
    else this.#lostSinceMs ??= this.#clock.monotonicMs();
    for (const listener of [...this.#listeners]) listener(state);
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
