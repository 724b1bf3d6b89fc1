import { readFileSync } from 'node:fs';

/**
 * The process that started this one, by a name that no other process of this boot has: `<pid>.<start time in
 * clock ticks>`. Null: it is gone.
 */
export function parentProcess(): string | null {
  try {
    const status = readFileSync(`/proc/${process.ppid}/stat`, 'latin1');
    // The name of the program, in parentheses, may hold anything.
    const startTicks = status.slice(status.lastIndexOf(')') + 2).split(' ')[19];
    return process.ppid === 1 ? null : `${process.ppid}.${startTicks}`;
  } catch {
    return null;
  }
}
