import { toWireError } from '../base/errors.ts';
import { PAUSE } from '../base/patience.ts';
import { Rounds } from '../base/rounds.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import { MountProof } from '../host/mount-proof.ts';
import type { RunView } from '../journal/run.ts';
import { MachineManager } from '../machine/manager.ts';
import { MachineStore } from '../machine/store.ts';
import { MIGRATE_IN } from '../migration/migrate-in.ts';
import { isPast } from '../migration/move-watch.ts';
import { openWorkerKey } from '../receipt/worker-key.ts';
import { shimRoomLacks } from '../shim/client.ts';
import { fileSystemOf } from '../sys/file-system.ts';
import { TlsIdentity } from '../sys/tls-identity.ts';
import { diskReserveBytes, VolumeStore } from '../volume/index.ts';
import { Ballast } from './ballast.ts';
import type { TellsConditions } from './condition.ts';
import { DataFolder } from './data-folder.ts';
import { claimDataFolder } from './data-owner.ts';
import { DirtyBound } from './dirty-bound.ts';
import { DiskLook, diskConditions, runtimeConditions } from './disk-look.ts';
import { hostCheck } from './host-check.ts';
import { Imports } from './imports.ts';
import { hostLoad } from './load.ts';
import {
  beginningConditions,
  killedAtMs,
  noRoomConditions,
  readOnlyConditions,
  silentConditions,
  stateConditions,
  stoppingConditions,
  stuckConditions,
} from './machine-conditions.ts';
import { MachineFigures } from './machine-figures.ts';
import { Meters } from './meters.ts';
import { FIGURE_METRICS, PROCESS_METRICS } from './metric-rows.ts';
import { Openings } from './openings.ts';
import { hiddenFolders } from './options.ts';
import type { PartTable } from './part.ts';
import type { Given, HostParts, MoveParts, SurfaceParts, WorkerParts } from './parts.ts';
import { Serving } from './serving.ts';
import { dataLossOf, stateOf } from './views.ts';
import { VolumeAccess } from './volume-access.ts';
import {
  dataLossConditions,
  hydrationConditions,
  retainedConditions,
  servingConditions,
} from './volume-conditions.ts';
import { serverConditions, VolumeServerLooks } from './volume-server-looks.ts';

/** Moves that come to this worker and are not over. */
function incoming({ journal }: WorkerParts): PrepareRequest[] {
  return journal.open({ kind: MIGRATE_IN }).map((run) => run.input as PrepareRequest);
}

const VOLUME_CONDITIONS: TellsConditions<WorkerParts, VolumeStore> = {
  async loss(volumes, about) {
    if (about.kind === 'volume') return dataLossConditions(about.view);
    if (about.kind !== 'machine') return [];
    const own = (await volumes.list()).volumes.filter(({ machineId }) => machineId === about.record.id);
    const volume = about.show.shim?.volume;
    return own.flatMap((record) => {
      // While the disk refuses the file, or it is only just written again, its server knows.
      const told = volume?.spec.volumeId === record.id ? volume.status?.dataLoss : undefined;
      return dataLossConditions({ id: record.id, ...dataLossOf(volumes, record, told) });
    });
  },
  state: (_, about) => (about.kind === 'volume' ? retainedConditions(about.view) : []),
  hydration: (_, about, { clock }) =>
    about.kind === 'volume'
      ? hydrationConditions(about.view.hydration, `volume ${about.record.name}`, clock.wallMs())
      : [],
};

const MACHINE_CONDITIONS: TellsConditions<WorkerParts, MachineManager> = {
  silent: (machines, about) =>
    about.kind === 'machine' ? silentConditions(about.view, machines.runtimeDir(about.record.id)) : [],
  async server(machines, about, { looks }) {
    // Only of one whose shim answers.
    if (about.kind !== 'machine' || about.show.silentForMs !== undefined) return [];
    const { id, name } = about.record;
    const volume = about.show.shim?.volume;
    const client = volume ? await machines.client(id) : null;
    const trouble = client && volume ? await looks.look(id, client, volume.serverPid) : null;
    return serverConditions(trouble, machines.runtimeDir(id), name);
  },
  async room(machines, about, { options }) {
    const shows =
      about.kind === 'machine' ? [about.show] : about.kind === 'worker' ? await machines.list() : [];
    return shows.flatMap(({ record, shim }) =>
      noRoomConditions(record.name, shim?.volume?.status?.noRoom, options.name),
    );
  },
  loss: (machines, about) =>
    about.kind === 'machine' ? readOnlyConditions(about.view, machines.readOnly(about.record.id)) : [],
  async stopping(machines, about, { clock }) {
    if (about.kind !== 'machine') return [];
    const { record, view, runs } = about;
    const endingSinceMs = machines.endingSinceMs(record.id);
    const killedMs = killedAtMs(view, endingSinceMs, runs);
    const isOver = killedMs !== null && clock.wallMs() > killedMs;
    const stuck = isOver ? await machines.stuck(record.id) : null;
    return stuck === null
      ? stoppingConditions(view, record.desired, endingSinceMs)
      : stuckConditions(record.name, killedMs!, stuck);
  },
  beginning: (machines, about) =>
    about.kind === 'machine'
      ? beginningConditions(machines.beginning(about.record.id), about.record.name)
      : [],
  state: (_, about) => (about.kind === 'machine' ? stateConditions(about.view) : []),
  hydration: (_, about, { clock }) =>
    about.kind === 'machine'
      ? hydrationConditions(about.view.hydration, `machine ${about.record.name}`, clock.wallMs())
      : [],
};

