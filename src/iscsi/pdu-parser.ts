import { AHS_BYTES_MAX, BHS_BYTES, DIGEST_BYTES, nameOf, OPCODE } from './constants.ts';
import { digestOf } from './digest.ts';
import { protocolError } from './errors.ts';
import { ahsBytesOf, dataSegmentBytesOf, opcodeOf } from './pdu.ts';

/**
 * Cuts a byte stream into PDUs (RFC 7143 section 11.1):
 *
 *   BHS(48)  AHS(0 to 1020)  [header digest(4)]  data segment  padding to 4  [data digest(4)]
 *                                                              '--- absent when the data segment is empty
 *
 * Two ways in. `push(bytes)` takes whatever arrived. `space()` says where the next bytes should land and
 * `landed(count)` that they did: a reader that can choose its buffer puts a payload straight into its
 * destination, which the sink names once the header is known. In both, the data segment is in one piece at
 * the end and no chunks are joined.
 *
 * Memory is bounded: header, trailer and staging are fixed, and a data segment above `dataSegmentBytesMax` is
 * refused before anything is allocated for it. All violations throw `ISCSI_PROTOCOL`; after that the parser
 * refuses everything.
 */
export interface PduSink {
  /**
   * Where the data segment of this PDU should land: exactly `lengthBytes` bytes, or null for a buffer of the
   * parser's own. The header has passed its digest. Valid only during the call.
   */
  destination(header: Buffer, lengthBytes: number): Uint8Array | null;
  /**
   * A whole PDU, digests checked. `header` and `ahs` are valid only during the call; `data` belongs to the
   * sink.
   */
  pdu(header: Buffer, ahs: Buffer, data: Uint8Array): void;
  /**
   * False: no other PDU is begun now, and `push` stops before it. Asked before each. Default: always true.
   */
  takesMore?(): boolean;
}

/**
 * From this size on the rest of a payload is read straight into its destination; below, one read for many
 * PDUs is cheaper.
 */
const DIRECT_BYTES_MIN = 16 * 1024;
export const STAGING_BYTES = 64 * 1024;
const NOTHING = Buffer.alloc(0);

export class PduParser {
  headerDigest = false;
  dataDigest = false;
  dataSegmentBytesMax: number;

  readonly #sink: PduSink;
  #state: 'header' | 'data' | 'trailer' | 'failed' = 'header';
  /** BHS, AHS and header digest as they come in. */
  readonly #head = Buffer.alloc(BHS_BYTES + AHS_BYTES_MAX + DIGEST_BYTES);
  readonly #bhs = this.#head.subarray(0, BHS_BYTES);
  #headBytes = 0;
  #headNeeded = BHS_BYTES;
  #ahs: Buffer = NOTHING;
  #data: Uint8Array = NOTHING;
  #dataBytes = 0;
  /** Padding and data digest. */
  readonly #trailer = Buffer.alloc(3 + DIGEST_BYTES);
  #trailerBytes = 0;
  #trailerNeeded = 0;
  #staging: Buffer | null = null;
  #direct = false;

  /**
   * `staging`: where bytes land that have no place of their own; several parsers of one thread may share it.
   * Default: one is made when it is needed.
   */
  constructor(sink: PduSink, options: { dataSegmentBytesMax: number; staging?: Buffer }) {
    this.#sink = sink;
    this.#staging = options.staging ?? null;
    this.dataSegmentBytesMax = options.dataSegmentBytesMax;
  }

  /** True between two PDUs: a stream that ends here was not cut short. */
  get atBoundary(): boolean {
    return this.#state === 'header' && this.#headBytes === 0;
  }

