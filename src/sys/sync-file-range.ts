import { libc } from './libc.ts';

const syncFileRange = libc.func('sync_file_range', 'int', ['int', 'int64_t', 'int64_t', 'uint32_t']);

/** include/uapi/linux/fs.h */
const SYNC_FILE_RANGE_WRITE = 2;

/**
 * Starts to write the dirty pages of a whole file back, in the thread pool, and does not wait for the disk to finish. Makes nothing durable: no
 * metadata, no flush of the disk's cache. Failures come again at the next fdatasync(2), so they are not reported here.
 */
export function startWriteBack(fd: number): Promise<void> {
  return new Promise((resolve, reject) => {
    syncFileRange.async(fd, 0, 0, SYNC_FILE_RANGE_WRITE, (error: Error | null) => {
      if (error) reject(error);
      else resolve();
    });
  });
}
