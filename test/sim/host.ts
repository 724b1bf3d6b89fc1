import { rmSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { GodwitError, isGodwitError, systemErrorCode } from '../../src/base/errors.ts';
import { jailRuntime } from '../../src/jail/runtime.ts';
import type { MachineHost } from '../../src/machine/machine-host.ts';
import type { OperationArgs, VolumeOperation } from '../../src/opening/operations.ts';
import { shown } from '../../src/opening/role.ts';
import { ShimClient, type ShimConnection } from '../../src/shim/client.ts';
import type { ShimOps, ShimStatus } from '../../src/shim/protocol.ts';
import { keepDataLoss } from '../../src/volume/data-guard.ts';
import { workerPaths } from '../../src/worker/paths.ts';
import { Disk } from './disk.ts';
import { type Boot, Process, running } from './simulation.ts';
import { BLOCKS, Content, Opening } from './volume.ts';
import type { World } from './world.ts';

/** A host: its disk, and the shims on it, which outlive its worker. */
export class Host {
  readonly name: string;
  readonly world: World;
  readonly disk: Disk;
  readonly dataDir: string;
  boot: Boot;
  hasPower = true;
  readonly shims = new Map<string, Shim>();
  readonly #contents = new Map<number, Content>();
  readonly #folders = new Set<string>();

  constructor(world: World, name: string, root: string) {
    this.world = world;
    this.name = name;
    this.dataDir = join(root, name);
    this.disk = new Disk(this.dataDir, world.simulation);
    this.disk.onSync = (inode) => this.#contents.get(inode)?.flush();
    this.boot = { host: name, sinceMs: 0, wallOffsetMs: world.simulation.between(-5_000, 5_000) };
  }

  /** What is in a data file, wherever it is moved. */
  content(path: string): Content {
    const inode = statSync(path).ino;
    const content = this.#contents.get(inode) ?? new Content();
    this.#contents.set(inode, content);
    return content;
  }

  cutPower(): void {
    const { simulation, checkers } = this.world;
    this.hasPower = false;
    checkers.mayHaveLost(this.name);
    for (const shim of this.shims.values()) shim.process.end();
    this.shims.clear();
    this.disk.cut();
    for (const content of this.#contents.values()) {
      content.cut(() => simulation.chance(0.5));
      content.unflushed.fill(0);
    }
  }

  givePower(): void {
    const { simulation } = this.world;
    this.boot = { ...this.boot, sinceMs: simulation.nowMs };
    this.hasPower = true;
  }

  /** For one worker process. */
  machineHost(worker: Process): MachineHost {
    const { simulation } = this.world;
    const clock = simulation.clockOf(worker);
    const brief = () => simulation.pause(simulation.between(1, 10) / 10);
    const dial: MachineHost['dial'] = async (folder, onEvent) => {
      await brief();
      const shim = this.shims.get(folder);
      return shim ? connect(this, shim, onEvent) : null;
    };
    return {
      runtimes: { process: jailRuntime },
      openRoot: (path) => path,
      list: async () => [...this.#folders].map((folder) => basename(folder)),
      remove: async (folder) => {
        await brief();
        this.#folders.delete(folder);
      },
      check: () => {},
      dial,
      start: async ({ runtimeDir }) => {
        await brief();
        if (!this.shims.has(runtimeDir)) {
          const { promise, resolve } = Promise.withResolvers<void>();
          // It comes up whether or not its worker lives to see it.
          const { boot } = this;
          simulation.world(simulation.between(20, 400), () => {
            if (boot === this.boot && this.hasPower && !this.shims.has(runtimeDir))
              this.#startShim(runtimeDir);
            simulation.world(0, () => worker.whenOn(() => running.run(worker, resolve)));
          });
          await promise;
        }
        return ShimClient.connect(runtimeDir, { clock, dial });
      },
      find: async (folder) => {
        await brief();
        return this.shims.has(folder) ? 'running' : 'absent';
      },
      process: (folder) => {
        const shim = this.shims.get(folder);
        return shim
          ? { isAlive: () => shim.process.alive, kill: () => running.exit(() => this.killShim(shim)) }
          : null;
      },
      cleanUp: async (folder) => {
        await brief();
        if (!this.shims.has(folder)) return;
        throw new GodwitError('MACHINE_SHIM_ALIVE', `the shim of ${folder} is alive`, { nextAction: 'wait' });
      },
      kill: async (folder) => {
        await brief();
        this.shims.get(folder)?.stopWorkload();
      },
      obstacle: async () => null,
      readOnly: () => null,
      stuck: async () => null,
    };
  }

  #startShim(folder: string): void {
    this.#folders.add(folder);
    const shim = new Shim(this, folder);
    this.shims.set(folder, shim);
    shim.process.onEnd(() => {
      if (this.shims.get(folder) === shim) this.shims.delete(folder);
      shim.stopWorkload();
      shim.server.end();
      shim.opening?.close();
    });
  }

  killShim(shim: Shim): void {
    shim.process.end();
  }

  close(): void {
    for (const shim of this.shims.values()) shim.process.end();
    this.disk.close();
    for (const folder of [this.dataDir, `${this.dataDir}.stash`, workerPaths(this.dataDir).validityDir])
      rmSync(folder, { recursive: true, force: true });
  }
}

/** A worker's connection to a shim: each way takes a moment, and now and then a long one. */
function connect(host: Host, shim: Shim, onEvent: (event: string, data: unknown) => void): ShimConnection {
  const { simulation } = host.world;
  const worker = running.getStore()!;
  const closed = Promise.withResolvers<void>();
  const waiting = new Set<(error: Error) => void>();
  let isClosed = false;
  /** What comes from outside reaches the worker in its own turn, or not at all. */
  const inWorker = (act: () => void) => {
    if (worker.alive) running.run(worker, () => simulation.after(0.3, act));
  };
  const tell = (event: string, data: unknown) => inWorker(() => onEvent(event, data));
  const leave = () => {
    isClosed = true;
    shim.listeners.delete(tell);
    forgetShim();
    forgetWorker();
  };
  const close = () => {
    leave();
    for (const reject of waiting) reject(gone());
    closed.resolve();
  };
  const forgetShim = shim.process.onEnd(() => inWorker(close));
  const forgetWorker = worker.onEnd(leave);
  shim.listeners.add(tell);
  return {
    closed: closed.promise,
    close,
    async call(op, args, timeoutMs = 30_000, signal) {
      if (isClosed) throw gone();
      if (signal?.aborted) throw signal.reason;
      const { promise, resolve, reject } = Promise.withResolvers<unknown>();
      const late = () =>
        reject(new GodwitError('RPC_TIMEOUT', `no answer to ${op}`, { nextAction: 'ask again' }));
      const cancel = timeoutMs === null ? () => {} : simulation.after(timeoutMs, late);
      const onAbort = () => reject(signal?.reason as Error);
      signal?.addEventListener('abort', onAbort, { once: true });
      waiting.add(reject);
      const slow = simulation.chance(0.01)
        ? simulation.between(100, SLOW_MS_MAX)
        : simulation.between(1, 10) / 10;
      const answered = () =>
        running
          .run(shim.process, () => shim.answer(op as keyof ShimOps, args))
          .then(
            (value) => inWorker(() => resolve(value)),
            (error: unknown) => inWorker(() => reject(error)),
          );
      simulation.after(slow, () => shim.process.whenOn(answered));
      try {
        return await promise;
      } finally {
        cancel();
        waiting.delete(reject);
        signal?.removeEventListener('abort', onAbort);
      }
    },
  };
}

function gone(): GodwitError {
  return new GodwitError('RPC_CLOSED', 'the shim closed the connection', { nextAction: 'connect again' });
}

/** Below what `why` waits for a shim that may hang. */
const SLOW_MS_MAX = 2_500;
const WRITE_EVERY_MS = [400, 4_000] as const;
/** After so long without a sign of life of its server (three questions) a shim gives an operation up. */
const SERVER_SILENT_MS = 35_000;
/** So long it waits for the end of a volume server before it is killed. */
const SERVER_STOP_MS = 10_000;

/** A shim: one opening of a volume, and the machine that runs on it. */
export class Shim {
  readonly process: Process;
  /** Its volume server, and the machine as far as it reads and writes. */
  readonly server: Process;
  readonly folder: string;
  readonly #host: Host;
  readonly listeners = new Set<(event: string, data: unknown) => void>();
  opening: Opening | null = null;
  #workload: (NonNullable<ShimStatus['workload']> & { ends: () => void }) | null = null;
  #ending: Promise<void> | null = null;
  #lastVolume: ReturnType<Opening['status']> | null = null;

  constructor(host: Host, folder: string) {
    this.#host = host;
    this.folder = folder;
    this.process = new Process(`${host.name}/${basename(folder)}`, host.boot);
    this.server = new Process(`${this.process.name}/server`, host.boot);
  }

  /** What its volume server does, and a shim that waits for it. */
  #served<T>(work: () => Promise<T>): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    this.server.whenOn(() => void running.run(this.server, work).then(resolve, reject));
    return promise;
  }

  get isEnding(): boolean {
    return this.#ending !== null;
  }

  get runs(): boolean {
    return this.#workload?.state === 'running';
  }

  async answer(op: keyof ShimOps, args: unknown): Promise<unknown> {
    const { simulation } = this.#host.world;
    if (this.isEnding && op !== 'status' && op !== 'shutdown')
      throw new GodwitError('MACHINE_SHIM_ENDING', 'this shim is shutting down', {
        nextAction: 'Start another.',
      });
    switch (op) {
      case 'status':
        return this.#status();
      case 'volume.open':
        await simulation.pause(simulation.between(5, 60));
        return this.#served(() => this.#open((args as ShimOps['volume.open']['args']).spec));
      case 'volume.command':
        return this.#command(args as ShimOps['volume.command']['args']);
      case 'workload.prepare':
        return {};
      case 'workload.start':
        await simulation.pause(simulation.between(20, 200));
        return this.#start(args as ShimOps['workload.start']['args']);
      case 'workload.stop':
        await simulation.pause(simulation.between(5, 300));
        this.stopWorkload();
        return { exitCode: 0, signal: null, killed: false, durationMs: 1 };
      case 'workload.awaitHealthy':
        await simulation.pause(simulation.between(10, 300));
        if (this.runs) return { healthyAtMs: 1 };
        throw new GodwitError('MACHINE_NOT_HEALTHY', 'it does not run', { nextAction: 'start it' });
      case 'fs.unmount':
        return {};
      case 'shutdown':
        this.#ending ??= this.#release().catch((error: unknown) => {
          this.#ending = null;
          throw error;
        });
        await this.#ending;
        return {};
      default:
        throw new GodwitError('RPC_UNKNOWN_OP', `the simulated shim has no ${op}`, {
          nextAction: 'Teach it.',
        });
    }
  }

  async #release(): Promise<void> {
    const { simulation, bugs } = this.#host.world;
    await simulation.pause(simulation.between(5, 100));
    if (!bugs.stopIgnored) this.stopWorkload();
    if (this.server.isStopped) await simulation.pause(SERVER_STOP_MS);
    // One that was killed has lost nothing: what it wrote is in the page cache.
    if (!this.server.isStopped) await this.#served(async () => this.opening?.flush()).catch(() => {});
    await this.#keepLoss();
    simulation.world(1, () => this.process.end());
  }

  async #open(spec: Opening['spec']): Promise<ShimOps['volume.open']['result']> {
    if (this.opening === null) {
      const opening = new Opening(this.#host, this.server, spec);
      this.opening = opening;
      try {
        await opening.open();
      } catch (error) {
        opening.close();
        this.opening = null;
        throw error;
      }
    }
    return { loopDevice: null, exportPort: this.opening.port };
  }

  /** As the product's backend does, before it ends its volume server. */
  async #keepLoss(): Promise<void> {
    const lost = this.opening?.lost;
    if (!this.opening || !lost) return;
    await keepDataLoss(this.opening.spec, lost);
    if (!this.server.isStopped) this.opening.rest();
  }

  /** Passed on, and given up where the server says nothing at all. */
  async #command({ op, args, timeoutMs }: ShimOps['volume.command']['args']): Promise<unknown> {
    const { simulation } = this.#host.world;
    const { opening } = this;
    if (opening === null)
      throw new GodwitError('ATTACH_NOT_OPEN', 'no volume is open here', { nextAction: 'open it' });
    const answer = this.#served(() => opening.command(op, args as OperationArgs<VolumeOperation>));
    const patienceMs = timeoutMs ?? (this.server.isStopped ? SERVER_SILENT_MS : null);
    if (patienceMs === null) return answer;
    const late = Promise.withResolvers<never>();
    const cancel = simulation.after(patienceMs, () =>
      late.reject(new GodwitError('RPC_TIMEOUT', `no answer to ${op}`, { nextAction: 'ask again' })),
    );
    return Promise.race([answer, late.promise]).finally(cancel);
  }

  #status(): ShimStatus {
    const { opening } = this;
    // What its server said last.
    if (opening && !this.server.isStopped) this.#lastVolume = opening.status();
    return {
      shimPid: 1,
      startedAtMs: 1,
      volume: opening && {
        spec: { ...shown(opening.spec), access: opening.access },
        serverPid: 1,
        serverRestarts: 0,
        loopDevice: null,
        mounted: false,
        status: this.#lastVolume as never,
        lastError: null,
      },
      workload: this.#workload && ({ ...this.#workload, ends: undefined } as never),
    };
  }

  #start({ machineId }: ShimOps['workload.start']['args']): ShimOps['workload.start']['result'] {
    const { simulation, checkers } = this.#host.world;
    if (!this.runs) {
      const startedAtMs = simulation.clockOf(this.process).wallMs();
      const writing = { on: true };
      this.#workload = {
        ...{ machineId, state: 'running' as const, pid: 2, startedAtMs },
        ...{ exitedAtMs: null, exitCode: null, exitSignal: null, restarts: 0 },
        ...{ health: { state: 'none' as const, sinceMs: startedAtMs, message: '' } },
        ...{ memoryBytes: null, outOfMemoryKills: 0 },
        ends: () => {
          writing.on = false;
          checkers.ended(machineId, this);
        },
      };
      checkers.started(machineId, this, this.#host.name);
      running.run(this.server, () => this.#write(writing));
    }
    return { startedAtMs: this.#workload!.startedAtMs! };
  }

  /** The machine: writes, flushes now and then, and reads what it has written. */
  async #write(writing: { on: boolean }): Promise<void> {
    const { simulation } = this.#host.world;
    for (;;) {
      await simulation.pause(simulation.between(...WRITE_EVERY_MS));
      const { opening } = this;
      if (!writing.on || opening === null) return;
      const block = simulation.random.below(BLOCKS);
      try {
        await this.#useVolume(opening, block, writing);
      } catch (error) {
        // What its disk lost, or did not sync; it goes on, as far as it can.
        if (!isGodwitError(error, 'VOLUME_DATA_LOST') && systemErrorCode(error) !== 'EIO') throw error;
      }
    }
  }

  async #useVolume(opening: Opening, block: number, writing: { on: boolean }): Promise<void> {
    const { simulation, checkers } = this.#host.world;
    if (simulation.chance(0.4)) {
      const value = await opening.read(block);
      if (writing.on) checkers.read(opening, block, value);
    } else if (opening.writes) {
      const value = checkers.nextValue(opening.spec.volumeId);
      if ((await opening.write(block, value, () => !writing.on)) && simulation.chance(0.5))
        await opening.flush();
    }
  }

  stopWorkload(): void {
    if (this.#workload === null || !this.runs || (this.process.alive && this.#host.world.bugs.stopIgnored))
      return;
    const { machineId } = this.#workload;
    this.#workload.ends();
    this.#workload.state = 'stopped';
    const told = () => {
      for (const tell of this.listeners) tell('workload', { machineId, state: 'stopped' });
    };
    this.process.whenOn(told);
  }
}
