import type { ChunkWriter } from '../base/chunk-writer.ts';
import { EXTENDED_REQUEST_BYTES, encodeRequest, type Request } from './protocol.ts';

/** Sends requests: what one turn of the event loop produced goes out together. */
export class RequestWriter {
  readonly #writer: ChunkWriter;

  constructor(writer: ChunkWriter) {
    this.#writer = writer;
  }

  /** `payload` stays as it is until `release` is called. */
  write(request: Request, extended: boolean, payload: Uint8Array | null, release?: () => void): void {
    const at = this.#writer.room(EXTENDED_REQUEST_BYTES);
    this.#writer.filled(encodeRequest(this.#writer.slab, at, extended, request));
    if (payload !== null) this.#writer.payload(payload, release);
  }

  /** Bytes that the kernel took, since the beginning. */
  get writtenBytes(): number {
    return this.#writer.writtenBytes;
  }

  /** Hands on what there is. */
  flush(): void {
    this.#writer.flush();
  }

  /** All of it: the end of the connection comes after it. */
  finish(): void {
    this.#writer.finish();
  }

  /** The connection is gone: what is queued is forgotten, and nothing more is sent. */
  close(): void {
    this.#writer.close();
  }
}
