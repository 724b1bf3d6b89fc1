import { constants } from 'node:os';
import koffi from 'koffi';
import { lastErrno, libc } from './libc.ts';

/**
 * System calls on addresses, for loops that make some ten thousand calls a second: no buffer is looked at,
 * nothing is allocated, and a failure is the negative errno as a return value, because an exception costs
 * more than the call. The addresses are the caller's responsibility: a wrong one is EFAULT or a write into
 * foreign memory.
 */
const readCall = libc.func('read', 'int64_t', ['int', 'uint64_t', 'size_t']);
const writeCall = libc.func('write', 'int64_t', ['int', 'uint64_t', 'size_t']);
const preadv2Call = libc.func('preadv2', 'int64_t', ['int', 'uint64_t', 'int', 'int64_t', 'int']);
const pwriteCall = libc.func('pwrite', 'int64_t', ['int', 'uint64_t', 'size_t', 'int64_t']);
const pollCall = libc.func('poll', 'int', ['uint64_t', 'uint64_t', 'int']);
const memcpyCall = libc.func('memcpy', 'uint64_t', ['uint64_t', 'uint64_t', 'size_t']);
const madviseCall = libc.func('madvise', 'int', ['uint64_t', 'size_t', 'int']);
const eventfdCall = libc.func('eventfd', 'int', ['uint32_t', 'int']);
const fcntlCall = libc.func('fcntl', 'int', ['int', 'int', 'int64_t']);

/** include/uapi/linux/fs.h */
const RWF_NOWAIT = 8;
/** include/uapi/asm-generic/fcntl.h */
const F_GETFL = 3;
const F_SETFL = 4;
const O_NONBLOCK = 0o4000;
const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = O_NONBLOCK;
/** include/uapi/asm-generic/mman-common.h */
const MADV_DONTNEED = 4;
const MADV_POPULATE_WRITE = 23;
/** include/uapi/asm-generic/poll.h */
const POLLIN = 1;

const iovec = new BigUint64Array(2);
const iovecAddress = addressOf(iovec);

/**
 * Where the bytes of a view are, as a number (user-space addresses fit in 53 bits). The view must stay
 * referenced.
 */
export function addressOf(view: NodeJS.ArrayBufferView): number {
  return Number(koffi.address(view));
}

export function rawRead(fd: number, address: number, lengthBytes: number): number {
  const count: number = readCall(fd, address, lengthBytes);
  return count < 0 ? -lastErrno() : count;
}

export function rawWrite(fd: number, address: number, lengthBytes: number): number {
  const count: number = writeCall(fd, address, lengthBytes);
  return count < 0 ? -lastErrno() : count;
}

/** pread(2) from the page cache only: -EAGAIN or a short count where it would have to wait for the disk. */
export function rawReadNow(fd: number, address: number, lengthBytes: number, offsetBytes: number): number {
  iovec[0] = BigInt(address);
  iovec[1] = BigInt(lengthBytes);
  const count: number = preadv2Call(fd, iovecAddress, 1, offsetBytes, RWF_NOWAIT);
  return count < 0 ? -lastErrno() : count;
}

/** pread(2). */
export function rawReadAt(fd: number, address: number, lengthBytes: number, offsetBytes: number): number {
  iovec[0] = BigInt(address);
  iovec[1] = BigInt(lengthBytes);
  const count: number = preadv2Call(fd, iovecAddress, 1, offsetBytes, 0);
  return count < 0 ? -lastErrno() : count;
}

/** pwrite(2). */
export function rawWriteAt(fd: number, address: number, lengthBytes: number, offsetBytes: number): number {
  const count: number = pwriteCall(fd, address, lengthBytes, offsetBytes);
  return count < 0 ? -lastErrno() : count;
}

/** memcpy(3), for memory that two threads have: a typed array goes word by word there. */
export function rawCopy(toAddress: number, fromAddress: number, lengthBytes: number): void {
  memcpyCall(toAddress, fromAddress, lengthBytes);
}

/**
 * Gives whole pages of anonymous memory back to the kernel; they read as zeros afterwards. 0 or a negative
 * errno.
 */
export function rawRelease(address: number, lengthBytes: number): number {
  return madviseCall(address, lengthBytes, MADV_DONTNEED) < 0 ? -lastErrno() : 0;
}

/** Brings all pages of a range, to be written; since Linux 5.14. 0 or a negative errno. */
export function rawPopulate(address: number, lengthBytes: number): number {
  return madviseCall(address, lengthBytes, MADV_POPULATE_WRITE) < 0 ? -lastErrno() : 0;
}

/** Waits until one of some descriptors can be read (or has failed). */
export class ReadablePoll {
  readonly #entries: Int32Array;
  readonly #address: number;

  constructor(...fds: number[]) {
    // struct pollfd: int fd; short events; short revents.
    this.#entries = new Int32Array(fds.flatMap((fd) => [fd, POLLIN]));
    this.#address = addressOf(this.#entries);
  }

  /**
   * Blocks this thread, for ever with -1. The number of descriptors that are ready, 0 after the timeout, or a
   * negative errno.
   */
  wait(timeoutMs: number): number {
    const count: number = pollCall(this.#address, this.#entries.length / 2, timeoutMs);
    return count < 0 ? -lastErrno() : count;
  }
}

/**
 * eventfd(2), non-blocking, counter 0: what a thread that waits in poll can be woken with. Throws nothing:
 * negative errno.
 */
export function eventDescriptor(): number {
  const fd: number = eventfdCall(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return fd < 0 ? -lastErrno() : fd;
}

/** Sets O_NONBLOCK on the open file (all descriptors of it). 0 or a negative errno. */
export function setNonBlocking(fd: number): number {
  const flags: number = fcntlCall(fd, F_GETFL, 0);
  if (flags < 0) return -lastErrno();
  return fcntlCall(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -lastErrno() : 0;
}

export const { EAGAIN, EINTR, ENODEV, ENOENT, EOPNOTSUPP } = constants.errno;
