/**
 * Layout of a volume's folder. A file of its own, because the schema beside which it would stand costs a
 * volume server a fifth of its memory.
 */
export const VOLUME_FILES = {
  record: 'volume.json',
  data: 'data.raw',
  cloneMetadata: 'clone.meta',
  /** Where an imported volume comes from, until it is whole. May hold a secret. */
  importSource: 'source.json',
  /** The blocks that the filesystem of the sealed generation does not use (freemap/sealed-map.ts). */
  freeMap: 'free.map',
  header: 'header.luks2',
  /** Of the source's ciphertext, while the volume is a clone under another key. */
  sourceHeader: 'source-header.luks2',
  /** Digests of what was fetched, until the clone is whole (clone/fetch-log.ts). */
  fetchLog: 'fetch.log',
  /**
   * Sectors that were zeroed in blocks that are still at the source, until the clone is whole
   * (clone/zero-log.ts).
   */
  zeroLog: 'zero.log',
  /** That the disk lost what the guest wrote (data-guard.ts). */
  dataLoss: 'data-loss.json',
  dataLossAccepted: 'data-loss-accepted.json',
  /** Digests of the sealed content (region-digests.ts). */
  regionDigests: 'region.digests',
} as const;
