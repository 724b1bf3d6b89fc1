import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { attachLoop, detachLoop } from '../../src/host/losetup.ts';
import { until } from './patience.ts';
import { tool, type VolumeLab } from './volume-lab.ts';

/** What a `BackingDisk` needs. */
export const BACKING_DISK_NEEDS = ['nbdkit', 'nbdfuse', 'fusermount3'] as const;

/** A folder of the lab on an ext4 of its own, on a disk that does what nbdkit and its filters make it do: a loop device over nbdfuse over nbdkit. */
export type BackingDisk = {
  dir: string;
  /** The filesystem's disk. */
  loop: string;
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
  } = {},
): Promise<BackingDisk> {
  const { filters = [], parameters = [], folder = lab.dir } = options;
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
  await tool('mkfs.ext4', ...MKFS, loop);
  await tool('mount', '-o', 'noatime', loop, dir);
  lab.onClose(() => tool('umount', dir));
  return { dir, loop };
}

/** Takes the filesystem away as a disk that dies does, with what was not durable, and mounts what is left. `ready`: whoever used it has been ended. */
export async function goneAndBack({ dir, loop }: BackingDisk, ready: () => Promise<void>): Promise<void> {
  // EXT4_IOC_SHUTDOWN, which is XFS's call too; without flushing the log.
  await tool('xfs_io', '-x', '-c', 'shutdown', dir);
  await ready();
  await until('the filesystem to be let go', () =>
    tool('umount', dir).then(
      () => true,
      () => false,
    ),
  );
  await tool('mount', '-o', 'noatime', loop, dir);
}

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

export type ThinDisk = BackingDisk & {
  /** From now on the store has no room for what it does not have yet. */
  runOut(): Promise<void>;
  haveRoom(): void;
};

/** It has a store of `roomBytes` behind it, which can run out: whole requests fail then. */
export async function thinDisk(
  lab: VolumeLab,
  name: string,
  sizeBytes: number,
  roomBytes: number,
): Promise<ThinDisk> {
  const folder = join(lab.dir, `${name}-store`);
  mkdirSync(folder);
  await tool('mount', '-t', 'tmpfs', '-o', `size=${roomBytes}`, 'tmpfs', folder);
  lab.onClose(() => tool('umount', folder));
  // Zeroes are written: the journal has its place from the beginning.
  const disk = await backingDisk(lab, name, sizeBytes, {
    ...{ folder, filters: ['nozero'], parameters: ['zeromode=emulate'] },
  });
  const ballast = join(folder, 'ballast');
  return {
    ...disk,
    // What the filesystem has of its own by now is on its disk, and stays writable.
    runOut: async () => {
      await tool('sync', '-f', disk.dir);
      await tool('dd', 'if=/dev/zero', `of=${ballast}`, 'bs=4k', 'status=none').catch(() => {});
    },
    haveRoom: () => rmSync(ballast),
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
