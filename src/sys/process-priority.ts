import { readFileSync, writeFileSync } from 'node:fs';
import { setPriority } from 'node:os';
import { systemErrorCode } from '../base/errors.ts';

/**
 * Sets the nice value, -20 to 19, of a process and of its session. Where the kernel shares processors out by
 * sessions first (autogroup, sched(7)), that of the process counts against its own session alone, and a busy
 * program in another one has as much as all of it. In a cgroup with a share of its own, and in kernels
 * without autogroup, that of the process is all there is.
 *
 * Throws `EPERM`, `EACCES` or `ESRCH` of setpriority(2).
 */
export function setNice(pid: number, nice: number): void {
  setPriority(pid, nice);
  try {
    writeFileSync(autogroupOf(pid), String(nice));
  } catch (error) {
    // Not with this kernel, not in this container, or the process has ended, which its owner hears anyway.
    if (systemErrorCode(error) === undefined) throw error;
  }
}

/** Of the session of a process; null where the kernel has no autogroup. */
export function sessionNice(pid: number): number | null {
  try {
    const [, nice] = /nice (-?\d+)/.exec(readFileSync(autogroupOf(pid), 'latin1')) ?? [];
    return nice === undefined ? null : Number(nice);
  } catch {
    return null;
  }
}

/** proc_pid_autogroup(5). */
function autogroupOf(pid: number): string {
  return `/proc/${pid}/autogroup`;
}
