import type { GodwitError } from '../base/errors.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import type { PlacementRequest } from '../contract/peer.ts';
import type { MountNeeds } from '../host/mount-needs.ts';
import type { HeatHint, SourceSpec } from '../opening/spec.ts';
import type { FreeMapReport } from '../opening/status.ts';
import type { BlockRange, StatedPage, StatedRange } from '../receipt/proof.ts';

/** The machine that is to move, as it is now. */
export type MoveSubject = {
  machineId: string;
  machineName: string;
  config: MachineConfig;
  /** False: its owner stopped it, and it stays stopped after the move. */
  running: boolean;
  /**
   * It is wanted to run and does not, or not well: the end of a sentence that begins with "it". Left out:
   * nothing is known to be wrong.
   */
  ailing?: string;
  placement: PlacementRequest;
  /**
   * Of the filesystem that is mounted here and is to be there; left out: none is, or it could not be read.
   */
  mount?: MountNeeds;
  volume: {
    volumeId: string;
    name: string;
    lengthBytes: number;
    usedBytes: number;
    filesystem: 'ext4' | 'xfs' | 'none';
    generation: number;
    encryption?: { uuid: string; keyGeneration?: number; keyVolumeId?: string; holes?: 'none' };
  } | null;
};

/**
 * What the run `migrate-out` does on its own host. The worker implements it with its machines, volumes and
 * shims, tests with a model. Every call is idempotent, and each undo is safe when its do never ran.
 */
export interface SourceSide {
  /** Rejects `MIGRATION_NOT_MOVABLE` for a machine that cannot move now, with the reason. */
  describe(machineId: string): Promise<MoveSubject>;
  /**
   * Marks the machine as moving, so that no restart of the worker starts it behind the run's back; null ends
   * it.
   */
  claim(machineId: string, runId: string | null): Promise<void>;

  /**
   * Starts the export of the machine's volume in standby, under a shim of its own: the target can log in, no
   * block can be read. Under TLS where both sides have certificates. Answers the same place and secret when
   * it is there already, and opens it again (readable, if it was) when its shim is gone.
   */
  openExport(
    runId: string,
    subject: MoveSubject,
    target: { worker: string; tls: boolean },
    known: SourceSpec | null,
  ): Promise<SourceSpec>;
  /** The volume is sealed: its blocks may be read. */
  releaseExport(runId: string): Promise<void>;
  closeExport(runId: string): Promise<void>;

  /**
   * Rejects `MACHINE_FS_HELD`, `MACHINE_FS_FROZEN` and `MACHINE_FS_READ_ONLY` for what would keep the
   * filesystem from being written out or unmounted, `MACHINE_FS_DAMAGED` for what would keep it from being
   * mounted again, here or elsewhere. Writes dirty pages out, and looks which blocks are not in use, while
   * the machine still runs: the seal then has less to do.
   */
  syncEarly(machineId: string): Promise<void>;
  /** What the machine will read first when it starts elsewhere. */
  heat(machineId: string): Promise<HeatHint>;
  /**
   * Stops the workload; its volume stays attached. `kill`: when it aborts, the workload is given no more
   * time.
   */
  stop(machineId: string, kill: AbortSignal): Promise<void>;
  /** What the killed processes of the machine wait for; null: none of them waits in the kernel. */
  stuck(machineId: string): Promise<GodwitError | null>;
  /**
   * Rejects `MACHINE_FS_HELD`, `MACHINE_DEVICE_HELD` when somebody holds the filesystem. Unmounts, makes all
   * data durable, makes this generation read-only for ever, and notes the blocks that its filesystem does not
   * use.
   */
  seal(machineId: string, volumeId: string, generation: number): Promise<FreeMapReport>;
  /** The sealed generation's free map in base64; null where there is none. */
  freeMap(volumeId: string): Promise<string | null>;
  /** Bytes that the sealed file holds and that its free map spared the wire. */
  bytesAvoided(volumeId: string, generation: number): Promise<number>;
  /** Digests of the sealed content, one for each range (receipt/proof.ts), from the move's export. */
  digests(runId: string, ranges: readonly BlockRange[]): Promise<string[]>;
  /** Of a range that did not travel, what should have; from the block `cursor` on. */
  owed(
    runId: string,
    range: BlockRange,
    cursor: number,
  ): Promise<{ ranges: StatedRange[]; next: number | null }>;
  /** All of the sealed content that may be in use, from the block `cursor` on. */
  stated(runId: string, cursor: number): Promise<StatedPage>;
  /** The way back: the volume is this worker's again, at generation + 2, and not attached. */
  unseal(machineId: string, volumeId: string, generation: number): Promise<void>;
  /**
   * Starts the machine here as it was before the move, also where it was this worker's no more (`detach`).
   */
  start(subject: MoveSubject): Promise<void>;

  /**
   * After the handoff: the machine is no longer this worker's; its shim ends (loop, FUSE, processes). The
   * sealed file stays.
   */
  detach(machineId: string): Promise<void>;
  /** After the move: the sealed volume is kept as a way back until `destroyAfterMs`. */
  retain(machineId: string, volumeId: string | null, destroyAfterMs: number): Promise<void>;
}
