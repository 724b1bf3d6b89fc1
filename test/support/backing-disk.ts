import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { attachLoop, detachLoop } from '../../src/host/losetup.ts';
import { until } from './patience.ts';
import { unmount } from './unmount.ts';
import { tool, type VolumeLab } from './volume-lab.ts';

/** What a `BackingDisk` needs. */
export const BACKING_DISK_NEEDS = ['nbdkit', 'nbdfuse', 'fusermount3'] as const;

/**
 * A folder of the lab on a filesystem of its own, on a disk that does what nbdkit and its filters make it do:
 * a loop device over nbdfuse over nbdkit.
 */
export type BackingDisk = {
  dir: string;
  /** Of mount(8), for the filesystem. */
  mount: readonly string[];
  /** From now on the disk answers nothing, and what is asked of it waits. */
  hang(): void;
  goOn(): void;
};

/** All of the metadata is written when it is made: what is refused later is data. */
const MKFS = ['-q', '-F', '-m', '0', '-E', 'lazy_itable_init=0,lazy_journal_init=0,nodiscard'];

async function backingDisk(
  lab: VolumeLab,
  name: string,
  sizeBytes: number,
  options: {
    filters?: readonly string[];
    parameters?: readonly string[];
    /** Where the disk's content is. */
    folder?: string;
    /** Makes another filesystem than ext4 on the device; what else mount(8) is told. */
    mkfs?: (loop: string) => Promise<readonly string[]>;
  } = {},
): Promise<BackingDisk> {
  const { filters = [], parameters = [], folder = lab.dir, mkfs = mkfsExt4 } = options;
  const image = join(folder, `${name}.img`);
  const socket = join(lab.dir, `${name}.sock`);
  const fuseDir = join(lab.dir, `${name}-fuse`);
  const dir = join(lab.dir, name);
  for (const made of [fuseDir, dir]) mkdirSync(made);
  writeFileSync(image, '');
  await tool('truncate', '-s', String(sizeBytes), image);
  const server = start('nbdkit', [
    ...['--foreground', '--exit-with-parent', '--unix', socket],
    ...filters.map((filter) => `--filter=${filter}`),
    ...['file', image, ...parameters],
  ]);
  lab.onClose(() => end(server));
  await until('nbdkit listens', () => existsSync(socket));
  const bridge = start('nbdfuse', [join(fuseDir, 'disk'), '--unix', socket]);
  lab.onClose(() => end(bridge));
  lab.onClose(() => tool('fusermount3', '-u', '-z', fuseDir));
  const disk = join(fuseDir, 'disk');
  await until('nbdfuse serves', () => existsSync(disk) && statSync(disk).size === sizeBytes);
  const loop = await attachLoop({ filePath: disk });
  lab.onClose(() => detachLoop(loop, { clock: systemClock }));
  const mount = ['-o', ['noatime', ...(await mkfs(loop))].join(','), loop, dir];
  await tool('mount', ...mount);
  lab.onClose(() => unmount(dir));
  const hang = () => server.kill('SIGSTOP');
  const goOn = () => server.kill('SIGCONT');
  lab.onClose(async () => void goOn());
  return { dir, mount, hang, goOn };
}

async function mkfsExt4(loop: string): Promise<readonly string[]> {
  await tool('mkfs.ext4', ...MKFS, loop);
  return [];
}

/**
 * Takes the filesystem away as a disk that dies does, with what was not durable, and mounts what is left.
 * `ready`: whoever used it has been ended.
 */
export async function goneAndBack({ dir, mount }: BackingDisk, ready: () => Promise<void>): Promise<void> {
  // XFS's call, which is EXT4_IOC_SHUTDOWN too; without flushing the log.
  await tool('xfs_io', '-x', '-c', 'shutdown', dir);
  await ready();
  // Who has a copy of the mount, as the jail of somebody else's machine that is just being made, keeps the
  // filesystem that is gone; mounting its device again would give that one, and nothing but errors.
  await until('the filesystem that is mounted to be another one', async () => {
    await unmount(dir);
    await tool('mount', ...mount);
    readdirSync(dir);
    return true;
  });
}

