import type { DatabaseSync } from 'node:sqlite';
import { setImmediate as turn } from 'node:timers/promises';
import { toWireError } from '../../src/base/errors.ts';
import { type Logger, silentLogger } from '../../src/base/logger.ts';
import { seededRandom } from '../../src/base/random.ts';
import type { MachineConfig } from '../../src/contract/machine-config.ts';
import type { RunView } from '../../src/journal/run.ts';
import { MoveInbox } from '../../src/migration/inbox.ts';
import type { DataFolder } from '../../src/worker/data-folder.ts';
import { HOST_PARTS } from '../../src/worker/host-parts.ts';
import { MOVE_PARTS } from '../../src/worker/move-parts.ts';
import type { WorkerOptions } from '../../src/worker/options.ts';
import { assemble } from '../../src/worker/part.ts';
import type { Given, HostParts, MoveParts, SurfaceParts, WorkerParts } from '../../src/worker/parts.ts';
import { makeFolders, workerPaths } from '../../src/worker/paths.ts';
import { SURFACE_PARTS } from '../../src/worker/surface-parts.ts';
import { Checkers } from './checkers.ts';
import { Database } from './database.ts';
import { Host } from './host.ts';
import { Network } from './network.ts';
import { Process, running, Simulation } from './simulation.ts';
import type { Opening } from './volume.ts';

/** Bugs that are put in on purpose, to see that they are found. */
export type Bugs = {
  /**
   * A handoff whose answer was lost is taken for one that never left: the source takes the machine back, which
   * the target has.
   */
  handoffBelievedTwice?: boolean;
  /** The same of a target that was stopped (SIGSTOP) and has not answered for too long. */
  silenceBelieved?: boolean;
  /** A volume server goes on writing after it was told to seal. */
  sealIgnored?: boolean;
  /** A shim says that it has stopped the machine, and has not. */
  stopIgnored?: boolean;
  /** A volume server acknowledges a write for which the disk has no room, and drops it. */
  droppedWhenFull?: boolean;
  /** A volume server goes on when its disk has lost what was written. */
  lossIgnored?: boolean;
  /** `why` knows nothing of runs. */
  whyIsSilent?: boolean;
};

export type WorldOptions = {
  seed: number;
  /** An empty folder on tmpfs. */
  root: string;
  workers: number;
  machines: number;
  bugs?: Bugs;
};

type Worker = {
  host: Host;
  process: Process | null;
  parts: WorkerParts | null;
  databases: DatabaseSync[];
  starts: number;
};

/** What brings a worker up that did not start waits so long. */
const RESTART_MS = 5_000;
/** A disk that was in trouble since then may have kept a worker from its start. */
const START_MS = 30_000;
const VOLUME_BYTES = 16 * 2 ** 20;
const MACHINE: MachineConfig = {
  command: ['/bin/true'],
  env: {},
  restart: { policy: 'always', retriesMax: 10 },
  stop: { signal: 'SIGTERM', timeoutMs: 5_000 },
  resources: {},
  network: 'host',
  metadata: {},
};

/** A fleet in one process: workers as they are, each made by `assemble()`, on hosts and a network that are simulated. */
export class World {
  readonly simulation: Simulation;
  readonly network: Network;
  readonly checkers: Checkers;
  readonly bugs: Bugs;
  /** Exports by their port, of the whole fleet. */
  readonly exports = new Map<number, Opening>();
  readonly workers = new Map<string, Worker>();
  /** Told when a volume has lost writes, and again by each server that finds that out. */
  onDataLost: (volumeId: string) => void = () => {};
  readonly #options: WorldOptions;
  #port = 3260;

  constructor(options: WorldOptions) {
    this.#options = options;
    this.bugs = options.bugs ?? {};
    this.simulation = new Simulation(options.seed);
    this.network = new Network(this.simulation);
    // Where a bug takes a rare fault to show, that one comes often, and a life finds it soon.
    const { faults, faultsOf } = this.network;
    if (this.bugs.handoffBelievedTwice) {
      this.network.liesOfLost = 'handoff';
      faultsOf.set('handoff', { ...faults, breaks: 0.5, cuts: 1 });
    }
    if (this.bugs.silenceBelieved) {
      this.network.liesOfSilent = 'handoff';
      faultsOf.set('handoff', { ...faults, stops: 0.5, cuts: 1 });
    }
    this.checkers = new Checkers(this.simulation);
    for (let index = 1; index <= options.workers; index++) {
      const name = `w${index}`;
      const host = new Host(this, name, options.root);
      this.workers.set(name, { host, process: null, parts: null, databases: [], starts: 0 });
    }
  }

