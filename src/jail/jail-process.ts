import type { ChildProcess } from 'node:child_process';
import type { Duplex, Readable } from 'node:stream';
import { GodwitError } from '../base/errors.ts';
import type { LogWriter } from '../shim/log-file.ts';
import type { WorkloadExit } from '../shim/runtime.ts';
import { startError, startProgram } from '../sys/start-program.ts';

/** More than this on the status pipe is not from jail-init.sh. */
const STATUS_BYTES_MAX = 64 * 1024;

/**
 * One run of a machine's process tree: `unshare` outside, PID 1 inside, and the socket on which jail-init.sh
 * tells how it goes. It makes the jail at once, and executes the command when it is let `go`.
 */
export class JailProcess {
  readonly #child: ChildProcess;
  /** Ends when PID 1 of the machine has ended (and with it every process of its pid namespace). */
  readonly exited: Promise<WorkloadExit>;
  #exit: WorkloadExit | undefined;
  /** Why the host did not start it. */
  #hostError: GodwitError | null = null;
  /** PID 1 as the host counts; 0 before `started` resolved. */
  initPid = 0;
  readonly #status: Duplex;
  readonly #built: Promise<void>;
  readonly #started: Promise<string[]>;

  constructor(unshare: string, args: readonly string[], log: LogWriter) {
    this.#child = startProgram(unshare, args, { stdio: ['ignore', 'pipe', 'pipe', 'pipe'], detached: true });
    const [, stdout, stderr, status] = this.#child.stdio as unknown as [null, Readable, Readable, Duplex];
    log.attach(stdout);
    log.attach(stderr);
    this.exited = new Promise((resolve) => {
      const end = (exit: WorkloadExit) => {
        this.#exit ??= exit;
        resolve(this.#exit);
      };
      this.#child.on('exit', (exitCode, exitSignal) => end({ exitCode, exitSignal }));
      this.#child.on('error', (error) => {
        this.#hostError = startError(error);
        end({ exitCode: 127, exitSignal: null });
      });
    });
    this.#status = status;
    this.#built = readStatus(status, 'built').then((lines) => {
      if (!lines.includes('built')) this.#judge(lines);
    });
    this.#started = readStatus(status, 'ready').then((lines) => this.#judge(lines));
    this.#built.catch(() => {});
    this.#started.catch(() => {});
  }

  get running(): boolean {
    return this.#exit === undefined;
  }

  /** Resolves when all of the jail is there; rejects like `started`. */
  built(): Promise<void> {
    return this.#built;
  }

  /** Lets the command be executed; may be said before the jail is built. */
  go(): void {
    this.#status.write('go\n');
  }

  /**
   * Resolves with the notes for the machine's log when the command has been executed. Rejects
   * `MACHINE_START_FAILED` with the step of jail-init.sh that failed; what is left must then be killed
   * through the cgroup.
   */
  started(): Promise<string[]> {
    return this.#started;
  }

  /** To PID 1 of the machine; nothing happens when it has ended. */
  signal(signal: NodeJS.Signals): void {
    if (!this.running || this.initPid === 0) return;
    try {
      process.kill(this.initPid, signal);
    } catch {
      // ended just now
    }
  }

  /** Ends `unshare`, which holds on only when it was stopped or lost its child. */
  killOuter(): void {
    this.#child.kill('SIGKILL');
  }

  #judge(lines: string[]): string[] {
    const valuesOf = (word: string) =>
      lines.filter((line) => line.startsWith(`${word} `)).map((line) => line.slice(word.length + 1));
    const error = valuesOf('error')[0];
    this.initPid = Number(valuesOf('pid')[0] ?? 0);
    if (error === undefined && this.initPid > 0 && lines.includes('ready')) return valuesOf('note');
    if (this.#hostError !== null) throw this.#hostError;
    throw new GodwitError(
      'MACHINE_START_FAILED',
      `the machine could not be started: failed at ${error ?? 'making its namespaces'}`,
      {
        values: { step: error ?? 'namespaces' },
        nextAction:
          'The log of the machine has the message of the program that failed (godwit machine logs).',
      },
    );
  }
}

/**
 * All lines until `last`, or until the socket closes. `unshare` itself holds the socket, so that its end
 * means that all is over; at `ready` this side closes it.
 */
function readStatus(socket: Duplex, last: 'built' | 'ready'): Promise<string[]> {
  return new Promise((resolve) => {
    let text = '';
    const end = () => resolve(text.split('\n'));
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString('utf8');
      if (text.includes(`\n${last}\n`)) end();
      if (text.endsWith('\nready\n') || text.length > STATUS_BYTES_MAX) socket.destroy();
    });
    socket.on('error', end);
    socket.on('end', () => socket.destroy());
    socket.on('close', end);
  });
}
