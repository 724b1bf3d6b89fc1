import { callError, libc } from './libc.ts';
import { unmap, viewAt } from './shared-mapping.ts';

// As in shared-mapping.ts: MAP_FAILED is -1.
const mmap = libc.func('mmap', 'int64_t', ['uint64_t', 'size_t', 'int', 'int', 'int', 'int64_t']);
const mlock = libc.func('mlock', 'int', ['uint64_t', 'size_t']);
const madvise = libc.func('madvise', 'int', ['uint64_t', 'size_t', 'int']);

/** include/uapi/asm-generic/mman-common.h, mman.h */
const PROT_READ_WRITE = 3;
const MAP_PRIVATE_ANONYMOUS = 0x22;
const MADV_POPULATE_WRITE = 23;

/**
 * Memory whose pages are there from the beginning, and stay: the kernel never has to find one while it copies
 * into it, which it does not do for a process that is being killed. Locked (mlock(2)); where that is not
 * allowed, filled, and then only the swap can take it.
 */
export class ResidentMemory {
  readonly address: bigint;
  readonly lengthBytes: number;
  #free = false;

  /** Whole pages. Throws `SYS_CALL_FAILED` where the memory cannot be had. */
  constructor(lengthBytes: number) {
    const address = Number(mmap(0, lengthBytes, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0));
    if (address === -1) throw callError('mmap', { lengthBytes });
    this.address = BigInt(address);
    this.lengthBytes = lengthBytes;
    if (mlock(address, lengthBytes) === 0 || madvise(address, lengthBytes, MADV_POPULATE_WRITE) === 0) return;
    // Kernels before 5.14.
    this.view().fill(0);
  }

  /** In this thread, or in another one that was told the address (`viewAt`). */
  view(): Uint8Array {
    return viewAt(this.address, this.lengthBytes);
  }

  /** Idempotent. Every view of it is dead from here on. */
  free(): void {
    if (this.#free) return;
    this.#free = true;
    unmap(this.address, this.lengthBytes);
  }
}
