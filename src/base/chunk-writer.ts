import { assert } from './assert.ts';
import type { BufferLease, BufferPool } from './buffer-pool.ts';
import type { ClientAccount } from './client-account.ts';

/** Takes a batch of chunks; calls `done` when they are written. */
export type ChunkSink = (chunks: Uint8Array[], done: () => void) => void;

/** Largest `room`. */
const ROOM_BYTES_MAX = 33 * 1024;
const SLAB_BYTES = 128 * 1024;
/** From here on a batch goes out at once, so that the receiver works while we make the next one. */
const EAGER_BYTES = 32 * 1024;
/** Payloads up to here are cheaper to copy than to hand on as a chunk of their own. */
const COPY_BYTES_MAX = 4 * 1024;
/**
 * Batches on their way to a kernel that takes nothing. Each costs objects whatever its size, so what comes
 * after these gathers in the slab.
 */
const BATCHES_MAX = 16;
const NO_SLAB = Buffer.alloc(0);

/**
 * Gathers what a connection sends for one write. Headers and small payloads lie side by side in a slab; big
 * payloads are handed on by reference, uncopied. What one turn of the event loop produced goes out together,
 * unless `BATCHES_MAX` are on their way already. A writer with nothing to send holds no slab. Slabs are
 * charged to the peer's account, where there is one; payloads are their owners' to charge.
 *
 *   const at = writer.room(length);  fill writer.slab from `at`;  writer.filled(end);  writer.payload(data, release);
 */
export class ChunkWriter {
  readonly #sink: ChunkSink;
  readonly #pool: BufferPool;
  readonly #account: ClientAccount | null;
  #slab: Buffer = NO_SLAB;
  #slabLease: BufferLease | null = null;
  #position = 0;
  /** Start of the part of the slab that belongs to the batch and is not in `#chunks` yet. */
  #chunkStart = 0;
  #chunks: Uint8Array[] = [];
  #chunksBytes = 0;
  #releases: (() => void)[] = [];
  #batches: { bytes: number; releases: (() => void)[] }[] = [];
  #scheduled = false;
  #closed = false;
  #sentBytes = 0;
  #writtenBytes = 0;
  /** Called when bytes have left for the kernel. */
  onDrain: (() => void) | null = null;

  constructor(sink: ChunkSink, pool: BufferPool, account: ClientAccount | null = null) {
    this.#sink = sink;
    this.#pool = pool;
    this.#account = account;
  }

  /** Bytes that the kernel has not taken yet. */
  get queuedBytes(): number {
    return this.#chunksBytes + this.#position - this.#chunkStart + this.#sentBytes - this.#writtenBytes;
  }

  /** Bytes that the kernel took, since the beginning. */
  get writtenBytes(): number {
    return this.#writtenBytes;
  }

  /** Where `room` is. Another one after each `room`. */
  get slab(): Buffer {
    return this.#slab;
  }

  /**
   * Makes sure that `lengthBytes` (at most `ROOM_BYTES_MAX`) fit into the slab, and returns the position from
   * which on.
   */
  room(lengthBytes: number): number {
    assert(lengthBytes <= ROOM_BYTES_MAX, 'what goes into the slab is small');
    if (this.#slab.length - this.#position < lengthBytes) this.#newSlab();
    return this.#position;
  }

  /** What was put into the room ends at `end`. */
  filled(end: number): void {
    this.#position = end;
    if (this.#chunksBytes + end - this.#chunkStart >= EAGER_BYTES) this.flush();
    else this.#schedule();
  }

  /** Sends `data` after what was filled in. It stays as it is until `release` is called. */
  payload(data: Uint8Array, release?: () => void): void {
    if (data.length <= COPY_BYTES_MAX) {
      const at = this.room(data.length);
      this.#slab.set(data, at);
      release?.();
      this.filled(at + data.length);
      return;
    }
    this.#closeChunk();
    this.#chunks.push(data);
    this.#chunksBytes += data.length;
    if (release !== undefined) this.#releases.push(release);
    if (this.#chunksBytes >= EAGER_BYTES) this.flush();
    else this.#schedule();
  }

  /**
   * Calls `release` when all that came before is written: for a buffer that several payloads are parts of.
   */
  afterwards(release: () => void): void {
    if (this.#chunks.length > 0 || this.#position > this.#chunkStart) {
      this.#releases.push(release);
      return;
    }
    const last = this.#batches.at(-1);
    if (last === undefined) release();
    else last.releases.push(release);
  }

  /**
   * Hands on what there is, unless too many batches are on their way: then it follows as soon as one of them
   * has been taken.
   */
  flush(): void {
    if (this.#batches.length < BATCHES_MAX || this.#closed) this.finish();
  }

  /** Hands on what there is: the end of the connection comes after it. */
  finish(): void {
    this.#closeChunk();
    if (this.#chunks.length === 0) return;
    const chunks = this.#chunks;
    const batch = { bytes: this.#chunksBytes, releases: this.#releases };
    this.#chunks = [];
    this.#chunksBytes = 0;
    this.#releases = [];
    this.#sentBytes += batch.bytes;
    this.#batches.push(batch);
    if (this.#closed) this.#releaseAll();
    else this.#sink(chunks, () => this.#written());
  }

  /**
   * The connection is gone, and the kernel does not read our buffers any more: what is queued is forgotten,
   * nothing more is sent.
   */
  close(): void {
    this.#closed = true;
    this.onDrain = null;
    this.flush();
    this.#releaseAll();
  }

  /** Batches are written in order. */
  #written(): void {
    const batch = this.#batches.shift();
    if (batch === undefined) return; // closed meanwhile
    this.#writtenBytes += batch.bytes;
    for (const release of batch.releases) release();
    if (this.queuedBytes === 0) this.#dropSlab();
    // What was held back while this one was on its way.
    else if (this.#batches.length === BATCHES_MAX - 1) this.flush();
    this.onDrain?.();
  }

  #releaseAll(): void {
    for (const { releases } of this.#batches) for (const release of releases) release();
    this.#batches = [];
    for (const release of this.#releases) release();
    this.#releases = [];
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
      this.#chunksBytes += this.#position - this.#chunkStart;
      this.#chunkStart = this.#position;
    }
  }

  /** The old slab is used again once the batch that holds its last bytes is written: writes end in order. */
  #newSlab(): void {
    this.#closeChunk();
    const old = this.#slabLease;
    if (old !== null) this.#releases.push(() => this.#giveSlab(old));
    this.#slabLease = this.#pool.lease(SLAB_BYTES);
    this.#slab = this.#slabLease.bytes;
    this.#account?.charge(SLAB_BYTES);
    this.#position = 0;
    this.#chunkStart = 0;
  }

  /** Everything in it has been sent. */
  #dropSlab(): void {
    if (this.#slabLease === null) return;
    this.#giveSlab(this.#slabLease);
    this.#slabLease = null;
    this.#slab = NO_SLAB;
    this.#position = 0;
    this.#chunkStart = 0;
  }

  #giveSlab(slab: BufferLease): void {
    slab.release();
    this.#account?.release(SLAB_BYTES);
  }
}
