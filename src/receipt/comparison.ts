import { createHash } from 'node:crypto';
import { GodwitError } from '../base/errors.ts';
import { SHA256_BYTES } from '../sys/sha256.ts';
import type { BlockRange, ComparedFigures } from './proof.ts';
import { rangeBytes } from './range.ts';
import { RootHash } from './root.ts';

/**
 * What the target's disk has, held against what was sealed, where nobody could tell what came over the wire
 * and what the guest wrote (the kernel plane). Both workers do it, from the same digests in the same order,
 * and get the same sums. Ranges come once each, ascending. One that differs as a whole comes again, by
 * blocks, at any time. Blocks are then one of four:
 *
 *                          the source has zeros      the source has data
 *     the same             empty, or compared        compared: leaves of the root (root.ts)
 *                          beside data in a range
 *     other, not zeros     changed                   changed
 *     other, zeros         -                         cleared
 */
export class Comparison {
  readonly freeMapDigest: string | null;
  /** Most differing blocks in a row, for people: a guest writes here and there. Null: nothing differs. */
  longest: BlockRange | null = null;
  /** Ranges that were added so far. */
  added = 0;
  readonly #lengthBytes: number;
  readonly #root: RootHash;
  #ranges = 0;
  #askedBytes = 0;
  #compared = 0;
  #empty = 0;
  #changed = 0;
  #cleared = 0;
  /** The first block that was not asked for yet. */
  #next = 0;
  /** Ranges that differ and wait for their blocks: first block and number. */
  readonly #open = new Map<number, number>();
  /** The differing blocks that were seen last. */
  #row: BlockRange = { first: 0, blocks: 0 };

  constructor(lengthBytes: number, freeMapDigest: string | null) {
    this.#lengthBytes = lengthBytes;
    this.freeMapDigest = freeMapDigest;
    this.#root = new RootHash(lengthBytes, freeMapDigest === null ? null : Buffer.from(freeMapDigest, 'hex'));
  }

  /**
   * `stated`: SHA-256 of what the source has there, one for the whole range or one a block; `found`: the same
   * of the target. False: it differs and is to come again by blocks. Throws `RECEIPT_OUT_OF_STEP` where it
   * does not go on from what was added before.
   */
  add(range: BlockRange, stated: Uint8Array, found: Uint8Array): boolean {
    const { first, blocks } = range;
    const byBlocks = this.#open.get(first) === blocks;
    const digests = byBlocks ? blocks : 1;
    const inside = first + blocks <= Math.ceil(this.#lengthBytes / 4096);
    const fits = inside && (byBlocks || first >= this.#next);
    if (!fits || stated.length !== digests * SHA256_BYTES || found.length !== stated.length)
      throw outOfStep(first, blocks);
    this.added++;
    if (!byBlocks) {
      this.#next = first + blocks;
      this.#askedBytes += rangeBytes(range, this.#lengthBytes);
      if (blocks > 1 && Buffer.compare(stated, found) !== 0) {
        this.#open.set(first, blocks);
        return false;
      }
      this.#settle(range, stated, found);
      return true;
    }
    this.#open.delete(first);
    for (let index = 0; index < blocks; index++) {
      const [start, end] = [index * SHA256_BYTES, (index + 1) * SHA256_BYTES];
      this.#settle(
        { first: first + index, blocks: 1 },
        stated.subarray(start, end),
        found.subarray(start, end),
      );
    }
    return true;
  }

  /** Throws `RECEIPT_OUT_OF_STEP` while a range waits for its blocks. */
  sums(): ComparedFigures {
    for (const [first, blocks] of this.#open) throw outOfStep(first, blocks);
    return {
      root: this.#root.hex(),
      ranges: this.#ranges,
      comparedBytes: this.#compared,
      emptyBytes: this.#empty,
      changedBytes: this.#changed,
      clearedBytes: this.#cleared,
      unusedBytes: this.#lengthBytes - this.#askedBytes,
    };
  }

  #settle(range: BlockRange, stated: Uint8Array, found: Uint8Array): void {
    const bytes = rangeBytes(range, this.#lengthBytes);
    const zeros = digestOfZeros(bytes);
    if (Buffer.compare(stated, found) === 0) {
      if (zeros.equals(stated)) {
        this.#empty += bytes;
        return;
      }
      this.#root.add({ ...range, digest: stated });
      this.#ranges++;
      this.#compared += bytes;
      return;
    }
    if (zeros.equals(found)) this.#cleared += bytes;
    else this.#changed += bytes;
    this.#name(range);
  }

  #name({ first, blocks }: BlockRange): void {
    const row = this.#row;
    const goesOn = row.first + row.blocks === first;
    this.#row = goesOn ? { first: row.first, blocks: row.blocks + blocks } : { first, blocks };
    if (this.#row.blocks > (this.longest?.blocks ?? 0)) this.longest = this.#row;
  }
}

const zeroDigests = new Map<number, Buffer>();

/**
 * SHA-256 of so many zeros; at most 1 MiB. Few lengths: whole blocks of one region, and the end of a volume.
 */
export function digestOfZeros(bytes: number): Buffer {
  let digest = zeroDigests.get(bytes);
  if (digest === undefined) {
    digest = createHash('sha256').update(Buffer.alloc(bytes)).digest();
    zeroDigests.set(bytes, digest);
  }
  return digest;
}

export function outOfStep(first: number, blocks: number): GodwitError {
  return new GodwitError('RECEIPT_OUT_OF_STEP', 'the two workers are not at the same place of the volume', {
    values: { first, blocks },
    nextAction: 'Nothing to do: it is begun anew. If it stays, both must be of the same godwit version.',
  });
}
