import type { FileDevice } from '../block/file-device.ts';
import type { allocate } from '../sys/fallocate.ts';
import { errnoOf } from '../sys/libc.ts';

/**
 * Takes the space of a part of a file on its filesystem, durably. A filesystem that cannot reserve (tmpfs
 * can, NFS 4.1 cannot) takes it when the file is written. Rejects `SYS_CALL_FAILED`, with ENOSPC where there
 * is no room.
 */
export async function reserve(
  device: FileDevice,
  offsetBytes: number,
  lengthBytes: number,
  take: typeof allocate,
): Promise<void> {
  await take(device.fileDescriptor, offsetBytes, lengthBytes).catch((error: unknown) => {
    if (errnoOf(error) !== 'ENOTSUP') throw error;
  });
  await device.flush();
}
