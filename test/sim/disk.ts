import nodeFs from 'node:fs';
import { createRequire, syncBuiltinESMExports } from 'node:module';
import { dirname, join } from 'node:path';
import { workerPaths } from '../../src/worker/paths.ts';
import { running, type Simulation } from './simulation.ts';

type PendingName = { folders: string[]; undo: () => void; forget: () => void };

/**
 * The disks of simulated hosts: real folders on tmpfs, reached through node:fs as ever, but that what a
 * simulated process does there
 *
 *   - happens in its turn and takes simulated time, and not at all when the process has ended by then;
 *   - is forgotten by a power cut as far as it was not synced: the content of a file by fsync of that file, a
 *     name by fsync of its folder. What was not synced is lost from some point on, in order;
 *   - fails where the disk is full (ENOSPC: content and folders, no names) or takes nothing (EIO).
 *
 * Reads are of the page cache, and take no time. The functions without a promise are not seen here: what uses
 * them syncs by itself (sys/durable-file.ts), or makes folders.
 */
export class Disk {
  readonly root: string;
  readonly #stash: string;
  readonly #simulation: Simulation;
  #stashed = 0;
  /** Names that are not durable, oldest first. */
  #pending: PendingName[] = [];
  /** Files whose content is not durable, by inode, each with a descriptor of its own. */
  readonly #dirty = new Map<number, number>();
  /** Called when a file is made durable, with its inode. */
  onSync: (inode: number) => void = () => {};
  /** Beside what the worker has kept back for itself; below nothing: that much of it others took too. */
  freeBytes = PLENTY_BYTES;
  /** It takes no write at all, or just not the next ones. Volumes go on unless `failsData`. */
  fails = false;
  failsNext = 0;
  failsData = false;

