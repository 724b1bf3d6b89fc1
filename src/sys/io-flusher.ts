import { constants } from 'node:os';
import { callError, lastErrno, libc } from './libc.ts';

const prctl = libc.func('prctl', 'int', ['int', 'uint64_t', 'uint64_t', 'uint64_t', 'uint64_t']);

/** include/uapi/linux/prctl.h, kernel 5.6 */
const PR_SET_IO_FLUSHER = 57;
const PR_GET_IO_FLUSHER = 58;

/**
 * Marks the calling thread as one that the kernel needs to write dirty pages back (`on`), so that its own
 * allocations never wait for that write-back: without it a data path in user space can wait for itself under
 * memory pressure. False when not permitted (needs CAP_SYS_RESOURCE) or when the kernel is older than 5.6.
 *
 * The mark is the thread's, and threads and processes that it starts inherit it, through exec too. To have it
 * on every thread of a server (V8's and the pool's start early), the parent sets it around the spawn.
 */
export function setIoFlusher(on: boolean): boolean {
  if (prctl(PR_SET_IO_FLUSHER, on ? 1 : 0, 0, 0, 0) === 0) return true;
  const errno = lastErrno();
  if (errno === constants.errno.EPERM || errno === constants.errno.EINVAL) return false;
  throw callError('prctl', { option: PR_SET_IO_FLUSHER }, errno);
}

/** Whether the calling thread has the mark; null when not permitted to ask or not known to the kernel. */
export function ioFlusher(): boolean | null {
  const result = Number(prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0));
  return result < 0 ? null : result === 1;
}
