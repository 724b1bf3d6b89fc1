import { join } from 'node:path';
import { BLOCK_BYTES, type BlockDevice } from '../block/block-device.ts';
import { FileDevice } from '../block/file-device.ts';
import { SECTOR_BYTES } from '../host/mapper-table.ts';
import { Comparison, digestOfZeros, outOfStep } from '../receipt/comparison.ts';
import type {
  BlockRange,
  CompareReply,
  CompareRequest,
  GuestWrites,
  ProofFigures,
} from '../receipt/proof.ts';
import { rangeBytes } from '../receipt/range.ts';
import { DirectFile } from '../sys/direct-file.ts';
import { SHA256_BYTES, sha256 } from '../sys/sha256.ts';
import { VOLUME_FILES } from '../volume/files.ts';

const EXTENTS_LIMIT = 64;

export type DiskProofOptions = {
  lengthBytes: number;
  /** Where the content is stored, past the page cache. */
  stored: Pick<BlockDevice, 'read'>;
  /** Of the same. */
  extents: NonNullable<BlockDevice['extents']>;
  /** What the guest has written and discarded by now, whatever is in flight included; null: not known. */
  guestWrites: () => Promise<GuestWrites | null>;
};

/**
 * The target's part of proving a move whose blocks the kernel has fetched: says what the disk has, and adds
 * up what both sides found (receipt/comparison.ts). The guest goes on writing meanwhile, so its requests are
 * counted when the comparison has ended. One question at a time.
 */
export class DiskProof {
  readonly #options: DiskProofOptions;
  #comparison: Comparison | null = null;
  #last: { from: number; ranges: number; reply: CompareReply } | null = null;
  #disk: NonNullable<ProofFigures['disk']> | null = null;

  constructor(options: DiskProofOptions) {
    this.#options = options;
  }

  /**
   * Rejects `RECEIPT_OUT_OF_STEP` for a question that does not follow the last one; the first one may always
   * be asked.
   */
  async compare(request: CompareRequest): Promise<CompareReply> {
    const { from, freeMapDigest, ranges } = request;
    const last = this.#last;
    // An answer that was lost on its way.
    if (from > 0 && last?.from === from && last.ranges === ranges.length) return last.reply;
    this.#last = null;
    this.#disk = null;
    const before = this.#comparison;
    this.#comparison = null;
    const comparison = from === 0 ? new Comparison(this.#options.lengthBytes, freeMapDigest) : before;
    if (comparison?.added !== from || comparison.freeMapDigest !== freeMapDigest)
      throw outOfStep(ranges[0]!.first, ranges[0]!.blocks);
    const reply: CompareReply = { found: [] };
    // One after the other: the guest's own reads pass in between.
    for (const { first, blocks, digests } of ranges) {
      const stated = Buffer.from(digests, 'base64');
      const byBlocks = stated.length > SHA256_BYTES;
      const found = await this.#digestsOf({ first, blocks }, byBlocks);
      comparison.add({ first, blocks }, stated, found);
      reply.found.push(found.toString('base64'));
    }
    this.#comparison = comparison;
    this.#last = { from, ranges: ranges.length, reply };
    return reply;
  }

  /** Of the comparison so far; always the same until it goes on. Null: nothing was compared. */
  async figures(freeMapDigest: string | null): Promise<ProofFigures | null> {
    const comparison = this.#comparison;
    if (comparison === null || comparison.freeMapDigest !== freeMapDigest) return null;
    const { root, ranges, comparedBytes, ...disk } = comparison.sums();
    this.#disk ??= { ...disk, guest: await this.#options.guestWrites() };
    return { root, ranges, comparedBytes, fetchedBytes: comparedBytes, disk: this.#disk };
  }

  async #digestsOf(range: BlockRange, byBlocks: boolean): Promise<Buffer> {
    const { lengthBytes, stored, extents } = this.#options;
    const bytes = rangeBytes(range, lengthBytes);
    if (bytes <= 0) throw outOfStep(range.first, range.blocks);
    const offsetBytes = range.first * BLOCK_BYTES;
    const parts = await extents(offsetBytes, bytes, EXTENTS_LIMIT);
    const isHole = parts.length < EXTENTS_LIMIT && parts.every(({ kind }) => kind === 'hole');
    if (isHole && !byBlocks) return digestOfZeros(bytes);
    // Whole blocks: it is read past the page cache.
    const content = Buffer.alloc(range.blocks * BLOCK_BYTES);
    if (!isHole) await stored.read(offsetBytes, content);
    if (!byBlocks) return Buffer.from(await sha256(content.subarray(0, bytes)));
    const digests: Uint8Array[] = [];
    for (let at = 0; at < bytes; at += BLOCK_BYTES)
      digests.push(await sha256(content.subarray(at, Math.min(at + BLOCK_BYTES, bytes))));
    return Buffer.concat(digests);
  }
}

/** Of the data file of a volume. */
export async function openDiskProof(
  volumeDir: string,
  lengthBytes: number,
  guestWrites: DiskProofOptions['guestWrites'],
): Promise<{ proof: DiskProof; close: () => Promise<void> }> {
  const path = join(volumeDir, VOLUME_FILES.data);
  const file = await FileDevice.open({ file: path, lengthBytes, blockBytes: SECTOR_BYTES, writable: false });
  try {
    const stored = new DirectFile(path);
    const proof = new DiskProof({
      lengthBytes,
      stored,
      extents: (...range) => file.extents(...range),
      guestWrites,
    });
    const close = async () => {
      await stored.close();
      await file.close();
    };
    return { proof, close };
  } catch (error) {
    await file.close();
    throw error;
  }
}
