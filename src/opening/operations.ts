import type { FreeMapFilesystem } from '../freemap/free-map-reader.ts';
import type { Plane } from '../host/capabilities.ts';
import type {
  BlockRange,
  CompareReply,
  CompareRequest,
  FetchedPage,
  FiguresQuery,
  MendReply,
  MendRequest,
  ProofFigures,
  ProofQuery,
  StatedPage,
  StatedRange,
  UnfetchedPage,
} from '../receipt/proof.ts';
import {
  parseActivate,
  parseCompare,
  parseCursor,
  parseFilesystem,
  parseFreeMapDigest,
  parseGrant,
  parseHeat,
  parseHydration,
  parseInitiator,
  parseLeaving,
  parseMend,
  parseOwed,
  parseRanges,
} from './read-arguments.ts';
import type { Role } from './role.ts';
import type { Access, Grant, HeatHint, HydrationSettings } from './spec.ts';
import type { FreeMapReport, VolumeServerStatus } from './status.ts';

export type OperationRow<Read = unknown> = {
  /** Openings that are asked it. */
  readonly roles: readonly Role[];
  /** Of the backend that has it alone. Left out: both. */
  readonly plane?: Plane;
  /** It came later, with this release: as `LineOperation.since`. */
  readonly since?: string;
  /** How its arguments are read. */
  readonly read: (args: unknown) => Read;
};

/** A row; what is sent and what comes back are in the type only. */
function row<const Row extends OperationRow>(operation: Row) {
  return <Args, Result>(): Row & { readonly args?: Args; readonly result?: Result } => operation;
}

type Nothing = Record<string, never>;
const nothing = (): undefined => undefined;

/**
 * What can be asked of an open volume: worker to shim (`volume.command`), shim to volume server, as line-JSON
 * (base/line-rpc.ts); in the kernel plane the shim answers itself. Backends are checked against this table,
 * by the compiler (perform.ts).
 * A role answers what it has (`attach`: the volume of a machine or of a clone; `export`: a sealed one, for
 * its clones; `serve`), and `VOLUME_UNKNOWN_OP` to the rest.
 *
 * Events: `ready` {port?, instance?}, `progress` VolumeServerStatus, `hydrated` {}, `source-lost` {message},
 * `source-back` {}, `data-lost` {message}, `no-room` {message}, `room-again` {}, `failed` WireError.
 */
export const OPERATIONS = {
  status: row({ roles: ['attach', 'export', 'serve'], read: nothing })<Nothing, VolumeServerStatus>(),
  /**
   * standby to writable or readonly. For `writable` the server checks volume.json (id, generation, not
   * sealed) and takes an exclusive flock on data.raw. A clone takes the blocks of a `free.map` beside the
   * data as zeros.
   */
  activate: row({ roles: ['attach', 'export'], read: parseActivate })<{ access: Access }, Nothing>(),
  flush: row({ roles: ['attach', 'serve'], read: nothing })<Nothing, Nothing>(),
  /** No write passes any more; all data and bits durable; lets the flock go. Idempotent. */
  seal: row({ roles: ['attach'], read: nothing })<Nothing, Nothing>(),
  /**
   * Reads what the filesystem does not use while it may be mounted, so that `free-map` is short. `damage`:
   * what keeps it from being mounted again, if it is so on the next look too.
   */
  'prime-free-map': row({ roles: ['attach'], read: parseFilesystem })<
    { filesystem: FreeMapFilesystem },
    { damage?: string }
  >(),
  /** After `seal`: writes `free.map` beside the data, where there is a map. */
  'free-map': row({ roles: ['attach'], read: parseFilesystem })<
    { filesystem: FreeMapFilesystem },
    FreeMapReport
  >(),
  /** Base64 of the first 4096 bytes of the plaintext (host/mount-needs.ts). */
  superblock: row({ roles: ['attach'], plane: 'userspace', read: nothing })<Nothing, { bytes: string }>(),
  hydration: row({ roles: ['attach'], read: parseHydration })<HydrationSettings, Nothing>(),
  /** When complete: bits and data durable, log out of the source, drop the clone layer. */
  finish: row({ roles: ['attach'], read: nothing })<Nothing, Nothing>(),
  /** The source will not come back: reads that wait for it are I/O errors from now on. */
  'give-up-source': row({ roles: ['attach'], read: nothing })<Nothing, Nothing>(),
  /** Opens the reserve of the disk for a machine that leaves, or closes it again. */
  room: row({ roles: ['attach'], plane: 'userspace', read: parseLeaving })<
    { leaving: boolean; stopped?: boolean },
    Nothing
  >(),
  /** What the guest will want first when it starts elsewhere. */
  heat: row({ roles: ['attach'], read: nothing })<Nothing, HeatHint>(),
  /** Bring these first, once open for writing; a hint. */
  warm: row({ roles: ['attach'], read: parseHeat })<HeatHint, Nothing>(),
  /** Of a clone (contract/peer.ts, `GuestUse`). */
  guest: row({ roles: ['attach'], plane: 'userspace', since: '0.2.0', read: nothing })<
    object,
    { writtenBytes: number | null; waits: number | null; waitP99Ms: number | null }
  >(),
  /** Of a clone that is whole, as the four below: what came, and whether the disk has it. */
  fetched: row({ roles: ['attach'], read: parseCursor })<ProofQuery, FetchedPage>(),
  /** What is local and neither came nor was written. */
  unfetched: row({ roles: ['attach'], read: parseCursor })<ProofQuery, UnfetchedPage>(),
  /** Fetches again what was wrong. */
  mend: row({ roles: ['attach'], plane: 'userspace', read: parseMend })<MendRequest, MendReply>(),
  figures: row({ roles: ['attach'], read: parseFreeMapDigest })<FiguresQuery, ProofFigures>(),
  /** What the disk has, where nobody knows what came (kernel plane). */
  compare: row({ roles: ['attach'], plane: 'kernel', read: parseCompare })<CompareRequest, CompareReply>(),
  /** Of the sealed content. */
  digests: row({ roles: ['export'], read: parseRanges })<{ ranges: BlockRange[] }, { digests: string[] }>(),
  /** Of a range that did not travel, what should have. */
  owed: row({ roles: ['export'], read: parseOwed })<
    BlockRange & { cursor: number },
    { ranges: StatedRange[]; next: number | null }
  >(),
  /** All that may be in use. */
  stated: row({ roles: ['export'], read: parseCursor })<{ cursor: number }, StatedPage>(),
  /** Replaces one of the same initiator name. */
  grant: row({ roles: ['export'], plane: 'userspace', read: parseGrant })<Grant, Nothing>(),
  /** Ends its sessions. */
  revoke: row({ roles: ['export'], plane: 'userspace', read: parseInitiator })<
    { initiatorIqn: string },
    Nothing
  >(),
};

type Operations = typeof OPERATIONS;
export type VolumeOperation = keyof Operations;
export type OperationArgs<Op extends VolumeOperation> = NonNullable<Operations[Op]['args']>;
export type OperationResult<Op extends VolumeOperation> = NonNullable<Operations[Op]['result']>;
/** Of its arguments, as they are read. */
export type OperationRead<Op extends VolumeOperation> = ReturnType<Operations[Op]['read']>;
