import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { GodwitError, messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE } from '../base/patience.ts';
import { Serial } from '../base/serial.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import { runOf } from '../contract/machine-run.ts';
import { Cgroup, type CgroupLayout } from '../host/cgroup.ts';
import { cgroupName } from '../shim/cgroup-name.ts';
import type { Entrance } from '../shim/exec-session.ts';
import { LogWriter } from '../shim/log-file.ts';
import { SHIM_FILES, type ShimOps, type ShimStatus } from '../shim/protocol.ts';
import type { Instance, Run, Runtimes, Subject, WorkloadExit } from '../shim/runtime.ts';
import type { HeldWorkload } from '../shim/service.ts';
import { type Health, HealthMonitor } from './health.ts';
import { decideRestart } from './restart-policy.ts';
import { checkStopSignal, isSignal } from './signals.ts';

type WorkloadStatus = NonNullable<ShimStatus['workload']>;
type StopResult = ShimOps['workload.stop']['result'];

/**
 * Each stream of an exec as JSON; two of them must fit into one line of the shim's socket (LINE_BYTES_MAX).
 */
const EXEC_JSON_BYTES_MAX = 1_900_000;
const EXEC_OUTPUT_BYTES_MAX = 1024 * 1024;
export type WorkloadOptions = {
  runtimeDir: string;
  /** Folders of the fleet that no machine may see. */
  hidden: readonly string[];
  runtimes: Runtimes;
  cgroupLayout: CgroupLayout;
  clock: Clock;
  logger: Logger;
  /** Called at every change of what `status` shows. */
  onChange: () => void;
};

/** What runs now. */
type Present = { run: Run; instance: Instance; startedMonotonicMs: number; monitor: HealthMonitor | null };

/**
 * The one machine of a shim, whatever its runtime: starts it, restarts it by its policy, watches its health,
 * stops it so that nothing is left. Lives in the shim, so that all of it works while the worker is dead.
 */
export class Workload implements HeldWorkload {
  readonly cgroup: Cgroup;
  readonly #options: WorkloadOptions;
  readonly #log: LogWriter;
  #subject: Subject | undefined;
  #present: Present | undefined;
  readonly #instances = new Map<string, Instance>();
  #status: WorkloadStatus | null = null;
  #restartsInRow = 0;
  #cancelRestart: (() => void) | undefined;
  /** True from `start` to `stop`: an end of the process is then for the restart policy. */
  #wanted = false;
  /** Starts, stops and restarts, one after the other. */
  readonly #changes = new Serial();
  readonly #waiters = new Set<() => void>();

  constructor(options: WorkloadOptions) {
    this.#options = options;
    this.#log = new LogWriter(join(options.runtimeDir, SHIM_FILES.workloadLog));
    this.cgroup = new Cgroup(cgroupName(options.runtimeDir), {
      layout: options.cgroupLayout,
      clock: options.clock,
    });
  }

