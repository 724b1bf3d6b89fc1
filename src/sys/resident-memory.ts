import { libc } from './libc.ts';
import { rawPopulate } from './raw-io.ts';
import { mapAnonymous, unmap, viewAt } from './shared-mapping.ts';

const mlock = libc.func('mlock', 'int', ['uint64_t', 'size_t']);

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
    this.address = mapAnonymous(lengthBytes);
    this.lengthBytes = lengthBytes;
    const address = Number(this.address);
    if (mlock(address, lengthBytes) === 0 || rawPopulate(address, lengthBytes) === 0) return;
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
