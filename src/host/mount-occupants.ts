import { readdir, readFile, readlink } from 'node:fs/promises';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import { PAUSE } from '../base/patience.ts';
import { startProgram } from '../sys/start-program.ts';
import { mountAt, parseMountTable } from './mount-table.ts';
import { parseStat } from './process-identity.ts';

/*
 * Who on this host would keep a machine's filesystem from being unmounted. Looked for while the machine still
 * runs: after its stop such a process keeps it down for as long as it likes.
 *
 * Nothing here touches the filesystem itself: mount tables, file descriptors (`mnt_id` of /proc/<pid>/fdinfo,
 * proc_pid_fdinfo(5)), working folders and mappings are read from /proc.
 */

/** A process that is not the machine's, and how it has the filesystem. */
export type Occupant = { pid: number; program: string; how: 'mount' | 'file' | 'folder' | 'mapping' };

/** Host processes looked at side by side. */
const AT_ONCE = 16;
/** A touch that takes longer is looked at: it may be slow, or wait for a thaw. */
const PROBE_LOOK_MS = PAUSE.frozenLook.ms;
/** Kernel functions in which a write waits for a frozen filesystem (sb_start_write). */
const FROZEN_IN = /percpu_rwsem|percpu_down_read|sb_start_write/;

/**
 * Who holds what is mounted at `place`, without the processes of `own`, what they started (a sync of the shim
 * waits for as long as a full disk does, and is waited for by its unmount), and this process's own mount.
 * Nobody where nothing is mounted there.
 */
export async function findOccupants(place: string, own: ReadonlySet<number>): Promise<Occupant[]> {
  const table = await readFile('/proc/self/mountinfo', 'utf8');
  const entry = mountAt(place, parseMountTable(table));
  if (entry === undefined) return [];
  const ours = await namespaceOf('self');
  const ownSpaces = new Set(await Promise.all([...own].map((pid) => namespaceOf(String(pid)))));
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name) && !own.has(Number(name)));
  const told = new Set<string>();
  const occupants: Occupant[] = [];
  const look = async (pid: string) => {
    const space = await namespaceOf(pid);
    // Gone, or a kernel thread.
    if (space === null) return;
    const mounts = await idsOf(pid, entry.device);
    const how = mounts.size === 0 ? null : await usedBy(pid, mounts, entry.device);
    const copies = space !== ours && !ownSpaces.has(space) && mounts.size > 0;
    if (how === null && (!copies || told.has(space))) return;
    if (own.has(parseStat(await read(`/proc/${pid}/stat`))?.parentPid ?? 0)) return;
    if (how === null) told.add(space);
    const program = (await read(`/proc/${pid}/comm`)).trim();
    occupants.push({ pid: Number(pid), program, how: how ?? 'mount' });
  };
  for (let at = 0; at < pids.length; at += AT_ONCE) await Promise.all(pids.slice(at, at + AT_ONCE).map(look));
  return occupants.sort((left, right) => left.pid - right.pid);
}

/**
 * True when writes to the filesystem at `place` wait for a thaw (fsfreeze(8)). Sets the times of its root
 * folder to what they are, from a process of its own, and looks where in the kernel that waits; a filesystem
 * that is only slow is waited for.
 */
export async function isFrozen(place: string, clock: Clock): Promise<boolean> {
  const child = startProgram('touch', ['-c', '-r', place, place], { stdio: 'ignore' });
  let ended = false;
  const exited = new Promise<void>((resolve) => {
    const end = () => {
      ended = true;
      resolve();
    };
    child.once('exit', end);
    child.once('error', end);
  });
  while (!ended) {
    const late = new AbortController();
    await Promise.race([exited, clock.sleep(PROBE_LOOK_MS, late.signal).catch(() => {})]);
    late.abort();
    if (ended || child.pid === undefined) return false;
    if (FROZEN_IN.test(await read(`/proc/${child.pid}/wchan`))) {
      // It ends with the thaw.
      child.kill('SIGKILL');
      child.unref();
      return true;
    }
  }
  return false;
}

/** The named obstacle; null: nobody is in the way. */
export function heldError(place: string, occupants: readonly Occupant[]): GodwitError | null {
  if (occupants.length === 0) return null;
  const named = occupants
    .slice(0, 5)
    .map(({ pid, program, how }) => `${program} (pid ${pid}, ${WORDS[how]})`);
  const more = occupants.length > named.length ? ` and ${occupants.length - named.length} more` : '';
  const pids = occupants.map(({ pid }) => pid);
  return new GodwitError(
    'MACHINE_FS_HELD',
    `the filesystem of its volume is held by other processes of this host: ${named.join(', ')}${more}`,
    {
      values: { place, pids: pids.slice(0, 50).join(',') },
      retry: 'never',
      nextAction: `End them, or have them let go of it: ls -l /proc/${pids[0]}/fd; grep ${place} /proc/${pids[0]}/mountinfo.`,
    },
  );
}

