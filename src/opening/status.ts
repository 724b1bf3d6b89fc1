import { type Static, Type } from 'typebox';
import type { WireError } from '../base/errors.ts';
import { Nullable, OneOf } from '../base/schema.ts';
import type { Role } from './role.ts';
import type { Access } from './spec.ts';

const Counted = Nullable(Type.Integer());
const Milliseconds = Nullable(Type.Number());

export const HydrationStatus = Type.Object({
  state: OneOf('paused', 'running', 'source-lost', 'complete'),
  blocksTotal: Type.Integer(),
  blocksPresent: Type.Integer(),
  exposedBytes: Type.Integer(),
  wireBytes: Type.Integer(),
  /** null: not counted (kernel plane). */
  blocksFetchedTwice: Counted,
  /**
   * What the guest reads of missing blocks is stored, and so comes once. Not in the kernel plane: dm-clone
   * passes it on and forgets it.
   */
  missesKept: Type.Boolean(),
  bytesPerSecond: Type.Number(),
  etaMs: Milliseconds,
  sourceLostForMs: Milliseconds,
  lastError: Nullable(Type.String()),
  /** `lastError` is what the source answers. Left out by earlier versions, and where it does not answer. */
  sourceFails: Type.Optional(Type.Literal(true)),
  /** How the blocks come: from another worker under TLS or in the clear, or from a disk of another system. */
  transport: OneOf('tls', 'tcp', 'foreign'),
});
/** What it says of a copy is explained in clone/hydrator.ts. */
export type HydrationStatus = Static<typeof HydrationStatus>;

/**
 * null: not counted, because the kernel tells neither single latencies nor which reads missed (kernel plane).
 */
export const GuestStatistics = Type.Object({
  reads: Type.Integer(),
  readBytes: Type.Integer(),
  writes: Type.Integer(),
  writeBytes: Type.Integer(),
  flushes: Type.Integer(),
  /** Reads and writes that had to wait for the source. */
  misses: Counted,
  readLatencyP50Ms: Milliseconds,
  readLatencyP99Ms: Milliseconds,
  missLatencyP50Ms: Milliseconds,
  missLatencyP99Ms: Milliseconds,
});
export type GuestStatistics = Static<typeof GuestStatistics>;

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