  get names(): string[] {
    return [...this.workers.keys()];
  }

  exportPort(wanted: number): number {
    return wanted === 0 ? this.#port++ : wanted;
  }

  /** All workers up, with their machines running. */
  async begin(): Promise<void> {
    for (const name of this.names) this.start(name);
    await this.until('the workers to be up', () => this.names.every((name) => this.isUp(name)));
    const made: Promise<unknown>[] = [];
    for (let index = 0; index < this.#options.machines; index++) {
      const name = this.names[index % this.names.length]!;
      made.push(this.ask(name, (parts) => this.#createMachine(parts, `m${index}`)));
    }
    let isMade = false;
    void Promise.all(made).then(() => {
      isMade = true;
    });
    await this.until('the machines to be made', () => isMade);
  }

  async #createMachine({ service }: WorkerParts, name: string): Promise<void> {
    const { id } = await service.createVolume({
      ...{ name, lengthBytes: VOLUME_BYTES, filesystem: 'none', encrypted: false },
    });
    const config = { ...MACHINE, volume: { volumeId: id, nbd: true } };
    await service.createMachine({ name, config, start: true });
  }

  /** Runs until it is so. */
  async until(what: string, done: () => boolean, withinMs = 3_600_000): Promise<void> {
    const { simulation } = this;
    if (!(await simulation.run(done, simulation.nowMs + withinMs)))
      throw simulation.fail(`waited in vain for ${what}\n${this.describe()}`);
    await turn();
  }

  /** It answers whoever asks. */
  isUp(name: string): boolean {
    const { parts, process } = this.workers.get(name)!;
    return parts !== null && process?.isStopped === false;
  }

  /** Something that a person asks of a worker. Never settles where that dies first. */
  ask<T>(name: string, question: (parts: WorkerParts) => Promise<T>): Promise<T> {
    const { process, parts } = this.workers.get(name)!;
    if (process === null || parts === null || process.isStopped) throw new Error(`${name} is not up`);
    return running.run(process, () => question(parts));
  }

  /** For what a person hears instead of an answer: it may be a refusal, and never a riddle. */
  refused(what: string): (error: unknown) => void {
    return (error) => {
      if (toWireError(error).code === 'INTERNAL')
        this.simulation.fail(`${what}: ${(error as Error)?.stack ?? error}`);
    };
  }

  start(name: string): void {
    const worker = this.workers.get(name)!;
    if (worker.process !== null || !worker.host.hasPower) return;
    const process = new Process(name, worker.host.boot);
    Object.assign(worker, { process, parts: null, databases: [], starts: worker.starts + 1 });
    this.simulation.log(`${name} starts`);
    this.simulation.troubles.begin('off', name);
    running.run(process, () => {
      this.#assemble(worker, process).then(
        (parts) => {
          if (!process.alive) return;
          worker.parts = parts;
          this.simulation.troubles.end('off', name);
        },
        (error: unknown) => {
          if (process.alive) this.#didNotStart(name, error);
        },
      );
    });
  }

