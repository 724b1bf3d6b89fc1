/** Buffers of one size that are used again, because allocating (and zeroing) 1 MiB for each fetch costs more than the fetch. */
export class BufferPool {
  readonly #bufferBytes: number;
  readonly #keepMax: number;
  readonly #free: Uint8Array[] = [];

  /** Keeps at most `keepMax` free buffers; those beyond are left to the garbage collector. */
  constructor(bufferBytes: number, keepMax: number) {
    this.#bufferBytes = bufferBytes;
    this.#keepMax = keepMax;
  }

  /** A buffer with whatever was in it before. */
  take(): Uint8Array {
    return this.#free.pop() ?? new Uint8Array(this.#bufferBytes);
  }

  give(buffer: Uint8Array): void {
    if (this.#free.length < this.#keepMax) this.#free.push(buffer);
  }
}
