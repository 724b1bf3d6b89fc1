import { spawn } from 'node:child_process';

export type ToolResult = {
  /** Exit code; null when it was killed by us after the timeout, or never started. */
  code: number | null;
  stdout: string;
  stderr: string;
};

/** More than any of the host's tools has to say. */
const OUTPUT_CHARACTERS_MAX = 64 * 1024;

/**
 * Runs one of the host's tools (mount, umount, losetup) and always comes back: after `timeoutMs` it is killed, and not waited for, because
 * a process in an uninterruptible wait does not die. `inheritedFd` becomes its descriptor 3.
 */
export function runTool(
  program: string,
  argv: readonly string[],
  options: { timeoutMs: number; inheritedFd?: number },
): Promise<ToolResult> {
  return new Promise((resolve) => {
    const child = spawn(program, argv, {
      stdio: ['ignore', 'pipe', 'pipe', ...(options.inheritedFd === undefined ? [] : [options.inheritedFd])],
      env: { ...process.env, LC_ALL: 'C', PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin:/usr/bin:/bin` },
    });
    let stdout = '';
    let stderr = '';
    const settle = (code: number | null) => {
      clearTimeout(timeout);
      resolve({ code, stdout: stdout.trim(), stderr: stderr.trim() });
    };
    const timeout = setTimeout(() => {
      stderr += `${program} took longer than ${options.timeoutMs} ms`;
      child.kill('SIGKILL');
      child.stdout?.destroy();
      child.stderr?.destroy();
      child.unref();
      settle(null);
    }, options.timeoutMs);
    child.stdout?.on('data', (chunk: Buffer) => {
      if (stdout.length < OUTPUT_CHARACTERS_MAX) stdout += chunk.toString('utf8');
    });
    child.stderr?.on('data', (chunk: Buffer) => {
      if (stderr.length < OUTPUT_CHARACTERS_MAX) stderr += chunk.toString('utf8');
    });
    child.on('error', (error) => {
      stderr += error.message;
      settle(null);
    });
    child.on('close', (code) => settle(code));
  });
}
