import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import type { CommandResult } from './agent-protocol.ts';
import type { RunOptions } from './member.ts';

/** Runs a program of this machine to its end, or to its deadline. */
export function runHere(argv: readonly string[], options: RunOptions = {}): Promise<CommandResult> {
  const { timeoutMs = 60_000, input = '' } = options;
  const [program = '', ...args] = argv;
  return new Promise((resolve) => {
    const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], detached: true });
    let stdout = '';
    let stderr = '';
    let timedOut = false;
    const timeout = setTimeout(() => {
      timedOut = true;
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    }, timeoutMs);
    const settle = (exitCode: number | null) => {
      clearTimeout(timeout);
      resolve({ exitCode, stdout, stderr, timedOut });
    };
    child.stdout.on('data', (chunk: Buffer) => {
      stdout += chunk.toString('utf8');
    });
    child.stderr.on('data', (chunk: Buffer) => {
      stderr += chunk.toString('utf8');
    });
    child.stdin.on('error', () => {});
    child.stdin.end(input);
    child.on('error', (error) => {
      stderr += error.message;
      settle(null);
    });
    child.on('close', settle);
  });
}

/** The same; throws unless it ends with 0. */
export async function mustRunHere(argv: readonly string[], options: RunOptions = {}): Promise<string> {
  const result = await runHere(argv, options);
  if (result.exitCode === 0) return result.stdout.trim();
  throw new Error(`${argv.join(' ')}: exit code ${result.exitCode}: ${result.stderr}${result.stdout}`.trim());
}

/** Starts a program that outlives who asked for it, with its output in a file. Resolves when it runs. */
export async function spawnHere(
  argv: readonly string[],
  options: { logPath: string; env?: Record<string, string> | undefined },
): Promise<{ pid: number }> {
  const [program = '', ...args] = argv;
  const log = openSync(options.logPath, 'a');
  const child = spawn(program, args, {
    stdio: ['ignore', log, log],
    detached: true,
    env: { ...process.env, ...options.env },
  });
  closeSync(log);
  await new Promise((resolve, reject) => {
    child.on('spawn', resolve);
    child.on('error', reject);
  });
  child.unref();
  return { pid: child.pid! };
}
