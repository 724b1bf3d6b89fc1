import { GodwitError } from '../base/errors.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import type { MachineManager, VolumeProvider } from '../machine/manager.ts';
import { isKernelClone } from '../plane/attached.ts';
import type { TlsFiles } from '../sys/tls-identity.ts';
import {
  attachSpec,
  type CloneSpec,
  cloneSpec,
  type KeySource,
  readImportSource,
  type VolumeRecord,
  type VolumeServerSpec,
  type VolumeStore,
} from '../volume/index.ts';
import type { WorkerOptions } from './options.ts';

export type VolumeAccessOptions = {
  volumes: VolumeStore;
  validityDir: string;
  tls: TlsFiles | null;
  plane: WorkerOptions['plane'];
  /** Where the keys of encrypted volumes come from; null: nowhere. */
  keys: KeySource | null;
  /** The unfinished incoming move that this volume is the clone of, null when there is none. */
  incoming: (volumeId: string) => PrepareRequest | null;
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

  async attachSpec(volumeId: string, machineId: string): Promise<VolumeServerSpec> {
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
  async spec(record: VolumeRecord, access: 'standby' | 'writable'): Promise<VolumeServerSpec> {
    const { keys, plane, whenFull } = this.#options;
    const volumeDir = this.#options.volumes.folder(record.id);
    const kernel = { plane: 'kernel' as const };
    if (record.state === 'ready') {
      const spec = attachSpec(record, { volumeDir, access, keys, whenFull });
      return { ...spec, ...(plane === 'kernel' && fitsKernel(spec) && kernel) };
    }
    const clone = await this.#cloneSpec(record, access, volumeDir);
    if (clone) {
      // A clone stays in the plane that its metadata is of; a disk of another system, and one that gets
      // another key, is cloned in the userspace plane.
      const spec = attachSpec(record, { volumeDir, access, keys, whenFull, clone });
      const inKernel =
        record.state === 'clone' ? await isKernelClone(volumeDir) : plane === 'kernel' && fitsKernel(spec);
      return { ...spec, ...(inKernel && kernel) };
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

  async #cloneSpec(
    record: VolumeRecord,
    access: 'standby' | 'writable',
    volumeDir: string,
  ): Promise<CloneSpec | null> {
    const { validityDir, tls, hydrationRateBytesPerSecondMax } = this.#options;
    if (record.state !== 'clone' && !(record.state === 'incoming' && access === 'standby')) return null;
    const moved = this.#options.incoming(record.id)?.volume;
    if (moved) {
      return cloneSpec(record, {
        ...{ volumeDir, validityDir, tls },
        source: moved.source,
        // A machine that boots has host and wire for itself; the move lets hydration begin when it is
        // healthy.
        hydration: { paused: true, rateBytesPerSecondMax: 0 },
      });
    }
    const imported = await readImportSource(volumeDir);
    if (!imported) return null;
    return cloneSpec(record, {
      ...{ volumeDir, validityDir, source: imported },
      hydration: { paused: false, rateBytesPerSecondMax: hydrationRateBytesPerSecondMax },
    });
  }

  async filesystem(volumeId: string): Promise<'ext4' | 'xfs' | 'none'> {
    return (await this.#options.volumes.get(volumeId)).filesystem;
  }

  async assignMachine(volumeId: string, machineId: string | null): Promise<void> {
    await this.#options.volumes.assignMachine(volumeId, machineId);
  }
}

/**
 * Longest volume of the kernel plane: dm-clone has a bit for each 4 KiB in the memory of the kernel, and room
 * for all of its metadata is taken when a clone is made.
 */
export const KERNEL_LENGTH_BYTES_MAX = 16 * 2 ** 40;

/**
 * Not one that is too long, not a disk of another system, none that gets another key on the way, and no
 * ciphertext that dm-crypt would read differently.
 */
function fitsKernel({ clone, encryption, lengthBytes }: VolumeServerSpec): boolean {
  if (lengthBytes > KERNEL_LENGTH_BYTES_MAX) return false;
  const isMove = clone === undefined || 'targetIqn' in clone.source;
  return isMove && (encryption === undefined || (encryption.holes === 'none' && !encryption.source));
}

/** True while processes hold the machine's volume open on this host. */
export async function isAttached(machines: MachineManager, machineId: string): Promise<boolean> {
  const client = await machines.client(machineId);
  if (client === null) return false;
  return (await client.call('status', {})).volume !== null;
}
