import { join } from 'node:path';
import { ulid } from 'ulid';
import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE } from '../base/patience.ts';
import type { Random } from '../base/random.ts';
import { SerialByKey } from '../base/serial.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import { runOf, writtenConfig } from '../contract/machine-run.ts';
import type { AttachSpec, Leaving } from '../opening/spec.ts';
import { ShimClient } from '../shim/client.ts';
import type { ExecSession } from '../shim/exec-session.ts';
import { type LogReadOptions, readLog } from '../shim/log-file.ts';
import { type ShimLook, ShimLooks } from '../shim/looks.ts';
import { SHIM_FILES, type ShimOps, type ShimStatus } from '../shim/protocol.ts';
import type { Runtime, SessionOptions } from '../shim/runtime.ts';
import { ownPath } from '../sys/named-path.ts';
import type { MachineHost, ShimProcess } from './machine-host.ts';
import { withNbdSocket } from './nbd-socket.ts';
import { checkStopSignal, isSignal } from './signals.ts';
import type { MachineRecord, MachineStore } from './store.ts';

/** What a shim may take for a stop beyond the machine's own time. One that takes longer hangs. */
export const STOP_SLACK_MS = PATIENCE.stopSlack.ms;
/** Shims of one folder that are ended one after the other, as they come up. */
const SHUTDOWNS_MAX = 3;
/** After the time of a stop: its shim has killed by then. */
const KILLED_BY_MS = 500;

/** What machines need of the volumes of their worker. */
export interface VolumeProvider {
  /**
   * How to open the volume for writing, at its present generation. Rejects when it is sealed, incoming, or
   * another machine's.
   */
  attachSpec(volumeId: string, machineId: string): Promise<AttachSpec>;
  filesystem(volumeId: string): Promise<'ext4' | 'xfs' | 'none'>;
  /** Gives the volume to the machine, or takes it back (null). Rejects when it is another machine's. */
  assignMachine(volumeId: string, machineId: string | null): Promise<unknown>;
}

export type MachineManagerOptions = {
  store: MachineStore;
  volumes: VolumeProvider;
  host: MachineHost;
  /**
   * Runtime folders of the shims, one a machine; on a filesystem that a reboot empties
   * (`/run/godwit/<worker>`).
   */
  runtimeRoot: string;
  /** Folders of the fleet on this host that no machine may see. */
  hidden: readonly string[];
  /**
   * Its filesystem is mounted, on the block device that `device` asks for, and its processes do not run yet.
   */
  beforeProcesses?: (device: () => Promise<string | null>) => Promise<void>;
  clock: Clock;
  random: Random;
  logger: Logger;
};

export type MachineShow = {
  record: MachineRecord;
  /** Null: no shim runs, so the machine is stopped and its volume is not attached. */
  shim: ShimStatus | null;
  /**
   * The shim is there and does not answer, for so long: `shim` is what it said last. Left out: it answers, or
   * there is none.
   */
  silentForMs?: number;
};

/**
 * A machine that is being started. `sinceMs`: wall clock; `doing`: what is under way, as the end of a
 * sentence that begins with "it".
 */
export type Beginning = { sinceMs: number; doing: string };

/** What `recover` found and did with one machine. */
export type Recovery = {
  machineId: string;
  outcome: 'found' | 'restarted' | 'left' | 'failed';
  error: GodwitError | null;
};

/**
 * The machines of one worker. The records on disk say what should be, the shims what is; nothing else is
 * remembered, so that a worker may be killed and started again at any moment. Operations on one machine run
 * one after the other.
 */
export class MachineManager {
  readonly #options: MachineManagerOptions;
  readonly #runtimeRoot: string;
  readonly #records = new Map<string, MachineRecord>();
  readonly #broken: { file: string; error: GodwitError }[] = [];
  readonly #clients = new Map<string, ShimClient>();
  readonly #looks: ShimLooks;
  readonly #queues = new SerialByKey();
  /** Of records: a write is of what the one before has left. */
  readonly #writes = new SerialByKey();
  /** Of runtime folders: who cleans up after a dead shim must not meet the one that another has started. */
  readonly #folders = new SerialByKey();
  readonly #beginnings = new Map<string, Beginning>();
  /** Wall clock. */
  readonly #endings = new Map<string, number>();
  #closed = false;
  readonly #listeners = new Set<(machineId: string, event: string, data: unknown) => void>();

