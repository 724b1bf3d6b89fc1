import { rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { isGodwitError } from '../base/errors.ts';
import { FileDevice } from '../block/file-device.ts';
import { ZERO_LOG_BYTES, ZeroLog, type ZeroLogIdentity } from '../clone/zero-log.ts';
import { syncFolder } from '../sys/durable-file.ts';

const BLOCK_BYTES = 512;

/**
 * Opens `zero.log`, and makes one, durably, where there is none: a clone that an earlier version began has
 * none. Null where there is no room for one: a clone that was there before goes on without. Errors: those of
 * `ZeroLog.open` and of the disk.
 */
export async function openZeroLog(path: string, identity: ZeroLogIdentity): Promise<ZeroLog | null> {
  if ((await stat(path).catch(() => null)) === null) {
    try {
      await createZeroLog(path, identity);
    } catch (error) {
      if (isGodwitError(error, 'BLOCK_NO_SPACE')) return null;
      throw error;
    }
  }
  const device = await FileDevice.open({ file: path, lengthBytes: ZERO_LOG_BYTES, blockBytes: BLOCK_BYTES });
  try {
    return await ZeroLog.open(device, identity);
  } catch (error) {
    await device.close();
    throw error;
  }
}

/**
 * Makes an empty one, durably. Built beside its place and renamed, so that a crash leaves none or a whole
 * one.
 */
export async function createZeroLog(path: string, identity: ZeroLogIdentity): Promise<void> {
  const temporary = `${path}.new`;
  await rm(temporary, { force: true });
  try {
    const device = await FileDevice.create(temporary, {
      lengthBytes: ZERO_LOG_BYTES,
      blockBytes: BLOCK_BYTES,
    });
    try {
      await ZeroLog.create(device, identity);
    } finally {
      await device.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  await syncFolder(dirname(path));
}
