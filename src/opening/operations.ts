import type { FreeMapFilesystem } from '../freemap/free-map-reader.ts';
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
import type { Access, Grant, HeatHint, HydrationSettings } from './spec.ts';
import type { FreeMapReport, VolumeServerStatus } from './status.ts';

type Nothing = Record<string, never>;

/**
 * What can be asked of an open volume: worker to shim (`volume.command`), shim to volume server, as line-JSON
 * (base/line-rpc.ts); in the kernel plane the shim answers itself. perform.ts reads the arguments.
 * A role answers what it has (`attach`: the volume of a machine or of a clone; `export`: a sealed one, for
 * its clones; `serve`), and `VOLUME_UNKNOWN_OP` to the rest.
 *
 * Events: `ready` {port?, instance?}, `progress` VolumeServerStatus, `hydrated` {}, `source-lost` {message},
 * `source-back` {}, `data-lost` {message}, `no-room` {message}, `room-again` {}, `failed` WireError.
 */
export type VolumeOperations = {
  status: { args: Nothing; result: VolumeServerStatus };
  /**
   * standby to writable or readonly. For `writable` the server checks volume.json (id, generation, not
   * sealed) and takes an exclusive flock on data.raw. A clone takes the blocks of a `free.map` beside the
   * data as zeros.
   */
  activate: { args: { access: Access }; result: Nothing };
  flush: { args: Nothing; result: Nothing };
  /** No write passes any more; all data and bits durable; lets the flock go. Idempotent. */
  seal: { args: Nothing; result: Nothing };
  /** Reads what the filesystem does not use while it may be mounted, so that `free-map` is short. */
  'prime-free-map': { args: { filesystem: FreeMapFilesystem }; result: Nothing };
  /** After `seal`: writes `free.map` beside the data, where there is a map. */
  'free-map': { args: { filesystem: FreeMapFilesystem }; result: FreeMapReport };
  /** Base64 of the first 4096 bytes of the plaintext (host/mount-needs.ts). */
  superblock: { args: Nothing; result: { bytes: string } };
  hydration: { args: HydrationSettings; result: Nothing };
  /** When complete: bits and data durable, log out of the source, drop the clone layer. */
  finish: { args: Nothing; result: Nothing };
  /** The source will not come back: reads that wait for it are I/O errors from now on. */
  'give-up-source': { args: Nothing; result: Nothing };
  /** Opens the reserve of the disk for a machine that leaves, or closes it again. */
  room: { args: { leaving: boolean; stopped?: boolean }; result: Nothing };
  /** What the guest will want first when it starts elsewhere. */
  heat: { args: Nothing; result: HeatHint };
  /** Bring these first, once open for writing; a hint. */
  warm: { args: HeatHint; result: Nothing };
  /** Of a clone that is whole, as the four below: what came, and whether the disk has it. */
  fetched: { args: ProofQuery; result: FetchedPage };
  /** What is local and neither came nor was written. */
  unfetched: { args: ProofQuery; result: UnfetchedPage };
  /** Fetches again what was wrong. */
  mend: { args: MendRequest; result: MendReply };
  figures: { args: FiguresQuery; result: ProofFigures };
  /** What the disk has, where nobody knows what came (kernel plane). */
  compare: { args: CompareRequest; result: CompareReply };
  /** Of the sealed content. */
  digests: { args: { ranges: BlockRange[] }; result: { digests: string[] } };
  /** Of a range that did not travel, what should have. */
  owed: { args: BlockRange & { cursor: number }; result: { ranges: StatedRange[]; next: number | null } };
  /** All that may be in use. */
  stated: { args: { cursor: number }; result: StatedPage };
  /** Replaces one of the same initiator name. */
  grant: { args: Grant; result: Nothing };
  /** Ends its sessions. */
  revoke: { args: { initiatorIqn: string }; result: Nothing };
};

export type VolumeOperation = keyof VolumeOperations;
export type OperationArgs<Op extends VolumeOperation> = VolumeOperations[Op]['args'];
export type OperationResult<Op extends VolumeOperation> = VolumeOperations[Op]['result'];