/** Of volumes that are served. A server that does not answer says nothing of room. */
const SERVING_CONDITIONS: TellsConditions<WorkerParts, Serving> = {
  async silent(serving, about, { clock }) {
    if (about.kind !== 'volume') return [];
    const { id, name } = about.record;
    const { silentForMs, server } = await serving.trouble(id);
    const runtimeDir = serving.runtimeDir(id);
    return [
      ...servingConditions(silentForMs, runtimeDir, name, clock.wallMs()),
      ...serverConditions(server, runtimeDir, name),
    ];
  },
  async room(serving, about, { volumes, options }) {
    const records =
      about.kind === 'volume'
        ? [about.record]
        : about.kind === 'worker'
          ? (await volumes.list()).volumes
          : [];
    const told = records.map(async ({ id, name }) =>
      noRoomConditions(name, await serving.noRoom(id).catch(() => undefined), options.name),
    );
    return (await Promise.all(told)).flat();
  },
};

export const HOST_PARTS: PartTable<Given & MoveParts & SurfaceParts, HostParts> = {
  // Bad certificate files are found now and not in the middle of a move.
  identity: { needs: [], make: ({ options, logger }) => options.tls && new TlsIdentity(options.tls, logger) },

  folder: {
    needs: ['identity'],
    make: ({ options }) => DataFolder.open(options.dataDir),
    close: (folder) => folder.close(),
  },

  disk: {
    needs: ['folder'],
    make: ({ folder, clock }) => new DiskLook(folder.paths.writeProbe, clock),
    conditions: {
      disk: async (disk, about, { options, folder }) =>
        about.kind === 'run' && about.runs.every(({ endedAtMs }) => endedAtMs !== null)
          ? []
          : [
              ...diskConditions(await disk.look(), options),
              ...runtimeConditions(folder.paths.runtimeRoot, await shimRoomLacks(folder.paths.runtimeRoot)),
            ],
    },
  },

  looks: { needs: [], make: ({ clock }) => new VolumeServerLooks(clock) },

  ballast: {
    needs: ['folder'],
    async make({ folder, options, edges: { allocate }, clock, logger }) {
      const look = () => fileSystemOf(options.dataDir);
      const ballast = new Ballast({ path: folder.paths.ballast, look, allocate, clock, logger });
      // Before anything is written.
      await ballast.start();
      return ballast;
    },
    rest: (ballast) => ballast.close(),
  },

  state: {
    needs: ['ballast', 'folder'],
    make({ folder, options, edges }) {
      const state = edges.database(folder.paths.state);
      state.exec('PRAGMA journal_mode = WAL');
      state.exec('PRAGMA synchronous = FULL');
      claimDataFolder(state, options.name, options.dataDir);
      return state;
    },
    close: (state) => state.close(),
  },

  key: { needs: ['state'], make: ({ folder }) => openWorkerKey(folder.paths.key) },

  volumes: {
    needs: ['state'],
    make: ({ options: { dataDir, headerFileBytes }, edges: { allocate }, clock, random, logger }) =>
      VolumeStore.open(dataDir, { clock, random, logger, headerFileBytes, allocate }),
    conditions: VOLUME_CONDITIONS,
  },

  access: {
    needs: ['volumes', 'folder'],
    make(parts) {
      const { options, volumes, folder } = parts;
      return new VolumeAccess({
        volumes,
        validityDir: folder.paths.validityDir,
        tls: options.tls,
        plane: options.plane,
        keys: options.keys,
        incoming: (volumeId) => {
          const isOf = ({ input }: RunView) => (input as PrepareRequest).volume?.volumeId === volumeId;
          const run = parts.journal.open({ kind: MIGRATE_IN }).find(isOf);
          return run
            ? { request: run.input as PrepareRequest, isBooting: !isPast(run, 'interruption') }
            : null;
        },
        hydrationRateBytesPerSecondMax: options.hydrationRateBytesPerSecondMax,
        whenFull: options.whenFull,
        beforeAttach: async (record) => {
          await parts.openings.refuseKept(record, 'attach');
          await parts.openings.takeAway(record, 'attach');
        },
      });
    },
  },

  machines: {
    needs: ['access', 'folder'],
    async make(parts) {
      const { access, folder, options, edges, clock, random, logger } = parts;
      const machines = await MachineManager.open({
        store: await MachineStore.open(options.dataDir),
        volumes: access,
        runtimeRoot: folder.paths.runtimeRoot,
        host: edges.machineHost({ clock, logger }),
        hidden: hiddenFolders(options),
        beforeProcesses: (device) => parts.dirtyBound.cover(device),
        clock,
        random,
        logger,
      });
      for (const { file, error } of machines.broken)
        logger.error({ file, error: error.toWire() }, 'a record cannot be read');
      return machines;
    },
    close: (machines) => machines.close(),
    conditions: MACHINE_CONDITIONS,
  },

  openings: {
    needs: ['machines'],
    make: (parts) =>
      new Openings({
        machines: parts.machines,
        releaseImport: (volumeId) => parts.imports.release(volumeId),
      }),
  },

  serving: {
    needs: ['machines', 'openings', 'volumes', 'looks'],
    make: ({ machines, openings, volumes, looks, options, random, logger }) =>
      new Serving({
        machines,
        openings,
        volumes,
        keys: options.keys,
        whenFull: options.whenFull,
        tls: options.tls,
        hidden: hiddenFolders(options),
        looks,
        random,
        logger,
      }),
    conditions: SERVING_CONDITIONS,
  },

  imports: {
    needs: ['machines', 'openings', 'volumes', 'access', 'folder'],
    make(parts) {
      const { machines, openings, volumes, access, folder, options, clock, random, logger } = parts;
      return new Imports({
        machines,
        openings,
        volumes,
        access,
        validityDir: folder.paths.validityDir,
        hidden: hiddenFolders(options),
        load: () => parts.load(),
        clock,
        random,
        logger,
        onWhole: (record) =>
          parts.events.emit('volume-imported', record.id, `${record.name} is imported and whole`),
      });
    },
    rest: (imports) => imports.close(),
  },

  load: {
    needs: ['machines', 'volumes', 'imports', 'reservations', 'folder'],
    make(parts) {
      const { machines, volumes, imports, reservations, folder, options, edges } = parts;
      return (forRun) =>
        hostLoad(
          { ...options, validityDir: folder.paths.validityDir },
          machines,
          volumes,
          [...incoming(parts), ...reservations.held(forRun)],
          imports.arriving(),
          parts.drain.desired,
          edges,
        );
    },
  },

  check: {
    needs: ['machines', 'folder'],
    make: ({ machines, folder, clock, logger }) =>
      hostCheck({
        machines,
        proof: new MountProof({ dir: folder.paths.mountProofs, clock }),
        shimRoomLacks: () => shimRoomLacks(folder.paths.runtimeRoot),
        logger,
      }),
  },

  dirtyBound: {
    needs: ['machines'],
    make: ({ machines, options, clock, logger }) =>
      new DirtyBound({
        look: () => fileSystemOf(options.dataDir),
        devices: async () =>
          (await machines.list()).flatMap(
            ({ shim }) => (shim?.volume?.mounted && shim.volume.loopDevice) || [],
          ),
        clock,
        logger,
      }),
    rest: (dirtyBound) => dirtyBound.close(),
  },

  meters: { needs: [], make: ({ clock }) => new Meters(clock), metrics: PROCESS_METRICS },

  figures: {
    needs: ['machines', 'folder'],
    make(parts) {
      const { machines, options, clock } = parts;
      return new MachineFigures({
        look: () => machines.list(),
        stateOf: (show) =>
          stateOf(show, parts.journal.open({ resource: `machine:${show.record.id}` })[0] ?? null),
        disk: async () => {
          const { totalBytes, availableBytes } = await fileSystemOf(options.dataDir);
          return { totalBytes, availableBytes, reserveBytes: diskReserveBytes(totalBytes) };
        },
        clock,
      });
    },
    metrics: FIGURE_METRICS,
  },

  sweep: {
    needs: ['volumes'],
    make({ volumes, options, clock, logger }) {
      const sweep = () =>
        volumes
          .sweepRetained(options.retainMs)
          .then(() => {})
          .catch((error: unknown) => logger.error({ error: toWireError(error) }, 'sweep failed'));
      return new Rounds(clock, PAUSE.sweep.ms, sweep);
    },
    start: (sweep) => sweep.startLater(),
    rest: (sweep) => sweep.close(),
  },
};
