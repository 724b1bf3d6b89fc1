import type { Offer, PrepareRequest, TargetStatus } from '../contract/peer.ts';
import type { Ailment } from '../machine/ailment.ts';
import type { HeatHint } from '../opening/spec.ts';
import type { VolumeQuestions } from './volume-questions.ts';

/**
 * What the run `migrate-in` does on its own host, and the volume's answers when the move is proved
 * (receipt/proof.ts). Every call is idempotent; undos are safe when their do never ran.
 */
export interface TargetSide extends VolumeQuestions<PrepareRequest> {
  /** The offer again: when it counts first, and once all is prepared here. */
  offer(request: PrepareRequest): Promise<Offer>;
  /** Sparse file, clone metadata and the record (`incoming`). */
  createVolume(request: PrepareRequest): Promise<void>;
  /**
   * `opened`: also one that was opened for writing, with what was written. Without it only a volume that
   * still waits.
   */
  destroyVolume(request: PrepareRequest, options: { opened: boolean }): Promise<void>;
  /**
   * The machine is the source's again, by an operator's word: it stops here, and nobody starts it. Its volume
   * stays.
   */
  standDown(request: PrepareRequest): Promise<void>;
  /**
   * What this worker's record says of that generation. `waits`: never opened for writing. `opened`: it was,
   * or a later one was. `absent`: there is no volume, or only an earlier generation of it.
   */
  volumeState(volumeId: string, generation: number): Promise<'waits' | 'opened' | 'absent'>;
  /**
   * The machine's record, in the hands of the move; shim, FUSE mount, volume server in standby, login at the
   * source, loop device: all that needs no sealed volume.
   */
  attachStandby(request: PrepareRequest): Promise<void>;
  /** Blocks to bring first once the volume is open; a hint, forgotten with the volume server. */
  warm(request: PrepareRequest, heat: HeatHint): Promise<void>;
  detach(request: PrepareRequest): Promise<void>;
  /** Puts the free map of the handoff (base64) where the volume finds it when it is activated. */
  keepFreeMap(request: PrepareRequest, freeMap: string): Promise<void>;
  /**
   * The fence moves: the record becomes `clone` at the next generation, durably, and only then the volume
   * opens for writing. Attaches again when the host lost the shim in between.
   */
  activate(request: PrepareRequest): Promise<void>;
  /**
   * Mounts (`onMounted`) and starts the workload, unless it was stopped. Background hydration waits for
   * `hydrate`.
   */
  boot(request: PrepareRequest, onMounted: () => void): Promise<void>;
  /**
   * Resolves when healthy, or when there is nothing to wait for (see `ailment`); rejects
   * `MACHINE_NOT_HEALTHY` after `timeoutMs`.
   */
  awaitHealthy(request: PrepareRequest, timeoutMs: number): Promise<void>;
  /** What is wrong with the machine now, which is wanted to run; null: nothing, or it is not wanted. */
  ailment(request: PrepareRequest): Promise<Ailment | null>;
  /**
   * Lets background hydration begin: it has stood back so that a booting machine has host and wire for
   * itself.
   */
  hydrate(request: PrepareRequest): Promise<void>;
  /** The machine is under nobody's hands any more: restarts of the worker treat it like any other. */
  settle(request: PrepareRequest): Promise<void>;
  /**
   * How far the blocks are; null for a machine without a volume. Attaches again when the host lost the shim
   * in between.
   */
  hydration(request: PrepareRequest): Promise<TargetStatus['hydration']>;
  /** SHA-256 in hex of the free map that came with the handoff; null: none came. */
  freeMapDigest(request: PrepareRequest): Promise<string | null>;
  /** All blocks are here: drops the clone layer, logs out of the source, the record becomes `ready`. */
  finish(request: PrepareRequest): Promise<void>;
  /**
   * State of the source's run, null when the source does not know it. Rejects when the source cannot be
   * reached.
   */
  sourceRun(request: PrepareRequest, signal: AbortSignal): Promise<{ state: string } | null>;
}
