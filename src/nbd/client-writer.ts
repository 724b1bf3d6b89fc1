import type { BufferPool } from '../iscsi/buffer-pool.ts';
import { EXTENDED_REQUEST_BYTES, encodeRequest, type Request } from './protocol.ts';

/** Takes a batch of chunks; calls `done` when they are written. */
export type ChunkSink = (chunks: Uint8Array[], done: () => void) => void;

/** Payloads up to here are cheaper to copy beside their header than to hand on as a chunk of their own. */
const COPY_BYTES_MAX = 4 * 1024;
const SLAB_BYTES = 256 * 1024;
/** From here on a batch goes out at once, so that the server works while we make the next one. */
const EAGER_BYTES = 256 * 1024;

/**
 * Gathers requests for one write: headers and small payloads lie side by side in a slab, big payloads are handed on by reference.
 * What one turn of the event loop produced goes out together.
 */
export class RequestWriter {
  readonly #sink: ChunkSink;
  readonly #pool: BufferPool;
  #slab: Buffer;
  #position = 0;
  /** Start of the part of the slab that belongs to the batch and is not in `#chunks` yet. */
  #chunkStart = 0;
  #chunks: Uint8Array[] = [];
  #batchBytes = 0;
  #retired: Buffer[] = [];
  #scheduled = false;
  #closed = false;

  constructor(sink: ChunkSink, pool: BufferPool) {
    this.#sink = sink;
    this.#pool = pool;
    this.#slab = pool.take(SLAB_BYTES);
  }

  /** `payload` stays as it is until the request is answered. */
  write(request: Request, extended: boolean, payload: Uint8Array | null): void {
    if (this.#slab.length - this.#position < EXTENDED_REQUEST_BYTES + COPY_BYTES_MAX) this.#newSlab();
    this.#position = encodeRequest(this.#slab, this.#position, extended, request);
    if (payload !== null) {
      if (payload.length <= COPY_BYTES_MAX) {
        this.#slab.set(payload, this.#position);
        this.#position += payload.length;
      } else {
        this.#closeChunk();
        this.#chunks.push(payload);
        this.#batchBytes += payload.length;
      }
    }
    if (this.#batchBytes + this.#position - this.#chunkStart >= EAGER_BYTES) this.flush();
    else this.#schedule();
  }

  /** Hands on what there is. */
  flush(): void {
    this.#closeChunk();
    if (this.#chunks.length === 0 || this.#closed) return;
    const chunks = this.#chunks;
    const retired = this.#retired;
    this.#chunks = [];
    this.#retired = [];
    this.#batchBytes = 0;
    this.#sink(chunks, () => {
      for (const slab of retired) this.#pool.give(slab);
    });
  }

  /** The connection is gone: what is queued is forgotten, and nothing more is sent. */
  close(): void {
    this.#closed = true;
    this.#chunks = [];
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
    if (this.#position === this.#chunkStart) return;
    this.#chunks.push(this.#slab.subarray(this.#chunkStart, this.#position));
    this.#batchBytes += this.#position - this.#chunkStart;
    this.#chunkStart = this.#position;
  }

  /** The old slab is used again once the batch that holds its last bytes is written: writes end in order. */
  #newSlab(): void {
    this.#closeChunk();
    this.#retired.push(this.#slab);
    this.#slab = this.#pool.take(SLAB_BYTES);
    this.#position = 0;
    this.#chunkStart = 0;
  }
}
