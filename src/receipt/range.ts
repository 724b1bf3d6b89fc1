/** Fetched bytes are digested in pieces that do not cross a multiple of this. */
export const REGION_BYTES = 2 ** 20;

/** Ranges that one question or answer holds at most, and a few more (proof.ts). */
export const PROOF_RANGES_MAX = 96;

/**
 * A piece of the volume, with the SHA-256 of its sealed content. Blocks are of 4 KiB; the last one may be cut
 * short by the end of the volume.
 */
export type RangeDigest = { first: number; blocks: number; digest: Uint8Array };

/** Bytes of a range of blocks in a volume of this length. */
export function rangeBytes(range: { first: number; blocks: number }, volumeLengthBytes: number): number {
  return Math.min((range.first + range.blocks) * 4096, volumeLengthBytes) - range.first * 4096;
}
