import type { Clock } from '../base/clock.ts';
import type { HealthCheck, MachineConfig, MachineRun } from '../contract/machine-config.ts';
import type { Cgroup } from '../host/cgroup.ts';
import type { TerminalSize } from '../sys/pty.ts';
import type { Entrance, ExecSession, SessionOutput } from './exec-session.ts';
import type { LogWriter } from './log-file.ts';

/*
 * A way to run machines: what machine/ knows of jails, and will know of containers and virtual machines. The
 * worker asks a runtime what this host can run, and gets into what runs; the shim makes the one machine that
 * it holds. Who decides when a machine starts, ends and is started again is machine/workload.ts.
 *
 * A runtime remembers nothing. A worker that starts anew finds its machines by their shims; what a dead shim
 * leaves is in the control group of its name (cgroup-name.ts), with every process that a runtime has started.
 */

export type Subject = { machineId: string; name: string; config: MachineConfig };

/** How a run of a machine ended. */
export type WorkloadExit = { exitCode: number | null; exitSignal: string | null };

/** What one question of a health check found. `message` says why not, for people. */
export type ProbeResult = { ok: boolean; message: string };
/** Asks once; must settle soon after the signal aborts (timeout or stop). */
export type Probe = (signal: AbortSignal) => Promise<ProbeResult>;

export type SessionOptions = { size: TerminalSize | null; onOutput: SessionOutput; clock: Clock };

export interface Runtime {
  /**
   * What this host can refuse before a start, and so before the stop of a move. Throws `MACHINE_BAD_RUN`,
   * `MACHINE_UNKNOWN_USER`, `MACHINE_BAD_MOUNT_PATH`, `MACHINE_BAD_HOST_FOLDER`, `MACHINE_BAD_DEVICE`,
   * `MACHINE_VOLUME_OUT_OF_REACH`.
   */
  preflight(config: MachineConfig): void;
  /** What it would run and this host does not have; null: it has it, or nobody can know. */
  missing(config: MachineConfig): string | null;
  /** Whom the socket of its volume must let in. Throws `MACHINE_UNKNOWN_USER`. */
  account(config: MachineConfig): { uid: number; gid: number };
  /**
   * A command inside, by what `Run.enter` said, as a child of this process. Rejects `MACHINE_NOT_RUNNING`
   * when the machine has ended meanwhile, `MACHINE_NO_TERMINAL`.
   */
  session(entrance: Entrance, options: SessionOptions): Promise<ExecSession>;
  instance(place: Place): Instance;
}

/** One for each kind of what runs. */
export type Runtimes = { readonly [Kind in MachineRun['kind']]: Runtime };

/** What a shim has for its machine. */
export type Place = {
  runtimeDir: string;
  /** Folders of the fleet that no machine may see. */
  hidden: readonly string[];
  /** All processes of the machine belong in there; its limits are those of the configuration. */
  cgroup: Cgroup;
  /** Takes the output of what runs. */
  log: LogWriter;
  clock: Clock;
  /** For the owner of the machine, who reads it in the log. */
  note: (text: string) => void;
};

/** The machine of one shim, whether it runs or not. One call at a time. */
export interface Instance {
  /**
   * Makes all that a start needs, and executes nothing. Idempotent; a start makes it anew when something has
   * changed by then. Rejects as `start` does; nothing is left then.
   */
  prepare(subject: Subject): Promise<void>;
  /**
   * Executes it, within its limits. Rejects `MACHINE_START_FAILED`, `MACHINE_BAD_ENVIRONMENT`,
   * `MACHINE_CGROUP_*` and with what `preflight` throws; what is left is for `clear` and `remove`.
   */
  start(subject: Subject): Promise<Run>;
  /** The same after a run has ended: its limits stand. */
  startAgain(subject: Subject): Promise<Run>;
  statistics(): { memoryBytes: number | null; outOfMemoryKills: number };
  /** Kills what runs, also what was prepared and what came in from outside. Rejects `MACHINE_KILL_STUCK`. */
  clear(): Promise<void>;
  /** After `clear`: the limits go too. */
  remove(): Promise<void>;
}

/** From the execution of what runs to its end. */
export interface Run {
  /** The process that stands for it, as the host counts. */
  readonly initPid: number;
  /** By itself or by `end`; what it left may live until `Instance.clear`. */
  readonly exited: Promise<WorkloadExit>;
  /** Asks it to end, and all that it has left. False when something is left after that time. */
  end(signal: NodeJS.Signals, timeoutMs: number): Promise<boolean>;
  /** After `Instance.clear`: resolves when the host has nothing of it any more. */
  settle(): Promise<WorkloadExit>;
  exec(
    command: readonly string[],
    options: { timeoutMs: number; outputBytesMax: number },
  ): Promise<{ exitCode: number | null; stdout: string; stderr: string; timedOut: boolean }>;
  /** How a command gets in; null: it has just ended. */
  enter(command: readonly string[], terminal: { term: string } | null): Entrance | null;
  /** Asks a health check where the machine is. */
  probe(check: HealthCheck): Probe;
}
