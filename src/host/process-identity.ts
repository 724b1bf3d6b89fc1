import { readFileSync } from 'node:fs';
import { systemErrorCode } from '../base/errors.ts';
import { bootId } from '../sys/boot-id.ts';

/** A process by number and time of start, so that a reused number is never mistaken for it. */
export type ProcessIdentity = {
  pid: number;
  /** Clock ticks from boot to the start: field 22 of /proc/<pid>/stat (proc(5)). */
  startTicks: number;
  /** Pids and ticks mean nothing after a reboot. */
  bootId: string;
};

/** ESRCH: it ended while it was looked at. */
const NO_PROCESS = new Set(['ENOENT', 'ESRCH', 'ENOTDIR']);

/**
 * Null when there is no such process (or only its zombie). Throws when that cannot be found out, as without a
 * descriptor: what is not seen then is not dead for that.
 */
export function identifyProcess(pid: number): ProcessIdentity | null {
  let line: string;
  try {
    line = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch (error) {
    if (NO_PROCESS.has(systemErrorCode(error) ?? '')) return null;
    throw error;
  }
  const fields = parseStat(line);
  if (fields === null || isOver(fields)) return null;
  return { pid, startTicks: fields.startTicks, bootId: bootId() };
}

/** True for what `parseStat` says of a process of which only its end is left to be read. Pure. */
export function isOver({ state, threads }: { state: string; threads: number }): boolean {
  return state === 'X' || (state === 'Z' && threads <= 1);
}

/** True while exactly that process lives. Throws as `identifyProcess`. */
export function isAlive(identity: ProcessIdentity): boolean {
  const now = identifyProcess(identity.pid);
  return now !== null && now.startTicks === identity.startTicks && now.bootId === identity.bootId;
}

/**
 * State, parent, number of threads and start of a line of /proc/<pid>/stat: fields 3, 4, 20 and 22
 * (proc_pid_stat(5)); the name in parentheses may itself hold spaces and parentheses. The state is that of
 * the first thread: it may be a zombie while others of the process still run, with its files and locks.
 */
export function parseStat(
  line: string,
): { state: string; parentPid: number; threads: number; startTicks: number } | null {
  const fields = line.slice(line.lastIndexOf(')') + 2).split(' ');
  const [state, parentPid] = [fields[0], Number(fields[1])];
  const [threads, startTicks] = [Number(fields[17]), Number(fields[19])];
  if (state === undefined || fields[19] === undefined || !Number.isSafeInteger(startTicks)) return null;
  return { state, parentPid, threads, startTicks };
}
