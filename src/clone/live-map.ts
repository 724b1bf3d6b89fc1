import { owedBytes } from './bit-committer.ts';
import { HeapMapMemory, type MapMemory, PAGE_BYTES, pageCountOf } from './map-memory.ts';
import { metadataSectorCount } from './metadata.ts';
import { blockCountOf } from './validity-map.ts';

/**
 * What a clone knows while it is open, in memory that outlives its process where the process can die while
 * the host goes on.
 */
export type LiveMap = {
  /**
   * Which blocks are local, of `blockCountOf(lengthBytes)`. Other threads may read it; none but the clone may
   * set a bit.
   */
  validity: MapMemory;
  /** What of that is not durable: `owedBytes(metadataSectorCount(lengthBytes))`, the committer's business. */
  owed: Uint8Array;
};

/** A fresh map that goes with this process: for a clone that nobody opens again. */
export function heapLiveMap(lengthBytes: number): LiveMap {
  return {
    validity: new HeapMapMemory(blockCountOf(lengthBytes)),
    owed: new Uint8Array(owedBytes(metadataSectorCount(lengthBytes))),
  };
}

/**
 * Pages of each map that a guest may need beyond those of what came: 128 GiB over which its writes are
 * spread.
 */
const SPARE_PAGES = 1024;
/** Data lies in pieces of at least so much, mostly: each may be in a page of its own. */
const PIECE_BYTES = 65_536;

/**
 * What the live map of a clone and that of written blocks (volume/validity-file.ts) take in memory together,
 * in bytes, while it arrives: a page of each for 128 MiB, wherever the source has something there. Of a long
 * volume that is nearly empty that is far less than what all of its pages would take. One whose data lies in
 * smaller pieces may need more, and waits for it.
 */
export function liveMapsBytes({
  lengthBytes,
  usedBytes,
}: {
  lengthBytes: number;
  /** At the source. */
  usedBytes: number;
}): number {
  const pages = pageCountOf(blockCountOf(lengthBytes));
  const entriesBytes = pages * 4 + owedBytes(metadataSectorCount(lengthBytes));
  const mixedPages = Math.min(pages, Math.ceil(usedBytes / PIECE_BYTES) + SPARE_PAGES);
  // A header, and the rest of the pages that the parts before the bits end in.
  return 2 * (3 * PAGE_BYTES + entriesBytes + mixedPages * PAGE_BYTES);
}
