import { closeSync, constants, openSync } from 'node:fs';
import { GodwitError, isGodwitError, systemErrorCode } from '../base/errors.ts';
import { lockExclusive, unlock } from '../sys/file-lock.ts';

/**
 * The lock on a volume's data file: whoever serves the volume, for writing or as an export, holds it for as long. It is an flock on an
 * open file description of its own, so the kernel drops it with the process, however that ends.
 */
export type DataLock = {
  /** Idempotent. */
  release(): void;
};

/** Takes the lock without waiting. Throws `VOLUME_LOCKED` when another server (of this process too) has it. */
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