  /** Where the next bytes should land. Never empty. */
  space(): Uint8Array {
    this.#direct = this.#state === 'data' && this.#data.length - this.#dataBytes >= DIRECT_BYTES_MIN;
    if (this.#direct) return this.#data.subarray(this.#dataBytes);
    this.#staging ??= Buffer.allocUnsafeSlow(STAGING_BYTES);
    return this.#staging;
  }

  /** `count` bytes landed at the start of what `space` returned last. */
  landed(count: number): void {
    if (!this.#direct) {
      this.push(this.#staging!.subarray(0, count));
      return;
    }
    this.landedInPlace(count);
  }

  /** True when `space` returned last a place in a payload, not the staging buffer. */
  get isDirect(): boolean {
    return this.#direct;
  }

  /** `landed`, when `isDirect`. */
  landedInPlace(count: number): void {
    this.#dataBytes += count;
    if (this.#dataBytes === this.#data.length) this.#endOfData();
  }

  /**
   * Takes the bytes from `from` on. Returns the position up to which: their end, unless the sink takes no
   * more.
   */
  push(bytes: Uint8Array, from = 0): number {
    let at = from;
    while (at < bytes.length) {
      switch (this.#state) {
        case 'header': {
          if (this.#headBytes === 0 && this.#sink.takesMore?.() === false) return at;
          const count = Math.min(this.#headNeeded - this.#headBytes, bytes.length - at);
          this.#head.set(bytes.subarray(at, at + count), this.#headBytes);
          at += count;
          this.#headBytes += count;
          if (this.#headBytes === this.#headNeeded) this.#endOfHeader();
          break;
        }
        case 'data': {
          const count = Math.min(this.#data.length - this.#dataBytes, bytes.length - at);
          this.#data.set(bytes.subarray(at, at + count), this.#dataBytes);
          at += count;
          this.#dataBytes += count;
          if (this.#dataBytes === this.#data.length) this.#endOfData();
          break;
        }
        case 'trailer': {
          const count = Math.min(this.#trailerNeeded - this.#trailerBytes, bytes.length - at);
          this.#trailer.set(bytes.subarray(at, at + count), this.#trailerBytes);
          at += count;
          this.#trailerBytes += count;
          if (this.#trailerBytes === this.#trailerNeeded) this.#endOfTrailer();
          break;
        }
        case 'failed':
          throw protocolError('bytes after a protocol error');
      }
    }
    return at;
  }

  /** Reached twice for a PDU with AHS or header digest: after the BHS, and after the rest of the head. */
  #endOfHeader(): void {
    if (this.#headBytes === BHS_BYTES) {
      const dataBytes = dataSegmentBytesOf(this.#bhs);
      if (dataBytes > this.dataSegmentBytesMax) {
        this.#fail('data segment is longer than declared', { dataBytes, limit: this.dataSegmentBytesMax });
      }
      this.#headNeeded += ahsBytesOf(this.#bhs) + (this.headerDigest ? DIGEST_BYTES : 0);
      if (this.#headNeeded > BHS_BYTES) return;
    }
    const covered = BHS_BYTES + ahsBytesOf(this.#bhs);
    if (this.headerDigest) {
      const expected = digestOf(this.#head.subarray(0, covered));
      if (this.#head.readUInt32LE(covered) !== expected) this.#fail('header digest does not match');
    }
    this.#ahs = covered === BHS_BYTES ? NOTHING : this.#head.subarray(BHS_BYTES, covered);
    const dataBytes = dataSegmentBytesOf(this.#bhs);
    if (dataBytes === 0) {
      this.#deliver();
      return;
    }
    this.#data = this.#sink.destination(this.#bhs, dataBytes) ?? Buffer.allocUnsafe(dataBytes);
    if (this.#data.length !== dataBytes)
      this.#fail('destination does not fit the data segment', { dataBytes });
    this.#dataBytes = 0;
    this.#state = 'data';
  }

  #endOfData(): void {
    this.#trailerNeeded = (-this.#data.length & 3) + (this.dataDigest ? DIGEST_BYTES : 0);
    this.#trailerBytes = 0;
    if (this.#trailerNeeded === 0) this.#deliver();
    else this.#state = 'trailer';
  }

  #endOfTrailer(): void {
    if (this.dataDigest) {
      const received = this.#trailer.readUInt32LE(this.#trailerNeeded - DIGEST_BYTES);
      if (digestOf(this.#data) !== received) this.#fail('data digest does not match');
    }
    this.#deliver();
  }

  #deliver(): void {
    const data = this.#data;
    const ahs = this.#ahs;
    this.#data = NOTHING;
    this.#headBytes = 0;
    this.#headNeeded = BHS_BYTES;
    this.#state = 'header';
    this.#sink.pdu(this.#bhs, ahs, data);
  }

  #fail(message: string, values: Record<string, number> = {}): never {
    this.#state = 'failed';
    throw protocolError(message, { ...values, opcode: nameOf(OPCODE, opcodeOf(this.#bhs)) });
  }
}
