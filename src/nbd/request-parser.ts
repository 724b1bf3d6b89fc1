import { protocolError } from './errors.ts';
import {
  decodeRequest,
  EXTENDED_REQUEST_BYTES,
  REQUEST_BYTES,
  type Request,
  requestPayloadBytes,
} from './protocol.ts';

/**
 * From this size on the rest of a payload is read straight into its buffer; below, one read for many requests
 * is cheaper.
 */
const DIRECT_BYTES_MIN = 16 * 1024;

/**
 * Cuts the byte stream of the transmission phase into requests and their payloads.
 *
 * A payload that lies whole in the bytes that arrived is handed on as it lies there, uncopied. Of any other
 * one the pieces are copied once, to where the sink wants it; a reader that can choose its buffer (`space`,
 * `landed`) reads them right there. Memory is bounded: the parser has one header, and a payload is received
 * only after the sink admitted it.
 */
export interface RequestSink {
  /** May this request begin? No: `push` stops before its payload, and asks again when it is called again. */
  admit(request: Request, payloadBytes: number): boolean;
  /** Where the payload should land: exactly `payloadBytes` bytes. */
  payloadBuffer(payloadBytes: number): Uint8Array;
  /**
   * A whole request. `payload` is null when it has none, or one that `skips` said to leave out. It belongs to
   * the sink, unless it is `borrowed`: then only during the call.
   */
  request(request: Request, payload: Uint8Array | null, borrowed: boolean): void;
  /** Should the payload be passed over? Asked after `admit`. */
  skips(request: Request, payloadBytes: number): boolean;
}

export class RequestParser {
  readonly #sink: RequestSink;
  readonly #extended: boolean;
  readonly #payloadBytesMax: number;
  readonly #headerBytes: number;
  #state: 'header' | 'waiting' | 'payload' | 'skip' | 'failed' = 'header';
  readonly #header = Buffer.alloc(EXTENDED_REQUEST_BYTES);
  #headerCount = 0;
  #request: Request | null = null;
  #payload: Uint8Array | null = null;
  /** Of the payload: all, and what is still to come. */
  #payloadBytes = 0;
  #leftBytes = 0;

  constructor(sink: RequestSink, options: { extended: boolean; payloadBytesMax: number }) {
    this.#sink = sink;
    this.#extended = options.extended;
    this.#payloadBytesMax = options.payloadBytesMax;
    this.#headerBytes = options.extended ? EXTENDED_REQUEST_BYTES : REQUEST_BYTES;
  }

  /** True between two requests: a stream that ends here was not cut short. */
  get atBoundary(): boolean {
    return this.#state === 'header' && this.#headerCount === 0;
  }

  /** In the middle of a request, of which the peer has the rest. */
  get owed(): boolean {
    return (
      this.#state === 'payload' ||
      this.#state === 'skip' ||
      (this.#state === 'header' && this.#headerCount > 0)
    );
  }

  /** The sink did not admit the request; nothing is read before it does. */
  get waits(): boolean {
    return this.#state === 'waiting';
  }

  /**
   * Takes `bytes` from `at` on and returns the position up to which it did: short of the end only when the
   * sink does not admit a request. `borrowed`: the chunk is used again afterwards; else it must not be
   * written to. Throws `NBD_PROTOCOL`, and refuses everything from then on.
   */
  push(bytes: Buffer, at: number, borrowed = false): number {
    for (;;) {
      switch (this.#state) {
        case 'header':
          if (at === bytes.length) return at;
          at = this.#takeHeader(bytes, at);
          break;
        case 'waiting': {
          const request = this.#request!;
          if (!this.#sink.admit(request, this.#payloadBytes)) return at;
          if (this.#payloadBytes === 0) {
            this.#deliver(null);
          } else if (this.#sink.skips(request, this.#payloadBytes)) {
            this.#leftBytes = this.#payloadBytes;
            this.#state = 'skip';
          } else if (bytes.length - at >= this.#payloadBytes) {
            const end = at + this.#payloadBytes;
            this.#deliver(bytes.subarray(at, end), borrowed);
            at = end;
          } else {
            this.#payload = this.#sink.payloadBuffer(this.#payloadBytes);
            this.#leftBytes = this.#payloadBytes;
            this.#state = 'payload';
          }
          break;
        }
        case 'payload': {
          if (at === bytes.length) return at;
          const payload = this.#payload!;
          const count = Math.min(this.#leftBytes, bytes.length - at);
          payload.set(bytes.subarray(at, at + count), this.#payloadBytes - this.#leftBytes);
          at += count;
          this.#leftBytes -= count;
          if (this.#leftBytes === 0) this.#deliver(payload);
          break;
        }
        case 'skip': {
          if (at === bytes.length) return at;
          const count = Math.min(this.#leftBytes, bytes.length - at);
          at += count;
          this.#leftBytes -= count;
          if (this.#leftBytes === 0) this.#deliver(null);
          break;
        }
        case 'failed':
          throw protocolError('bytes after a protocol error');
      }
    }
  }

  /** Where the next bytes of the stream should land; null: anywhere, and then into `push`. */
  space(): Uint8Array | null {
    if (this.#state !== 'payload' || this.#leftBytes < DIRECT_BYTES_MIN) return null;
    return this.#payload!.subarray(this.#payloadBytes - this.#leftBytes);
  }

  /** `count` bytes landed at the start of what `space` returned last. */
  landed(count: number): void {
    this.#leftBytes -= count;
    if (this.#leftBytes === 0) this.#deliver(this.#payload!);
  }

  #takeHeader(bytes: Buffer, at: number): number {
    if (this.#headerCount === 0 && bytes.length - at >= this.#headerBytes) {
      this.#begin(bytes, at);
      return at + this.#headerBytes;
    }
    const count = Math.min(this.#headerBytes - this.#headerCount, bytes.length - at);
    bytes.copy(this.#header, this.#headerCount, at, at + count);
    this.#headerCount += count;
    if (this.#headerCount === this.#headerBytes) this.#begin(this.#header, 0);
    return at + count;
  }

  #begin(bytes: Buffer, at: number): void {
    try {
      this.#request = decodeRequest(bytes, at, this.#extended);
      this.#payloadBytes = requestPayloadBytes(this.#request, this.#extended);
      if (this.#payloadBytes > this.#payloadBytesMax) {
        throw protocolError('the payload of a request is longer than any that is taken', {
          payloadBytes: this.#payloadBytes,
          limit: this.#payloadBytesMax,
        });
      }
    } catch (error) {
      this.#state = 'failed';
      throw error;
    }
    this.#headerCount = 0;
    this.#state = 'waiting';
  }

  #deliver(payload: Uint8Array | null, borrowed = false): void {
    const request = this.#request!;
    this.#request = null;
    this.#payload = null;
    this.#state = 'header';
    this.#sink.request(request, payload, borrowed);
  }
}