  private constructor(options: MachineManagerOptions) {
    this.#options = options;
    this.#looks = new ShimLooks(options.clock);
    this.#runtimeRoot = options.host.openRoot(options.runtimeRoot);
  }

  /** Loads the records; starts nothing. Corrupt ones are in `broken`, the others work. */
  static async open(options: MachineManagerOptions): Promise<MachineManager> {
    const manager = new MachineManager(options);
    const { machines, broken } = await options.store.load();
    for (const record of machines) manager.#records.set(record.id, record);
    manager.#broken.push(...broken);
    return manager;
  }

  get broken(): readonly { file: string; error: GodwitError }[] {
    return this.#broken;
  }

  /** Of all shims that have a folder here, of machines and of others. */
  shimIds(): Promise<string[]> {
    return this.#options.host.list(this.#runtimeRoot);
  }

  /** Folder of a machine's shim; the move starts and drives shims there itself. */
  runtimeDir(machineId: string): string {
    return ownPath(this.#runtimeRoot, machineId);
  }

  /** The shim must be gone. */
  removeRuntime(shimId: string): Promise<void> {
    return this.#options.host.remove(this.runtimeDir(shimId));
  }

  /** Events of all shims that this worker is connected to. The returned function ends it. */
  onEvent(listener: (machineId: string, event: string, data: unknown) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * A new machine, stopped. Rejects `MACHINE_NAME_TAKEN`, `MACHINE_BAD_SIGNAL`, with what `checkHostCanRun`
   * rejects, `MACHINE_VOLUME_WITHOUT_FILESYSTEM`, and what the volume room says of the volume.
   */
  async create(request: { name: string; config: MachineConfig }): Promise<MachineRecord> {
    const { clock, random, volumes, store } = this.#options;
    const { name } = request;
    const config = writtenConfig(request.config);
    return this.#queues.run(`name:${name}`, async () => {
      this.#refuseTakenName(name);
      const id = `m_${ulid(clock.wallMs(), () => random.below(2 ** 32) / 2 ** 32).toLowerCase()}`;
      checkStopSignal(config.stop.signal);
      this.checkHostCanRun(id, config);
      if (config.volume?.mountPath !== undefined) await this.#filesystemOf(config.volume.volumeId);
      const record: MachineRecord = {
        formatVersion: 1,
        id,
        name,
        config,
        desired: 'stopped',
        createdAtMs: clock.wallMs(),
        claimedBy: null,
      };
      if (config.volume !== undefined) await volumes.assignMachine(config.volume.volumeId, record.id);
      try {
        await store.write(record);
      } catch (error) {
        if (config.volume !== undefined) await volumes.assignMachine(config.volume.volumeId, null);
        throw error;
      }
      this.#records.set(record.id, record);
      return record;
    });
  }

  /**
   * Everything that this host can refuse before a start. Rejects with what `Runtime.preflight` throws,
   * `MACHINE_PATH_TOO_LONG`, `MACHINE_CGROUP_MISSING`.
   */
  checkHostCanRun(machineId: string, config: MachineConfig): void {
    this.#options.host.check(this.runtimeDir(machineId), machineId, config);
  }

  /** What a machine would run and this host does not have; null: it has it, or nobody can know. */
  missing(config: MachineConfig): string | null {
    return this.#runtimeOf(config).missing(config);
  }

  /** The spec with the socket that a machine of this worker asked for. Rejects as `withNbdSocket` does. */
  withSocket(spec: AttachSpec, machineId: string, config: MachineConfig): AttachSpec {
    const owner = () => this.#runtimeOf(config).account(config);
    return withNbdSocket(spec, config, this.runtimeDir(machineId), owner);
  }

