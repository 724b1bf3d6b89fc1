import { closeSync, existsSync, openSync, realpathSync, rmdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { type MountEntry, mountOf } from '../host/mount-table.ts';
import { lockExclusive } from '../sys/file-lock.ts';
import { makeFolders, type WorkerPaths, workerPaths } from './paths.ts';

/**
 * Whether what is made durable in a folder, which need not be there yet, is there after the host was without
 * power. Throws `WORKER_DATA_NOT_KEPT` where fsync(2) promises that and does nothing, and where room has no
 * measure. A sentence: it is memory, and all of it goes together, as who mounted it knows. Null: it is kept.
 */
export function requireLastingData(dataDir: string, table?: readonly MountEntry[]): string | null {
  let there = dataDir;
  while (!existsSync(there)) there = dirname(there);
  const { filesystem = '', superOptions = '', mountPoint = '' } = mountOf(realpathSync(there), table) ?? {};
  const isVolatile = filesystem === 'overlay' && /(^|,)(fsync=)?volatile(,|$)/.test(superOptions);
  if (isVolatile || filesystem === 'ramfs') {
    const why = isVolatile
      ? 'an overlay that is mounted with the option volatile, on which fsync does nothing: a power cut, or one error of its disk, loses what guests were told to be durable'
      : 'a ramfs, which has no size: nobody can know when it is full';
    throw new GodwitError('WORKER_DATA_NOT_KEPT', `${dataDir} is on ${why}`, {
      values: { dataDir, mountPoint, filesystem },
      retry: 'never',
      nextAction: 'Give the worker a folder on a filesystem of a disk (ext4, XFS, btrfs): --data.',
    });
  }
  return filesystem === 'tmpfs'
    ? `${dataDir} is memory (tmpfs): volumes, keys and records in it are gone when this host is started anew`
    : null;
}

/** The data folder of a worker, which is its own until it is closed. */
export class DataFolder {
  readonly paths: WorkerPaths;
  readonly #lockFd: number;

  private constructor(paths: WorkerPaths, lockFd: number) {
    this.paths = paths;
    this.#lockFd = lockFd;
  }

  /** Throws `WORKER_ALREADY_RUNS` when another process has it, `SYS_PATH_REFUSED` where it may not lie. */
  static open(dataDir: string): DataFolder {
    const paths = workerPaths(dataDir);
    makeFolders(paths);
    const fd = openSync(paths.lock, 'a', 0o600);
    try {
      lockExclusive(fd);
      return new DataFolder(paths, fd);
    } catch (error) {
      closeSync(fd);
      if (!isGodwitError(error, 'SYS_LOCKED')) throw error;
      throw new GodwitError('WORKER_ALREADY_RUNS', `another worker process has ${dataDir}`, {
        values: { dataDir },
        nextAction:
          'One data folder belongs to one worker: end the other process, or give this one another --data.',
        cause: error,
      });
    }
  }

  close(): void {
    // Nothing to do with it while clones are here; a worker without any leaves no trace outside of its data
    // folder.
    try {
      rmdirSync(this.paths.validityDir);
    } catch {}
    closeSync(this.#lockFd);
  }
}
