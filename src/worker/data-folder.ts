import { closeSync, openSync, rmdirSync } from 'node:fs';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { lockExclusive } from '../sys/file-lock.ts';
import { makeFolders, type WorkerPaths, workerPaths } from './paths.ts';

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
