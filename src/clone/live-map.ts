import { owedBytes } from './bit-committer.ts';
import { HeapMapMemory, type MapMemory } from './map-memory.ts';
import { metadataSectorCount } from './metadata.ts';
import { blockCountOf } from './validity-map.ts';

/** What a clone knows while it is open, in memory that outlives its process where the process can die while the host goes on. */
export type LiveMap = {
  /** Which blocks are local, of `blockCountOf(lengthBytes)`. Other threads may read it; none but the clone may set a bit. */
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
