import type { WireError } from '../base/errors.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import type { VolumeOperation } from '../opening/operations.ts';
import type { ShownSpec } from '../opening/role.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import type { VolumeServerStatus } from '../opening/status.ts';
import type { Entrance } from './exec-session.ts';

/**
 * What a worker says to a shim over its unix socket (`<runtimeDir>/shim.sock`, line-JSON, base/line-rpc.ts).
 * A shim is started detached (`setsid`) as `node machine/shim.ts <runtimeDir>`, and outlives the worker.
 * Any number of connections; every one gets the events. Every operation is idempotent: asking for what is
 * already so answers at once.
 */
export type ShimOps = {
  status: { args: Record<string, never>; result: ShimStatus };

  /**
   * FUSE mount, volume server, loop device (role `attach`), or just the volume server (role `export`; a guest
   * that comes through NBD).
   */
  'volume.open': {
    args: { spec: OpeningSpec };
    result: { loopDevice: string | null; exportPort: number | null };
  };
  /** Passed on to the open volume. `ShimClient.volume` has the types. */
  'volume.command': {
    args: { op: VolumeOperation; args: unknown; timeoutMs?: number | undefined };
    result: unknown;
  };
  /**
   * Loop detached, FUSE unmounted, volume server ended; in this order, each with a timeout. The filesystem
   * must be unmounted.
   */
  'volume.close': { args: Record<string, never>; result: Record<string, never> };

  /** Mounts the loop device at `<runtimeDir>/fs`. */
  'fs.mount': { args: { filesystem: 'ext4' | 'xfs' }; result: Record<string, never> };
  /** syncfs: writes dirty pages early, so that the unmount after the stop has little to do. */
  'fs.sync': { args: Record<string, never>; result: Record<string, never> };
  'fs.unmount': { args: Record<string, never>; result: Record<string, never> };

  /**
   * Makes the machine's jail, all but the volume in it, so that a `workload.start` of the same configuration
   * only has to execute the command. Nothing runs yet, and `status` shows nothing of it. Answers at once when
   * the machine runs.
   */
  'workload.prepare': {
    args: { machineId: string; name: string; config: MachineConfig };
    result: Record<string, never>;
  };
  'workload.start': {
    args: { machineId: string; name: string; config: MachineConfig };
    result: { startedAtMs: number };
  };
  /** Signal, wait, then SIGKILL for the whole machine (cgroup). Resolves when no process of it is left. */
  'workload.stop': {
    args: { signal?: string; timeoutMs?: number };
    result: { exitCode: number | null; signal: string | null; killed: boolean; durationMs: number };
  };
  'workload.exec': {
    args: { command: string[]; timeoutMs: number };
    /** Output is cut at 1 MiB each. */
    result: { exitCode: number | null; stdout: string; stderr: string; timedOut: boolean };
  };
  /** How a command gets into the machine, for who wants to start it and have its input and output in hand. */
  'workload.enter': {
    args: { command: string[]; terminal: { term: string } | null };
    result: Entrance;
  };
  /**
   * Resolves when the machine is healthy (at once without a health check, when it runs), rejects
   * `MACHINE_NOT_HEALTHY` at the deadline.
   */
  'workload.awaitHealthy': { args: { timeoutMs: number }; result: { healthyAtMs: number } };

  /**
   * Stops the workload if one runs, unmounts, closes the volume, removes cgroups and ends the process. An
   * unmount may wait for a source that does not answer; with `giveUpSource` it waits no longer than some
   * seconds for that. May be asked again with it while the first is under way.
   */
  shutdown: { args: { giveUpSource?: boolean }; result: Record<string, never> };
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
  /** Folder with nothing in it but the NBD socket of the volume; the machine sees it as /run/godwit. */
  nbd: 'nbd',
  nbdSocket: 'disk.sock',
} as const;
