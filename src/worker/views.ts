import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import type { MachineState, MachineView, VolumeView } from '../contract/schemas.ts';
import { goesBack, type RunView } from '../journal/run.ts';
import { ailmentOf } from '../machine/ailment.ts';
import type { MachineManager, MachineShow } from '../machine/manager.ts';
import { MIGRATE_IN, phaseOf } from '../migration/migrate-in.ts';
import { MIGRATE_OUT, type MigrateOutOutput } from '../migration/migrate-out.ts';
import { ownsMachine } from '../migration/move-watch.ts';
import {
  readDataLoss,
  VOLUME_FILES,
  type VolumeRecord,
  type VolumeServerStatus,
  type VolumeStore,
} from '../volume/index.ts';
import { downByMove, downByTrouble } from './down.ts';
import type { Imports } from './imports.ts';
import type { MachineMoves } from './machine-moves.ts';
import type { MachineRecovery } from './recovery.ts';
import type { Serving } from './serving.ts';

export type ViewsOptions = {
  name: string;
  machines: MachineManager;
  volumes: VolumeStore;
  imports: Imports;
  serving: Serving;
  recovery: MachineRecovery;
  moves: MachineMoves;
  clock: Clock;
};

/** Machines and volumes as they are shown to a person. */
export class Views {
  readonly #o: ViewsOptions;

  constructor(options: ViewsOptions) {
    this.#o = options;
  }

  machine(show: MachineShow): MachineView {
    const { record, shim, silentForMs } = show;
    const workload = shim?.workload ?? null;
    const run = this.#o.moves.openRunOf(record.id);
    const noRoom = shim?.volume?.status?.noRoom;
    const trouble = record.desired === 'running' ? this.#o.recovery.trouble(record.id) : null;
    const down = (run && downByMove(run)) ?? downByTrouble(trouble);
    const back = run && goesBack(run);
    const ailment = record.desired === 'running' ? ailmentOf(workload, this.#o.clock.wallMs()) : null;
    return {
      id: record.id,
      name: record.name,
      worker: this.#o.name,
      state: stateOf(show, run),
      ...(silentForMs !== undefined && { silentSinceMs: this.#o.clock.wallMs() - silentForMs }),
      health: workload?.health ?? { state: 'none', sinceMs: record.createdAtMs, message: '' },
      config: record.config,
      volumeId: record.config.volume?.volumeId ?? null,
      createdAtMs: record.createdAtMs,
      startedAtMs: workload?.startedAtMs ?? null,
      pid: workload?.pid ?? null,
      restarts: workload?.restarts ?? 0,
      ...(workload?.outOfMemoryKills && { outOfMemoryKills: workload.outOfMemoryKills }),
      move: run && {
        runId: run.id,
        phase: run.kind === MIGRATE_IN ? phaseOf(run) : (run.step ?? run.state),
        target: run.kind === MIGRATE_IN ? this.#o.name : ((run.output as MigrateOutOutput).target ?? null),
        ...(back && { undoneBecause: back.why }),
      },
      hydration: arriving(shim?.volume?.status, run),
      ...(down && { down }),
      ...(noRoom && { ioPaused: { sinceMs: noRoom.sinceMs, waiting: noRoom.waiting } }),
      ...(ailment && { ailment }),
    };
  }

  async volume(record: VolumeRecord): Promise<VolumeView> {
    const volume =
      record.machineId === null
        ? null
        : await this.#o.machines.shimLook(record.machineId).then(
            ({ status }) => status?.volume ?? null,
            () => null,
          );
    const attached = volume?.spec.volumeId === record.id ? volume : null;
    const own = attached?.status ?? null;
    const status = own ?? (await this.#o.imports.status(record.id).catch(() => null))?.status ?? null;
    const shown = own?.served ? null : await this.#o.serving.shown(record.id).catch(() => null);
    return {
      id: record.id,
      name: record.name,
      worker: this.#o.name,
      lengthBytes: record.lengthBytes,
      usedBytes: await this.#o.volumes.usedBytesOf(record),
      filesystem: record.filesystem,
      encrypted: record.encryption !== undefined,
      generation: record.generation,
      state: record.state,
      createdAtMs: record.createdAtMs,
      machineId: record.machineId,
      hydration: arriving(status, this.#o.moves.openRunOf(record.machineId)),
      guest: status?.guest ?? null,
      served: own?.served
        ? { ...own.served, writable: own.access === 'writable' && attached?.spec.nbd?.client === 'guest' }
        : (shown?.served ?? null),
      destroyAfterMs: record.destroyAfterMs,
      ...dataLossOf(this.#o.volumes, record, status?.dataLoss ?? shown?.dataLoss),
    };
  }
}

/**
 * From the file, so that it is told when no server runs; from the server while the disk refuses the file too.
 */
export function dataLossOf(
  volumes: Pick<VolumeStore, 'folder'>,
  record: VolumeRecord,
  told?: { atMs: number; reason: string },
): Pick<VolumeView, 'dataLoss'> {
  const folder = volumes.folder(record.id);
  const loss = readDataLoss(folder, { volumeId: record.id, generation: record.generation }) ?? told;
  if (!loss) return {};
  return { dataLoss: { atMs: loss.atMs, reason: loss.reason, file: join(folder, VOLUME_FILES.dataLoss) } };
}

/**
 * How far a volume that arrives is. Its server remembers that to its end: when the move is over, nothing
 * arrives any more, whether the machine runs or was stopped. Pure.
 */
export function arriving(
  status: Pick<VolumeServerStatus, 'hydration'> | null | undefined,
  run: RunView | null,
): VolumeView['hydration'] {
  const hydration = status?.hydration ?? null;
  return hydration?.state === 'complete' && run?.kind !== MIGRATE_IN ? null : hydration;
}

/** As lists and metrics have it. `run`: the open one of the machine. Pure. */
export function stateOf({ record, shim, silentForMs }: MachineShow, run: RunView | null): MachineState {
  const workload = shim?.workload ?? null;
  return machineState(
    record,
    // Its policy says that it has done what it was to do.
    workload?.state === 'exited' && workload.exitCode === 0 ? 'stopped' : (workload?.state ?? null),
    workload?.health.state ?? null,
    run,
    silentForMs !== undefined,
  );
}

function machineState(
  record: { desired: 'running' | 'stopped' },
  workload: 'running' | 'restarting' | 'stopped' | 'exited' | 'failed' | null,
  health: 'none' | 'starting' | 'healthy' | 'unhealthy' | null,
  run: RunView | null,
  silent = false,
): MachineState {
  if (run?.kind === MIGRATE_OUT) return 'moving';
  if (run && !ownsMachine(run)) return 'incoming';
  if (silent) return 'silent';
  switch (workload) {
    case 'running':
      return health === 'starting' ? 'starting' : 'running';
    case 'restarting':
      return 'restarting';
    case 'failed':
      return 'failed';
    case 'exited':
      return record.desired === 'running' ? 'failed' : 'stopped';
    case 'stopped':
      return 'stopped';
    default:
      return record.desired === 'running' ? 'starting' : 'stopped';
  }
}
