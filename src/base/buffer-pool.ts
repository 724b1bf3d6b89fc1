/**
 * Big buffers used again. A fresh megabyte costs 256 page faults, more than copying into it. Sizes are powers of two; what is kept
 * for later is bounded, and what does not fit goes to the garbage collector.
 */
export class BufferPool {
  readonly #keepBytesMax: number;
  readonly #free = new Map<number, Buffer[]>();
  #keptBytes = 0;

  constructor(keepBytesMax: number) {
    this.#keepBytesMax = keepBytesMax;
  }

  /** A buffer of at least `lengthBytes`, contents undefined. */
  take(lengthBytes: number): Buffer {
    const size = Math.max(64 * 1024, 2 ** Math.ceil(Math.log2(lengthBytes)));
    const buffer = this.#free.get(size)?.pop();
    if (buffer === undefined) return Buffer.allocUnsafeSlow(size);
    this.#keptBytes -= size;
    return buffer;
  }

  /** Gives back what `take` returned. The caller keeps no view of it. */
  give(buffer: Buffer): void {
    if (this.#keptBytes + buffer.length > this.#keepBytesMax) return;
    this.#keptBytes += buffer.length;
    const list = this.#free.get(buffer.length);
    if (list === undefined) this.#free.set(buffer.length, [buffer]);
    else list.push(buffer);
  }
}
