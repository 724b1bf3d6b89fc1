import { DatabaseSync } from 'node:sqlite';
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
  /** A volume server goes on writing after it was told to seal. */
  sealIgnored?: boolean;
  /** A shim says that it has stopped the machine, and has not. */
  stopIgnored?: boolean;
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
  readonly #options: WorldOptions;
  #port = 3260;

  constructor(options: WorldOptions) {
    this.#options = options;
    this.bugs = options.bugs ?? {};
    this.simulation = new Simulation(options.seed);
    this.network = new Network(this.simulation);
    if (this.bugs.handoffBelievedTwice) {
      this.network.liesOf = 'handoff';
      this.network.faults = { ...this.network.faults, breaks: 0.05, cuts: 0.5 };
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
      simulation.fail(`waited in vain for ${what}\n${this.describe()}`);
    await turn();
  }

  isUp(name: string): boolean {
    return this.workers.get(name)?.parts != null;
  }

  /** Something that a person asks of a worker. Never settles where that dies first. */
  ask<T>(name: string, question: (parts: WorkerParts) => Promise<T>): Promise<T> {
    const { process, parts } = this.workers.get(name)!;
    if (process === null || parts === null) throw new Error(`${name} is not up`);
    return running.run(process, () => question(parts));
  }

  start(name: string): void {
    const worker = this.workers.get(name)!;
    if (worker.process !== null || !worker.host.hasPower) return;
    const process = new Process(name, worker.host.boot);
    Object.assign(worker, { process, parts: null, databases: [], starts: worker.starts + 1 });
    this.simulation.log(`${name} starts`);
    running.run(process, () => {
      this.#assemble(worker, process).then(
        (parts) => {
          if (process.alive) worker.parts = parts;
        },
        (error: unknown) => {
          if (process.alive)
            this.simulation.fail(`${name} does not come up: ${JSON.stringify(toWireError(error))}`);
        },
      );
    });
  }

  /** SIGKILL of the worker process. What runs on its host goes on. */
  kill(name: string): void {
    const worker = this.workers.get(name)!;
    if (worker.process === null) return;
    this.simulation.log(`${name} is killed`);
    this.network.listen(name, null);
    worker.process.end();
    for (const database of worker.databases) database.close();
    Object.assign(worker, { process: null, parts: null, databases: [] });
  }

  cutPower(name: string): void {
    this.kill(name);
    this.simulation.log(`${name} has no power`);
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
      const database = new DatabaseSync(path);
      worker.databases.push(database);
      return database;
    };
    const { parts } = await assemble<Given, HostParts & MoveParts & SurfaceParts>(
      {
        ...HOST_PARTS,
        ...MOVE_PARTS,
        ...SURFACE_PARTS,
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
          allocate: async () => {},
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
        const machines = parts.machines
          .records()
          .map((machine) => `${machine.name}${machine.claimedBy ? '*' : ''}`);
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
