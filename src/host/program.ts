import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { GodwitError } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import { startError, startProgram } from '../sys/start-program.ts';

/** What became of a host program. `timedOut`: it was killed at the deadline, or could not even be killed. */
export type ProgramResult = {
  exitCode: number | null;
  signal: string | null;
  stdout: string;
  stderr: string;
  timedOut: boolean;
};

export type ProgramOptions = {
  timeoutMs: number;
  /** Of each of the two streams; what comes after is dropped. Default 1 MiB. */
  outputBytesMax?: number;
  env?: NodeJS.ProcessEnv;
  signal?: AbortSignal;
};

/** After the program ended: how long its output is awaited when a child of its own holds the pipes open. */
const OUTPUT_GRACE_MS = PATIENCE.programOutput.ms;
/** A child that writes on and on is not listened to for longer. */
const DRAIN_TURNS_MAX = 64;
/** After SIGKILL: how long a process that hangs in the kernel is awaited. */
const KILL_GRACE_MS = PATIENCE.programKill.ms;

/**
 * Runs a program in a process group of its own, kills the whole group at the deadline or when `signal`
 * aborts, and always resolves in bounded time: a program that hangs in the kernel (a dead device) is left
 * behind rather than waited for. Rejects `MACHINE_PROGRAM_MISSING` when it cannot be started, and as
 * `startError` says.
 */
export function runProgram(
  file: string,
  args: readonly string[],
  options: ProgramOptions,
): Promise<ProgramResult> {
  return new Promise((resolve, reject) => {
    const child = startProgram(file, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
      env: options.env ?? process.env,
    });
    const limit = options.outputBytesMax ?? 1024 * 1024;
    const stdout = new BoundedText(limit);
    const stderr = new BoundedText(limit);
    let pieces = 0;
    for (const [stream, text] of [
      [child.stdout, stdout],
      [child.stderr, stderr],
    ] as const)
      stream.on('data', (chunk: Buffer) => {
        pieces++;
        text.push(chunk);
      });
    let timedOut = false;
    let ended: { code: number | null; signal: string | null } | undefined;
    const timers: NodeJS.Timeout[] = [];

    const finish = () => {
      for (const timer of timers) clearTimeout(timer);
      options.signal?.removeEventListener('abort', kill);
      child.stdout.destroy();
      child.stderr.destroy();
      child.unref();
      resolve({
        exitCode: ended?.code ?? null,
        signal: ended?.signal ?? null,
        stdout: stdout.toString(),
        stderr: stderr.toString(),
        timedOut,
      });
    };
    // What it wrote is in the pipes when it has ended. On a busy host the time for that may be over before
    // they were looked at: first they are read to their end.
    const drain = (turnsLeft: number) => {
      const before = pieces;
      setImmediate(() => (pieces === before || turnsLeft === 0 ? finish() : drain(turnsLeft - 1)));
    };
    const kill = () => {
      timedOut = ended === undefined;
      if (child.pid !== undefined) killGroup(child.pid);
      timers.push(setTimeout(finish, KILL_GRACE_MS));
    };
    child.on('error', (cause) => {
      for (const timer of timers) clearTimeout(timer);
      options.signal?.removeEventListener('abort', kill);
      const missing = new GodwitError('MACHINE_PROGRAM_MISSING', `cannot run ${file}: ${cause.message}`, {
        values: { program: file },
        nextAction: `Install the package that has ${file} on this host.`,
        cause,
      });
      reject(startError(cause) ?? missing);
    });
    child.on('exit', (code, signal) => {
      ended = { code, signal };
      timers.push(setTimeout(drain, OUTPUT_GRACE_MS, DRAIN_TURNS_MAX));
    });
    child.on('close', finish);
    timers.push(setTimeout(kill, options.timeoutMs));
    if (options.signal?.aborted) kill();
    else options.signal?.addEventListener('abort', kill, { once: true });
  });
}

/** The same, but anything except exit code 0 rejects with `code`. */
export async function mustRun(
  code: string,
  file: string,
  args: readonly string[],
  timeoutMs: number,
): Promise<ProgramResult> {
  const result = await runProgram(file, args, { timeoutMs });
  if (result.exitCode === 0) return result;
  const why = result.timedOut
    ? `no end within ${timeoutMs} ms`
    : result.stderr.trim() || `exit code ${result.exitCode ?? result.signal}`;
  throw new GodwitError(code, `${file} ${args.join(' ')}: ${why}`, {
    values: { program: file, exitCode: result.exitCode, timedOut: result.timedOut },
    ...(result.timedOut && { retry: 'later' as const }),
    nextAction: result.timedOut
      ? 'The device underneath does not answer; look at the volume of the machine.'
      : 'Look at the message of the program and at the kernel log (dmesg).',
  });
}

/**
 * Where a program is on PATH or in the sbin folders that a plain shell leaves out; null when it is nowhere.
 */
export function findProgram(name: string): string | null {
  for (const folder of [
    ...(process.env.PATH ?? '').split(delimiter),
    '/usr/sbin',
    '/usr/bin',
    '/sbin',
    '/bin',
  ]) {
    if (!folder.startsWith('/')) continue;
    const path = join(folder, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // not here
    }
  }
  return null;
}

function killGroup(pid: number): void {
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // gone
  }
}

/** The first `limitBytes` of a stream as text. */
class BoundedText {
  readonly #limitBytes: number;
  #chunks: Buffer[] = [];
  #bytes = 0;

  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes;
  }

  push(chunk: Buffer): void {
    const room = this.#limitBytes - this.#bytes;
    if (room <= 0) return;
    this.#chunks.push(chunk.length > room ? chunk.subarray(0, room) : chunk);
    this.#bytes += Math.min(chunk.length, room);
  }

  toString(): string {
    return Buffer.concat(this.#chunks).toString('utf8');
  }
}
