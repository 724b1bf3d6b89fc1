import type { Extent } from './block-device.ts';
import { ExtentList } from './range.ts';

/**
 * A byte space of any size that takes memory only where something was written: fixed chunks in a map.
 * Synchronous and without range checks; MemoryDevice and FaultDevice put the contract around it.
 */
export class SparseBytes {
  readonly #chunkBytes: number;
  readonly #chunks = new Map<number, Uint8Array>();
  /** The chunk numbers in order, made when extents are asked for; null after a chunk came or went. */
  #sorted: number[] | null = null;

  constructor(chunkBytes: number) {
    this.#chunkBytes = chunkBytes;
  }

  get allocatedBytes(): number {
    return this.#chunks.size * this.#chunkBytes;
  }

  read(offsetBytes: number, into: Uint8Array): void {
    for (let done = 0; done < into.length; ) {
      const index = Math.floor((offsetBytes + done) / this.#chunkBytes);
      const within = offsetBytes + done - index * this.#chunkBytes;
      const count = Math.min(into.length - done, this.#chunkBytes - within);
      const chunk = this.#chunks.get(index);
      if (chunk === undefined) into.fill(0, done, done + count);
      else into.set(chunk.subarray(within, within + count), done);
      done += count;
    }
  }

  write(offsetBytes: number, from: Uint8Array): void {
    for (let done = 0; done < from.length; ) {
      const index = Math.floor((offsetBytes + done) / this.#chunkBytes);
      const within = offsetBytes + done - index * this.#chunkBytes;
      const count = Math.min(from.length - done, this.#chunkBytes - within);
      let chunk = this.#chunks.get(index);
      if (chunk === undefined) {
        chunk = new Uint8Array(this.#chunkBytes);
        this.#chunks.set(index, chunk);
        this.#sorted = null;
      }
      chunk.set(from.subarray(done, done + count), within);
      done += count;
    }
  }

  /** Chunks that are covered wholly are freed. Costs the chunks that exist, not the bytes of the range. */
  zero(offsetBytes: number, lengthBytes: number): void {
    const endBytes = offsetBytes + lengthBytes;
    const first = Math.floor(offsetBytes / this.#chunkBytes);
    const last = Math.ceil(endBytes / this.#chunkBytes);
    const indexes = last - first > this.#chunks.size ? [...this.#chunks.keys()] : range(first, last);
    for (const index of indexes) {
      const chunk = this.#chunks.get(index);
      if (chunk === undefined) continue;
      const start = Math.max(0, offsetBytes - index * this.#chunkBytes);
      const end = Math.min(this.#chunkBytes, endBytes - index * this.#chunkBytes);
      if (start >= end) continue;
      if (start === 0 && end === this.#chunkBytes) {
        this.#chunks.delete(index);
        this.#sorted = null;
      } else {
        chunk.fill(0, start, end);
      }
    }
  }

  /** Makes the range equal to that of `other`. */
  copyFrom(other: SparseBytes, offsetBytes: number, lengthBytes: number): void {
    this.zero(offsetBytes, lengthBytes);
    for (const extent of other.extents(offsetBytes, lengthBytes, Number.POSITIVE_INFINITY)) {
      if (extent.kind === 'hole') continue;
      const bytes = new Uint8Array(extent.lengthBytes);
      other.read(extent.offsetBytes, bytes);
      this.write(extent.offsetBytes, bytes);
    }
  }

  extents(offsetBytes: number, lengthBytes: number, limitExtents: number): Extent[] {
    this.#sorted ??= [...this.#chunks.keys()].sort((a, b) => a - b);
    const endBytes = offsetBytes + lengthBytes;
    const list = new ExtentList(limitExtents);
    let at = offsetBytes;
    for (
      let i = firstNotBelow(this.#sorted, Math.floor(offsetBytes / this.#chunkBytes));
      at < endBytes;
      i++
    ) {
      const index = this.#sorted[i];
      const chunkStart = index === undefined ? endBytes : Math.min(endBytes, index * this.#chunkBytes);
      const chunkEnd = index === undefined ? endBytes : Math.min(endBytes, (index + 1) * this.#chunkBytes);
      if (!list.add(at, chunkStart - at, 'hole')) break;
      at = Math.max(at, chunkStart);
      if (!list.add(at, chunkEnd - at, 'data')) break;
      at = chunkEnd;
    }
    return list.extents;
  }
}

function* range(first: number, end: number): Generator<number> {
  for (let index = first; index < end; index++) yield index;
}

/** Position of the first element that is `value` or more. */
function firstNotBelow(sorted: number[], value: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
