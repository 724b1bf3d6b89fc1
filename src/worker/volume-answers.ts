import { GodwitError } from '../base/errors.ts';
import type {
  AcceptLossRequest,
  CreateVolumeRequest,
  ImportVolumeRequest,
  RecoverVolumeRequest,
  ServeReply,
  ServeVolumeRequest,
  VolumeView,
} from '../contract/schemas.ts';
import type { MachineManager } from '../machine/manager.ts';
import type { DrainController } from '../migration/drain.ts';
import { ownsMachine } from '../migration/move-watch.ts';
import { type KeySource, noKeysError, type VolumeRecord, type VolumeStore } from '../volume/index.ts';
import type { Admission } from './admission.ts';
import type { EventBus } from './event-bus.ts';
import { findVolume } from './find-volume.ts';
import type { Imports } from './imports.ts';
import type { MachineMoves } from './machine-moves.ts';
import type { Openings } from './openings.ts';
import type { WorkerOptions } from './options.ts';
import { PLANES } from './planes.ts';
import type { Serving } from './serving.ts';
import type { Views } from './views.ts';

const BLOCK_BYTES = 4096;

export type VolumeAnswersOptions = {
  name: string;
  machines: MachineManager;
  volumes: VolumeStore;
  imports: Imports;
  openings: Openings;
  serving: Serving;
  drain: DrainController;
  /** Of encrypted volumes; null: none. */
  keys: KeySource | null;
  plane: WorkerOptions['plane'];
  admission: Admission;
  moves: MachineMoves;
  views: Views;
  events: EventBus;
};

/** What is asked of volumes. */
export class VolumeAnswers {
  readonly #o: VolumeAnswersOptions;
  /** Names of volumes that are being made. */
  readonly #beingMade = new Set<string>();

  constructor(options: VolumeAnswersOptions) {
    this.#o = options;
  }

  async listVolumes(): Promise<VolumeView[]> {
    const { volumes } = await this.#o.volumes.list();
    return Promise.all(volumes.map((record) => this.#o.views.volume(record)));
  }

  async createVolume(request: CreateVolumeRequest): Promise<VolumeView> {
    return this.#underNewName(request.name, () => this.#createVolume(request));
  }

  async #createVolume(request: CreateVolumeRequest): Promise<VolumeView> {
    await this.#o.admission.refuseFull(request.name);
    const lengthBytes = Math.ceil(request.lengthBytes / BLOCK_BYTES) * BLOCK_BYTES;
    const { encrypted, ...wanted } = request;
    const { keys } = this.#o;
    if (encrypted !== false && keys === null) throw noKeysError(request);
    const record = await this.#o.volumes.create({
      // Of its volumes the kernel plane opens these.
      ...PLANES[this.#o.plane].newVolumes,
      ...wanted,
      lengthBytes,
      ...(encrypted !== false && keys !== null && { keys }),
    });
    this.#o.events.emit('volume-created', record.id, `created ${record.name}`);
    return this.#o.views.volume(record);
  }

  async importVolume(request: ImportVolumeRequest): Promise<VolumeView> {
    return this.#underNewName(request.name, () => this.#importVolume(request));
  }

