import { rmSync, statfsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Random } from '../../src/base/random.ts';
import type { MachineView, Why } from '../../src/contract/schemas.ts';
import { isAlive, type ProcessIdentity } from '../../src/host/process-identity.ts';
import { diskReserveBytes } from '../../src/volume/disk-room.ts';
import { Fleet, type FleetWorker, killProcess } from '../support/fleet.ts';
import { NotWorthWaiting, NotYet, until } from '../support/patience.ts';
import { tool, VolumeLab } from '../support/volume-lab.ts';
import { PAUSE_VARIABLE } from '../support/writer.ts';
import { WriterCollector } from '../support/writer-collector.ts';
import { writerConfig } from '../support/writer-config.ts';

const MIB = 2 ** 20;
export const WORKERS = ['a', 'b', 'c'] as const;
/** Room for what a worker has when all machines are on it, and for copies that moves leave. */
const DISK_BYTES = 4096 * MIB;
const VOLUME_BYTES = 64 * MIB;
const WRITER_PAUSE_MS = 500;
const HEALTH_INTERVAL_MS = 10_000;
const WATCH_MS = 500;
/** Of a fleet to which nothing is done: what has not changed for so long will not. */
const STILL_MS_MAX = 240_000;
const FILLER = 'filler-of-the-soak';

/** What the harness has asked for; `unsure`: the command that would have said so did not end well. */
export type Desired = 'running' | 'stopped' | 'unsure' | 'gone';
export type Known = { name: string; id: string; desired: Desired; busy: boolean };

type Ended = { exitCode: number | null; stdout: string; stderr: string };

/** The fleet, and what the harness knows of it without asking it. */
export class World {
  readonly fleet: Fleet;
  readonly collector: WriterCollector;
  readonly machines: Known[] = [];
  readonly faults: string[] = [];
  /** How often commands ended with which exit code and error, with the first that did. */
  readonly commands = new Map<string, { times: number; first: string }>();
  /** Processes that are stopped (SIGSTOP), and what they are. */
  readonly stopped = new Map<ProcessIdentity, string>();
  readonly full = new Set<string>();
  readonly drained = new Set<string>();
  readonly #disks: Readonly<Record<string, string>>;
  readonly #stateFolder: string;
  readonly #log: (line: string) => void;
  #made = 0;
  #isOver = false;
  readonly #watching: Promise<void>[];

  private constructor(
    fleet: Fleet,
    collector: WriterCollector,
    disks: Readonly<Record<string, string>>,
    options: { stateFolder: string; log: (line: string) => void },
  ) {
    this.fleet = fleet;
    this.collector = collector;
    this.#disks = disks;
    this.#stateFolder = options.stateFolder;
    this.#log = options.log;
    this.#watching = [this.#watch()];
  }

