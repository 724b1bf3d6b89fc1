import type { BlockDevice, Extent } from './block-device.ts';
import { BLOCK_BYTES } from './block-device.ts';
import { checkGeometry, checkRange, closedError, rangeFits, readOnlyError } from './range.ts';
import { SparseBytes } from './sparse-bytes.ts';

export type MemoryDeviceOptions = {
  lengthBytes: number;
  /** Default 512. */
  blockBytes?: number;
  /** Default true. */
  writable?: boolean;
  /**
   * Unit of allocation and of holes, a power of two from 512. Default 4096; larger is faster for large
   * writes.
   */
  chunkBytes?: number;
  /** What it holds from byte 0 on, copied. Default: zeros. */
  content?: Uint8Array;
};

/**
 * A device in memory that is allocated as it is written: 1 TiB costs nothing until then. Flush has nothing to
 * do.
 */
export class MemoryDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly writable: boolean;
  readonly #bytes: SparseBytes;
  #closed = false;

  /** Throws `BLOCK_BAD_GEOMETRY`, and `BLOCK_BAD_RANGE` for content that does not fit. */
  constructor(options: MemoryDeviceOptions) {
    this.lengthBytes = options.lengthBytes;
    this.blockBytes = options.blockBytes ?? 512;
    this.writable = options.writable ?? true;
    this.#bytes = new SparseBytes(options.chunkBytes ?? BLOCK_BYTES);
    checkGeometry(this);
    if (options.content !== undefined) {
      checkRange(this, 0, options.content.length);
      this.#bytes.write(0, options.content);
    }
  }

  get allocatedBytes(): number {
    return this.#bytes.allocatedBytes;
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    this.#check(offsetBytes, into.length);
    this.#bytes.read(offsetBytes, into);
  }

  readNow(offsetBytes: number, into: Uint8Array): boolean {
    if (this.#closed || !rangeFits(this, offsetBytes, into.length)) return false;
    this.#bytes.read(offsetBytes, into);
    return true;
  }

  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    this.#checkMutation(offsetBytes, from.length);
    this.#bytes.write(offsetBytes, from);
  }

  async flush(): Promise<void> {
    if (this.#closed) throw closedError();
  }

  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkMutation(offsetBytes, lengthBytes);
    this.#bytes.zero(offsetBytes, lengthBytes);
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkMutation(offsetBytes, lengthBytes);
    this.#bytes.zero(offsetBytes, lengthBytes);
  }

  async extents(offsetBytes: number, lengthBytes: number, limitExtents: number): Promise<Extent[]> {
    this.#check(offsetBytes, lengthBytes);
    return this.#bytes.extents(offsetBytes, lengthBytes, limitExtents);
  }

  async close(): Promise<void> {
    this.#closed = true;
  }

  #check(offsetBytes: number, lengthBytes: number): void {
    if (this.#closed) throw closedError();
    checkRange(this, offsetBytes, lengthBytes);
  }

  #checkMutation(offsetBytes: number, lengthBytes: number): void {
    this.#check(offsetBytes, lengthBytes);
    if (!this.writable) throw readOnlyError();
  }
}
