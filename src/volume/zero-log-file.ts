import { constants } from 'node:fs';
import { open, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { FileDevice } from '../block/file-device.ts';
import { ZERO_LOG_BYTES, ZeroLog, type ZeroLogIdentity } from '../clone/zero-log.ts';

const BLOCK_BYTES = 512;

/**
 * Opens `zero.log`, and makes one, durably, where there is none: a clone that an earlier version began has none. Built beside its place and renamed, so that a crash
 * leaves none or a whole one. Errors: those of `ZeroLog.open` and of the disk.
 */
export async function openZeroLog(path: string, identity: ZeroLogIdentity): Promise<ZeroLog> {
  if ((await stat(path).catch(() => null)) === null) await createZeroLog(path, identity);
  const device = await FileDevice.open({ file: path, lengthBytes: ZERO_LOG_BYTES, blockBytes: BLOCK_BYTES });
  try {
    return await ZeroLog.open(device, identity);
  } catch (error) {
    await device.close();
    throw error;
  }
}

async function createZeroLog(path: string, identity: ZeroLogIdentity): Promise<void> {
  const temporary = `${path}.new`;
  await rm(temporary, { force: true });
  const device = await FileDevice.create(temporary, { lengthBytes: ZERO_LOG_BYTES, blockBytes: BLOCK_BYTES });
  try {
    await ZeroLog.create(device, identity);
  } finally {
    await device.close();
  }
  await rename(temporary, path);
  const folder = await open(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}