  /** `after` gets what is to be done at the end, in reverse order. */
  static async make(
    after: (ending: () => unknown) => void,
    options: { stateFolder: string; log: (line: string) => void },
  ): Promise<World> {
    const lab = new VolumeLab();
    after(() => lab.close());
    const disks: Record<string, string> = {};
    for (const name of WORKERS) disks[name] = await lab.smallDisk(DISK_BYTES, name);
    const collector = await WriterCollector.open({ after } as Parameters<typeof WriterCollector.open>[0]);
    const fleet = await Fleet.start({ after } as Parameters<typeof Fleet.start>[0], WORKERS, {
      dataDir: disks,
    });
    const world = new World(fleet, collector, disks, options);
    after(() => world.#end());
    return world;
  }

  say(line: string): void {
    this.#log(`${new Date().toISOString().slice(11, 19)} ${line}`);
  }

  async #end(): Promise<void> {
    this.#isOver = true;
    for (const identity of this.stopped.keys()) this.#continue(identity);
    for (const worker of this.full) this.empty(worker);
    await Promise.all(this.#watching);
  }

  /** A writer on a volume of its own, or on one that is there. */
  async addMachine(worker: FleetWorker, volumeId?: string): Promise<Known> {
    this.#made += 1;
    const name = `m-${this.#made}`;
    const volume =
      volumeId === undefined
        ? await worker.client.createVolume({
            name: `${name}-data`,
            lengthBytes: VOLUME_BYTES,
            filesystem: 'ext4',
            encrypted: false,
          })
        : { id: volumeId };
    const config = writerConfig(volume.id, String(this.collector.port), name);
    const { id } = await worker.client.createMachine({
      name,
      start: true,
      config: {
        ...config,
        env: { [PAUSE_VARIABLE]: `${WRITER_PAUSE_MS}` },
        health: { ...config.health!, intervalMs: HEALTH_INTERVAL_MS },
      },
    });
    const known: Known = { name, id, desired: 'running', busy: false };
    this.machines.push(known);
    return known;
  }

  /** A godwit command; what ends it is counted. An `INTERNAL` error, or no end of its own, is a fault. */
  async godwit(...words: string[]): Promise<Ended> {
    const ended = await this.fleet.run(...words);
    const code = /error ([A-Z_]+)/.exec(ended.stderr)?.[1] ?? '';
    const key = `${words[0]} ${['machine', 'runs', 'volume'].includes(words[0]!) ? words[1] : ''}: ${ended.exitCode} ${code}`;
    const entry = this.commands.get(key) ?? {
      times: 0,
      first: `${words.join(' ')}: ${ended.stderr.trim().slice(0, 300)}`,
    };
    entry.times += 1;
    if (words[0] !== 'why' || ended.exitCode !== 0)
      this.say(`  ${words.join(' ')}: ${ended.exitCode} ${code}`);
    this.commands.set(key, entry);
    if (code === 'INTERNAL' || ended.exitCode === null)
      this.faults.push(
        `godwit ${words.join(' ')} ended with ${ended.exitCode}: ${ended.stderr.slice(0, 500)}`,
      );
    return ended;
  }

  // ---- what is done to processes and disks ----

  /** SIGSTOP, until `continueAll`, or for so long. */
  async stopProcess(identity: ProcessIdentity, what: string, forMs: number | null): Promise<void> {
    if (!isAlive(identity)) return;
    process.kill(identity.pid, 'SIGSTOP');
    this.stopped.set(identity, what);
    if (forMs === null) return;
    await sleep(forMs);
    this.#continue(identity);
  }

  continueAll(): void {
    for (const identity of this.stopped.keys()) this.#continue(identity);
  }

  #continue(identity: ProcessIdentity): void {
    this.stopped.delete(identity);
    if (isAlive(identity)) process.kill(identity.pid, 'SIGCONT');
  }

  kill(identity: ProcessIdentity): void {
    this.stopped.delete(identity);
    killProcess(identity);
  }

