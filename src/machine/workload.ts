import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { GodwitError, messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE } from '../base/patience.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import { Cgroup, type CgroupLayout } from '../host/cgroup.ts';
import { readMountTable } from '../host/mount-table.ts';
import { identifyProcess } from '../host/process-identity.ts';
import { runProgram } from '../host/program.ts';
import {
  type Account,
  checkStopSignal,
  enterCommand,
  hostnameOf,
  isSignal,
  type JailPlan,
  type JailTools,
  jailArguments,
  jailFstab,
  machineEnvironment,
  ownFilesystems,
  readAccount,
  resolveDevices,
  resolveHostFolders,
  resolveMountPath,
  resolverFolder,
} from '../jail/jail.ts';
import { JailProcess, type WorkloadExit } from '../jail/jail-process.ts';
import { mainProcess, processTree } from '../jail/process-tree.ts';
import { cgroupName } from '../shim/cgroup-name.ts';
import type { Entrance } from '../shim/exec-session.ts';
import { LogWriter } from '../shim/log-file.ts';
import { SHIM_FILES, type ShimOps, type ShimStatus } from '../shim/protocol.ts';
import { type Health, HealthMonitor } from './health.ts';
import { makeProbe } from './probe.ts';
import { decideRestart } from './restart-policy.ts';

type WorkloadStatus = NonNullable<ShimStatus['workload']>;
type StopResult = ShimOps['workload.stop']['result'];

/**
 * Each stream of an exec as JSON; two of them must fit into one line of the shim's socket (LINE_BYTES_MAX).
 */
const EXEC_JSON_BYTES_MAX = 1_900_000;
const EXEC_OUTPUT_BYTES_MAX = 1024 * 1024;
/**
 * A stop of several processes looks for their end so often at the least: it is part of the interruption of a
 * move.
 */
const STOP_LOOK_MS = 10;
/** What a command left, and is not gone at once, is told of in the machine's log. */
const STOP_TOLD_MS = 200;

export type WorkloadOptions = {
  runtimeDir: string;
  /** Folders of the fleet that no machine may see. */
  hidden: readonly string[];
  tools: JailTools;
  cgroupLayout: CgroupLayout;
  clock: Clock;
  logger: Logger;
  /** Called at every change of what `status` shows. */
  onChange: () => void;
};

type Subject = { machineId: string; name: string; config: MachineConfig };

/** All that makes a jail what it is. */
type Recipe = {
  jailDir: string;
  account: Account;
  environment: Record<string, string>;
  fstab: { overlay: string; bind: string };
  /** Of `unshare`. */
  args: string[];
};

/** What runs now and all that was worked out for it. */
type Run = {
  process: JailProcess;
  account: Account;
  environment: Record<string, string>;
  startedMonotonicMs: number;
  monitor: HealthMonitor | null;
};

/**
 * The process tree of one machine: starts it in its jail, restarts it by its policy, watches its health,
 * stops it so that nothing is left. Lives in the shim, so that all of it works while the worker is dead.
 */