  /** It may not, where its disk cannot be written, and says so; it is started again then. */
  #didNotStart(name: string, error: unknown): void {
    const { simulation } = this;
    const { code, message } = toWireError(error);
    const isExplained = simulation.troubles.lately(START_MS, ['full to the last', 'failing'], name);
    if (!isExplained || code === 'INTERNAL') {
      simulation.fail(`${name} does not come up: ${code} ${message} ${(error as Error).stack}`);
      return;
    }
    simulation.count('starts that a disk refused');
    simulation.log(`${name} does not start: ${code}`);
    running.exit(() => this.kill(name));
    simulation.world(RESTART_MS, () => this.start(name));
  }

  /** SIGKILL of the worker process. What runs on its host goes on. */
  kill(name: string): void {
    const worker = this.workers.get(name)!;
    if (worker.process === null) return;
    this.simulation.log(`${name} is killed`);
    this.simulation.troubles.begin('off', name);
    this.network.listen(name, null);
    worker.process.end();
    for (const database of worker.databases) if (database.isOpen) database.close();
    Object.assign(worker, { process: null, parts: null, databases: [] });
  }

  cutPower(name: string): void {
    this.kill(name);
    this.simulation.log(`${name} has no power`);
    this.simulation.troubles.begin('off', name);
    this.network.setDown(name, true);
    this.workers.get(name)!.host.cutPower();
  }

  givePower(name: string): void {
    this.workers.get(name)!.host.givePower();
    this.network.setDown(name, false);
    this.start(name);
  }

  close(): void {
    for (const name of this.names) {
      this.kill(name);
      this.workers.get(name)!.host.close();
    }
    this.simulation.close();
  }

  async #assemble(worker: Worker, process: Process): Promise<WorkerParts> {
    const { simulation } = this;
    const { name } = worker.host;
    const paths = workerPaths(worker.host.dataDir);
    makeFolders(paths);
    const folder = { paths, close: () => {} } as unknown as DataFolder;
    const open = (path: string) => {
      const database = new Database(path, worker.host.disk);
      worker.databases.push(database);
      return database;
    };
    const { parts } = await assemble<Given, HostParts & MoveParts & SurfaceParts>(
      {
        ...HOST_PARTS,
        ...MOVE_PARTS,
        ...SURFACE_PARTS,
        ...(this.bugs.whyIsSilent && { journal: { ...MOVE_PARTS.journal, conditions: {} } }),
        // The lock of one process among others.
        folder: { needs: ['identity'], make: () => folder },
        inbox: {
          needs: ['state'],
          make: ({ state, clock }) => new WatchedInbox(state, clock, this, name),
        },
        // HTTP: from here on this worker takes calls.
        api: {
          needs: ['service', 'identity', 'events'],
          make: () => ({ url: `http://${name}` }),
          start: (_, { service }) =>
            this.network.listen(name, {
              process,
              answer: (question, args) =>
                (service.peers as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>)[
                  question
                ]!(...args),
            }),
        },
      },
      {
        options: this.#workerOptions(name, worker.host.dataDir),
        clock: simulation.clockOf(process),
        random: seededRandom(simulation.random.below(2 ** 32)),
        logger: this.#logger(name),
        version: 'simulated',
        environment: {},
        edges: {
          machineHost: () => worker.host.machineHost(process),
          database: open,
          journal: open,
          transport: (peer) => this.network.transport(name, peer.name),
          lacking: () => null,
          limitsMissing: () => [],
          allocate: () => worker.host.disk.allocate(),
        },
      },
    );
    return parts;
  }

  #workerOptions(name: string, dataDir: string): WorkerOptions {
    return {
      name,
      dataDir,
      ...{ listenHost: name, listenPort: 1, advertiseUrl: `http://${name}`, iscsiHost: name },
      peers: this.names
        .filter((other) => other !== name)
        .map((other) => ({ name: other, url: `http://${other}` })),
      token: 'a token of the simulated fleet',
      ...{ tls: null, tlsOptional: false, plane: 'userspace', keys: null, headerFileBytes: 2 ** 20 },
      capacity: { memoryBytes: 2 ** 40, cpus: 64, diskBytes: null },
      ...{ whenFull: 'pause', hydrationRateBytesPerSecondMax: 0, retainMs: 60_000, logLevel: 'warn' },
    };
  }

  #logger(name: string): Logger {
    if (!process.env.GODWIT_SIM_LOG) return silentLogger;
    const say = (level: string) => (fields: object, text?: string) =>
      console.log(`${this.simulation.nowMs.toFixed(1)} ${name} ${level} ${text} ${JSON.stringify(fields)}`);
    return { ...silentLogger, warn: say('warn'), error: say('error'), info: say('info') };
  }

  /** For whoever looks at what was found: each worker with its machines and open runs. */
  describe(): string {
    return this.names
      .map((name) => {
        const { parts } = this.workers.get(name)!;
        if (parts === null) return `${name}: down`;
        const runs = parts.journal.find({ limit: 1000 }).filter(({ endedAtMs }) => endedAtMs === null);
        const machines = parts.machines.records().map(({ id, name: called, claimedBy, desired }) => {
          const runs = this.checkers.shimOf(id) === null ? ' (down)' : '';
          return `${called}${claimedBy ? '*' : ''}${desired === 'stopped' ? ' (stopped)' : runs}`;
        });
        return `${name}: ${parts.drain.desired ? 'draining' : 'open'}, ${machines.join(' ')}\n${runs.map(runText).join('\n')}`;
      })
      .join('\n');
  }
}

function runText({ id, kind, state, step, reason, error }: RunView): string {
  return `  ${id} ${kind} ${state} in ${step}: ${reason?.message ?? error?.message ?? '-'}`;
}

/** Each word of the inbox is held against what was said before. */
class WatchedInbox extends MoveInbox {
  readonly #world: World;
  readonly #name: string;

  constructor(state: DatabaseSync, clock: WorkerParts['clock'], world: World, name: string) {
    super(state, clock);
    this.#world = world;
    this.#name = name;
  }

  override verdict(runId: string): ReturnType<MoveInbox['verdict']> {
    const decided = super.verdict(runId);
    if (decided) this.#world.checkers.verdict(this.#name, runId, decided.verdict);
    return decided;
  }
}
