import { constants } from 'node:os';
import koffi from 'koffi';
import { callError, lastErrno, libc } from './libc.ts';

const preadv2 = libc.func('preadv2', 'int64_t', ['int', 'void *', 'int', 'int64_t', 'int']);

/** include/uapi/linux/fs.h: do not wait for the disk or for locks (kernel 4.14). */
const RWF_NOWAIT = 8;

/**
 * struct iovec: pointer and length, 8 bytes each. One for all calls: they are synchronous, and every thread
 * has its own module.
 */
const iovec = new BigUint64Array(2);

const { EAGAIN, EOPNOTSUPP, EINTR, ENOSYS, EINVAL } = constants.errno;
const cannotNow = new Set([EAGAIN, EOPNOTSUPP, EINTR, ENOSYS, EINVAL]);

/**
 * Fills the whole of `into` from the page cache. False when that would wait for the disk, when the kernel or
 * the filesystem cannot promise not to wait, or when the file ends before: read in the ordinary way then;
 * `into` may hold a part. Other failures (EIO, EBADF) throw `SYS_CALL_FAILED`. Costs about as much as
 * fs.readSync.
 */
export function readNow(fd: number, into: Uint8Array, offsetBytes: number): boolean {
  if (into.length === 0) return true;
  iovec[0] = koffi.address(into);
  iovec[1] = BigInt(into.length);
  const count = Number(preadv2(fd, iovec, 1, offsetBytes, RWF_NOWAIT));
  // The kernel stops short at the first page that is not there. Asking again would find the same page
  // missing.
  if (count >= 0) return count === into.length;
  const errno = lastErrno();
  if (cannotNow.has(errno)) return false;
  throw callError('preadv2', { offsetBytes, lengthBytes: into.length }, errno);
}
