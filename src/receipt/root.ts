import { createHash, type Hash } from 'node:crypto';
import { assert } from '../base/assert.ts';
import { SHA256_BYTES } from '../sys/sha256.ts';
import { type RangeDigest, rangeBytes } from './range.ts';

const DOMAIN = 'godwit receipt root v1\n';
const LEAF_FREE_MAP = 0x00;
const LEAF_RANGE = 0x01;
const RANGE_LEAF_BYTES = 1 + 8 + 8 + SHA256_BYTES;

/**
 * The root of a receipt: one SHA-256 over what was compared, in the order in which it came over the wire, so
 * that it is made in one pass with a few hundred bytes of memory whatever the volume. Both workers make it by
 * themselves, each from what it has.
 *
 *   SHA-256 of
 *     "godwit receipt root v1\n"
 *     0x00  32 bytes: SHA-256 of the sealed free map as it travelled (freemap/sealed-map.ts); zeros where there was none
 *     then for each range that was compared:
 *     0x01  8 bytes: first byte   8 bytes: number of bytes   32 bytes: SHA-256 of the content
 *
 * Integers are little-endian. Every leaf begins with its kind and has a fixed length, so no two lists make
 * the same bytes.
 */
export class RootHash {
  readonly #hash: Hash = createHash('sha256').update(DOMAIN, 'latin1');
  readonly #lengthBytes: number;

  /** `freeMapDigest`: 32 bytes; null: there was no map. */
  constructor(volumeLengthBytes: number, freeMapDigest: Uint8Array | null) {
    assert(freeMapDigest === null || freeMapDigest.length === SHA256_BYTES, 'a digest has 32 bytes');
    this.#lengthBytes = volumeLengthBytes;
    this.#hash.update(new Uint8Array([LEAF_FREE_MAP]));
    this.#hash.update(freeMapDigest ?? new Uint8Array(SHA256_BYTES));
  }

  add(range: RangeDigest): void {
    const leaf = Buffer.alloc(RANGE_LEAF_BYTES);
    leaf[0] = LEAF_RANGE;
    leaf.writeBigUInt64LE(BigInt(range.first * 4096), 1);
    leaf.writeBigUInt64LE(BigInt(rangeBytes(range, this.#lengthBytes)), 9);
    leaf.set(range.digest, 17);
    this.#hash.update(leaf);
  }

  /** 64 hex digits. The hash can go on afterwards. */
  hex(): string {
    return this.#hash.copy().digest('hex');
  }
}
