import { rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { FileDevice } from '../block/file-device.ts';
import {
  type FetchDigest,
  FetchLog,
  type FetchLogIdentity,
  fetchLogLengthBytes,
} from '../clone/fetch-log.ts';
import { syncFolder } from '../sys/durable-file.ts';

const BLOCK_BYTES = 512;

/**
 * Makes an empty `fetch.log`, durably. Built beside its place and renamed, so that a crash leaves none or a
 * whole one.
 */
export async function createFetchLog(path: string, identity: FetchLogIdentity): Promise<void> {
  const temporary = `${path}.new`;
  await rm(temporary, { force: true });
  const lengthBytes = fetchLogLengthBytes(identity.lengthBytes);
  const device = await FileDevice.create(temporary, { lengthBytes, blockBytes: BLOCK_BYTES });
  try {
    await FetchLog.create(device, identity);
  } finally {
    await device.close();
  }
  await rename(temporary, path);
  await syncFolder(dirname(path));
}

/** Makes one where it was moved away. Errors: those of `FetchLog.open` and of the disk. */
export async function openFetchLog(
  path: string,
  identity: FetchLogIdentity,
  digest: FetchDigest,
): Promise<FetchLog> {
  if ((await stat(path).catch(() => null)) === null) await createFetchLog(path, identity);
  const lengthBytes = fetchLogLengthBytes(identity.lengthBytes);
  // The log writes again what a flush that failed may have lost.
  const device = await FileDevice.open({
    file: path,
    lengthBytes,
    blockBytes: BLOCK_BYTES,
    flushFailureStays: false,
  });
  try {
    return await FetchLog.open(device, identity, digest);
  } catch (error) {
    await device.close();
    throw error;
  }
}
