import { assert } from '../base/assert.ts';
import type { ChunkWriter } from '../base/chunk-writer.ts';
import { BHS_BYTES, DIGEST_BYTES } from './constants.ts';
import { digestOf } from './digest.ts';
import { setDataSegmentBytes } from './pdu.ts';

/** Largest payload that `inline` takes. */
export const INLINE_BYTES_MAX = 32 * 1024;
/** Padding and data digest behind a payload. */
const TRAILER_BYTES_MAX = 3 + DIGEST_BYTES;

/**
 * Puts PDUs together, with padding and digests.
 *
 *   const header = writer.begin();  encodeX(header, …);  writer.end(payload);
 *
 * or, when the payload can be made on the spot: `begin`, `inline(length)` and fill it, `end()`. From `begin`
 * to `end` is one piece of synchronous code.
 */
export class PduWriter {
  headerDigest = false;
  dataDigest = false;

  readonly #writer: ChunkWriter;
  #pduStart = 0;
  #header: Buffer | null = null;
  #inlineBytes = 0;

  constructor(writer: ChunkWriter) {
    this.#writer = writer;
  }

  /** Bytes that the kernel has not taken yet. */
  get queuedBytes(): number {
    return this.#writer.queuedBytes;
  }

  /** Bytes that the kernel took, since the beginning. */
  get writtenBytes(): number {
    return this.#writer.writtenBytes;
  }

  /** Called when bytes have left for the kernel; for owners that hold work back while too much is queued. */
  set onDrain(listener: (() => void) | null) {
    this.#writer.onDrain = listener;
  }

  /** 48 zeroed bytes for a header, to be filled before `end`. */
  begin(): Buffer {
    assert(this.#header === null, 'one PDU at a time');
    this.#pduStart = this.#writer.room(BHS_BYTES + DIGEST_BYTES + INLINE_BYTES_MAX + TRAILER_BYTES_MAX);
    const header = this.#writer.slab.subarray(this.#pduStart, this.#pduStart + BHS_BYTES);
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
    return this.#writer.slab.subarray(start, start + lengthBytes);
  }

  /** Takes back `begin`. */
  cancel(): void {
    this.#header = null;
  }

  /**
   * Ends the PDU. `data` is the payload (none: what was made with `inline`, or nothing); it must stay as it
   * is until `release` is called.
   */
  end(data?: Uint8Array, release?: () => void): void {
    const header = this.#header;
    assert(header !== null, 'begin comes first');
    this.#header = null;
    const lengthBytes = data === undefined ? this.#inlineBytes : data.length;
    setDataSegmentBytes(header, lengthBytes);
    const { slab } = this.#writer;
    let position = this.#pduStart + BHS_BYTES;
    if (this.headerDigest) position = slab.writeUInt32LE(digestOf(header), position);
    if (lengthBytes === 0) {
      this.#writer.filled(position);
      if (release !== undefined) this.#writer.afterwards(release);
      return;
    }
    let digest = 0;
    if (data === undefined) {
      if (this.dataDigest) digest = digestOf(slab.subarray(position, position + lengthBytes));
      this.#trailer(position + lengthBytes, lengthBytes, digest);
      return;
    }
    if (this.dataDigest) digest = digestOf(data);
    this.#writer.filled(position);
    this.#writer.payload(data);
    // Not with the payload, which is released at once where it was copied: PDUs before this one may refer to
    // the same buffer.
    if (release !== undefined) this.#writer.afterwards(release);
    if (this.dataDigest || (lengthBytes & 3) !== 0) {
      this.#trailer(this.#writer.room(TRAILER_BYTES_MAX), lengthBytes, digest);
    }
  }

  /** Hands on what there is. */
  flush(): void {
    this.#writer.flush();
  }

  /** Hands on what there is, all of it: the end of the connection comes after it. */
  finish(): void {
    this.#writer.finish();
  }

  /** The connection is gone: what is queued is forgotten, and nothing more is sent. */
  close(): void {
    this.#writer.close();
  }

  /** Padding to four bytes and the data digest, from `position` on. RFC 7143 section 13.1. */
  #trailer(position: number, lengthBytes: number, digest: number): void {
    const { slab } = this.#writer;
    let end = position;
    for (let padding = -lengthBytes & 3; padding > 0; padding -= 1) slab[end++] = 0;
    if (this.dataDigest) end = slab.writeUInt32LE(digest, end);
    this.#writer.filled(end);
  }
}
