import { GodwitError } from '../base/errors.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import { isKernelClone } from '../kernel/attached.ts';
import type { VolumeProvider } from '../machine/manager.ts';
import type { TlsFiles } from '../sys/tls-identity.ts';
import {
  type AttachSpec,
  cloneSpec,
  importSpec,
  type KeySource,
  ownSpec,
  readImportSource,
  type VolumeRecord,
  type VolumeStore,
} from '../volume/index.ts';
import type { WorkerOptions } from './options.ts';
import { PLANES } from './planes.ts';

export type VolumeAccessOptions = {
  volumes: VolumeStore;
  validityDir: string;
  tls: TlsFiles | null;
  plane: WorkerOptions['plane'];
  /** Where the keys of encrypted volumes come from; null: nowhere. */
  keys: KeySource | null;
  /**
   * The unfinished incoming move that this volume is the clone of, null when there is none. `isBooting`: its
   * machine is not healthy here yet.
   */
  incoming: (volumeId: string) => { request: PrepareRequest; isBooting: boolean } | null;
  hydrationRateBytesPerSecondMax: number;
  whenFull: WorkerOptions['whenFull'];
  /**
   * Called when a machine is about to open the volume: whoever else on this worker has it open lets it go, or
   * says why not.
   */
  beforeAttach: (record: VolumeRecord) => Promise<void>;
};

/** How machines open their volumes: plainly, or as the clone that a move made of them. */
export class VolumeAccess implements VolumeProvider {
  readonly #options: VolumeAccessOptions;

  constructor(options: VolumeAccessOptions) {
    this.#options = options;
  }

  async attachSpec(volumeId: string, machineId: string): Promise<AttachSpec> {
    const record = await this.#options.volumes.get(volumeId);
    if (record.machineId !== machineId) {
      throw new GodwitError(
        'WORKER_VOLUME_NOT_YOURS',
        `volume ${record.name} is not of machine ${machineId}`,
        {
          values: { volumeId, machineId, owner: record.machineId },
          nextAction: 'Create the machine with a volume that no other machine has.',
        },
      );
    }
    await this.#options.beforeAttach(record);
    return this.spec(record, 'writable');
  }

  /** Rejects `WORKER_VOLUME_SEALED` for a volume that is not this worker's to write. */
  async spec(record: VolumeRecord, access: 'standby' | 'writable'): Promise<AttachSpec> {
    const spec = await this.#spec(record, access);
    // A clone stays in the plane that its metadata is of.
    if (record.state !== 'clone') return PLANES[this.#options.plane].choose(spec);
    return (await isKernelClone(spec.volumeDir)) ? { ...spec, plane: 'kernel' } : spec;
  }

  async #spec(record: VolumeRecord, access: 'standby' | 'writable'): Promise<AttachSpec> {
    const { keys, tls, whenFull, validityDir, hydrationRateBytesPerSecondMax } = this.#options;
    const volumeDir = this.#options.volumes.folder(record.id);
    const options = { volumeDir, access, keys, whenFull };
    if (record.state === 'ready') return ownSpec(record, options);
    if (record.state === 'clone' || (record.state === 'incoming' && access === 'standby')) {
      const rateBytesPerSecondMax = hydrationRateBytesPerSecondMax;
      const move = this.#options.incoming(record.id);
      const source = move?.request.volume?.source;
      if (source) {
        // A machine that boots has host and wire for itself; the move lets hydration begin when it is
        // healthy. What is opened again later goes on by itself: the move has said its word.
        const hydration = move.isBooting
          ? { paused: true, rateBytesPerSecondMax: 0 }
          : { paused: false, rateBytesPerSecondMax };
        return cloneSpec(record, { ...options, validityDir, tls, source, hydration });
      }
      const imported = await readImportSource(volumeDir);
      if (imported) {
        const hydration = { paused: false, rateBytesPerSecondMax };
        return importSpec(record, { ...options, validityDir, source: imported, hydration });
      }
    }
    throw new GodwitError(
      'WORKER_VOLUME_SEALED',
      `volume ${record.name} is ${record.state} at generation ${record.generation}`,
      {
        values: { volumeId: record.id, state: record.state, generation: record.generation },
        nextAction: 'It has moved, or is moving: `godwit volume list` says where the newest generation is.',
      },
    );
  }

  async filesystem(volumeId: string): Promise<'ext4' | 'xfs' | 'none'> {
    return (await this.#options.volumes.get(volumeId)).filesystem;
  }

  async assignMachine(volumeId: string, machineId: string | null): Promise<void> {
    await this.#options.volumes.assignMachine(volumeId, machineId);
  }
}
