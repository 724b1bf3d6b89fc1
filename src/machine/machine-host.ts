import { mkdirSync, realpathSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import type { GodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE } from '../base/patience.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import { runOf } from '../contract/machine-run.ts';
import { Cgroup, checkLimits, planCgroup, readCgroupLayout } from '../host/cgroup.ts';
import {
  findOccupants,
  findStuck,
  frozenError,
  heldError,
  isFrozen,
  readOnlyError,
} from '../host/mount-occupants.ts';
import { isReadOnly, mountAt } from '../host/mount-table.ts';
import { isAlive } from '../host/process-identity.ts';
import { cgroupName } from '../shim/cgroup-name.ts';
import { cleanUpAfterDeadShim } from '../shim/cleanup.ts';
import {
  type Dial,
  dialShim,
  findShim,
  type ShimClient,
  type ShimPresence,
  type StartShimOptions,
  startShim,
} from '../shim/client.ts';
import { filesystemAt } from '../shim/filesystem.ts';
import { SHIM_FILES } from '../shim/protocol.ts';
import type { Runtimes } from '../shim/runtime.ts';
import { readShimState } from '../shim/state.ts';
import { nbdSocketPath } from './nbd-socket.ts';

/** Who holds a filesystem holds it that often, with that pause, before it counts. */
const OCCUPANT_LOOKS = 4;
const OCCUPANT_PAUSE_MS = 500;

/**
 * All that the machines of a worker are made of on their host: processes, sockets, mounts, folders. The
 * manager decides; this does. `folder` is the runtime folder of one shim.
 */
export interface MachineHost {
  /** What can run there. */
  readonly runtimes: Runtimes;
  /** Makes the folder of all runtime folders; answers it without symbolic links. */
  openRoot(path: string): string;
  /** Names of the folders in it. */
  list(root: string): Promise<string[]>;
  remove(folder: string): Promise<void>;
  /** Everything that this host can refuse before a start. Throws as `MachineManager.checkHostCanRun`. */
  check(folder: string, machineId: string, config: MachineConfig): void;
  readonly dial: Dial;
  start(options: StartShimOptions): Promise<ShimClient>;
  find(folder: string): Promise<ShimPresence>;
  /** The process of the shim by what it wrote down at its start; null: nothing is written there. */
  process(folder: string): ShimProcess | null;
  /** Ends what a dead shim has left. Rejects as `cleanUpAfterDeadShim`. */
  cleanUp(folder: string): Promise<void>;
  /** SIGKILL for all processes of the machine. Rejects `MACHINE_KILL_STUCK`. */
  kill(folder: string): Promise<void>;
  /** As `MachineManager.obstacle`. */
  obstacle(folder: string, options: { frozen: boolean }): Promise<GodwitError | null>;
  /** As `MachineManager.readOnly`. */
  readOnly(folder: string): GodwitError | null;
  /** As `MachineManager.stuck`. */
  stuck(folder: string): Promise<GodwitError | null>;
}

/** The folder is named after its machine. */
function readOnlyAt(folder: string): GodwitError | null {
  const place = join(folder, SHIM_FILES.filesystem);
  const entry = filesystemAt(place);
  return entry !== undefined && isReadOnly(entry) ? readOnlyError(place, basename(folder)) : null;
}

export type ShimProcess = { isAlive(): boolean; kill(): void };

/** This host. */
export function localMachineHost(options: { clock: Clock; logger: Logger; runtimes: Runtimes }): MachineHost {
  const { clock, logger, runtimes } = options;
  const cgroupOf = (folder: string) => new Cgroup(cgroupName(folder), { layout: readCgroupLayout(), clock });
  return {
    runtimes,
    openRoot(path) {
      mkdirSync(path, { recursive: true, mode: 0o700 });
      return realpathSync(path);
    },
    list: (root) => readdir(root),
    remove: (folder) => rm(folder, { recursive: true, force: true }),
    check(folder, machineId, config) {
      runtimes[runOf(config).kind].preflight(config);
      checkLimits(planCgroup(readCgroupLayout(), machineId, config.resources));
      if (config.volume?.nbd === true) nbdSocketPath(folder);
    },
    dial: dialShim,
    start: startShim,
    find: findShim,
    process(folder) {
      const shim = readShimState(folder)?.shim;
      if (shim === undefined) return null;
      return { isAlive: () => isAlive(shim), kill: () => void process.kill(shim.pid, 'SIGKILL') };
    },
    cleanUp: (folder) => cleanUpAfterDeadShim(folder, clock, logger),
    kill: (folder) => cgroupOf(folder).killAll(PATIENCE.kill.ms),
    async obstacle(folder, { frozen }) {
      const place = join(folder, SHIM_FILES.filesystem);
      if (mountAt(place) === undefined) return null;
      const state = readShimState(folder);
      const own = new Set([...cgroupOf(folder).processes(), process.pid]);
      for (const identity of [state?.shim, state?.volumeServer, state?.machineInit])
        if (identity) own.add(identity.pid);
      let occupants = await findOccupants(place, own);
      // A jail that is just being made has a copy of every mount of the host for a moment.
      for (let look = 0; look < OCCUPANT_LOOKS && occupants.length > 0; look++) {
        await clock.sleep(OCCUPANT_PAUSE_MS);
        const before = new Set(occupants.map(({ pid }) => pid));
        occupants = (await findOccupants(place, own)).filter(({ pid }) => before.has(pid));
      }
      const held = heldError(place, occupants);
      if (held !== null || !frozen) return held;
      return readOnlyAt(folder) ?? ((await isFrozen(place, clock)) ? frozenError(place) : null);
    },
    readOnly: readOnlyAt,
    stuck: (folder) => findStuck(cgroupOf(folder).processes(), join(folder, SHIM_FILES.filesystem)),
  };
}
