import { assert } from '../base/assert.ts';
import type { BufferPool } from './buffer-pool.ts';
import { BHS_BYTES, DIGEST_BYTES } from './constants.ts';
import { digestOf } from './digest.ts';
import { setDataSegmentBytes } from './pdu.ts';

/**
 * Gathers PDUs for one write. Headers and small payloads lie side by side in a slab; big payloads are handed on by reference,
 * uncopied. What one turn of the event loop produced goes out together.
 *
 *   const header = writer.begin();  encodeX(header, …);  writer.end(payload);
 *
 * or, when the payload can be made on the spot: `begin`, `inline(length)` and fill it, `end()`.
 */
export type ChunkSink = (chunks: Uint8Array[], done: () => void) => void;

/** Largest payload that `inline` takes. */
export const INLINE_BYTES_MAX = 32 * 1024;
/** Payloads up to here are cheaper to copy than to hand on as a chunk of their own. */
const COPY_BYTES_MAX = 2 * 1024;
const SLAB_BYTES = 256 * 1024;
/** From here on a batch goes out at once, so that the receiver works while we make the next one. */
const EAGER_BYTES = 256 * 1024;

export class PduWriter {
  headerDigest = false;
  dataDigest = false;

  readonly #sink: ChunkSink;
  readonly #pool: BufferPool;
  #slab: Buffer;
  #position = 0;
  /** Start of the part of the slab that belongs to the batch and is not in `#chunks` yet. */
  #chunkStart = 0;
  #pduStart = 0;
  #header: Buffer | null = null;
  #inlineBytes = 0;
  #chunks: Uint8Array[] = [];
  #batchBytes = 0;
  #releases: (() => void)[] = [];
  #scheduled = false;
  #closed = false;
  #sentBytes = 0;
  #writtenBytes = 0;
  /** Called when bytes have left for the kernel; for owners that hold work back while too much is queued. */
  onDrain: (() => void) | null = null;

  constructor(sink: ChunkSink, pool: BufferPool) {
    this.#sink = sink;
    this.#pool = pool;
    this.#slab = pool.take(SLAB_BYTES);
  }

  /** Bytes that the kernel has not taken yet. */
  get queuedBytes(): number {
    return this.#batchBytes + this.#sentBytes - this.#writtenBytes;
  }

  /** Bytes handed to the kernel since the beginning. */
  get writtenBytes(): number {
    return this.#writtenBytes;
  }

  /** 48 zeroed bytes for a header, to be filled before `end`. */
  begin(): Buffer {
    assert(this.#header === null, 'one PDU at a time');
    if (this.#slab.length - this.#position < BHS_BYTES + INLINE_BYTES_MAX + 4 * DIGEST_BYTES) this.#newSlab();
    this.#pduStart = this.#position;
    const header = this.#slab.subarray(this.#position, this.#position + BHS_BYTES);
    header.fill(0);
    this.#header = header;
    this.#inlineBytes = 0;
    return header;
  }

  /** Room for a payload right behind the header; at most `INLINE_BYTES_MAX`. To be filled before `end`. */
  inline(lengthBytes: number): Buffer {
    assert(this.#header !== null && lengthBytes <= INLINE_BYTES_MAX, 'inline payload fits');
    this.#inlineBytes = lengthBytes;
    const start = this.#pduStart + BHS_BYTES + (this.headerDigest ? DIGEST_BYTES : 0);
    return this.#slab.subarray(start, start + lengthBytes);
  }

  /** Takes back `begin`. */
  cancel(): void {
    this.#header = null;
  }

  /**
   * Ends the PDU. `data` is the payload (none: what was made with `inline`, or nothing); it must stay as it is until `release` is called.
   */
  end(data?: Uint8Array, release?: () => void): void {
    const header = this.#header;
    assert(header !== null, 'begin comes first');
    this.#header = null;
    const lengthBytes = data === undefined ? this.#inlineBytes : data.length;
    setDataSegmentBytes(header, lengthBytes);
    this.#position = this.#pduStart + BHS_BYTES;
    if (this.headerDigest) {
      this.#position = this.#slab.writeUInt32LE(digestOf(header), this.#position);
    }
    const start = this.#position;
    if (lengthBytes > 0) {
      if (data === undefined) {
        this.#position += lengthBytes;
      } else if (lengthBytes <= COPY_BYTES_MAX) {
        this.#slab.set(data, this.#position);
        this.#position += lengthBytes;
      } else {
        this.#closeChunk();
        this.#chunks.push(data);
        this.#batchBytes += lengthBytes;
      }
      for (let padding = -lengthBytes & 3; padding > 0; padding -= 1) this.#slab[this.#position++] = 0;
      if (this.dataDigest) {
        const payload = data ?? this.#slab.subarray(start, start + lengthBytes);
        this.#position = this.#slab.writeUInt32LE(digestOf(payload), this.#position);
      }
    }
    if (release !== undefined) this.#releases.push(release);
    if (this.#batchBytes + this.#position - this.#chunkStart >= EAGER_BYTES) this.flush();
    else this.#schedule();
  }

  /** Hands on what there is. */
  flush(): void {
    this.#closeChunk();
    if (this.#chunks.length === 0) return;
    if (this.#position > SLAB_BYTES / 2) this.#newSlab();
    const chunks = this.#chunks;
    const releases = this.#releases;
    const bytes = this.#batchBytes;
    this.#chunks = [];
    this.#releases = [];
    this.#batchBytes = 0;
    this.#sentBytes += bytes;
    if (this.#closed) {
      for (const release of releases) release();
      return;
    }
    this.#sink(chunks, () => {
      this.#writtenBytes += bytes;
      for (const release of releases) release();
      this.onDrain?.();
    });
  }

  /** The connection is gone: what is queued is forgotten, and nothing more is sent. */
  close(): void {
    this.#closed = true;
    this.onDrain = null;
    this.flush();
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    process.nextTick(() => {
      this.#scheduled = false;
      this.flush();
    });
  }

  #closeChunk(): void {
    if (this.#position > this.#chunkStart) {
      this.#chunks.push(this.#slab.subarray(this.#chunkStart, this.#position));
      this.#batchBytes += this.#position - this.#chunkStart;
      this.#chunkStart = this.#position;
    }
  }

  /** The old slab is used again once the batch that holds its last bytes is written: writes end in order. */
  #newSlab(): void {
    this.#closeChunk();
    const old = this.#slab;
    this.#releases.push(() => this.#pool.give(old));
    this.#slab = this.#pool.take(SLAB_BYTES);
    this.#position = 0;
    this.#chunkStart = 0;
  }
}
