import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { GodwitError, isGodwitError, systemErrorCode } from '../base/errors.ts';
import { lockExclusive, unlock } from '../sys/file-lock.ts';

/**
 * The lock on a volume's data file: whoever serves the volume, for writing or as an export, holds it for as
 * long. It is an flock on an open file description of its own, so the kernel drops it with the process,
 * however that ends.
 */
export type DataLock = {
  /**
   * Throws `VOLUME_DATA_REPLACED` unless the descriptor is of the very file that is locked: the path may have
   * been given to another one since either was opened.
   */
  checkIs(fd: number): void;
  /** Idempotent. */
  release(): void;
};

/**
 * Takes the lock without waiting. Throws `VOLUME_LOCKED` when another server (of this process too) has it.
 */
export function lockData(path: string): DataLock {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    lockExclusive(fd);
  } catch (error) {
    closeSync(fd);
    if (!isGodwitError(error, 'SYS_LOCKED')) throw error;
    throw new GodwitError('VOLUME_LOCKED', `${path} is open in another volume server`, {
      values: { path },
      nextAction: 'A volume has one server at a time; lslocks names the process that has it.',
      cause: error,
    });
  }
  let held = true;
  return {
    checkIs(other) {
      const [locked, opened] = [fstatSync(fd, { bigint: true }), fstatSync(other, { bigint: true })];
      if (locked.dev === opened.dev && locked.ino === opened.ino) return;
      throw new GodwitError('VOLUME_DATA_REPLACED', `${path} is another file than the one that is open`, {
        values: { path, lockedInode: Number(locked.ino), openInode: Number(opened.ino) },
        nextAction:
          'Somebody replaced the data file of a volume in use. Look for who did (a restore, a copy); stop the machine before files of its volume are changed.',
      });
    },
    release() {
      if (!held) return;
      held = false;
      unlock(fd);
      closeSync(fd);
    },
  };
}

/** Whether a server has the volume's data now. A missing file has none. */
export function isDataLocked(path: string): boolean {
  try {
    lockData(path).release();
    return false;
  } catch (error) {
    if (isGodwitError(error, 'VOLUME_LOCKED')) return true;
    if (systemErrorCode(error) === 'ENOENT') return false;
    throw error;
  }
}
