import type { WireError } from '../base/errors.ts';
import { type LineAnswers, type LineArgs, type LineReply, row } from '../base/line-conversation.ts';
import {
  anyObject,
  anything,
  duration,
  flag,
  list,
  nullable,
  object,
  oneOf,
  ownName,
  type Shape,
  text,
} from '../base/shape.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import type { VolumeOperation } from '../opening/operations.ts';
import type { ShownSpec } from '../opening/role.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import type { VolumeServerStatus } from '../opening/status.ts';
import type { Entrance } from './exec-session.ts';

type Nothing = Record<string, never>;
const nothing = anyObject<Nothing>();
const patience = 'alive';

/** What names something here; the volume server reads the rest (opening/read-spec.ts). */
const names = object(
  { volumeId: ownName },
  { encryption: nullable(object({}, { keyVolumeId: nullable(ownName) })) },
);
const spec: Shape<OpeningSpec> = {
  check: (value, at) => (names as Shape<unknown>).check(value, at),
  fields: [],
};

/** contract/machine-config.ts reads the configuration. */
const subject = object({ machineId: ownName, name: text, config: anyObject<MachineConfig>() });
const ARGUMENTS_MAX = 2 ** 16;
const command = list(text, ARGUMENTS_MAX);
const START = [
  'MACHINE_START_FAILED',
  'MACHINE_BAD_RUN',
  'MACHINE_UNKNOWN_USER',
  'MACHINE_BAD_MOUNT_PATH',
  'MACHINE_BAD_HOST_FOLDER',
  'MACHINE_BAD_DEVICE',
  'MACHINE_BAD_ENVIRONMENT',
];

/**
 * What a worker says to a shim over its unix socket (`<runtimeDir>/shim.sock`, mode 0600, base/line-rpc.ts).
 * A shim is started detached (`setsid`) as `node machine/shim.ts <runtimeDir>`, and outlives the worker. Any
 * number of connections; every one gets the events `workload` (its status) and `volume` {event, data}. Every
 * operation is idempotent: asking for what is already so answers at once.
 */