export class Workload {
  readonly cgroup: Cgroup;
  readonly #options: WorkloadOptions;
  readonly #log: LogWriter;
  #subject: Subject | undefined;
  #run: Run | undefined;
  /** A jail that waits for its command. `key`: what it was made for. */
  #prepared: { key: string; jail: JailProcess } | undefined;
  #status: WorkloadStatus | null = null;
  #restartsInRow = 0;
  #cancelRestart: (() => void) | undefined;
  /** True from `start` to `stop`: an end of the process is then for the restart policy. */
  #wanted = false;
  /** Starts, stops and restarts, one after the other. */
  #last: Promise<unknown> = Promise.resolve();
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
      health: this.#run?.monitor?.health ?? this.#status.health,
      memoryBytes: this.#run === undefined ? null : this.cgroup.memoryBytes(),
      outOfMemoryKills:
        this.#run === undefined ? this.#status.outOfMemoryKills : this.cgroup.outOfMemoryKills(),
    };
  }

  /** PID 1 of the machine as the host counts, null when it does not run. */
  get initPid(): number | null {
    return this.#run?.process.initPid ?? null;
  }

  /**
   * Starts the machine; answers at once when it runs already. Rejects `MACHINE_START_FAILED`,
   * `MACHINE_UNKNOWN_USER`, `MACHINE_BAD_MOUNT_PATH`, `MACHINE_BAD_HOST_FOLDER`, `MACHINE_BAD_DEVICE`,
   * `MACHINE_BAD_ENVIRONMENT`, `MACHINE_CGROUP_*`; nothing is left then.
   */
  start(subject: Subject): Promise<{ startedAtMs: number }> {
    return this.#exclusively(async () => {
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
        const recipe = this.#recipe(subject);
        const prepared = this.#takePrepared(keyOf(subject, recipe));
        this.#status = freshStatus(subject.machineId, this.#options.clock.wallMs());
        // A jail that stood by may be dying just now: then, too, another one is made.
        const launched =
          prepared !== undefined &&
          (await this.#launch(recipe, prepared).then(
            () => true,
            () => false,
          ));
        if (!launched) {
          await this.#discardPrepared();
          await this.#launch(recipe, await this.#makeJail(subject, recipe));
        }
      } catch (error) {
        this.#status = { ...freshStatus(subject.machineId, this.#options.clock.wallMs()), state: 'failed' };
        this.#note(`could not be started: ${messageOf(error)}`);
        await this.#discardPrepared();
        await this.cgroup.remove();
        this.#changed();
        throw error;
      }
      this.#wanted = true;
      this.#changed();
      return { startedAtMs: this.#status.startedAtMs ?? 0 };
    });
  }

  /**
   * Makes the jail of a machine that is to be started here soon; `start` makes another one when something
   * about it has changed by then, or it has died. Ends with `stop`, and with this process. Rejects as `start`
   * does; nothing is left then.
   */
  prepare(subject: Subject): Promise<void> {
    return this.#exclusively(async () => {
      if (this.#wanted) return;
      const recipe = this.#recipe(subject);
      const key = keyOf(subject, recipe);
      if (this.#prepared?.key === key && this.#prepared.jail.running) return;
      await this.#discardPrepared();
      try {
        const jail = await this.#makeJail(subject, recipe);
        this.#prepared = { key, jail };
        await this.#inTime(jail, jail.built());
      } catch (error) {
        await this.#discardPrepared();
        await this.cgroup.remove();
        throw error;
      }
    });
  }

  /**
   * Signal, at most `timeoutMs`, then SIGKILL to the whole cgroup. Resolves when no process is left; at once
   * when none runs. A configuration whose signal does not exist is asked with SIGTERM: it must be possible to
   * end every machine. Rejects `MACHINE_BAD_SIGNAL`, `MACHINE_KILL_STUCK`.
   */
  stop(how: { signal?: string; timeoutMs?: number } = {}): Promise<StopResult> {
    return this.#exclusively(async () => {
      const stop = this.#subject?.config.stop;
      const usual = stop !== undefined && isSignal(stop.signal) ? stop.signal : 'SIGTERM';
      const signal = how.signal ?? usual;
      const timeoutMs = how.timeoutMs ?? stop?.timeoutMs ?? 10_000;
      checkStopSignal(signal);
      const startedMs = this.#options.clock.monotonicMs();
      this.#wanted = false;
      this.#cancelRestart?.();
      this.#cancelRestart = undefined;
      const run = this.#run;
      let killed = false;
      if (this.#prepared !== undefined) await this.#discardPrepared();
      if (run !== undefined) {
        // The monitor goes first, but is not waited for: its probe may hang in the machine and ends with it.
        const monitorEnded = run.monitor?.stop();
        killed = !(await this.#end(run, signal as NodeJS.Signals, timeoutMs));
        await this.#settle(run);
        await monitorEnded;
      }
      if (this.#status !== null && this.#status.state !== 'stopped') {
        if (run !== undefined)
          this.#note(killed ? `killed, since it did not end within ${timeoutMs} ms` : 'stopped');
        this.#status = {
          ...this.#status,
          state: 'stopped',
          pid: null,
          health: noHealth(this.#options.clock, 'not running'),
        };
        this.#changed();
      }
      await this.cgroup.killAll(PATIENCE.kill.ms);
      // Not waited for: the kernel takes its time, and the caller is in the interruption of a move.
      void this.#exclusively(() => this.cgroup.remove()).catch((error: unknown) => {
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
   * Asks the command to end, and then what it leaves. False when something is left at the end of the time.
   */
  async #end(run: Run, signal: NodeJS.Signals, timeoutMs: number): Promise<boolean> {
    const { clock } = this.#options;
    const startedMs = clock.monotonicMs();
    const leftMs = () => Math.max(0, timeoutMs - (clock.monotonicMs() - startedMs));
    const init = run.process.initPid;
    const look = () => processTree(init, this.cgroup.processes());
    const tree = look();
    const main = this.#options.tools.tini === null ? null : mainProcess(init, tree);
    // One that shall be killed is killed with all that it has.
    const leavesSome = signal !== 'SIGKILL' && main !== null && tree.some(({ pid }) => pid !== main.pid);
    if (!leavesSome) {
      run.process.signal(signal);
      return this.#within(timeoutMs, run.process.exited);
    }
    // With init the kernel ends all processes of the machine. It is held, so that it does not end with the
    // command.
    run.process.signal('SIGSTOP');
    send(main.pid, signal);
    const asked = new Set<number>();
    let commandEndedMs: number | null = null;
    let told = false;
    for (let pauseMs = 1; ; pauseMs = Math.min(pauseMs * 2, STOP_LOOK_MS)) {
      const alive = look().filter((process) => process.alive);
      if (alive.length === 0) break;
      if (!alive.some(({ pid, startTicks }) => pid === main.pid && startTicks === main.startTicks)) {
        commandEndedMs ??= clock.monotonicMs();
        if (!told && clock.monotonicMs() - commandEndedMs >= STOP_TOLD_MS) {
          told = true;
          const seconds = Math.ceil(leftMs() / 1000);
          this.#note(
            `its command has ended; what it left (${alive.length} processes) got SIGTERM and has ${seconds} s more`,
          );
        }
        // A command that is a shell passes no signal on; what it had in the background ignores all that a
        // terminal would send.
        for (const { pid } of alive.filter((each) => !asked.has(each.pid))) {
          asked.add(pid);
          send(pid, 'SIGTERM');
        }
      }
      if (leftMs() === 0) return false;
      await this.#within(Math.min(pauseMs, leftMs()), run.process.exited);
      if (!run.process.running) return true;
    }
    run.process.signal('SIGCONT');
    return this.#within(Math.max(leftMs(), PATIENCE.kill.ms), run.process.exited);
  }

  /**
   * Runs a command inside. Rejects `MACHINE_NOT_RUNNING`. Output is cut at 1 MiB each (less where JSON blows
   * it up).
   */
  async exec(command: readonly string[], timeoutMs: number): Promise<ShimOps['workload.exec']['result']> {
    const run = this.#run;
    if (run === undefined || this.#subject === undefined) throw this.#notRunning();
    const { file, args } = this.#enter(run, command);
    const result = await runProgram(file, args, { timeoutMs, outputBytesMax: EXEC_OUTPUT_BYTES_MAX });
    return {
      exitCode: result.exitCode,
      stdout: cutForJson(result.stdout, EXEC_JSON_BYTES_MAX),
      stderr: cutForJson(result.stderr, EXEC_JSON_BYTES_MAX),
      timedOut: result.timedOut,
    };
  }

  /** How `command` gets into the machine. Throws `MACHINE_NOT_RUNNING`. */
  enter(command: readonly string[], terminal: { term: string } | null): Entrance {
    const run = this.#run;
    const init = run === undefined ? null : identifyProcess(run.process.initPid);
    if (run === undefined || init === null) throw this.#notRunning();
    const { uid, gid } = run.account;
    return { ...this.#enter(run, command, terminal), init, uid, gid };
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
    await this.#exclusively(() => this.#log.close());
  }

  #recipe(subject: Subject): Recipe {
    const { runtimeDir, tools } = this.#options;
    const { config } = subject;
    const hostname = hostnameOf(subject.name);
    const account = readAccount(config.user);
    const environment = machineEnvironment(config, hostname, account);
    const plan: JailPlan = {
      jailDir: join(runtimeDir, 'jail'),
      hostname,
      network: config.network,
      workingDirectory: config.workingDirectory ?? '/',
      hostFolders: resolveHostFolders(config.hostFolders ?? []),
      devices: resolveDevices(config.devices ?? []),
      hidden: this.#options.hidden,
      ownFilesystems: ownFilesystems(readMountTable()),
      resolverFolder: config.network === 'host' ? resolverFolder() : null,
      volume:
        config.volume?.mountPath === undefined
          ? null
          : {
              source: join(runtimeDir, SHIM_FILES.filesystem),
              place: resolveMountPath(config.volume.mountPath),
            },
      nbdFolder: config.volume?.nbd === true ? join(runtimeDir, SHIM_FILES.nbd) : null,
      cgroupProcs: this.cgroup.procsFiles,
    };
    return {
      jailDir: plan.jailDir,
      account,
      environment,
      fstab: { overlay: jailFstab(plan, 'overlay'), bind: jailFstab(plan, 'bind') },
      args: jailArguments(plan, tools, account, environment, config.command),
    };
  }

  /** Begins a jail in a cgroup of its own. */
  async #makeJail(subject: Subject, recipe: Recipe): Promise<JailProcess> {
    await this.cgroup.killAll(PATIENCE.kill.ms);
    await this.cgroup.remove();
    await this.cgroup.create(subject.config.resources);
    return this.#spawnJail(recipe);
  }

  async #spawnJail({ jailDir, fstab, args }: Recipe): Promise<JailProcess> {
    await mkdir(jailDir, { recursive: true });
    await writeFile(`${jailDir}.fstab.overlay`, fstab.overlay);
    await writeFile(`${jailDir}.fstab.bind`, fstab.bind);
    return new JailProcess(this.#options.tools.unshare, args, this.#log);
  }

  #takePrepared(key: string): JailProcess | undefined {
    const prepared = this.#prepared;
    if (prepared?.key !== key || !prepared.jail.running) return undefined;
    this.#prepared = undefined;
    return prepared.jail;
  }

  async #discardPrepared(): Promise<void> {
    const jail = this.#prepared?.jail;
    this.#prepared = undefined;
    jail?.killOuter();
    await this.cgroup.killAll(PATIENCE.kill.ms);
    await jail?.exited;
  }

  /** Kills a jail that a device holds up; the promise then rejects. */
  async #inTime<T>(jail: JailProcess, promise: Promise<T>): Promise<T> {
    if (!(await this.#within(PATIENCE.launch.ms, promise))) jail.killOuter();
    return promise;
  }

  /** Executes the command in its jail. */
  async #launch(recipe: Recipe, jail: JailProcess): Promise<void> {
    const { tools, clock } = this.#options;
    const { config } = this.#subject!;
    const { account, environment } = recipe;
    jail.go();
    const notes = await this.#inTime(jail, jail.started());
    for (const note of notes) this.#note(note);
    if (tools.tini === null)
      this.#note('tini is not installed: the command is PID 1 and ignores unhandled signals');
    const run: Run = {
      process: jail,
      account,
      environment,
      startedMonotonicMs: clock.monotonicMs(),
      monitor: null,
    };
    this.#run = run;
    this.#status = {
      ...this.#status!,
      state: 'running',
      pid: jail.initPid,
      startedAtMs: clock.wallMs(),
      health: noHealth(clock, 'no health check'),
    };
    const { health } = config;
    if (health !== undefined) {
      run.monitor = new HealthMonitor({
        check: health,
        probe: makeProbe(health, {
          network: config.network,
          initPid: jail.initPid,
          nsenter: tools.nsenter,
          enter: (command) => this.#enter(run, command),
        }),
        clock,
        onChange: (now: Health) => {
          if (now.state === 'unhealthy') this.#note(`unhealthy: ${now.message}`);
          this.#changed();
        },
      });
      run.monitor.start();
    }
    void jail.exited.then((exit) => this.#exclusively(() => this.#ended(run, exit)));
  }

  /** The process ended by itself (a stop has settled the run before it lets go of the queue). */
  async #ended(run: Run, exit: WorkloadExit): Promise<void> {
    if (this.#run !== run) return;
    const { clock } = this.#options;
    const ranMs = clock.monotonicMs() - run.startedMonotonicMs;
    await run.monitor?.stop();
    await this.#settle(run);
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
      await this.cgroup.remove();
    }
    this.#changed();
  }

  #restartIn(delayMs: number): void {
    this.#cancelRestart = this.#options.clock.timer(delayMs, () => {
      void this.#exclusively(async () => {
        if (!this.#wanted || this.#run !== undefined) return;
        this.#status = { ...this.#status!, restarts: this.#status!.restarts + 1 };
        try {
          const recipe = this.#recipe(this.#subject!);
          await this.#launch(recipe, await this.#spawnJail(recipe));
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
  async #settle(run: Run): Promise<void> {
    await this.cgroup.killAll(PATIENCE.kill.ms);
    run.process.killOuter();
    const exit = await run.process.exited;
    await this.#log.flush();
    const kills = this.cgroup.outOfMemoryKills();
    if (kills > (this.#status?.outOfMemoryKills ?? 0))
      this.#note(`${kills} processes were killed: out of memory`);
    this.#status = {
      ...this.#status!,
      ...exit,
      exitedAtMs: this.#options.clock.wallMs(),
      outOfMemoryKills: kills,
    };
    this.#run = undefined;
  }

  #enter(
    run: Run,
    command: readonly string[],
    terminal: { term: string } | null = null,
  ): { file: string; args: string[] } {
    return enterCommand(
      {
        initPid: run.process.initPid,
        network: this.#subject!.config.network,
        cgroupProcs: this.cgroup.procsFiles,
        tools: this.#options.tools,
        account: run.account,
        environment: terminal === null ? run.environment : { TERM: terminal.term, ...run.environment },
        hasTerminal: terminal !== null,
      },
      command,
    );
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

  /** True when the promise settled in time. */
  #within(timeoutMs: number, promise: Promise<unknown>): Promise<boolean> {
    return new Promise((resolve) => {
      const cancel = this.#options.clock.timer(timeoutMs, () => resolve(false));
      const settled = () => {
        cancel();
        resolve(true);
      };
      promise.then(settled, settled);
    });
  }

  #exclusively<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work, work);
    this.#last = result.catch(() => {});
    return result;
  }
}

/** Nothing happens when it has ended. */
function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // ended just now
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

/** The same for two starts that a jail made for one of them serves as well for the other. */
function keyOf(subject: Subject, recipe: Recipe): string {
  return JSON.stringify([subject.machineId, subject.config.resources, recipe.args, recipe.fstab]);
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