  /** Null before the first start. */
  get status(): WorkloadStatus | null {
    if (this.#status === null) return null;
    return {
      ...this.#status,
      health: this.#present?.monitor?.health ?? this.#status.health,
      memoryBytes: null,
      ...this.#present?.instance.statistics(),
    };
  }

  /** PID 1 of the machine as the host counts, null when it does not run. */
  get initPid(): number | null {
    return this.#present?.run.initPid ?? null;
  }

  /**
   * Starts the machine; answers at once when it runs already. Rejects `MACHINE_START_FAILED`,
   * `MACHINE_UNKNOWN_USER`, `MACHINE_BAD_MOUNT_PATH`, `MACHINE_BAD_HOST_FOLDER`, `MACHINE_BAD_DEVICE`,
   * `MACHINE_BAD_ENVIRONMENT`, `MACHINE_CGROUP_*`; nothing is left then.
   */
  start(subject: Subject): Promise<{ startedAtMs: number }> {
    return this.#changes.run(async () => {
      if (this.#wanted && this.#subject !== undefined) {
        if (this.#subject.machineId === subject.machineId && this.#status !== null) {
          const { state, startedAtMs } = this.#status;
          if (state === 'running' || state === 'restarting') return { startedAtMs: startedAtMs ?? 0 };
        } else {
          throw new GodwitError('MACHINE_SHIM_BUSY', `this shim runs machine ${this.#subject.machineId}`, {
            values: { machineId: this.#subject.machineId },
            nextAction: 'Every machine has a shim of its own; this is an error of the worker, report it.',
          });
        }
      }
      this.#subject = subject;
      this.#restartsInRow = 0;
      try {
        const instance = this.#instanceOf(subject.config);
        this.#status = freshStatus(subject.machineId, this.#options.clock.wallMs());
        this.#launched(instance, await instance.start(subject));
      } catch (error) {
        this.#status = { ...freshStatus(subject.machineId, this.#options.clock.wallMs()), state: 'failed' };
        this.#note(`could not be started: ${messageOf(error)}`);
        for (const instance of this.#instances.values()) {
          await instance.clear();
          await instance.remove();
        }
        this.#changed();
        throw error;
      }
      this.#wanted = true;
      this.#changed();
      return { startedAtMs: this.#status.startedAtMs ?? 0 };
    });
  }

  /**
   * Makes all that a machine needs that is to be started here soon; `start` makes it anew when something
   * about it has changed by then, or it has died. Ends with `stop`, and with this process. Rejects as `start`
   * does; nothing is left then.
   */
  prepare(subject: Subject): Promise<void> {
    return this.#changes.run(async () => {
      if (!this.#wanted) await this.#instanceOf(subject.config).prepare(subject);
    });
  }