export const SHIM = {
  status: row({
    summary: 'How it is',
    args: nothing,
    patience: 'measured',
    whileEnding: true,
  })<ShimStatus>(),

  'volume.open': row({
    summary:
      'FUSE mount, volume server and loop device; for an export, and a guest that comes through NBD, the volume server only',
    args: object({ spec }),
    errors: ['MACHINE_VOLUME_OPEN'],
    patience,
  })<{ loopDevice: string | null; exportPort: number | null }>(),
  /** `ShimClient.volume` has the types. */
  'volume.command': row({
    summary: 'Passed on to the open volume',
    args: object({ op: text as Shape<VolumeOperation> }, { args: anything, timeoutMs: duration }),
    errors: ['MACHINE_NO_VOLUME', 'VOLUME_UNKNOWN_OP', 'VOLUME_BAD_SPEC'],
    patience,
  })<unknown>(),
  'volume.close': row({
    summary: 'Loop device detached, FUSE unmounted, volume server ended, in this order, each with a timeout',
    args: nothing,
    errors: ['MACHINE_FS_MOUNTED'],
    patience,
  })<Nothing>(),

  'fs.mount': row({
    summary: 'Mounts the loop device at `fs` of the runtime folder',
    args: object({ filesystem: oneOf('ext4', 'xfs') }),
    errors: ['MACHINE_NO_VOLUME', 'MACHINE_MOUNT_FAILED'],
    patience,
  })<Nothing>(),
  'fs.sync': row({
    summary: 'Writes dirty pages early, so that the unmount after the stop has little to do',
    args: nothing,
    errors: ['MACHINE_SYNC_FAILED'],
    patience,
  })<Nothing>(),
  'fs.unmount': row({
    summary: 'Resolves when the kernel has written everything and let go of the device',
    args: nothing,
    errors: ['MACHINE_UNMOUNT_FAILED', 'MACHINE_DEVICE_HELD'],
    patience,
  })<Nothing>(),

  /** Nothing runs yet, and `status` shows nothing of it. Answers at once when the machine runs. */
  'workload.prepare': row({
    summary: 'Makes all that a start of the same configuration needs, but for the volume',
    args: subject,
    errors: START,
    patience,
  })<Nothing>(),
  'workload.start': row({
    summary: 'Starts the machine',
    args: subject,
    errors: [...START, 'MACHINE_FS_NOT_MOUNTED', 'MACHINE_NO_VOLUME', 'MACHINE_SHIM_BUSY'],
    patience,
  })<{ startedAtMs: number }>(),
  'workload.stop': row({
    summary: 'Signal, wait, then SIGKILL for the whole machine; answers when no process of it is left',
    args: object({}, { signal: text, timeoutMs: duration }),
    errors: ['MACHINE_BAD_SIGNAL', 'MACHINE_KILL_STUCK'],
    patience,
  })<{ exitCode: number | null; signal: string | null; killed: boolean; durationMs: number }>(),
  'workload.exec': row({
    summary: 'Runs a command inside; its output is cut at 1 MiB for each stream',
    args: object({ command, timeoutMs: duration }),
    errors: ['MACHINE_NOT_RUNNING'],
    patience,
  })<{ exitCode: number | null; stdout: string; stderr: string; timedOut: boolean }>(),
  'workload.enter': row({
    summary: 'How a command gets into the machine, for who starts it and has its input and output in hand',
    args: object({ command, terminal: nullable(object({ term: text })) }),
    errors: ['MACHINE_NOT_RUNNING'],
    patience,
  })<Entrance>(),
  'workload.awaitHealthy': row({
    summary: 'Answers when the machine is healthy; at once when it runs and has no check',
    args: object({ timeoutMs: duration }),
    errors: ['MACHINE_NOT_HEALTHY'],
    patience,
  })<{ healthyAtMs: number }>(),

  /**
   * An unmount may wait for a source that does not answer; with `giveUpSource` it waits no longer than some
   * seconds for that. May be asked again with it while the first is under way.
   */
  shutdown: row({
    summary: 'Stops the machine, unmounts, closes the volume, removes control groups, and ends the process',
    args: object({}, { giveUpSource: flag }),
    patience,
    whileEnding: true,
  })<Nothing>(),
};
export type Shim = typeof SHIM;
export type ShimAnswers = LineAnswers<Shim>;
export type ShimOps = {
  [Op in keyof Shim]: { args: LineArgs<Shim[Op]>; result: LineReply<Shim[Op]> };
};

export type ShimStatus = {
  shimPid: number;
  /** Of the shim's start; with the pid it tells a shim from a reused pid. */
  startedAtMs: number;
  volume: {
    spec: ShownSpec;
    serverPid: number | null;
    /** Times that the volume server died and was started again. */
    serverRestarts: number;
    loopDevice: string | null;
    mounted: boolean;
    /** Last status that the server gave, null before the first. */
    status: VolumeServerStatus | null;
    lastError: WireError | null;
  } | null;
  workload: {
    machineId: string;
    state: 'running' | 'restarting' | 'stopped' | 'exited' | 'failed';
    pid: number | null;
    startedAtMs: number | null;
    exitedAtMs: number | null;
    exitCode: number | null;
    exitSignal: string | null;
    /** Restarts by the restart policy since the last `workload.start`. */
    restarts: number;
    health: { state: 'none' | 'starting' | 'healthy' | 'unhealthy'; sinceMs: number; message: string };
    memoryBytes: number | null;
    outOfMemoryKills: number;
  } | null;
};

/**
 * Exit code of a shim that found another one on its runtime folder; that one is running or just coming up.
 */
export const SHIM_EXIT_TAKEN = 3;

/** Files of a shim's runtime folder. The path of the socket must stay under 108 bytes (sun_path). */
export const SHIM_FILES = {
  socket: 'shim.sock',
  /**
   * What the shim holds on this host (pids, loop device, mounts, cgroups), for cleaning up after a dead shim.
   */
  state: 'shim.json',
  log: 'shim.log',
  /** Output of the workload; rotated at 8 MiB, one old file is kept (`machine.log.1`). */
  workloadLog: 'machine.log',
  filesystem: 'fs',
  fuse: 'fuse',
  serverLog: 'volume-server.log',
  /** Folder with nothing in it but the NBD socket of the volume; the machine sees it as /run/godwit. */
  nbd: 'nbd',
  nbdSocket: 'disk.sock',
} as const;
