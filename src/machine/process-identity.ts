import { readFileSync } from 'node:fs';
import { bootId } from '../sys/boot-id.ts';

/** A process by number and time of start, so that a reused number is never mistaken for it. */
export type ProcessIdentity = {
  pid: number;
  /** Clock ticks from boot to the start: field 22 of /proc/<pid>/stat (proc(5)). */
  startTicks: number;
  /** Pids and ticks mean nothing after a reboot. */
  bootId: string;
};

/** Null when there is no such process (or only its zombie). */
export function identifyProcess(pid: number): ProcessIdentity | null {
  try {
    const fields = parseStat(readFileSync(`/proc/${pid}/stat`, 'utf8'));
    if (fields === null || fields.state === 'Z' || fields.state === 'X') return null;
    return { pid, startTicks: fields.startTicks, bootId: bootId() };
  } catch {
    return null;
  }
}

/** True while exactly that process lives. */
export function isAlive(identity: ProcessIdentity): boolean {
  const now = identifyProcess(identity.pid);
  return now !== null && now.startTicks === identity.startTicks && now.bootId === identity.bootId;
}

/** State and start of a line of /proc/<pid>/stat; the name in parentheses may itself hold spaces and parentheses. */
export function parseStat(line: string): { state: string; startTicks: number } | null {
  const fields = line.slice(line.lastIndexOf(')') + 2).split(' ');
  const startTicks = Number(fields[19]);
  if (fields[0] === undefined || fields[19] === undefined || !Number.isSafeInteger(startTicks)) return null;
  return { state: fields[0], startTicks };
}