  /**
   * Signal, at most `timeoutMs`, then SIGKILL for all of it. Resolves when no process is left; at once
   * when none runs. A configuration whose signal does not exist is asked with SIGTERM: it must be possible to
   * end every machine. Rejects `MACHINE_BAD_SIGNAL`, `MACHINE_KILL_STUCK`.
   */
  stop(how: { signal?: string; timeoutMs?: number } = {}): Promise<StopResult> {
    return this.#changes.run(async () => {
      const stop = this.#subject?.config.stop;
      const usual = stop !== undefined && isSignal(stop.signal) ? stop.signal : 'SIGTERM';
      const signal = how.signal ?? usual;
      const timeoutMs = how.timeoutMs ?? stop?.timeoutMs ?? 10_000;
      checkStopSignal(signal);
      const startedMs = this.#options.clock.monotonicMs();
      this.#wanted = false;
      this.#cancelRestart?.();
      this.#cancelRestart = undefined;
      const present = this.#present;
      let killed = false;
      if (present !== undefined) {
        // The monitor goes first, but is not waited for: its probe may hang in the machine and ends with it.
        const monitorEnded = present.monitor?.stop();
        killed = !(await present.run.end(signal as NodeJS.Signals, timeoutMs));
        await this.#settle(present);
        await monitorEnded;
      }
      if (this.#status !== null && this.#status.state !== 'stopped') {
        if (present !== undefined)
          this.#note(killed ? `killed, since it did not end within ${timeoutMs} ms` : 'stopped');
        this.#status = {
          ...this.#status,
          state: 'stopped',
          pid: null,
          health: noHealth(this.#options.clock, 'not running'),
        };
        this.#changed();
      }
      for (const instance of this.#instances.values()) await instance.clear();
      // Not waited for: the kernel takes its time, and the caller is in the interruption of a move.
      void this.#changes
        .run(() => this.cgroup.remove())
        .catch((error: unknown) => {
          this.#options.logger.warn({ reason: messageOf(error) }, 'a cgroup was not removed');
        });
      return {
        exitCode: this.#status?.exitCode ?? null,
        signal: this.#status?.exitSignal ?? null,
        killed,
        durationMs: this.#options.clock.monotonicMs() - startedMs,
      };
    });
  }

  /**
   * Runs a command inside. Rejects `MACHINE_NOT_RUNNING`. Output is cut at 1 MiB each (less where JSON blows
   * it up).
   */
  async exec(command: readonly string[], timeoutMs: number): Promise<ShimOps['workload.exec']['result']> {
    if (this.#present === undefined) throw this.#notRunning();
    const result = await this.#present.run.exec(command, {
      timeoutMs,
      outputBytesMax: EXEC_OUTPUT_BYTES_MAX,
    });
    return {
      exitCode: result.exitCode,
      stdout: cutForJson(result.stdout, EXEC_JSON_BYTES_MAX),
      stderr: cutForJson(result.stderr, EXEC_JSON_BYTES_MAX),
      timedOut: result.timedOut,
    };
  }

  /** How `command` gets into the machine. Throws `MACHINE_NOT_RUNNING`. */
  enter(command: readonly string[], terminal: { term: string } | null): Entrance {
    const entrance = this.#present?.run.enter(command, terminal) ?? null;
    if (entrance === null) throw this.#notRunning();
    return entrance;
  }

  /**
   * Resolves when the machine is healthy; at once when it runs and has no check. Rejects
   * `MACHINE_NOT_HEALTHY` at the deadline, or when the machine has ended for good.
   */
  async awaitHealthy(timeoutMs: number): Promise<{ healthyAtMs: number }> {
    const { clock } = this.#options;
    const deadlineMs = clock.monotonicMs() + timeoutMs;
    while (true) {
      const status = this.status;
      if (status?.state === 'running') {
        if (status.health.state === 'none') return { healthyAtMs: status.startedAtMs ?? clock.wallMs() };
        if (status.health.state === 'healthy') return { healthyAtMs: status.health.sinceMs };
      }
      const over = status === null || ['exited', 'failed', 'stopped'].includes(status.state);
      const leftMs = deadlineMs - clock.monotonicMs();
      if (over || leftMs <= 0) {
        const why = over ? `it is ${status?.state ?? 'not started'}` : status.health.message;
        throw new GodwitError('MACHINE_NOT_HEALTHY', `the machine is not healthy: ${why}`, {
          values: {
            timeoutMs,
            state: status?.state ?? 'none',
            health: status?.health.state ?? 'none',
            exitCode: status?.exitCode ?? null,
          },
          nextAction:
            'Look at the log of the machine and at its health check (godwit machine logs, machine show).',
        });
      }
      await new Promise<void>((resolve) => {
        const cancel = clock.timer(leftMs, wake);
        const waiters = this.#waiters;
        function wake(): void {
          cancel();
          waiters.delete(wake);
          resolve();
        }
        waiters.add(wake);
      });
    }
  }

  /** After a stop: waits for what goes on in the background, and writes out what the log still holds. */
  async close(): Promise<void> {
    await this.#changes.run(() => this.#log.close());
  }

  /** Throws `MACHINE_BAD_RUN`. */
  #instanceOf(config: MachineConfig): Instance {
    const { kind } = runOf(config);
    const { runtimes, runtimeDir, hidden, clock } = this.#options;
    const instance =
      this.#instances.get(kind) ??
      runtimes[kind].instance({
        runtimeDir,
        hidden,
        cgroup: this.cgroup,
        log: this.#log,
        clock,
        note: (text) => this.#note(text),
      });
    this.#instances.set(kind, instance);
    return instance;
  }

  #launched(instance: Instance, run: Run): void {
    const { clock } = this.#options;
    const { health } = this.#subject!.config;
    const startedMonotonicMs = clock.monotonicMs();
    const present: Present = { run, instance, startedMonotonicMs, monitor: null };
    this.#present = present;
    this.#status = {
      ...this.#status!,
      state: 'running',
      pid: run.initPid,
      startedAtMs: clock.wallMs(),
      health: noHealth(clock, 'no health check'),
    };
    if (health !== undefined) {
      present.monitor = new HealthMonitor({
        check: health,
        probe: run.probe(health),
        clock,
        onChange: (now: Health) => {
          if (now.state === 'unhealthy') this.#note(`unhealthy: ${now.message}`);
          this.#changed();
        },
      });
      present.monitor.start();
    }
    void run.exited.then((exit) => this.#changes.run(() => this.#ended(present, exit)));
  }

  /** The process ended by itself (a stop has settled the run before it lets go of the queue). */
  async #ended(present: Present, exit: WorkloadExit): Promise<void> {
    if (this.#present !== present) return;
    const { clock } = this.#options;
    const ranMs = clock.monotonicMs() - present.startedMonotonicMs;
    await present.monitor?.stop();
    await this.#settle(present);
    const decision = decideRestart(this.#subject!.config.restart, exit, this.#restartsInRow, ranMs);
    const what = exit.exitSignal === null ? `exit code ${exit.exitCode}` : exit.exitSignal;
    this.#status = { ...this.#status!, pid: null, health: noHealth(clock, 'not running') };
    if (decision.kind === 'restart') {
      this.#note(`ended (${what}), starts again in ${decision.delayMs} ms`);
      this.#restartsInRow = decision.restartsInRow;
      this.#status.state = 'restarting';
      this.#restartIn(decision.delayMs);
    } else {
      this.#note(`ended (${what}), is not started again`);
      this.#status.state = decision.kind;
      this.#wanted = false;
      await present.instance.remove();
    }
    this.#changed();
  }

  #restartIn(delayMs: number): void {
    this.#cancelRestart = this.#options.clock.timer(delayMs, () => {
      void this.#changes.run(async () => {
        if (!this.#wanted || this.#present !== undefined) return;
        this.#status = { ...this.#status!, restarts: this.#status!.restarts + 1 };
        try {
          const instance = this.#instanceOf(this.#subject!.config);
          this.#launched(instance, await instance.startAgain(this.#subject!));
        } catch (error) {
          // What failed once may work later (no memory, no pids): the policy decides as for a bad end.
          this.#note(`could not be started: ${messageOf(error)}`);
          await this.cgroup.killAll(PATIENCE.kill.ms).catch(() => {});
          const exit = { exitCode: null, exitSignal: null };
          const decision = decideRestart(this.#subject!.config.restart, exit, this.#restartsInRow, 0);
          if (decision.kind === 'restart') {
            this.#restartsInRow = decision.restartsInRow;
            this.#restartIn(decision.delayMs);
          } else {
            this.#wanted = false;
            this.#status.state = 'failed';
          }
        }
        this.#changed();
      });
    });
  }

  /** Records how a run ended and kills what it left (processes that entered from outside). */
  async #settle({ run, instance }: Present): Promise<void> {
    await instance.clear();
    const exit = await run.settle();
    await this.#log.flush();
    const { outOfMemoryKills: kills } = instance.statistics();
    const killed = kills - (this.#status?.outOfMemoryKills ?? 0);
    if (killed > 0) this.#note(`${killed} of its processes were killed: out of memory`);
    this.#status = {
      ...this.#status!,
      ...exit,
      exitedAtMs: this.#options.clock.wallMs(),
      outOfMemoryKills: kills,
    };
    this.#present = undefined;
  }

  #note(text: string): void {
    this.#log.write(
      Buffer.from(`[godwit ${new Date(this.#options.clock.wallMs()).toISOString()}] ${text}\n`),
    );
    this.#options.logger.info({ machineId: this.#subject?.machineId }, `machine: ${text}`);
  }

  #changed(): void {
    for (const wake of [...this.#waiters]) wake();
    this.#options.onChange();
  }

  #notRunning(): GodwitError {
    return new GodwitError(
      'MACHINE_NOT_RUNNING',
      `the machine does not run: it is ${this.#status?.state ?? 'stopped'}`,
      {
        values: { state: this.#status?.state ?? 'stopped' },
        nextAction: 'Start it first: godwit machine start.',
      },
    );
  }
}

/**
 * The longest beginning of `text` that takes at most `bytesMax` bytes as JSON, give or take a little on the
 * short side.
 */
export function cutForJson(text: string, bytesMax: number): string {
  let cut = text;
  for (let size = jsonBytes(cut); size > bytesMax; size = jsonBytes(cut)) {
    cut = cut.slice(0, Math.floor((cut.length * bytesMax) / size) - 1);
  }
  return cut;
}

function jsonBytes(text: string): number {
  return Buffer.byteLength(JSON.stringify(text));
}

function noHealth(clock: Clock, message: string): Health {
  return { state: 'none', sinceMs: clock.wallMs(), message };
}

function freshStatus(machineId: string, nowMs: number): WorkloadStatus {
  return {
    machineId,
    state: 'stopped',
    pid: null,
    startedAtMs: null,
    exitedAtMs: null,
    exitCode: null,
    exitSignal: null,
    restarts: 0,
    health: { state: 'none', sinceMs: nowMs, message: 'not running' },
    memoryBytes: null,
    outOfMemoryKills: 0,
  };
}
