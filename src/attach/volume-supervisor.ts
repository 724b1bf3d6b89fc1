import type { ChildProcess } from 'node:child_process';
import { closeSync, openSync, writeFileSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { AnswerTime } from '../base/answer-time.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import { LineRpc, rpcTimeout } from '../base/line-rpc.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { ProcessPace } from '../base/process-pace.ts';
import { readWireError } from '../base/read-wire-error.ts';
import { whileAlive } from '../base/while-alive.ts';
import type { OperationArgs, OperationResult, VolumeOperation } from '../opening/operations.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import { specAfter, specAtPort, specFollowing, specWithLoss } from '../opening/spec-after.ts';
import type { VolumeServerStatus } from '../opening/status.ts';
import { setIoFlusher } from '../sys/io-flusher.ts';
import { setNice } from '../sys/process-priority.ts';
import { startError, startProgram } from '../sys/start-program.ts';

/**
 * Flags for the node that runs a volume server. Its heap holds no data (slots and buffers are outside), and
 * small young generations keep the idle process under 80 MiB resident, hot thread included.
 */
export const VOLUME_SERVER_NODE_FLAGS = ['--max-semi-space-size=1', '--max-old-space-size=128'] as const;

/** A server that was ready for this long was well: the next one is started at once. */
const WELL_AFTER_MS = 250;
/** The first restart is at once; then each waits twice as long, from and up to. */
const BACKOFF_FIRST_MS = 50;
const BACKOFF_MAX_MS = PAUSE.serverRestartMax.ms;
/**
 * Priority of the server (nice(2)): whoever waits for the disk waits for it, so a workload that keeps every
 * processor busy must not hold up its own reads. It sleeps whenever nothing is asked of it. One that serves
 * strangers comes after the machines here: whatever they ask for, as much as they like, holds up nobody.
 */
const SERVER_NICE = -10;
const SERVE_NICE = 5;
/** Of the questions whether a server lives. */
const SILENT_AFTER_QUESTIONS = 3;
/** Servers in a row that ended soon after their start, without saying why. */
const QUICK_DEATHS_MAX = 20;
/** Between looks at what a server that starts does. */
const LOOK_MS = PAUSE.serverLook.ms;

export type VolumeSupervisorOptions = {
  /**
   * Program and arguments of the volume server; it reads the spec as the first line of its standard input.
   */
  command: readonly [string, ...string[]];
  env?: NodeJS.ProcessEnv;
  spec: OpeningSpec;
  /**
   * Descriptor of the FUSE connection, which becomes the server's descriptor 3. null for an export. Stays the
   * caller's.
   */
  fuseFd: number | null;
  /** Standard error of the servers is appended here. */
  logPath: string;
  /**
   * `cgroup.procs` files that every server is moved into: never a cgroup of the workload, because under a
   * memory limit that both share the server would wait for memory that only its own work can free.
   */
  cgroupProcsPaths?: readonly string[];
  clock: Clock;
  logger: Logger;
  /**
   * Events of the server (`ready`, `progress`, `hydrated`, `source-lost`, `source-back`, `failed`), and
   * `restarted` {restarts}.
   */
  onEvent?: (event: string, data: unknown) => void;
};

export type VolumeSupervisorState = {
  /** null while none runs. */
  serverPid: number | null;
  /** True between the server's `ready` event and its end. */
  ready: boolean;
  restarts: number;
  /** Why the last server ended, or said `failed`; null when all is well. */
  lastError: GodwitError | null;
  /** The newest `progress` event or answer to `status`. */
  lastStatus: VolumeServerStatus | null;
  /**
   * What guards the server against memory pressure. Both need CAP_SYS_RESOURCE; null before the first start.
   */
  protection: { ioFlusher: boolean; outOfMemoryKiller: boolean } | null;
};

/**
 * Keeps one volume server alive: starts it with the spec, starts another one at once when it dies, on the
 * same descriptor and with what was commanded since (access, hydration, grants, room), and passes commands
 * and events on. A command that was under way when the server died is given to the next one: all of them are
 * idempotent.
 */
export class VolumeSupervisor {
  readonly #options: VolumeSupervisorOptions;
  #spec: OpeningSpec;
  #child: ChildProcess | null = null;
  #rpc: LineRpc | null = null;
  #ready: PromiseWithResolvers<void> = Promise.withResolvers();
  #isReady = false;
  #restarts = 0;
  #readyAtMs: number | null = null;
  /** What the current server said in its `failed` event: more than its exit can say. */
  #failure: GodwitError | null = null;
  #quickDeaths = 0;
  #lastError: GodwitError | null = null;
  #lastStatus: VolumeServerStatus | null = null;
  #protection: VolumeSupervisorState['protection'] = null;
  #stopping = false;
  readonly #times = new AnswerTime({
    floorMs: PATIENCE.serverAnswer.ms,
    ceilingMs: PATIENCE.serverAnswerMax.ms,
  });
  #cancelRestart: () => void = () => {};
  #ended: PromiseWithResolvers<void> | null = null;

  constructor(options: VolumeSupervisorOptions) {
    this.#options = options;
    this.#spec = structuredClone(options.spec);
    this.#ready.promise.catch(() => {});
  }

  get state(): VolumeSupervisorState {
    return {
      serverPid: this.#child?.pid ?? null,
      ready: this.#isReady,
      restarts: this.#restarts,
      lastError: this.#lastError,
      lastStatus: this.#lastStatus,
      protection: this.#protection,
    };
  }

  /** What the next server would be started with. Holds secrets. */
  get spec(): OpeningSpec {
    return this.#spec;
  }

  /**
   * Starts the first server and resolves at its `ready` event, however long that takes while it does
   * something. Rejects with what the server says in a `failed` event, or `ATTACH_SERVER_NOT_READY` when it
   * does nothing for `quietMs`, or servers end again and again; it goes on trying.
   */
  async start(quietMs: number = PATIENCE.serverReady.ms): Promise<void> {
    this.#spawn();
    await this.#whenReady(null, quietMs);
  }

  /**
   * Passes one operation to the server (opening/operations.ts lists them) and returns its result. Waits
   * for a server while there is none. Rejects with the server's own error, or `ATTACH_SERVER_NOT_READY` or
   * `RPC_TIMEOUT` after `timeoutMs`; null: when the server answers nothing at all.
   */
  async call<Op extends VolumeOperation>(
    op: Op,
    ...[args = {}, timeoutMs = null]: Record<string, never> extends OperationArgs<Op>
      ? [args?: OperationArgs<Op>, timeoutMs?: number | null]
      : [args: OperationArgs<Op>, timeoutMs?: number | null]
  ): Promise<OperationResult<Op>> {
    const { clock } = this.#options;
    const deadlineMs = timeoutMs === null ? null : clock.monotonicMs() + timeoutMs;
    // From here on no server may be started writable, whatever becomes of this call.
    if (op === 'seal') this.#spec = specAfter(this.#spec, { op, args: {} });
    for (;;) {
      await this.#whenReady(deadlineMs);
      const rpc = this.#rpc;
      if (rpc === null) continue;
      try {
        const result = await this.#ask(rpc, op, args, deadlineMs);
        this.#spec = specAfter(this.#spec, { op, args } as never);
        if (op === 'status') this.#lastStatus = result as VolumeServerStatus;
        return result as OperationResult<Op>;
      } catch (error) {
        if (!isGodwitError(error, 'RPC_CLOSED') || this.#stopping) throw error;
        // The server died. Its exit may still be on the way; then there is nobody to ask yet.
        if (this.#rpc === rpc) this.#serverIsGone();
      }
    }
  }

  #ask(rpc: LineRpc, op: VolumeOperation, args: unknown, deadlineMs: number | null): Promise<unknown> {
    const { clock } = this.#options;
    if (deadlineMs !== null) return rpc.call(op, args, Math.max(1, deadlineMs - clock.monotonicMs()));
    return whileAlive((signal) => rpc.call(op, args, null, signal), {
      who: 'the volume server',
      ask: (signal) => rpc.call('status', {}, null, signal),
      times: this.#times,
      questionsMax: SILENT_AFTER_QUESTIONS,
      pauseMs: PAUSE.shimQuestion.ms,
      silent: (ms) => rpcTimeout(`${op}, nor to any other question,`, ms),
      clock,
    });
  }

  /**
   * Ends the server (SIGTERM, then SIGKILL) and starts no other. Requests in the FUSE connection wait on;
   * unmount or abort it afterwards. Idempotent.
   */
  async stop(): Promise<void> {
    this.#stopping = true;
    this.#cancelRestart();
    this.#ready.reject(stoppedError());
    const child = this.#child;
    const ended = this.#ended;
    if (child === null || ended === null) return;
    // A server of a guest outlives the loss of its supervisor, so the end of its input alone does not end it.
    child.kill('SIGTERM');
    this.#rpc?.close();
    const cancelKill = this.#options.clock.timer(PATIENCE.serverStop.ms, () => child.kill('SIGKILL'));
    await ended.promise;
    cancelKill();
  }

  #spawn(): void {
    const { command, env, fuseFd } = this.#options;
    this.#readyAtMs = null;
    this.#failure = null;
    const logFd = this.#openLog();
    // The mark is inherited through fork and exec by every thread of the server; set later it would miss
    // those that Node starts first.
    const marked = setIoFlusher(true);
    let child: ChildProcess;
    try {
      child = startProgram(command[0], command.slice(1), {
        stdio: ['pipe', 'pipe', logFd ?? 'ignore', ...(fuseFd === null ? [] : [fuseFd])],
        env: env ?? process.env,
      });
    } finally {
      if (marked) setIoFlusher(false);
      if (logFd !== null) closeSync(logFd);
    }
    const ended = Promise.withResolvers<void>();
    this.#child = child;
    this.#ended = ended;
    let settled = false;
    const onEnd = (how: { code: number | null; signal: string | null; message?: string }) => {
      if (settled) return;
      settled = true;
      this.#child = null;
      this.#serverIsGone();
      ended.resolve();
      if (!this.#stopping) this.#restart(how);
    };
    child.on('error', (error) => {
      if (child.pid === undefined) this.#failure = startError(error);
      onEnd({ code: null, signal: null, message: messageOf(error) });
    });
    child.on('exit', (code, signal) => onEnd({ code, signal }));
    if (child.pid === undefined) return; // 'error' follows
    this.#protect(child.pid, marked);
    const input = child.stdin as Writable;
    const output = child.stdout as Readable;
    input.on('error', () => {}); // the exit says more
    input.write(`${JSON.stringify(this.#spec)}\n`);
    const rpc = new LineRpc(output, input, { onEvent: (event, data) => this.#onEvent(child, event, data) });
    this.#rpc = rpc;
    void rpc.closed.then(() => this.#endMute(child));
  }

  /** One that cannot be spoken to any more serves nobody who asks: another one takes over. */
  #endMute(child: ChildProcess): void {
    this.#options.clock.timer(PATIENCE.serverStop.ms, () => {
      if (this.#child === child && !this.#stopping) child.kill('SIGKILL');
    });
  }

  /** Null: it cannot be opened (no descriptor is left, or its disk may only be read); a server goes without. */
  #openLog(): number | null {
    const { logPath, logger } = this.#options;
    try {
      return openSync(logPath, 'a', 0o600);
    } catch (error) {
      logger.warn({ logPath, reason: messageOf(error) }, 'the volume server goes without its log');
      return null;
    }
  }

  /** Out of the reach of the OOM killer and of the workload's memory limit. */
  #protect(pid: number, ioFlusher: boolean): void {
    const { cgroupProcsPaths = [], logger } = this.#options;
    const write = (path: string, value: string): boolean => {
      try {
        writeFileSync(path, value);
        return true;
      } catch (error) {
        logger.warn({ path, error: messageOf(error) }, 'the volume server could not be put there');
        return false;
      }
    };
    try {
      setNice(pid, this.#spec.kind === 'serve' ? SERVE_NICE : SERVER_NICE);
    } catch (error) {
      logger.warn({ error: messageOf(error) }, 'the priority of the volume server could not be set');
    }
    const first = this.#protection === null;
    for (const path of cgroupProcsPaths) write(path, String(pid));
    this.#protection = { ioFlusher, outOfMemoryKiller: write(`/proc/${pid}/oom_score_adj`, '-1000') };
    if (first && !ioFlusher) {
      logger.warn(
        {},
        'the volume server is not marked as I/O flusher: CAP_SYS_RESOURCE is missing, or the kernel is old',
      );
    }
  }

  #onEvent(child: ChildProcess, event: string, data: unknown): void {
    if (child !== this.#child) return;
    if (event === 'ready') {
      const port = portOf(data);
      // A restarted export must be found where the first one was.
      if (port !== null) this.#spec = specAtPort(this.#spec, port);
      this.#isReady = true;
      const instance = (data as { instance?: unknown } | null)?.instance;
      this.#spec = specFollowing(this.#spec, typeof instance === 'string' ? instance : null);
      this.#readyAtMs = this.#options.clock.monotonicMs();
      this.#ready.resolve();
    } else if (event === 'progress') {
      this.#lastStatus = data as VolumeServerStatus;
      // The disk may refuse to have it written down, and this process outlives the server.
      const { dataLoss } = this.#lastStatus;
      if (dataLoss !== undefined) this.#spec = specWithLoss(this.#spec, dataLoss);
    } else if (event === 'failed') {
      this.#failure = failedError(data);
      this.#lastError = this.#failure;
      // It says why it cannot serve: better than a timeout for whoever waits. The next server is tried all
      // the same.
      if (!this.#isReady) {
        this.#ready.reject(this.#failure);
        this.#ready = Promise.withResolvers();
        this.#ready.promise.catch(() => {});
      }
    }
    this.#options.onEvent?.(event, data);
  }

  #serverIsGone(): void {
    this.#rpc = null;
    if (!this.#isReady) return;
    this.#isReady = false;
    this.#ready = Promise.withResolvers();
    this.#ready.promise.catch(() => {});
  }

  #restart(how: { code: number | null; signal: string | null; message?: string }): void {
    const { clock, logger, logPath, onEvent } = this.#options;
    const servedMs = this.#readyAtMs === null ? 0 : Math.round(clock.monotonicMs() - this.#readyAtMs);
    this.#quickDeaths = servedMs >= WELL_AFTER_MS ? 0 : this.#quickDeaths + 1;
    const delayMs = restartDelayMs(this.#quickDeaths);
    const died = new GodwitError(
      'ATTACH_SERVER_DIED',
      `the volume server ended: ${how.message ?? how.signal ?? `exit ${how.code}`}`,
      {
        values: {
          exitCode: how.code,
          signal: how.signal,
          restarts: this.#restarts,
          servedMs,
        },
        retry: 'later',
        nextAction: `It is started again by itself, on the same requests; its log says why it ended: ${logPath}`,
      },
    );
    this.#lastError = this.#failure ?? died;
    logger.warn({ ...died.values, delayMs }, 'the volume server ended; starting another one');
    this.#cancelRestart = clock.timer(delayMs, () => {
      this.#restarts++;
      this.#spawn();
      onEvent?.('restarted', { restarts: this.#restarts });
    });
  }

  /** `deadlineMs` null: as long as a server that starts does something, for `quietMs` at most without. */
  async #whenReady(deadlineMs: number | null, quietMs: number = PATIENCE.serverReady.ms): Promise<void> {
    const { clock } = this.#options;
    if (this.#stopping) throw stoppedError();
    if (this.#isReady) return;
    const late = Promise.withResolvers<never>();
    let cancel = () => {};
    let pace: ProcessPace | null = null;
    let quietSinceMs = clock.monotonicMs();
    const look = (): void => {
      const pid = this.#child?.pid ?? null;
      if (pid === null) pace = null;
      else if (pace?.pid !== pid) pace = new ProcessPace(pid, clock, { quietMs });
      // Between two servers there is nobody who could do something.
      const quiet = pace === null ? clock.monotonicMs() - quietSinceMs >= quietMs : pace.isQuiet();
      if (pace !== null && !quiet) quietSinceMs = clock.monotonicMs();
      if (deadlineMs === null) {
        if (quiet || this.#quickDeaths >= QUICK_DEATHS_MAX) late.reject(this.#notReady(pace?.text() ?? null));
      } else if (clock.monotonicMs() >= deadlineMs) late.reject(this.#notReady(null));
      const leftMs = deadlineMs === null ? LOOK_MS : Math.min(LOOK_MS, deadlineMs - clock.monotonicMs());
      cancel = clock.timer(Math.max(1, leftMs), look);
    };
    look();
    try {
      await Promise.race([this.#ready.promise, late.promise]);
    } finally {
      cancel();
    }
  }

  #notReady(what: string | null): GodwitError {
    return new GodwitError(
      'ATTACH_SERVER_NOT_READY',
      `the volume server does not get ready${what === null ? '' : `: ${what}`}`,
      {
        values: { restarts: this.#restarts, lastError: this.#lastError?.message ?? null },
        retry: 'later',
        nextAction: `Its log says why: ${this.#options.logPath}`,
        ...(this.#lastError === null ? {} : { cause: this.#lastError }),
      },
    );
  }
}

/** 0 after a server that was well, and after the first one that was not. */
function restartDelayMs(quickDeaths: number): number {
  return quickDeaths <= 1 ? 0 : Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** (quickDeaths - 2));
}

function portOf(data: unknown): number | null {
  if (typeof data !== 'object' || data === null || !('port' in data)) return null;
  return typeof data.port === 'number' ? data.port : null;
}

function failedError(data: unknown): GodwitError {
  const unread = { code: 'ATTACH_SERVER_FAILED', message: 'the volume server failed', values: {} };
  return GodwitError.fromWire(readWireError(data) ?? { ...unread, nextAction: 'Look at its log.' });
}

function stoppedError(): GodwitError {
  return new GodwitError('ATTACH_SERVER_STOPPED', 'the volume server was stopped', {
    nextAction: 'Start the machine again to have its volume served.',
  });
}
