import { constants } from 'node:os';
import { callAsync, callError, lastErrno, libc } from './libc.ts';

/**
 * fallocate(2): holes and reserved space in a file. Each as a promise (the work may take long on a
 * large range and runs in the thread pool) and as `…Now` for small ranges. Offsets and lengths in bytes, any
 * alignment; a length of 0 is EINVAL. Failures are `SYS_CALL_FAILED`, with ENOTSUP where the filesystem
 * cannot do it.
 */
const fallocate = libc.func('fallocate', 'int', ['int', 'int', 'int64_t', 'int64_t']);

/** Modes of include/uapi/linux/falloc.h. */
const KEEP_SIZE = 0x01;
const PUNCH_HOLE = 0x02;

/** The range reads as zeros and its whole filesystem blocks are given back. The file keeps its length. */
export function punchHole(fd: number, offsetBytes: number, lengthBytes: number): Promise<void> {
  return call(fd, PUNCH_HOLE | KEEP_SIZE, offsetBytes, lengthBytes);
}

export function punchHoleNow(fd: number, offsetBytes: number, lengthBytes: number): void {
  callNow(fd, PUNCH_HOLE | KEEP_SIZE, offsetBytes, lengthBytes);
}

/**
 * Reserves space for the range, so that writes into it cannot meet ENOSPC. Grows the file to the end of the
 * range.
 */
export function allocate(fd: number, offsetBytes: number, lengthBytes: number): Promise<void> {
  return call(fd, 0, offsetBytes, lengthBytes);
}

export function allocateNow(fd: number, offsetBytes: number, lengthBytes: number): void {
  callNow(fd, 0, offsetBytes, lengthBytes);
}

function call(fd: number, mode: number, offsetBytes: number, lengthBytes: number): Promise<void> {
  return callAsync('fallocate', fallocate, [fd, mode, offsetBytes, lengthBytes], {
    mode,
    offsetBytes,
    lengthBytes,
  });
}

function callNow(fd: number, mode: number, offsetBytes: number, lengthBytes: number): void {
  while (fallocate(fd, mode, offsetBytes, lengthBytes) !== 0) {
    const errno = lastErrno();
    if (errno !== constants.errno.EINTR)
      throw callError('fallocate', { mode, offsetBytes, lengthBytes }, errno);
  }
}
