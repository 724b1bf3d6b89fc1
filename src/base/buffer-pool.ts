import { assert } from './assert.ts';

/**
 * Big buffers used again. A fresh megabyte costs 256 page faults, more than copying into it. Sizes are powers
 * of two; what is kept for later is bounded, and what does not fit goes to the garbage collector.
 *
 * A buffer has one owner at a time, and that is whoever holds its `BufferLease`. Others (a parser in the
 * middle of a payload, a device call, a socket) work on a buffer on behalf of the owner, and the owner keeps
 * the lease until they are through, or hands it to somebody who does.
 */
export class BufferPool {
  readonly #keepBytesMax: number;
  readonly #checked: boolean;
  readonly #free = new Map<number, Buffer[]>();
  #keptBytes = 0;

  /**
   * `checked`: for tests. What is given back is poisoned, and whoever writes to it afterwards is found out
   * when it is taken again.
   */
  constructor(keepBytesMax: number, options: { checked?: boolean } = {}) {
    this.#keepBytesMax = keepBytesMax;
    this.#checked = options.checked ?? false;
  }

  /** Bytes of a buffer that `take` or `lease` give for so many: what accounts count. */
  static sizeOf(lengthBytes: number): number {
    return Math.max(SIZE_BYTES_MIN, 2 ** Math.ceil(Math.log2(lengthBytes)));
  }

  /** A buffer of at least `lengthBytes`, contents undefined, with the right to it. */
  lease(lengthBytes: number): BufferLease {
    return new BufferLease(this, this.take(lengthBytes));
  }

  /** What `lease` is made of, for an owner that is one for life. */
  take(lengthBytes: number): Buffer {
    const size = BufferPool.sizeOf(lengthBytes);
    const buffer = this.#free.get(size)?.pop();
    if (buffer === undefined) return Buffer.allocUnsafeSlow(size);
    this.#keptBytes -= size;
    if (this.#checked) assert(isPoisoned(buffer), 'nobody writes to a buffer that was given back');
    return buffer;
  }

  /** Gives back what `take` returned. The caller keeps no view of it. */
  give(buffer: Buffer): void {
    if (this.#checked) buffer.fill(POISON);
    if (this.#keptBytes + buffer.length > this.#keepBytesMax) return;
    this.#keptBytes += buffer.length;
    const list = this.#free.get(buffer.length);
    if (list === undefined) this.#free.set(buffer.length, [buffer]);
    else list.push(buffer);
  }

  /** Of a checked pool: throws when somebody wrote to a buffer that was given back. */
  check(): void {
    for (const list of this.#free.values()) {
      for (const buffer of list) assert(isPoisoned(buffer), 'nobody writes to a buffer that was given back');
    }
  }
}

/**
 * The right to a pooled buffer. Released once, by its one owner; there is no way to the bytes through it
 * afterwards.
 */
export class BufferLease {
  readonly #pool: BufferPool;
  #buffer: Buffer | null;

  /** By `BufferPool.lease`. */
  constructor(pool: BufferPool, buffer: Buffer) {
    this.#pool = pool;
    this.#buffer = buffer;
  }

  get bytes(): Buffer {
    assert(this.#buffer !== null, 'a buffer that was given back is not used');
    return this.#buffer;
  }

  release(): void {
    const buffer = this.bytes;
    this.#buffer = null;
    this.#pool.give(buffer);
  }
}

const SIZE_BYTES_MIN = 64 * 1024;
const POISON = 0xdb;

function isPoisoned(buffer: Buffer): boolean {
  return buffer.every((byte) => byte === POISON);
}