  #runtimeOf(config: MachineConfig): Runtime {
    return this.#options.host.runtimes[runOf(config).kind];
  }

  /**
   * Takes a machine in that came by a move (its id, name and configuration are given). Idempotent; replaces
   * the record of the same id.
   */
  async adopt(record: MachineRecord): Promise<void> {
    await this.#queues.run(record.id, async () => {
      this.#refuseTakenName(record.name, record.id);
      await this.#writes.run(record.id, () => this.#write(record));
    });
  }

  /** Drops the record of a machine that has moved away; its shim must be gone. Idempotent. */
  async forget(machineId: string): Promise<void> {
    await this.#queues.run(machineId, async () => {
      await this.#remove(machineId);
      await this.removeRuntime(machineId);
    });
  }

  /** Changes what is kept of a machine (desired, claimedBy). Rejects `MACHINE_NOT_FOUND`. */
  async update(
    machineId: string,
    change: Partial<Pick<MachineRecord, 'desired' | 'claimedBy'>>,
  ): Promise<MachineRecord> {
    return this.#queues.run(machineId, async () => {
      const before = this.get(machineId);
      const record = await this.#change(machineId, change);
      // A run that has let it go had perhaps opened what is kept back of the disk: it stays, and writes on.
      if (before.claimedBy !== null && record.claimedBy === null && record.desired === 'running')
        void this.openReserve(machineId, 'no');
      return record;
    });
  }

  /**
   * For the move that has the machine: starts its processes, unless it is not wanted any more. In turn with
   * its owner, who may stop it meanwhile: a stop that comes between would find nothing to stop. Rejects
   * `MACHINE_NOT_FOUND`, and as the shim does.
   */
  async startWorkload(machineId: string, client: ShimClient): Promise<void> {
    await this.#queues.run(machineId, async () => {
      const { name, config, desired } = this.get(machineId);
      if (desired === 'running') await client.call('workload.start', { machineId, name, config });
    });
  }

  /**
   * Since when it is being stopped, on the wall clock; null: it is not, or by a move. Until then, or its
   * own time is over, nothing else of it begins.
   */
  endingSinceMs(machineId: string): number | null {
    return this.#endings.get(machineId) ?? null;
  }

  /** Null: it is not being started now. */
  beginning(machineId: string): Beginning | null {
    return this.#beginnings.get(machineId) ?? null;
  }

  /** By id or name. Rejects `MACHINE_NOT_FOUND`. */
  get(ref: string): MachineRecord {
    const record = this.#records.get(ref) ?? [...this.#records.values()].find(({ name }) => name === ref);
    if (record !== undefined) return record;
    throw new GodwitError('MACHINE_NOT_FOUND', `there is no machine ${ref} on this worker`, {
      values: { machine: ref },
      nextAction: 'List the machines with godwit machine list; it may have moved to another worker.',
    });
  }

  /** Records, oldest first. */
  records(): MachineRecord[] {
    return [...this.#records.values()];
  }

  /** All of them, side by side; of one whose shim hangs what was last known. */
  async list(): Promise<MachineShow[]> {
    return Promise.all(this.records().map((record) => this.look(record.id)));
  }

  /** As in a list: does not wait for a shim that hangs. Rejects `MACHINE_NOT_FOUND`. */
  async look(ref: string): Promise<MachineShow> {
    const record = this.get(ref);
    const { status, silentForMs } = await this.shimLook(record.id);
    return { record, shim: status, ...(silentForMs !== null && { silentForMs }) };
  }

  /** Of any shim: a machine's, an import's, an export's. */
  async shimLook(shimId: string): Promise<ShimLook> {
    return this.#looks.look(shimId, await this.client(shimId));
  }

  /** What its shim says now. Rejects `RPC_TIMEOUT` for one that hangs. */
  async show(ref: string): Promise<MachineShow> {
    return this.#show(this.get(ref));
  }

  /**
   * Wants it running, and starts it: shim, volume, filesystem, workload. Answers at once when it runs. Does
   * not wait for its health.
   */
  async start(ref: string): Promise<void> {
    const { id } = this.get(ref);
    await this.#queues.run(id, async () => {
      this.#refuseClaimed(id);
      const before = this.get(id);
      await this.#change(id, { desired: 'running' });
      try {
        await this.#bringUp(this.get(id));
      } catch (error) {
        // Who asked is told. What did not run before is not wanted because of that.
        await this.#change(id, { desired: before.desired });
        throw error;
      }
    });
  }

  /**
   * Wants it stopped, and ends the workload. Its volume stays attached, so that the next start is quick.
   * `moving`: also one that a move has, which goes on without it.
   */
  async stop(
    ref: string,
    how: { signal?: string; timeoutMs?: number } = {},
    options: { moving?: boolean } = {},
  ): Promise<void> {
    const { id } = this.get(ref);
    await this.#queues.run(id, async () => {
      if (options.moving !== true) this.#refuseClaimed(id);
      await this.#change(id, { desired: 'stopped' });
      await this.#stopSaying(id, how);
    });
  }

  /** For its owner, or to start it again: who asks is told that it is under way. */
  async #stopSaying(machineId: string, how: { signal?: string; timeoutMs?: number } = {}): Promise<void> {
    this.#endings.set(machineId, this.#options.clock.wallMs());
    try {
      await this.stopWorkload(machineId, how);
    } finally {
      this.#endings.delete(machineId);
    }
  }

  /**
   * Ends the workload: its signal, its time, then SIGKILL. Resolves when no process of it is left, also where
   * its shim has died (all that it left is cleaned up then) or hangs (it is ended, at the end of that time).
   * For the move that has the machine; others call `stop`.
   */
  async stopWorkload(machineId: string, how: { signal?: string; timeoutMs?: number } = {}): Promise<void> {
    const { stop } = this.get(machineId).config;
    const client = await this.client(machineId);
    // Its processes may run on without it, with the volume in their hands.
    if (client === null) return this.shutdownShim(machineId);
    // What is in its page cache must reach the volume before that can be unmounted.
    void this.openReserve(machineId, 'running');
    const timeoutMs = how.timeoutMs ?? stop.timeoutMs;
    // A shim of an earlier version refuses a configuration whose signal does not exist.
    const signal = how.signal ?? (isSignal(stop.signal) ? undefined : 'SIGTERM');
    const args = signal === undefined ? how : { ...how, signal, timeoutMs };
    // Who was killed writes no more, but may wait in its filesystem for the room that lets it end.
    const cancel = this.#options.clock.timer(timeoutMs + KILLED_BY_MS, () => {
      void this.openReserve(machineId, 'stopped');
    });
    try {
      await client.call('workload.stop', args, timeoutMs + STOP_SLACK_MS);
      // What is opened now is for what was in its page cache.
      void this.openReserve(machineId, 'stopped');
    } catch (error) {
      // One that is shutting down stops its machine by itself, and is joined.
      if (
        ['RPC_CLOSED', 'MACHINE_SHIM_GONE', 'MACHINE_SHIM_ENDING'].some((code) => isGodwitError(error, code))
      )
        return this.shutdownShim(machineId);
      if (!isGodwitError(error, 'RPC_TIMEOUT')) throw error;
      this.#options.logger.error({ machineId }, 'the shim does not answer: it is ended, and its machine');
      await this.kill(machineId);
      await this.#endHungShim(machineId);
    } finally {
      cancel();
    }
  }

  /**
   * Opens what is kept back of the disk for a machine that leaves, or closes it again. Where nobody answers,
   * nobody holds its writes back for that either: a volume server of an earlier version, of the kernel plane,
   * or one that hangs, which the stop finds out.
   */
  async openReserve(machineId: string, leaving: Leaving): Promise<void> {
    const args = { leaving: leaving !== 'no', stopped: leaving === 'stopped' };
    await this.client(machineId)
      .then((client) => client?.volume('room', args, { timeoutMs: PATIENCE.openReserve.ms }))
      .catch(() => {});
  }

  /**
   * What would keep the machine's filesystem from being unmounted, named; null: nothing that can be seen.
   * `frozen`: it is looked for that too, by a write, which a frozen filesystem does not answer, and for one
   * that has become read-only.
   */
  obstacle(machineId: string, options: { frozen: boolean }): Promise<GodwitError | null> {
    return this.#options.host.obstacle(this.runtimeDir(machineId), options);
  }

  /** That the machine's filesystem takes no write any more; null: it does, or none is mounted. */
  readOnly(machineId: string): GodwitError | null {
    return this.#options.host.readOnly(this.runtimeDir(machineId));
  }

  /** What its processes, which were killed, wait for; null: none of them waits in the kernel. */
  stuck(machineId: string): Promise<GodwitError | null> {
    return this.#options.host.stuck(this.runtimeDir(machineId));
  }

  /**
   * SIGKILL for all processes of the machine, past its queue and its shim: a stop that waits for them goes on
   * at once. Rejects `MACHINE_KILL_STUCK`.
   */
  async kill(machineId: string): Promise<void> {
    const killing = this.#options.host.kill(this.runtimeDir(machineId));
    if (this.get(machineId).config.volume !== undefined) void this.openReserve(machineId, 'stopped');
    await killing;
  }

  /**
   * Stops it and starts it again. It is wanted all the while, so that a worker that ends in between, or a
   * start that fails, does not leave it down for good. `onStopped`: when no process of it is left.
   */
  async restart(ref: string, onStopped: () => void = () => {}): Promise<void> {
    const { id } = this.get(ref);
    await this.#queues.run(id, async () => {
      this.#refuseClaimed(id);
      await this.#change(id, { desired: 'running' });
      await this.#stopSaying(id);
      onStopped();
      await this.#bringUp(this.get(id));
    });
  }

  /**
   * Stops it and gives back all that it holds on this host: mount, loop device, processes. The record and the
   * volume's data stay. `moving`: also of one that a move has, which opens its volume again.
   */
  async release(ref: string, options: { moving?: boolean } = {}): Promise<void> {
    const { id } = this.get(ref);
    await this.#queues.run(id, async () => {
      if (options.moving !== true) this.#refuseClaimed(id);
      await this.#change(id, { desired: 'stopped' });
      await this.shutdownShim(id);
    });
  }

  /**
   * Removes the machine; its volume stays and is free for another. Rejects `MACHINE_RUNNING` for one that
   * runs, without `force`. With it the machine also goes when its volume waits for a source that does not
   * answer, and is killed at once, also where a stop gives it its time just now.
   */
  async destroy(ref: string, options: { force?: boolean } = {}): Promise<void> {
    const record = this.get(ref);
    if (options.force === true) {
      this.#refuseClaimed(record.id);
      await this.#change(record.id, { desired: 'stopped' });
      await this.kill(record.id);
    }
    await this.#queues.run(record.id, async () => {
      this.#refuseClaimed(record.id);
      const { shim } = await this.#show(record);
      const state = shim?.workload?.state;
      if (options.force !== true && (state === 'running' || state === 'restarting')) {
        throw new GodwitError('MACHINE_RUNNING', `machine ${record.name} is running`, {
          values: { machineId: record.id },
          nextAction: 'Stop it first, or ask with --force.',
        });
      }
      await this.#change(record.id, { desired: 'stopped' });
      // Its policy may have started it again meanwhile.
      if (options.force === true && (await this.client(record.id)) !== null)
        await this.stopWorkload(record.id, { signal: 'SIGKILL', timeoutMs: 0 });
      await this.shutdownShim(record.id, { giveUpSource: options.force === true });
      if (record.config.volume !== undefined) {
        await this.#options.volumes.assignMachine(record.config.volume.volumeId, null);
      }
      await this.#remove(record.id);
      await this.removeRuntime(record.id);
    });
  }

  /** Rejects `MACHINE_NOT_RUNNING`. */
  async exec(ref: string, command: string[], timeoutMs: number): Promise<ShimOps['workload.exec']['result']> {
    return (await this.#runningClient(ref)).call('workload.exec', { command, timeoutMs });
  }

  /**
   * A command inside, whose input and output this process has in hand. Rejects `MACHINE_NOT_RUNNING`,
   * `MACHINE_NO_TERMINAL`.
   */
  async session(
    ref: string,
    args: ShimOps['workload.enter']['args'],
    options: SessionOptions,
  ): Promise<ExecSession> {
    const runtime = this.#runtimeOf(this.get(ref).config);
    const entrance = await (await this.#runningClient(ref)).call('workload.enter', args);
    return runtime.session(entrance, options);
  }

  async #runningClient(ref: string): Promise<ShimClient> {
    const record = this.get(ref);
    const client = await this.client(record.id);
    if (client !== null) return client;
    throw new GodwitError('MACHINE_NOT_RUNNING', `machine ${record.name} does not run`, {
      values: { machineId: record.id },
      nextAction: 'Start it first: godwit machine start.',
    });
  }

  /** Rejects `MACHINE_NOT_HEALTHY` after `timeoutMs`. */
  async awaitHealthy(ref: string, timeoutMs: number): Promise<{ healthyAtMs: number }> {
    const client = await this.client(this.get(ref).id);
    if (client !== null) return client.call('workload.awaitHealthy', { timeoutMs });
    throw new GodwitError('MACHINE_NOT_HEALTHY', `machine ${ref} does not run`, {
      values: { machine: ref },
      nextAction: 'Start it first: godwit machine start.',
    });
  }

  /** Works for stopped machines too. */
  logs(ref: string, options: LogReadOptions = {}): AsyncIterable<Uint8Array> {
    const path = join(this.runtimeDir(this.get(ref).id), SHIM_FILES.workloadLog);
    return readLog(path, this.#options.clock, options);
  }

  /**
   * Connection to the machine's shim, null when none runs. The steps of a move go through it one by one. The
   * connection belongs to the manager: not to be closed.
   */
  async client(machineId: string): Promise<ShimClient | null> {
    // A connection that this process has closed is no shim that died: nothing is done about it any more.
    if (this.#closed) throw closedError();
    const known = this.#clients.get(machineId);
    if (known !== undefined) return known;
    const { clock, host } = this.#options;
    const client = await ShimClient.find(this.runtimeDir(machineId), { clock, dial: host.dial });
    return client && this.#keep(machineId, client);
  }

  /**
   * The machine's shim, started when none runs, after the remains of a dead one are gone. For an export or a
   * standby too.
   */
  ensureShim(machineId: string): Promise<ShimClient> {
    return this.#folders.run(machineId, () => this.#ensureShim(machineId));
  }

  async #ensureShim(machineId: string): Promise<ShimClient> {
    const running = await this.client(machineId);
    if (running !== null) return running;
    const { clock, host, hidden } = this.#options;
    const runtimeDir = this.runtimeDir(machineId);
    if ((await host.find(runtimeDir)) !== 'running') await host.cleanUp(runtimeDir);
    const client = await host.start({ runtimeDir, hidden: [...hidden, this.#runtimeRoot], clock });
    return this.#keep(machineId, client);
  }

  /** Ends the shim and all that it holds, also of a dead one. Idempotent. */
  async shutdownShim(machineId: string, options: ShimOps['shutdown']['args'] = {}): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#shutdownShim(machineId, options);
      } catch (error) {
        // Another part of the worker had begun to start one when none was to be seen: that one ends, too.
        if (!isGodwitError(error, 'MACHINE_SHIM_ALIVE') || attempt >= SHUTDOWNS_MAX) throw error;
      }
    }
  }

  async #shutdownShim(machineId: string, options: ShimOps['shutdown']['args']): Promise<void> {
    const client = await this.client(machineId);
    const shim = this.#options.host.process(this.runtimeDir(machineId));
    if (client !== null) {
      try {
        await client.call('shutdown', options);
      } catch (error) {
        // A shim of an earlier version, whose machine has a signal that does not exist, cannot stop it by
        // itself. One that answers nothing at all has no machine to stop: who asks for that has stopped it,
        // or it serves a volume to others.
        const hangs = isGodwitError(error, 'RPC_TIMEOUT');
        if (hangs || isGodwitError(error, 'MACHINE_BAD_SIGNAL')) await this.#endHungShim(machineId);
        // It died on the way: the clean-up below does the rest.
        else if (!isGodwitError(error, 'RPC_CLOSED') && !isGodwitError(error, 'MACHINE_SHIM_GONE'))
          throw error;
      }
      this.#clients.delete(machineId);
      client.close();
    }
    // It has answered; the process itself is gone some milliseconds later.
    await this.#cleanUpAfter(machineId, shim);
  }

  /**
   * A shim that is of no use any more; the volume server outlives it until the clean-up has unmounted what it
   * serves.
   */
  async #endHungShim(machineId: string): Promise<void> {
    const shim = this.#options.host.process(this.runtimeDir(machineId));
    this.#clients.get(machineId)?.close();
    this.#clients.delete(machineId);
    if (shim?.isAlive()) shim.kill();
    await this.#cleanUpAfter(machineId, shim);
  }

  async #cleanUpAfter(machineId: string, shim: ShimProcess | null): Promise<void> {
    const { clock, host } = this.#options;
    await this.#folders.run(machineId, async () => {
      for (let attempt = 0; shim?.isAlive() && attempt < 500; attempt++) await clock.sleep(10);
      await host.cleanUp(this.runtimeDir(machineId));
    });
  }

  /**
   * At the start of a worker: finds the shims that run, starts machines that should run and whose shim is
   * gone (after cleaning up after it), ends the stops that were under way, leaves all others; machines in the
   * hands of a move are left to it. One that fails does not hold up the others, and is told like all of them
   * when it is over: one may take long, where its source is away.
   */
  async recover(tell: (recovery: Recovery) => void = () => {}): Promise<Recovery[]> {
    return Promise.all(
      this.records().map(async ({ id }) => {
        const recovery = await this.recoverOne(id);
        tell(recovery);
        return recovery;
      }),
    );
  }

  /** `recover` for one machine; also when what kept it from running may have passed. */
  recoverOne(machineId: string): Promise<Recovery> {
    return this.#queues.run(machineId, async (): Promise<Recovery> => {
      const record = this.#records.get(machineId);
      if (record === undefined) return { machineId, outcome: 'left', error: null };
      try {
        return { machineId: record.id, outcome: await this.#recover(record), error: null };
      } catch (error) {
        this.#options.logger.error(
          { machineId: record.id, reason: messageOf(error) },
          'machine not recovered',
        );
        const typed =
          error instanceof GodwitError
            ? error
            : new GodwitError('MACHINE_RECOVERY_FAILED', messageOf(error), {
                values: { machineId: record.id },
                nextAction: 'Start the machine by hand: godwit machine start.',
                cause: error,
              });
        return { machineId: record.id, outcome: 'failed', error: typed };
      }
    });
  }

  /** Ends the connections of this process; the machines go on. */
  close(): void {
    this.#closed = true;
    for (const client of this.#clients.values()) client.close();
    this.#clients.clear();
  }

  async #recover(record: MachineRecord): Promise<Recovery['outcome']> {
    const client = await this.client(record.id);
    if (record.claimedBy !== null) return client === null ? 'left' : 'found';
    const status = await client?.call('status', {}).catch((error: unknown) => {
      // It was dying when it was found.
      if (isGodwitError(error, 'RPC_CLOSED') || isGodwitError(error, 'MACHINE_SHIM_GONE')) return null;
      throw error;
    });
    if (client !== null && status) {
      // The worker may have died between the shim's start and the workload's.
      // Or it did not come about there, or a run that was forgotten had stopped it.
      const { workload } = status;
      const isUp = workload !== null && workload.startedAtMs !== null && workload.state !== 'stopped';
      const runs = workload?.state === 'running' || workload?.state === 'restarting';
      if (record.desired === 'stopped' && runs) {
        // The worker died between the word of its owner and the end of the stop.
        await this.#stopSaying(record.id);
        return 'left';
      }
      if (record.desired === 'running' && !isUp) {
        await this.#bringUp(record);
        return 'restarted';
      }
      return 'found';
    }
    if (record.desired === 'running') {
      await this.#bringUp(record);
      return 'restarted';
    }
    return this.#folders.run(record.id, async () => {
      // Somebody has started the next one meanwhile.
      if ((await this.client(record.id)) !== null) return 'found';
      await this.#options.host.cleanUp(this.runtimeDir(record.id));
      return 'left';
    });
  }

  async #bringUp(record: MachineRecord): Promise<void> {
    const beginning: Beginning = { sinceMs: this.#options.clock.wallMs(), doing: 'has its shim started' };
    this.#beginnings.set(record.id, beginning);
    try {
      await this.#bringUpSaying(record, (doing) => {
        beginning.doing = doing;
      });
    } finally {
      this.#beginnings.delete(record.id);
    }
  }

  async #bringUpSaying(record: MachineRecord, say: (doing: string) => void): Promise<void> {
    const { config } = record;
    const client = await this.ensureShim(record.id);
    if (config.volume !== undefined) {
      const { volumeId, mountPath } = config.volume;
      const filesystem = mountPath === undefined ? null : await this.#filesystemOf(volumeId);
      const { volume } = await client.call('status', {});
      if (filesystem === null ? volume === null : volume?.mounted !== true) {
        say('has its volume opened');
        const spec = await this.#options.volumes.attachSpec(volumeId, record.id);
        await client.open(this.withSocket(spec, record.id, config));
        say('has its filesystem mounted');
        if (filesystem !== null) await this.mount(client, filesystem);
      }
    }
    if (config.volume !== undefined) void this.openReserve(record.id, 'no');
    say('has its processes started');
    await client.call('workload.start', { machineId: record.id, name: record.name, config });
  }

  /** Mounts the filesystem of an open volume, for processes that come. */
  async mount(client: ShimClient, filesystem: 'ext4' | 'xfs'): Promise<void> {
    await client.call('fs.mount', { filesystem });
    await this.#options.beforeProcesses?.(async () => {
      const { volume } = await client.call('status', {});
      return volume?.loopDevice ?? null;
    });
  }

  async #filesystemOf(volumeId: string): Promise<'ext4' | 'xfs'> {
    const filesystem = await this.#options.volumes.filesystem(volumeId);
    if (filesystem !== 'none') return filesystem;
    throw new GodwitError(
      'MACHINE_VOLUME_WITHOUT_FILESYSTEM',
      `volume ${volumeId} has no filesystem to mount`,
      {
        values: { volumeId },
        nextAction: 'Create the volume with a filesystem: godwit volume create --filesystem ext4.',
      },
    );
  }

  async #show(record: MachineRecord): Promise<MachineShow> {
    const client = await this.client(record.id);
    if (client === null) return { record, shim: null };
    try {
      return { record, shim: await client.call('status', {}) };
    } catch (error) {
      if (isGodwitError(error, 'MACHINE_SHIM_GONE') || isGodwitError(error, 'RPC_CLOSED'))
        return { record, shim: null };
      throw error;
    }
  }

  #keep(machineId: string, client: ShimClient): ShimClient {
    this.#clients.set(machineId, client);
    client.onEvent((event, data) => {
      for (const listener of this.#listeners) listener(machineId, event, data);
    });
    client.onClosed(() => {
      if (this.#clients.get(machineId) === client) this.#clients.delete(machineId);
      this.#looks.forget(machineId);
      for (const listener of this.#listeners) listener(machineId, 'shim-closed', null);
    });
    return client;
  }

  /**
   * Past the queue of the machine, where a destroy does not wait: as the record is when its turn comes.
   * Rejects `MACHINE_NOT_FOUND` for one that has gone meanwhile, and so does not come back.
   */
  #change(id: string, change: Partial<Pick<MachineRecord, 'desired' | 'claimedBy'>>): Promise<MachineRecord> {
    return this.#writes.run(id, async () => {
      const record = { ...this.get(id), ...change };
      await this.#write(record);
      return record;
    });
  }

  #remove(id: string): Promise<void> {
    return this.#writes.run(id, async () => {
      await this.#options.store.remove(id);
      this.#records.delete(id);
    });
  }

  async #write(record: MachineRecord): Promise<void> {
    await this.#options.store.write(record);
    this.#records.set(record.id, record);
  }

  #refuseTakenName(name: string, except?: string): void {
    const taken = this.records().find((record) => record.name === name && record.id !== except);
    if (taken === undefined) return;
    throw new GodwitError('MACHINE_NAME_TAKEN', `this worker has a machine ${name} already`, {
      values: { name, machineId: taken.id },
      retry: 'never',
      nextAction: 'Choose another name, or destroy that machine first.',
    });
  }

  #refuseClaimed(machineId: string): void {
    const { claimedBy, name } = this.get(machineId);
    if (claimedBy === null) return;
    throw new GodwitError('MACHINE_MOVING', `machine ${name} is being moved`, {
      values: { machineId, runId: claimedBy },
      nextAction: 'Wait for the move to end, or cancel it: godwit why says where it is.',
    });
  }
}

function closedError(): GodwitError {
  return new GodwitError('RPC_CLOSED', 'this worker process ends; its machines go on', {
    retry: 'later',
    nextAction: 'Nothing to do: the next worker process takes up what was under way.',
  });
}