  /** Writes that need room wait then. */
  async fill(worker: string): Promise<void> {
    const path = join(this.#disks[worker]!, FILLER);
    this.full.add(worker);
    // Below what is kept back for machines that leave, and above what is kept back for the journal.
    const leave = Math.floor(diskReserveBytes(DISK_BYTES) / 2);
    const { bavail, bsize } = statfsSync(this.#disks[worker]!);
    const free = bavail * bsize;
    if (free > leave) await tool('fallocate', '-l', String(free - leave), path);
  }

  empty(worker: string): void {
    rmSync(join(this.#disks[worker]!, FILLER), { force: true });
    this.full.delete(worker);
  }

  /** What is found of the machine's processes on all workers, past their control processes. */
  shimsOf(machineId: string): { worker: FleetWorker; shim: ReturnType<FleetWorker['shims']>[number] }[] {
    return this.fleet.workers.flatMap((worker) =>
      worker
        .shims()
        .filter(({ id }) => id === machineId)
        .map((shim) => ({ worker, shim })),
    );
  }

  /**
   * One writer: never does the machine run twice, and never may two workers open its volume for writing. Asks
   * nobody: processes and records on disk are looked at.
   */
  async #watch(): Promise<void> {
    while (!this.#isOver) {
      for (const { id, name } of this.machines) {
        const running = () =>
          this.shimsOf(id)
            .filter(({ shim }) => shim.state.machineInit !== null && isAlive(shim.state.machineInit))
            .map(({ worker }) => worker.name);
        const first = running();
        // One that ended between two looks is none.
        if (first.length > 1 && running().length > 1) this.#fault(`${name} runs on ${first.join(' and ')}`);
        const history = this.collector.history(name);
        if (history.faults.length > 0) this.#fault(`${name}: ${history.faults[0]}`);
      }
      await sleep(WATCH_MS);
    }
  }

  #fault(text: string): void {
    if (this.faults.includes(text)) return;
    this.faults.push(text);
    this.say(`FAULT: ${text}`);
  }

  // ---- what the fleet says ----

  async views(): Promise<MachineView[]> {
    const lists = await Promise.all(this.fleet.workers.map((worker) => worker.client.listMachines()));
    return lists.flat();
  }

  /** Who has the machine, and what that worker says of it; null while nobody does, or more than one. */
  async owner(known: Known): Promise<{ worker: FleetWorker; view: MachineView } | null> {
    const found: { worker: FleetWorker; view: MachineView }[] = [];
    for (const worker of this.fleet.workers) {
      if (!worker.isRunning) continue;
      for (const view of await worker.client.listMachines().catch(() => []))
        if (view.id === known.id && view.state !== 'moved' && view.state !== 'incoming')
          found.push({ worker, view });
    }
    return found.length === 1 ? found[0]! : null;
  }

  /** As a person reads it: all answers, who has something to say first. */
  async why(
    ref: string,
  ): Promise<{ conditions: Why['conditions']; state: string; stderr: string; exitCode: number | null }> {
    const { stdout, stderr, exitCode } = await this.godwit('why', ref, '--json');
    const { answers = [] } = JSON.parse(stdout || '{}') as { answers?: (Why & { worker: string })[] };
    return {
      conditions: answers.flatMap(({ conditions }) => conditions),
      state: answers.map(({ state }) => state).join(', '),
      stderr,
      exitCode,
    };
  }

  /** Nothing is done to anybody any more: processes go on, disks have room, workers run and take machines. */
  async heal(): Promise<void> {
    this.continueAll();
    for (const worker of this.full) this.empty(worker);
    for (const worker of this.fleet.workers) if (!worker.isRunning) await worker.start();
    for (const { name } of this.fleet.workers) await this.fleet.worker(name).client.undrain();
    this.drained.clear();
  }

  /**
   * Resolves when all machines are as they were asked to be, and no run is left; rejects with what is not so,
   * and what `why` says of it.
   */
  async settled(): Promise<void> {
    const bad = async (): Promise<string[]> => {
      const views = await this.views();
      const bad: string[] = [];
      for (const { id, name, desired } of this.machines) {
        const mine = views.filter((view) => view.id === id);
        const [view] = mine;
        if (desired === 'gone') {
          if (mine.length > 0)
            bad.push(`${name} is still there: ${mine.map(({ worker, state }) => `${state} at ${worker}`)}`);
        } else if (mine.length !== 1 || view === undefined) {
          bad.push(
            `${name} is at ${mine.map(({ worker, state }) => `${worker} (${state})`).join(' and ') || 'no worker'}`,
          );
        } else if (view.state !== desired || view.move !== null || (view.hydration?.exposedBytes ?? 0) > 0) {
          bad.push(
            `${name} is ${view.state} at ${view.worker}, not ${desired}${view.move ? `; ${view.move.phase}` : ''}`,
          );
        } else if (desired === 'running' && view.health.state !== 'healthy')
          bad.push(`${name} is ${view.health.state}`);
      }
      for (const { name, client } of this.fleet.workers)
        for (const run of await client.listRuns({ state: 'unfinished' }))
          bad.push(
            `${name} has ${run.kind} ${run.id} of ${run.resource} in ${run.step} (${run.state}): ${run.reason?.message}`,
          );
      return bad;
    };
    let last: string[] = [];
    let changedMs = performance.now();
    try {
      await until(
        'the fleet to settle',
        async () => {
          const now = await bad();
          if (JSON.stringify(now) !== JSON.stringify(last)) changedMs = performance.now();
          last = now;
          if (last.length > 0 && performance.now() - changedMs > STILL_MS_MAX)
            throw new NotWorthWaiting('it is still');
          return last.length === 0 || new NotYet(last);
        },
        { patienceMs: 300_000 },
      );
    } catch {
      for (const line of last) {
        const name = /^(m-\d+) /.exec(line)?.[1];
        const said = name === undefined ? null : await this.why(name).catch(() => null);
        const reasons = said?.conditions.map(({ message }) => message).join(' | ');
        this.#fault(
          `does not settle: ${line}${said === null ? '' : `; why: ${reasons || 'nothing'} ${said.stderr.slice(0, 200)}`}`,
        );
      }
      throw new Error('the fleet does not settle');
    }
  }

  /** What is needed to read of it later. */
  write(name: string, value: unknown): void {
    writeFileSync(join(this.#stateFolder, name), `${JSON.stringify(value, null, 2)}\n`);
  }
}

export function pick<Item>(random: Random, from: readonly Item[]): Item | null {
  return from.length === 0 ? null : from[random.below(from.length)]!;
}
