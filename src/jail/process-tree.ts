import { readFileSync } from 'node:fs';
import { isOver, parseStat } from '../host/process-identity.ts';

/** A process below the init of a machine. */
export type TreeProcess = { pid: number; parentPid: number; startTicks: number; alive: boolean };

/**
 * Of `pids`, those that descend from `initPid`, which is none of them: what somebody had enter the machine
 * from outside (an exec, a probe) does not, until its own parent ends. Zombies are in it, with `alive:
 * false`.
 */
export function processTree(initPid: number, pids: readonly number[]): TreeProcess[] {
  const known = new Map<number, TreeProcess>();
  for (const pid of pids) {
    const process = lookAt(pid);
    if (process !== null) known.set(pid, process);
  }
  const descends = (process: TreeProcess | undefined): boolean => {
    // A process that is not here any more has no children either: they have its init for a parent by then.
    for (let at = process, steps = 0; at !== undefined && steps <= known.size; steps++) {
      if (at.parentPid === initPid) return true;
      at = known.get(at.parentPid);
    }
    return false;
  };
  return [...known.values()].filter((process) => process.pid !== initPid && descends(process));
}

/**
 * The command of a machine: of what its init has for children, the first. What it inherits later began later.
 * Null: it has none. Pure.
 */
export function mainProcess(initPid: number, tree: readonly TreeProcess[]): TreeProcess | null {
  const children = tree.filter(({ parentPid }) => parentPid === initPid);
  return (
    children.sort((left, right) => left.startTicks - right.startTicks || left.pid - right.pid)[0] ?? null
  );
}

function lookAt(pid: number): TreeProcess | null {
  try {
    const fields = parseStat(readFileSync(`/proc/${pid}/stat`, 'utf8'));
    if (fields === null) return null;
    const { parentPid, startTicks } = fields;
    return { pid, parentPid, startTicks, alive: !isOver(fields) };
  } catch {
    return null;
  }
}
