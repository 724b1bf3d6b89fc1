import type { WireError } from '../base/errors.ts';
import type { HydrationStatus as CloneProgress } from '../clone/hydrator.ts';
import type { GuestStatistics } from './guest.ts';
import type { Role } from './role.ts';
import type { Access } from './spec.ts';

export type HydrationStatus = Omit<CloneProgress, 'blocksFetchedTwice'> & {
  /** null: not counted (kernel plane). */
  blocksFetchedTwice: number | null;
  /**
   * What the guest reads of missing blocks is stored, and so comes once. Not in the kernel plane: dm-clone
   * passes it on and forgets it.
   */
  missesKept: boolean;
  /** How the blocks come: from another worker under TLS or in the clear, or from a disk of another system. */
  transport: 'tls' | 'tcp' | 'foreign';
};

/**
 * Answer to `status`, and the payload of the `progress` event (sent about twice a second while something
 * changes).
 */
export type VolumeServerStatus = {
  role: Role;
  volumeId: string;
  generation: number;
  access: Access;
  residentBytes: number;
  /** Only in role `attach` with a clone that is not yet whole. */
  hydration?: HydrationStatus;
  /** The disk lost what the guest wrote; everything is refused until an operator decides. */
  dataLoss?: { atMs: number; reason: string };
  /**
   * The disk is full but for what is kept back: what the guest writes anew waits, or fails where `waiting` is
   * 0. With `map` it is where that file is, the live map of a clone, that is full. Sizes in bytes.
   */
  noRoom?: { sinceMs: number; waiting: number; freeBytes: number; reserveBytes: number; map?: string };
  /** What is kept back of the disk is open to the guest, which leaves. Left out: it is not. */
  leaving?: 'running' | 'stopped';
  guest: GuestStatistics;
  /** Only in role `export`. */
  export?: { host: string; port: number; sessions: number; bytesServed: number };
  /** In role `serve`, and with `nbd`. `location` is a URI without a secret. */
  served?: { location: string; connections: number };
};

/** Answer to `free-map`. */
export type FreeMapReport = {
  /**
   * Bytes of the volume that its filesystem does not use, as far as `free.map` says so; 0 where there is no
   * map.
   */
  unusedBytes: number;
  /** Why there is no map. */
  reason: WireError | null;
};