  async #importVolume(request: ImportVolumeRequest): Promise<VolumeView> {
    if (this.#o.keys !== null && request.encrypted !== false) {
      throw new GodwitError(
        'WORKER_IMPORT_REFUSED',
        'volumes of this worker are encrypted, and what is imported is kept as it comes',
        {
          values: { name: request.name },
          nextAction: 'Import it with --no-encryption, or on a worker without keys.',
        },
      );
    }
    this.#o.admission.refuseDraining(this.#o.drain.desired);
    const record = await this.#o.imports.create(request);
    this.#o.events.emit('volume-importing', record.id, `importing ${record.name}`);
    return this.#o.views.volume(record);
  }

  async showVolume(ref: string): Promise<VolumeView> {
    return this.#o.views.volume(await findVolume(this.#o, ref));
  }

  async recoverVolume(ref: string, request: RecoverVolumeRequest): Promise<VolumeView> {
    return this.#underNewName(request.name, () => this.#recoverVolume(ref, request));
  }

  async #recoverVolume(ref: string, request: RecoverVolumeRequest): Promise<VolumeView> {
    const { volumes } = await this.#o.volumes.list();
    const retained = volumes.find(
      ({ id, name, state }) => state === 'retained' && (id === ref || name === ref),
    );
    const record = await this.#o.volumes.recover(
      retained?.id ?? (await findVolume(this.#o, ref)).id,
      request.name,
    );
    this.#o.events.emit('volume-recovered', record.id, `recovered ${record.name}`);
    return this.#o.views.volume(record);
  }

  async acceptLoss(ref: string, { atMs }: AcceptLossRequest): Promise<VolumeView> {
    const record = await findVolume(this.#o, ref);
    const { id, name, machineId } = record;
    // Past its point of no return a move here goes on with the volume as it is accepted.
    const run = this.#o.moves.openRunOf(machineId);
    const isOwned = run !== null && ownsMachine(run);
    if (machineId !== null && !isOwned) this.#o.moves.refuseWhileMoving(machineId);
    await this.#o.openings.refuseKept(record, 'accept-loss');
    // A machine that is stopped has it open, and its server refuses all for as long as it lives.
    const letGo = () => this.#o.openings.takeAway(record, 'accept-loss', { moving: isOwned });
    await letGo();
    // A volume server that goes on hydrating would say of its loss what it knew before.
    const accept = () => this.#o.volumes.acceptDataLoss(id, atMs);
    const { reason } = await this.#o.imports.without(id, accept);
    // Its move may have opened it again in between.
    if (isOwned) await letGo();
    this.#o.events.emit(
      'volume-loss-accepted',
      id,
      `the loss of data of ${name} was accepted over the API: ${reason}`,
    );
    return this.#o.views.volume(record);
  }

  async serveVolume(ref: string, request: ServeVolumeRequest): Promise<ServeReply> {
    const record = await findVolume(this.#o, ref);
    const reply = await this.#o.serving.serve(record, request);
    this.#o.events.emit('volume-served', record.id, `serving ${record.name} at ${reply.location}`);
    return reply;
  }

  async stopServing(ref: string): Promise<void> {
    const record = await findVolume(this.#o, ref);
    await this.#o.serving.stop(record.id);
    this.#o.events.emit('volume-not-served', record.id, `${record.name} is not served any more`);
  }

  async destroyVolume(ref: string, options: { force: boolean; copies?: boolean }): Promise<void> {
    const record = await findVolume(this.#o, ref);
    if (options.copies === true && record.state === 'retained') {
      await this.#destroyCopies(record);
      return;
    }
    if (record.machineId !== null && (await this.#isHeld(record.machineId))) {
      throw new GodwitError(
        'WORKER_VOLUME_HELD',
        `volume ${record.name} belongs to machine ${record.machineId}`,
        {
          values: { volumeId: record.id, machineId: record.machineId },
          nextAction: 'Destroy the machine first: godwit machine destroy.',
        },
      );
    }
    await this.#o.openings.refuseKept(record, 'destroy');
    const destroy = () => this.#o.volumes.destroy(record.id, options);
    await (this.#o.imports.isImporting(record.id) ? this.#o.imports.destroy(record.id, destroy) : destroy());
    this.#o.events.emit('volume-destroyed', record.id, `destroyed ${record.name}`);
    if (options.copies === true) await this.#destroyCopies(record);
  }

  async #destroyCopies({ id, name }: VolumeRecord): Promise<void> {
    const copies = await this.#o.volumes.destroyCopies(id);
    if (copies > 0)
      this.#o.events.emit('volume-copies-destroyed', id, `destroyed what moves had left of ${name}`, {
        copies,
      });
  }

  async #isHeld(machineId: string): Promise<boolean> {
    const { machines, openings } = this.#o;
    const isThere = machines.records().some(({ id }) => id === machineId);
    return isThere || (await openings.isOpen({ kind: 'machine', machineId }));
  }

  /**
   * `work` makes a volume of that name, which nobody else does meanwhile. Rejects `WORKER_VOLUME_NAME_TAKEN`.
   */
  async #underNewName<T>(name: string, work: () => Promise<T>): Promise<T> {
    if (this.#beingMade.has(name)) throw this.#nameTaken(name);
    this.#beingMade.add(name);
    try {
      const { volumes } = await this.#o.volumes.list();
      if (volumes.some((volume) => volume.name === name && volume.state !== 'retained'))
        throw this.#nameTaken(name);
      return await work();
    } finally {
      this.#beingMade.delete(name);
    }
  }

  #nameTaken(name: string): GodwitError {
    return new GodwitError('WORKER_VOLUME_NAME_TAKEN', `this worker has a volume ${name} already`, {
      values: { name },
      nextAction: 'Choose another name.',
    });
  }
}
