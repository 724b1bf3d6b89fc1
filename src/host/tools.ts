import { systemClock } from '../base/clock.ts';
import { GodwitError, systemErrorCode } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import { ProcessPace } from '../base/process-pace.ts';
import { startError, startProgram } from '../sys/start-program.ts';

export type ToolOutput = { exitCode: number | null; stdout: string; stderr: string };

export type ToolOptions = {
  /** How long it may run without using a processor, or reading from a disk. */
  deadlineMs?: number;
  /** On standard input: what must not be seen in the process list. */
  input?: string;
  /** Becomes its descriptor 3. */
  inheritedFd?: number;
};

/** Runs the host's programs. Drivers get it by constructor; tests give them recorded runs. */
export interface Tools {
  /**
   * The exit code and output of a program that ended by itself. Rejects `HOST_TOOL_MISSING` when there is no
   * such program, and `HOST_TOOL_STUCK` when it did nothing for its deadline: it is killed then, and not
   * waited for, because a process in an uninterruptible wait does not die.
   */
  run(argv: readonly [string, ...string[]], options?: ToolOptions): Promise<ToolOutput>;
}

const DEADLINE_MS = PATIENCE.hostProgram.ms;
/** At what it does, within its deadline. */
const LOOKS = 10;
/** More than any of them has to say. */
const OUTPUT_CHARACTERS_MAX = 1024 * 1024;

export type SystemToolsOptions = {
  /** Added to the environment of every program. */
  environment?: Readonly<Record<string, string>>;
};

/** The programs of this host, in the C locale, without a shell. */
export function systemTools(options: SystemToolsOptions = {}): Tools {
  const env = {
    ...process.env,
    ...options.environment,
    LC_ALL: 'C',
    PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin:/usr/bin:/bin`,
  };
  return {
    run([program, ...args], { deadlineMs = DEADLINE_MS, input, inheritedFd } = {}) {
      return new Promise((resolve, reject) => {
        const child = startProgram(program, args, {
          stdio: [
            input === undefined ? 'ignore' : 'pipe',
            ...['pipe' as const, 'pipe' as const],
            ...(inheritedFd === undefined ? [] : [inheritedFd]),
          ],
          // A group of its own: what it started is killed with it.
          detached: true,
          env,
        });
        let stdout = '';
        let stderr = '';
        const pace = new ProcessPace(child.pid ?? 0, systemClock, { quietMs: deadlineMs });
        const timeout = setInterval(() => {
          if (!pace.isQuiet()) return;
          clearInterval(timeout);
          if (child.pid !== undefined) killGroup(child.pid);
          child.stdout?.destroy();
          child.stderr?.destroy();
          child.unref();
          reject(stuckError(program, args, deadlineMs));
        }, deadlineMs / LOOKS);
        child.stdout?.on('data', (chunk: Buffer) => {
          if (stdout.length < OUTPUT_CHARACTERS_MAX) stdout += chunk.toString('utf8');
        });
        child.stderr?.on('data', (chunk: Buffer) => {
          if (stderr.length < OUTPUT_CHARACTERS_MAX) stderr += chunk.toString('utf8');
        });
        child.stdin?.on('error', () => {});
        child.stdin?.end(input);
        child.on('error', (cause) => {
          clearInterval(timeout);
          reject(startError(cause) ?? missingError(program, cause));
        });
        child.on('close', (exitCode) => {
          clearInterval(timeout);
          resolve({ exitCode, stdout, stderr });
        });
      });
    },
  };
}

/** Standard output of a program that must end with 0; rejects `HOST_TOOL_FAILED` with what it said. */
export async function mustRun(
  tools: Tools,
  argv: readonly [string, ...string[]],
  options: ToolOptions = {},
): Promise<string> {
  const output = await tools.run(argv, options);
  if (output.exitCode !== 0) throw failedError(argv, output);
  return output.stdout;
}

export function failedError(argv: readonly [string, ...string[]], output: ToolOutput): GodwitError {
  const said = (output.stderr.trim() || output.stdout.trim() || 'it said nothing').slice(0, 2_000);
  return new GodwitError('HOST_TOOL_FAILED', `${argv.join(' ')}: ${said}`, {
    values: { program: argv[0], exitCode: output.exitCode },
    nextAction: 'Look at the message of the program and at the kernel log (dmesg).',
  });
}

/** What a program printed is not what this version of godwit knows. */
export function unknownOutputError(program: string, what: string, line: string): GodwitError {
  return new GodwitError(
    'HOST_UNKNOWN_OUTPUT',
    `${program} answers ${what} in a form that is not known here: ${line.slice(0, 200)}`,
    {
      values: { program, what, line: line.slice(0, 200) },
      retry: 'never',
      nextAction: 'The kernel or the program is of a version that godwit was not made for; report the line.',
    },
  );
}

function missingError(program: string, cause: Error): GodwitError {
  const absent = systemErrorCode(cause) === 'ENOENT';
  return new GodwitError(
    'HOST_TOOL_MISSING',
    absent ? `the program ${program} is missing` : `${program} cannot be run: ${cause.message}`,
    {
      values: { program },
      retry: 'never',
      nextAction: '`godwit doctor` names the package that has it.',
      cause,
    },
  );
}

function stuckError(program: string, args: readonly string[], deadlineMs: number): GodwitError {
  return new GodwitError(
    'HOST_TOOL_STUCK',
    `${[program, ...args].join(' ')} did nothing for ${deadlineMs} ms and was killed`,
    {
      values: { program, deadlineMs },
      retry: 'later',
      nextAction: 'A device underneath does not answer; the kernel log (dmesg) says which.',
    },
  );
}

function killGroup(pid: number): void {
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // It has ended just now.
  }
}
