import type { Clock } from '../base/clock.ts';
import { PATIENCE } from '../base/patience.ts';
import type { HealthCheck, MachineNetwork } from '../contract/machine-config.ts';
import { identifyProcess } from '../host/process-identity.ts';
import { runProgram } from '../host/program.ts';
import type { Entrance } from '../shim/exec-session.ts';
import type { Probe, Run, WorkloadExit } from '../shim/runtime.ts';
import { type Account, enterCommand, type JailTools } from './jail.ts';
import type { JailProcess } from './jail-process.ts';
import { makeProbe } from './probe.ts';
import { mainProcess, processTree } from './process-tree.ts';
import { within } from './within.ts';

/**
 * A stop of several processes looks for their end so often at the least: it is part of the interruption of a
 * move.
 */
const STOP_LOOK_MS = 10;
/** What a command left, and is not gone at once, is told of in the machine's log. */
const STOP_TOLD_MS = 200;

export type JailRunOptions = {
  jail: JailProcess;
  tools: JailTools;
  account: Account;
  environment: Readonly<Record<string, string>>;
  network: MachineNetwork['kind'];
  cgroup: { readonly procsFiles: readonly string[]; processes(): number[] };
  clock: Clock;
  note: (text: string) => void;
};

/** A command that is executed in its jail, and all that it starts there. */
export class JailRun implements Run {
  readonly #options: JailRunOptions;
  readonly initPid: number;
  readonly exited: Promise<WorkloadExit>;

  constructor(options: JailRunOptions) {
    this.#options = options;
    this.initPid = options.jail.initPid;
    this.exited = options.jail.exited;
  }

  /**
   * Asks the command to end, and then what it leaves. False when something is left at the end of the time.
   */
  async end(signal: NodeJS.Signals, timeoutMs: number): Promise<boolean> {
    const { clock, cgroup, jail, tools, note } = this.#options;
    const startedMs = clock.monotonicMs();
    const leftMs = () => Math.max(0, timeoutMs - (clock.monotonicMs() - startedMs));
    const look = () => processTree(this.initPid, cgroup.processes());
    let tree = look();
    const command = () => (tools.tini === null ? null : mainProcess(this.initPid, tree));
    // Its init is only just coming up: the kernel drops what is sent to a PID 1 that handles nothing yet.
    const comes = () => tools.tini !== null && command() === null && jail.running && leftMs() > 0;
    while (signal !== 'SIGKILL' && comes()) {
      await within(clock, 1, jail.exited);
      tree = look();
    }
    const main = command();
    // One that shall be killed is killed with all that it has.
    const leavesSome = signal !== 'SIGKILL' && main !== null && tree.some(({ pid }) => pid !== main.pid);
    if (!leavesSome) {
      jail.signal(signal);
      return within(clock, timeoutMs, jail.exited);
    }
    // With init the kernel ends all processes of the machine. It is held, so that it does not end with the
    // command.
    jail.signal('SIGSTOP');
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
          note(
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
      await within(clock, Math.min(pauseMs, leftMs()), jail.exited);
      if (!jail.running) return true;
    }
    jail.signal('SIGCONT');
    return within(clock, Math.max(leftMs(), PATIENCE.kill.ms), jail.exited);
  }

  settle(): Promise<WorkloadExit> {
    this.#options.jail.killOuter();
    return this.exited;
  }

  async exec(command: readonly string[], options: { timeoutMs: number; outputBytesMax: number }) {
    const { file, args } = this.#enter(command, null);
    return runProgram(file, args, options);
  }

  enter(command: readonly string[], terminal: { term: string } | null): Entrance | null {
    const init = identifyProcess(this.initPid);
    if (init === null) return null;
    const { uid, gid } = this.#options.account;
    return { ...this.#enter(command, terminal), init, uid, gid };
  }

  probe(check: HealthCheck): Probe {
    const { network, tools } = this.#options;
    return makeProbe(check, {
      network,
      initPid: this.initPid,
      nsenter: tools.nsenter,
      enter: (command) => this.#enter(command, null),
    });
  }

  #enter(command: readonly string[], terminal: { term: string } | null): { file: string; args: string[] } {
    const { account, cgroup, environment, network, tools } = this.#options;
    return enterCommand(
      {
        initPid: this.initPid,
        network,
        cgroupProcs: cgroup.procsFiles,
        tools,
        account,
        environment: terminal === null ? environment : { TERM: terminal.term, ...environment },
        hasTerminal: terminal !== null,
      },
      command,
    );
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