const XFS_LOG_BYTES = 64 * 2 ** 20;

export type DiskSpeed = {
  /** Of reads and writes each. */
  bytesPerSecond: number;
  /** Of each request, side by side with the others; whole milliseconds. */
  latencyMs: number;
};

/** It queues as a disk does. The rate filter lets bursts of a twentieth of a second through. */
export async function slowDisk(
  lab: VolumeLab,
  name: string,
  sizeBytes: number,
  { bytesPerSecond, latencyMs }: DiskSpeed,
): Promise<BackingDisk> {
  return backingDisk(lab, name, sizeBytes, {
    filters: ['delay', 'rate'],
    parameters: [
      ...[`rate=${bytesPerSecond * 8}`, 'burstiness=0.05'],
      ...[`rdelay=${latencyMs}ms`, `wdelay=${latencyMs}ms`],
    ],
  });
}

/** One that refuses data when it is told to. */
export type RefusingDisk = BackingDisk & {
  /** `synced`: what is in memory of it by now is on the disk; so it is if nothing else is said. */
  refuse(options?: { synced?: boolean }): Promise<void>;
  takeAgain(): void;
};

/**
 * An ext4 with a store of `roomBytes` behind it, which can run out: whole requests of what it does not have
 * yet fail then.
 */
export async function thinDisk(
  lab: VolumeLab,
  name: string,
  sizeBytes: number,
  roomBytes: number,
): Promise<RefusingDisk> {
  const folder = join(lab.dir, `${name}-store`);
  mkdirSync(folder);
  await tool('mount', '-t', 'tmpfs', '-o', `size=${roomBytes}`, 'tmpfs', folder);
  lab.onClose(() => unmount(folder));
  // Zeroes are written: the journal has its place from the beginning.
  const disk = await backingDisk(lab, name, sizeBytes, {
    ...{ folder, filters: ['nozero'], parameters: ['zeromode=emulate'] },
  });
  const ballast = join(folder, 'ballast');
  return {
    ...disk,
    // What the filesystem has of its own by now is on its disk, and stays writable.
    refuse: async () => {
      await tool('sync', '-f', disk.dir);
      await tool('dd', 'if=/dev/zero', `of=${ballast}`, 'bs=4k', 'status=none').catch(() => {});
    },
    takeAgain: () => rmSync(ballast),
  };
}

/** The least that mkfs.xfs makes. */
const XFS_BYTES_MIN = 300 * 2 ** 20;

/**
 * An XFS on a disk that answers writes and discards with EIO when it is told to. Its log is on another one,
 * which goes on: else all that there were to see is a filesystem that ends.
 */
export async function failingXfs(lab: VolumeLab, name: string): Promise<RefusingDisk> {
  const trigger = join(lab.dir, `${name}-fails`);
  const logFile = join(lab.dir, `${name}-log.img`);
  writeFileSync(logFile, '');
  await tool('truncate', '-s', String(XFS_LOG_BYTES), logFile);
  const log = await attachLoop({ filePath: logFile });
  lab.onClose(() => detachLoop(log, { clock: systemClock }));
  const operations = ['pwrite', 'trim', 'zero'].flatMap((operation) => [
    `error-${operation}=EIO`,
    `error-${operation}-rate=100%`,
    `error-${operation}-file=${trigger}`,
  ]);
  const disk = await backingDisk(lab, name, XFS_BYTES_MIN, {
    ...{ filters: ['error'], parameters: operations },
    mkfs: async (loop) => {
      await tool('mkfs.xfs', '-q', '-K', '-l', `logdev=${log},size=${XFS_LOG_BYTES}`, loop);
      return [`logdev=${log}`];
    },
  });
  return {
    ...disk,
    refuse: async ({ synced = true } = {}) => {
      if (synced) await tool('sync', '-f', disk.dir);
      writeFileSync(trigger, '');
    },
    takeAgain: () => rmSync(trigger),
  };
}

function start(program: string, args: string[]): ChildProcess {
  return spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'] });
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill('SIGKILL');
  await exited;
}
