import { BLOCK_BYTES } from '../block/block-device.ts';
import { REGION_BYTES_MAX } from './hydration-window.ts';

/** What is remembered is of so many blocks, aligned: the largest fetch. */
const REGION_BLOCKS = REGION_BYTES_MAX / BLOCK_BYTES;
/** Pieces of what was refused are a sixteenth of it: two steps from a MiB to a block. */
const SMALLER = 16;
const REGIONS_MAX = 4096;
const REST_MS = 1_000;
const REST_OF_BLOCKS_MS = 5_000;
/** A source that answers again is read in large pieces again. */
const FORGET_AFTER_MS = 60_000;

type Region = { pieceBlocks: number; untilMs: number; notedMs: number };

/**
 * Where the source answered a read with an error. Of a disk that has a bad sector all else can still be read,
 * so what lies there is asked for in smaller pieces, down to single blocks, and the background copy goes on
 * elsewhere before it tries there again. What nothing was refused of for a minute is forgotten: where the bad
 * sector is still bad, it is all that is absent there.
 */
export class RefusedReads {
  readonly #regions = new Map<number, Region>();

  /** A read of [first, end) was refused. */
  note(first: number, end: number, nowMs: number): void {
    for (let region = regionOf(first); region <= regionOf(end - 1); region++) {
      const before = this.#regions.get(region)?.pieceBlocks ?? REGION_BLOCKS;
      const refusedBlocks = Math.min(before, end - first);
      const pieceBlocks = 2 ** Math.floor(Math.log2(Math.max(1, refusedBlocks / SMALLER)));
      const untilMs = nowMs + (before === 1 ? REST_OF_BLOCKS_MS : REST_MS);
      this.#regions.delete(region);
      this.#regions.set(region, { pieceBlocks, untilMs, notedMs: nowMs });
    }
    for (const oldest of this.#regions.keys()) {
      if (this.#regions.size <= REGIONS_MAX) break;
      this.#regions.delete(oldest);
    }
  }

  /** The end of the longest read from `block` on. */
  endOf(block: number, nowMs: number): number {
    const region = this.#regions.get(regionOf(block));
    if (region !== undefined && nowMs - region.notedMs < FORGET_AFTER_MS)
      return (Math.floor(block / region.pieceBlocks) + 1) * region.pieceBlocks;
    this.#regions.delete(regionOf(block));
    return block + REGION_BLOCKS;
  }

  /**
   * The background copy leaves this block alone for now, up to the one that is returned; `block` itself: it
   * does not.
   */
  restsUntil(block: number, nowMs: number): number {
    const region = regionOf(block);
    return nowMs < (this.#regions.get(region)?.untilMs ?? 0) ? (region + 1) * REGION_BLOCKS : block;
  }
}

function regionOf(block: number): number {
  return Math.floor(block / REGION_BLOCKS);
}