  constructor(root: string, simulation: Simulation) {
    this.root = root;
    this.#stash = `${root}.stash`;
    this.#simulation = simulation;
    nodeFs.mkdirSync(root, { recursive: true, mode: 0o700 });
    nodeFs.mkdirSync(this.#stash, { recursive: true });
    disks.push(this);
  }

  /** What was not synced is gone, from some point on. */
  cut(): void {
    const simulation = this.#simulation;
    const lost = this.#pending.splice(simulation.random.below(this.#pending.length + 1));
    for (const { undo } of lost.toReversed()) undo();
    for (const { forget } of this.#pending) forget();
    this.#pending = [];
    for (const fd of this.#dirty.values()) {
      if (simulation.chance(0.5)) nodeFs.ftruncateSync(fd, 0);
      nodeFs.closeSync(fd);
    }
    if (lost.length + this.#dirty.size > 0) simulation.count('power cuts that lost something of a disk');
    this.#dirty.clear();
  }

  close(): void {
    for (const fd of this.#dirty.values()) nodeFs.closeSync(fd);
    this.#dirty.clear();
    disks.splice(disks.indexOf(this), 1);
  }

  get isPlentiful(): boolean {
    return this.freeBytes === PLENTY_BYTES;
  }

  get availableBytes(): number {
    if (this.isPlentiful) return PLENTY_BYTES;
    const isKept = nodeFs.existsSync(workerPaths(this.root).ballast);
    return Math.max(0, this.freeBytes + (isKept ? 0 : BALLAST_BYTES));
  }

  /** As new. */
  mend(): void {
    Object.assign(this, { freeBytes: PLENTY_BYTES, fails: false, failsNext: 0, failsData: false });
  }

  /** What a write of journal or records meets now; null: it is taken. */
  refusal(needsRoom = true): 'EIO' | 'ENOSPC' | null {
    if (this.fails || this.failsNext > 0) {
      this.failsNext = Math.max(0, this.failsNext - 1);
      this.#simulation.count('writes that failed');
      return 'EIO';
    }
    if (!needsRoom || this.availableBytes >= ROOM_BYTES_MIN) return null;
    this.#simulation.count('writes that found no room');
    return 'ENOSPC';
  }

  /** A change: after its time, and only while its process lives. `needs`: null, it changes nothing yet. */
  async change<T>(
    act: () => T,
    needs: 'room' | 'disk' | null = 'disk',
    [least, most]: readonly [number, number] = WRITE_MS,
  ): Promise<T> {
    await this.#simulation.pause(this.#simulation.between(least * 100, most * 100) / 100);
    const refusal = needs === null ? null : this.refusal(needs === 'room');
    if (refusal !== null) throw systemError(refusal);
    return act();
  }

  /** fallocate(2). */
  async allocate(): Promise<void> {
    await this.change(() => {}, 'room');
  }

  /** fdatasync(2) of a volume's file. Throws. */
  syncData(): void {
    if (this.failsData) throw systemError('EIO');
  }

  made(path: string): void {
    this.#named([dirname(path)], () => nodeFs.rmSync(path, { recursive: true, force: true }));
  }

  wrote(path: string): void {
    const { ino } = nodeFs.statSync(path);
    if (!this.#dirty.has(ino)) this.#dirty.set(ino, nodeFs.openSync(path, 'r+'));
  }

  rename(from: string, to: string): void {
    const kept = this.#keep(to);
    nodeFs.renameSync(from, to);
    this.#named(
      [dirname(from), dirname(to)],
      () => {
        if (nodeFs.existsSync(to) && nodeFs.existsSync(dirname(from))) nodeFs.renameSync(to, from);
        kept?.giveBack();
      },
      kept?.forget,
    );
  }

  remove(path: string): void {
    const kept = this.#keep(path);
    if (kept) this.#named([dirname(path)], kept.giveBack, kept.forget);
  }

  sync(fd: number): void {
    const { ino } = nodeFs.fstatSync(fd);
    const dirty = this.#dirty.get(ino);
    if (dirty !== undefined) nodeFs.closeSync(dirty);
    this.#dirty.delete(ino);
    this.onSync(ino);
  }

  syncFolder(folder: string): void {
    const isSynced = ({ folders }: PendingName) => folders.includes(folder);
    for (const { forget } of this.#pending.filter(isSynced)) forget();
    this.#pending = this.#pending.filter((each) => !isSynced(each));
  }

  /** Out of sight, as long as it may have to come back. */
  #keep(path: string): { giveBack: () => void; forget: () => void } | null {
    if (!nodeFs.existsSync(path)) return null;
    const kept = join(this.#stash, String(this.#stashed++));
    nodeFs.renameSync(path, kept);
    return {
      // Not into a folder whose own end is durable.
      giveBack: () => {
        if (nodeFs.existsSync(dirname(path))) nodeFs.renameSync(kept, path);
      },
      forget: () => nodeFs.rmSync(kept, { recursive: true, force: true }),
    };
  }

  #named(folders: string[], undo: () => void, forget: () => void = () => {}): void {
    this.#pending.push({ folders, undo, forget });
  }
}

/** Of the disk: what is free of it in good times, and what a worker keeps back there (worker/ballast.ts). */
export const TOTAL_BYTES = 2 ** 38;
const PLENTY_BYTES = 2 ** 37;
export const BALLAST_BYTES = 32 * 2 ** 20;
/** With less the filesystem has none. */
const ROOM_BYTES_MIN = 2 ** 20;

const WRITE_MS = [0.05, 0.6] as const;
const SYNC_MS = [0.5, 8] as const;
const disks: Disk[] = [];

/** Null: for the real world. Of the host around the simulated ones nothing but a look is had. */
function diskOf(path: unknown, isLook: boolean): Disk | null {
  if (typeof path !== 'string' || running.getStore() === undefined) return null;
  const disk = disks.find(({ root }) => path.startsWith(root)) ?? (isLook ? disks[0] : undefined);
  if (disk === undefined) throw new Error(`a simulated process changes ${path}`);
  return disk;
}

const LOOKS = new Set(['readFile', 'readdir', 'stat', 'statfs']);

/** An open file of a simulated process, as far as the control path uses one. */
class Handle {
  readonly fd: number;
  readonly #disk: Disk;
  readonly #path: string;

  constructor(disk: Disk, path: string, flags: string | number, mode?: number) {
    const isNew = !nodeFs.existsSync(path);
    this.fd = nodeFs.openSync(path, flags as string, mode);
    this.#disk = disk;
    this.#path = path;
    if (isNew) disk.made(path);
  }
  async writeFile(content: string | Uint8Array): Promise<void> {
    await this.#disk.change(() => {
      nodeFs.writeFileSync(this.fd, content);
      this.#disk.wrote(this.#path);
    }, 'room');
  }
  async readFile(encoding: 'utf8'): Promise<string> {
    return nodeFs.readFileSync(this.fd, encoding);
  }
  async stat(): Promise<nodeFs.Stats> {
    return nodeFs.fstatSync(this.fd);
  }
  async truncate(lengthBytes: number): Promise<void> {
    nodeFs.ftruncateSync(this.fd, lengthBytes);
  }
  async sync(): Promise<void> {
    const act = () => {
      if (nodeFs.fstatSync(this.fd).isDirectory()) this.#disk.syncFolder(this.#path);
      else this.#disk.sync(this.fd);
    };
    await this.#disk.change(act, 'disk', SYNC_MS);
  }
  async close(): Promise<void> {
    nodeFs.closeSync(this.fd);
  }
}

function systemError(code: 'EIO' | 'ENOSPC'): Error {
  const text = code === 'EIO' ? 'i/o error' : 'no space left on device';
  return Object.assign(new Error(`${code}: ${text}`), { code, syscall: 'write' });
}

type Anything = (...args: never[]) => unknown;

/** Once a process: node:fs as simulated processes see it. */
function install(): void {
  const require = createRequire(import.meta.url);
  const promises = require('node:fs/promises') as Record<string, Anything>;
  const instead: Record<string, (disk: Disk, ...args: never[]) => unknown> = {
    open: (disk, path: string, flags: string | number = 'r', mode?: number) =>
      typeof flags === 'string' && /[wax+]/.test(flags)
        ? disk.change(() => new Handle(disk, path, flags, mode), flags.includes('+') ? null : 'disk')
        : new Handle(disk, path, flags, mode),
    readFile: (_, path: string, how: 'utf8') => nodeFs.readFileSync(path, how),
    readdir: (_, path: string) => nodeFs.readdirSync(path).sort(),
    stat: (_, path: string) => nodeFs.statSync(path),
    statfs: ({ availableBytes }) => {
      const free = Math.floor(availableBytes / 4096);
      return { type: 0xef53, bsize: 4096, blocks: TOTAL_BYTES / 4096, bavail: free, bfree: free };
    },
    mkdir: (disk, path: string, how: nodeFs.MakeDirectoryOptions) =>
      disk.change(() => {
        const isNew = !nodeFs.existsSync(path);
        nodeFs.mkdirSync(path, how);
        if (isNew) disk.made(path);
      }, 'room'),
    rename: (disk, from: string, to: string) => disk.change(() => disk.rename(from, to)),
    link: (disk, from: string, to: string) =>
      disk.change(() => {
        nodeFs.linkSync(from, to);
        disk.made(to);
      }),
    rm: (disk, path: string, how?: { force?: boolean }) =>
      disk.change(() => {
        if (how?.force !== true) nodeFs.lstatSync(path);
        disk.remove(path);
      }),
    writeFile: (disk, path: string, content: string) =>
      disk.change(() => {
        const isNew = !nodeFs.existsSync(path);
        nodeFs.writeFileSync(path, content);
        if (isNew) disk.made(path);
        disk.wrote(path);
      }, 'room'),
  };
  for (const [name, act] of Object.entries(instead)) {
    const real = promises[name]!;
    promises[name] = async (...args: never[]) => {
      const disk = diskOf(args[0], LOOKS.has(name));
      return disk ? act(disk, ...args) : real(...args);
    };
  }
  // Those with a callback: on descriptors, of whoever asks. At once, or the order would be that of threads.
  const callbacks = {
    read: nodeFs.readSync,
    write: nodeFs.writeSync,
    fdatasync: nodeFs.fdatasyncSync,
    fstat: nodeFs.fstatSync,
    close: nodeFs.closeSync,
  } as unknown as Record<string, (...args: unknown[]) => unknown>;
  const fs = nodeFs as unknown as Record<string, Anything>;
  for (const [name, now] of Object.entries(callbacks)) {
    const real = fs[name] as (...args: unknown[]) => unknown;
    fs[name] = ((...args: unknown[]) => {
      if (running.getStore() === undefined) return real(...args);
      const done = args.pop() as (error: unknown, result?: unknown, buffer?: unknown) => void;
      let result: unknown;
      try {
        result = now(...args);
      } catch (error) {
        queueMicrotask(() => done(error));
        return;
      }
      queueMicrotask(() => done(null, result, args[1]));
    }) as Anything;
  }
  syncBuiltinESMExports();
}

install();
