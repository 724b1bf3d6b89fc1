import type { CommandResult } from './agent-protocol.ts';

export type RunOptions = {
  /** On a quiet machine; on a slow one it is longer (kind.ts). Default 60 s. */
  timeoutMs?: number;
  /** On standard input. */
  input?: string;
};

/** A host of the lab: a guest with a kernel of its own, or a network namespace of this machine. */
export interface Member {
  readonly name: string;
  readonly address: string;
  /** Runs a program to its end. */
  run(argv: readonly string[], options?: RunOptions): Promise<CommandResult>;
  /** Starts a program that goes on by itself. */
  spawn(
    argv: readonly string[],
    options: { logPath: string; env?: Record<string, string> },
  ): Promise<{ pid: number }>;
  kill(pid: number, signal: NodeJS.Signals): Promise<void>;
  readFile(path: string): Promise<string>;
  writeFile(path: string, text: string, mode?: number): Promise<void>;
}

/** The standard output, trimmed; rejects unless the program ends with 0. */
export async function mustRun(
  member: Member,
  argv: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const result = await member.run(argv, options);
  if (result.exitCode === 0) return result.stdout.trim();
  const why = result.timedOut ? 'killed at its deadline' : `exit code ${result.exitCode}`;
  throw new Error(`${member.name}: ${argv.join(' ')}: ${why}\n${result.stderr}${result.stdout}`.trim());
}