export function frozenError(place: string): GodwitError {
  return new GodwitError('MACHINE_FS_FROZEN', `the filesystem at ${place} is frozen`, {
    values: { place },
    retry: 'never',
    nextAction: `Whoever froze it (a backup, a snapshot) thaws it: fsfreeze --unfreeze ${place}.`,
  });
}

export function readOnlyError(place: string, machine: string): GodwitError {
  return new GodwitError(
    'MACHINE_FS_READ_ONLY',
    'the filesystem of its volume has become read-only: the kernel met an error in it',
    {
      values: { place },
      retry: 'never',
      nextAction: `The kernel log (dmesg) says which. \`godwit machine restart ${machine}\` mounts it anew, which replays its journal; what an fsck would find stays.`,
    },
  );
}

/** `damage`: what is wrong with it, as a sentence. */
export function damagedError(damage: string): GodwitError {
  return new GodwitError(
    'MACHINE_FS_DAMAGED',
    `the filesystem of its volume is damaged, and would not be mounted again: ${damage}`,
    {
      values: { damage },
      retry: 'never',
      nextAction:
        'It runs on here, and is not stopped for a move. Copy what it has while it runs; then stop it and have e2fsck mend its volume.',
    },
  );
}

/**
 * What processes that were killed wait for in the kernel, `place` being where their filesystem is mounted;
 * null: none waits where no signal reaches it.
 */
export async function findStuck(pids: readonly number[], place: string): Promise<GodwitError | null> {
  const stuck: string[] = [];
  for (const pid of pids) {
    if (parseStat(await read(`/proc/${pid}/stat`))?.state !== 'D') continue;
    const where = (await read(`/proc/${pid}/wchan`)).trim();
    if (FROZEN_IN.test(where)) return frozenError(place);
    stuck.push(`${(await read(`/proc/${pid}/comm`)).trim()} (pid ${pid}, in ${where || 'the kernel'})`);
  }
  if (stuck.length === 0) return null;
  const more = stuck.length > 5 ? ` and ${stuck.length - 5} more` : '';
  return new GodwitError(
    'MACHINE_KILL_STUCK',
    `what is left of it waits in the kernel: ${stuck.slice(0, 5).join(', ')}${more}`,
    {
      values: { place },
      retry: 'later',
      nextAction:
        'It waits for a device, or for blocks of a source that is away: dmesg; what else is said here.',
    },
  );
}

const WORDS = {
  mount: 'its mount namespace has a copy of the mount',
  file: 'an open file',
  folder: 'its working folder',
  mapping: 'a mapped file',
};

/** Of the mounts of that device in the process's own namespace. */
async function idsOf(pid: string, device: string): Promise<Set<string>> {
  const ids = new Set<string>();
  for (const line of (await read(`/proc/${pid}/mountinfo`)).split('\n')) {
    const [id, , majorMinor] = line.split(' ', 3);
    if (majorMinor === device && id !== undefined) ids.add(id);
  }
  return ids;
}

async function usedBy(
  pid: string,
  mounts: ReadonlySet<string>,
  device: string,
): Promise<Occupant['how'] | null> {
  for (const fd of await readdir(`/proc/${pid}/fdinfo`).catch(() => [])) {
    const id = /^mnt_id:\s*(\d+)$/m.exec(await read(`/proc/${pid}/fdinfo/${fd}`))?.[1];
    if (id !== undefined && mounts.has(id)) return 'file';
  }
  const places = (await read(`/proc/${pid}/mountinfo`))
    .split('\n')
    .filter((line) => mounts.has(line.split(' ', 1)[0]!))
    .map((line) => line.split(' ')[4]!);
  for (const link of ['cwd', 'root']) {
    const folder = await readlink(`/proc/${pid}/${link}`).catch(() => '');
    if (places.some((place) => place !== '/' && (folder === place || folder.startsWith(`${place}/`))))
      return 'folder';
  }
  const [major, minor] = device.split(':').map((part) => Number(part).toString(16).padStart(2, '0'));
  const maps = await read(`/proc/${pid}/maps`);
  return maps.includes(` ${major}:${minor} `) ? 'mapping' : null;
}

async function namespaceOf(pid: string): Promise<string | null> {
  return readlink(`/proc/${pid}/ns/mnt`).catch(() => null);
}

/** '' for what is gone, or was never readable. */
async function read(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '');
}
