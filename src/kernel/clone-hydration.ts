import type { CloneStatus } from '../host/mapper-table.ts';
import type { HydrationStatus } from '../opening/status.ts';
import { REGION_BYTES } from './clone-binding.ts';

export type CloneFacts = {
  /** The last one that could be read; null: none yet. */
  status: Pick<CloneStatus, 'regionsTotal' | 'regionsHydrated' | 'regionsHydrating'> | null;
  lengthBytes: number;
  /** Of the last seconds, oldest first. */
  samples: readonly { atMs: number; regions: number }[];
  /** The copy is meant to run. */
  copies: boolean;
  /** Null: the source answers. */
  lostForMs: number | null;
  wireBytes: number;
  lastError: string | null;
};

/**
 * How far a clone of dm-clone is. As long as nobody could tell what is here, nothing is: a copy that is taken
 * for whole is let go of by its source. Pure.
 */
export function cloneHydration(facts: CloneFacts): HydrationStatus {
  const { samples, lostForMs } = facts;
  const { regionsTotal, regionsHydrated, regionsHydrating } = facts.status ?? {
    regionsTotal: facts.lengthBytes / REGION_BYTES,
    regionsHydrated: 0,
    regionsHydrating: 0,
  };
  const missing = regionsTotal - regionsHydrated;
  const whole = missing === 0 && regionsHydrating === 0;
  const exposedBytes = missing * REGION_BYTES;
  const bytesPerSecond = rateOf(samples);
  return {
    state: whole ? 'complete' : lostForMs !== null ? 'source-lost' : facts.copies ? 'running' : 'paused',
    blocksTotal: regionsTotal,
    blocksPresent: whole ? regionsTotal : Math.min(regionsHydrated, regionsTotal - 1),
    exposedBytes,
    wireBytes: facts.wireBytes,
    // A read miss comes again, when it is read again and when it is copied; dm-clone counts none of it.
    blocksFetchedTwice: null,
    missesKept: false,
    bytesPerSecond,
    etaMs: whole
      ? 0
      : bytesPerSecond > 0 && lostForMs === null
        ? Math.round((exposedBytes / bytesPerSecond) * 1000)
        : null,
    sourceLostForMs: lostForMs,
    lastError: facts.lastError,
    transport: 'tcp',
  };
}

function rateOf(samples: CloneFacts['samples']): number {
  const [first, last] = [samples[0], samples.at(-1)];
  const spanMs = first && last ? last.atMs - first.atMs : 0;
  return first && last && spanMs > 0
    ? Math.round(((last.regions - first.regions) * REGION_BYTES * 1000) / spanMs)
    : 0;
}
