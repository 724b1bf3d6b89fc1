import koffi from 'koffi';
import { callError, libc } from './libc.ts';

// The result is declared as a number: MAP_FAILED is -1, and user-space addresses fit in 53 bits on both
// architectures.
const mmap = libc.func('mmap', 'int64_t', ['uint64_t', 'size_t', 'int', 'int', 'int', 'int64_t']);
const munmap = libc.func('munmap', 'int', ['uint64_t', 'size_t']);

/** include/uapi/asm-generic/mman-common.h */
const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_ANONYMOUS = 0x20;

export type SharedMapping = { address: bigint; view: Uint8Array };

/**
 * Maps the first `lengthBytes` of a file, shared: every process and thread that maps it sees each store at
 * once, and the bytes live in the page cache, so they outlive the process. The file must be that long: an
 * access behind its end is SIGBUS, which ends the process. Atomics work on views of it (not wait and notify:
 * those need a SharedArrayBuffer). `viewBytes`: what of it is viewed, from its beginning; for the rest there
 * is `viewAt`.
 */
export function mapShared(fd: number, lengthBytes: number, viewBytes = lengthBytes): SharedMapping {
  const address = map(lengthBytes, MAP_SHARED, fd);
  return { address, view: viewAt(address, viewBytes) };
}

/** Zeros that no file is behind, of this process alone: their address. */
export function mapAnonymous(lengthBytes: number): bigint {
  return map(lengthBytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

function map(lengthBytes: number, flags: number, fd: number): bigint {
  const result = Number(mmap(0, lengthBytes, PROT_READ | PROT_WRITE, flags, fd, 0));
  if (result === -1) throw callError('mmap', { lengthBytes });
  return BigInt(result);
}

/** The same memory in another worker thread of this process, which was told the address. */
export function viewAt(address: bigint, lengthBytes: number): Uint8Array {
  return new Uint8Array(koffi.view(address, lengthBytes));
}

/**
 * Takes the mapping away. Every view of it, in every thread, is dead from here on: an access ends the
 * process.
 */
export function unmap(address: bigint, lengthBytes: number): void {
  if (munmap(address, lengthBytes) !== 0) throw callError('munmap', { lengthBytes });
}
