import { callAsync, libc } from './libc.ts';

const syncFileRange = libc.func('sync_file_range', 'int', ['int', 'int64_t', 'int64_t', 'uint32_t']);

/** include/uapi/linux/fs.h */
const SYNC_FILE_RANGE_WAIT_BEFORE = 1;
const SYNC_FILE_RANGE_WRITE = 2;
const SYNC_FILE_RANGE_WAIT_AFTER = 4;

/**
 * Starts to write the dirty pages of a whole file back, in the thread pool, and does not wait for the disk to
 * finish. Makes nothing durable: no metadata, no flush of the disk's cache. Failures come again at the next
 * fdatasync(2), so they are not reported here.
 */
export function startWriteBack(fd: number): Promise<void> {
  return new Promise((resolve, reject) => {
    syncFileRange.async(fd, 0, 0, SYNC_FILE_RANGE_WRITE, (error: Error | null) => {
      if (error) reject(error);
      else resolve();
    });
  });
}

/**
 * Starts to write the dirty pages of a range back. Rejects `SYS_CALL_FAILED` where that fails at once: no
 * room for them, mostly.
 */
export function startWriteBackOf(fd: number, offsetBytes: number, lengthBytes: number): Promise<void> {
  return callAsync('sync_file_range', syncFileRange, [fd, offsetBytes, lengthBytes, SYNC_FILE_RANGE_WRITE]);
}

/**
 * Writes the dirty pages of a range back, in the thread pool, and waits until the disk has taken them. Not
 * durable: a disk has a cache, and a filesystem a journal. Rejects `SYS_CALL_FAILED` when any write-back of
 * this file failed since the last call on this open file description that told of one (the kernel keeps a
 * cursor of errors for each, and says each error once to each): then whose pages were lost is not known.
 */
export function writeBackAndWait(fd: number, offsetBytes: number, lengthBytes: number): Promise<void> {
  const all = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  return callAsync('sync_file_range', syncFileRange, [fd, offsetBytes, lengthBytes, all]);
}
