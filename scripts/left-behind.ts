import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { RUN_VARIABLE } from '../test/support/patience.ts';

const STEP_TIMEOUT_MS = 20_000;
const ROUNDS_MAX = 200;

/**
 * What processes, mounts and loop devices there are of a run of tests that is over or was ended. Each is told
 * by what a person would see of it.
 */
export type LeftBehind = { processes: number[]; mounts: string[]; loops: string[] };

/** `folder`: where the run had its temporary files. Not this process, nor those that it came from. */
export function leftBehind(run: string, folder: string): LeftBehind {
  const own = ancestors();
  const below = mountsBelow(folder);
  return {
    processes: processesOf(run).filter((pid) => !own.has(pid)),
    mounts: below.map(({ place }) => place),
    loops: loopsOf(folder, below),
  };
}

export function isNothing({ processes, mounts, loops }: LeftBehind): boolean {
  return processes.length + mounts.length + loops.length === 0;
}

/** For people: a line each. */
export function describeLeftBehind({ processes, mounts, loops }: LeftBehind): string[] {
  return [
    ...processes.map((pid) => `process ${pid}: ${commandOf(pid)}`),
    ...mounts.map((place) => `mount ${place}`),
    ...loops.map((device) => `loop device ${device}`),
  ];
}

/**
 * Ends all of it, by id and path. Processes first: a killed FUSE server leaves requests that wait for nobody,
 * which the end of its connection answers. Then mounts, deepest first, and loop devices, round by round,
 * because each may hold the next.
 */
export function endLeftBehind(run: string, folder: string): LeftBehind {
  let left = leftBehind(run, folder);
  const known = new Map<string, string>();
  for (let round = 0; round < ROUNDS_MAX && !isNothing(left); round++) {
    for (const device of left.loops) known.set(device, fileOf(device));
    for (const pid of left.processes) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // It ended in between.
      }
    }
    if (left.processes.length > 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50);
    else {
      abortFuseBelow(folder);
      for (const place of left.mounts.toReversed()) command('umount', '-n', place);
      for (const device of left.loops) command('losetup', '--detach', device);
    }
    left = leftBehind(run, folder);
    // Unmounted, one whose file has no path any more is known only from before. Detached, it may be somebody's.
    const still = [...known].filter(([device, file]) => file !== '' && fileOf(device) === file);
    left.loops = [...new Set([...left.loops, ...still.map(([device]) => device)])];
  }
  return left;
}

function command(...[program, ...words]: [string, ...string[]]): void {
  spawnSync(program, words, { stdio: 'ignore', timeout: STEP_TIMEOUT_MS, killSignal: 'SIGKILL' });
}

function processesOf(run: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => read(`/proc/${pid}/environ`).split('\0').includes(`${RUN_VARIABLE}=${run}`))
    .map(Number);
}

/** This process and those that it came from. */
function ancestors(): Set<number> {
  const found = new Set<number>();
  for (let pid = process.pid; pid > 1 && !found.has(pid); ) {
    found.add(pid);
    pid = Number(read(`/proc/${pid}/stat`).split(') ').at(-1)?.split(' ')[1] ?? 0);
  }
  return found;
}

/** A zombie has no command any more. */
function commandOf(pid: number): string {
  return read(`/proc/${pid}/cmdline`).replaceAll('\0', ' ').trim().slice(0, 200) || 'ended meanwhile';
}

type Mount = { device: string; place: string };

function mounts(): Mount[] {
  return read('/proc/self/mountinfo')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => line.split(' '))
    .map((words) => ({
      device: words[2]!,
      place: words[4]!.replace(/\\(\d{3})/g, (_all, octal: string) =>
        String.fromCharCode(Number.parseInt(octal, 8)),
      ),
    }));
}

function mountsBelow(folder: string): Mount[] {
  return mounts().filter(({ place }) => place.startsWith(`${folder}/`));
}

/** By the control files of FUSE, where they are mounted: /sys/fs/fuse/connections/MINOR/abort. */
function abortFuseBelow(folder: string): void {
  for (const { device, place } of mounts()) {
    const [major, minor] = device.split(':');
    if (major !== '0' || !place.startsWith(`${folder}/`)) continue;
    try {
      writeFileSync(`/sys/fs/fuse/connections/${minor}/abort`, '1');
    } catch {
      // Not of FUSE, or no control files: its server is dead, and what waits for it ends by itself.
    }
  }
}

/**
 * Loop devices of files below it, and those of which something is mounted there and whose file has no path any
 * more: a FUSE server that is ended takes its mount away, also from under a loop device.
 */
function loopsOf(folder: string, below: readonly Mount[]): string[] {
  const mounted = new Set(below.map(({ device }) => device));
  return readdirSync('/sys/block')
    .filter((name) => name.startsWith('loop'))
    .filter((name) => {
      const file = fileOf(name);
      const isMounted = mounted.has(read(`/sys/block/${name}/dev`).trim());
      return file.startsWith(`${folder}/`) || (isMounted && file !== '' && !existsSync(file));
    })
    .map((name) => `/dev/${name}`);
}

/** Of a loop device, as the kernel names it; empty: it has none. */
function fileOf(device: string): string {
  return read(`/sys/block/${basename(device)}/loop/backing_file`).trim();
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
