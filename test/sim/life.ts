import { rmSync } from 'node:fs';
import { isGodwitError } from '../../src/base/errors.ts';
import { MIGRATE_OUT } from '../../src/migration/migrate-out.ts';
import { Violation } from './simulation.ts';
import { type Bugs, World } from './world.ts';

export type LifeOptions = {
  seed: number;
  root: string;
  /** Drains that come to their end; more are begun, and withdrawn. */
  drains: number;
  workers: number;
  machines: number;
  bugs?: Bugs;
  /** 1: as many faults as usual. */
  faults?: number;
};

export type LifeResult = {
  seed: number;
  drains: number;
  moves: number;
  simulatedHours: number;
  events: number;
  acknowledgedWrites: number;
  checkedReads: number;
  stats: Readonly<Record<string, number>>;
  /** Of all that happened. The same seed gives the same. */
  digest: string;
  /** What was found, with the end of the trace; null: nothing. */
  violation: string | null;
};

/** Between one deed of the world and the next, while a drain is on. */
const DEED_EVERY_MS = [500, 9_000] as const;
/** A drain that goes on longer has its faults taken away. */
const FAULTY_MS = 120_000;
/** Nothing fails any more: then all ends within this. */
const QUIET_MS = 400_000;
const LOOK_MS = 1_000;

/** Drains one worker after the other, with all that may happen meanwhile. */
export async function live(options: LifeOptions): Promise<LifeResult> {
  const life = new Life(options);
  let violation: string | null = null;
  try {
    await life.run();
  } catch (error) {
    if (!(error instanceof Violation)) throw error;
    violation = `${error.message}\n\nThe end of the trace of seed ${options.seed}:\n${life.world.simulation.traceEnd}`;
  } finally {
    life.world.close();
    rmSync(options.root, { recursive: true, force: true });
  }
  return { ...life.result(), violation };
}

class Life {
  readonly world: World;
  readonly #options: LifeOptions;
  #drains = 0;
  #moves = 0;
  #isFaulty = false;

  constructor(options: LifeOptions) {
    this.#options = options;
    this.world = new World(options);
  }

  result(): Omit<LifeResult, 'violation'> {
    const { simulation, checkers } = this.world;
    const { acknowledgedWrites, checkedReads } = checkers;
    return {
      ...{ seed: this.#options.seed, drains: this.#drains, moves: this.#moves },
      ...{ simulatedHours: simulation.nowMs / 3_600_000, events: simulation.events },
      ...{ acknowledgedWrites, checkedReads, stats: simulation.stats, digest: simulation.digest },
    };
  }

  async run(): Promise<void> {
    const { world } = this;
    await world.begin();
    while (this.#drains < this.#options.drains) {
      const name = world.simulation.pick(world.names);
      await this.#drain(name);
      await this.#undrain(name);
    }
    await this.#settled();
  }

  /** Looks at once, and again after each pause, until it says that it is over. */
  #look(look: () => boolean): void {
    const { simulation } = this.world;
    simulation.world(0, () => {
      if (!look()) simulation.world(LOOK_MS, () => this.#look(look));
    });
  }

  /** Asked by a person, who asks again where nobody answers. */
  async #asked(name: string, what: string, question: (world: World) => Promise<unknown>): Promise<void> {
    const { world } = this;
    let done = false;
    let asked = null as unknown;
    this.#look(() => {
      const { parts, process } = world.workers.get(name)!;
      if (done || parts === null || process === asked) return done;
      asked = process;
      question(world).then(() => {
        done = true;
      }, this.#notRefused(what));
      return false;
    });
    await world.until(`${name} to ${what}`, () => done);
  }

  #notRefused(what: string): (error: unknown) => void {
    return (error) => {
      if (!isGodwitError(error)) this.world.simulation.fail(`${what}: ${(error as Error)?.stack ?? error}`);
    };
  }

  async #drain(name: string): Promise<void> {
    const { world } = this;
    const { simulation } = world;
    simulation.log(`drain of ${name}`);
    await this.#asked(name, 'be drained', () =>
      world.ask(name, ({ service }) => service.drain({ desired: true, target: null })),
    );
    this.#isFaulty = true;
    this.#deeds();
    const untilMs = simulation.nowMs + FAULTY_MS;
    const isOver = this.#drained(name);
    await simulation.run(() => isOver() || simulation.nowMs >= untilMs);
    this.#isFaulty = false;
    if (!isOver()) {
      this.#mend();
      await world.until(`${name} to be drained`, isOver, QUIET_MS);
    }
    this.#mend();
    simulation.log(`${name} is drained`);
    this.#drains += 1;
  }

  /** Whether the worker has said so, looked at now and then. */
  #drained(name: string): () => boolean {
    const { world } = this;
    let over = false;
    this.#look(() => {
      if (over || !world.isUp(name)) return over;
      void world.ask(name, async ({ drain, machines, service }) => {
        // Somebody had withdrawn it.
        if (!drain.desired) await service.drain({ desired: true, target: null });
        const { state } = await drain.status();
        over = state === 'drained';
        // Something was not healthy where it arrived, which is told until somebody asks again.
        if (!over && machines.records().length === 0) await service.drain({ desired: true, target: null });
      });
      return false;
    });
    return () => over;
  }

  async #undrain(name: string): Promise<void> {
    const moves = () =>
      this.world.ask(name, async ({ journal, service }) => {
        this.#moves = Math.max(this.#moves, journal.find({ kind: MIGRATE_OUT, state: 'done' }).length);
        await service.undrain();
      });
    await this.#asked(name, 'be open again', moves);
  }

  /** Nothing is done any more: every machine runs, once, and no run is open. */
  async #settled(): Promise<void> {
    const { world } = this;
    this.#mend();
    await world.until(
      'all to come to its end',
      () =>
        world.names.every((name) => {
          const parts = world.workers.get(name)?.parts;
          return (
            parts != null &&
            parts.journal.open({}).length === 0 &&
            parts.machines.records().every(({ id, claimedBy }) => {
              const runs = world.checkers.runsOn(id);
              return claimedBy === null && runs === name;
            })
          );
        }),
      QUIET_MS,
    );
    const machines = world.names.reduce(
      (sum, name) => sum + world.workers.get(name)!.parts!.machines.records().length,
      0,
    );
    if (machines !== this.#options.machines)
      world.simulation.fail(
        `${machines} of ${this.#options.machines} machines are left\n${world.describe()}`,
      );
    this.#moves = world.names.reduce(
      (sum, name) =>
        sum + world.workers.get(name)!.parts!.journal.find({ kind: MIGRATE_OUT, state: 'done' }).length,
      0,
    );
  }

  /** Everything comes back, and nothing else happens. */
  #mend(): void {
    const { world } = this;
    for (const name of world.names) {
      const { host } = world.workers.get(name)!;
      if (!host.hasPower) world.givePower(name);
      world.start(name);
      for (const other of world.names) world.network.setCut(name, other, false);
    }
  }

  #deeds(): void {
    const { simulation } = this.world;
    simulation.world(simulation.between(...DEED_EVERY_MS) / (this.#options.faults ?? 1), () => {
      if (!this.#isFaulty) return;
      this.#deed();
      this.#deeds();
    });
  }

  #deed(): void {
    const { world } = this;
    const { simulation } = world;
    const name = simulation.pick(world.names);
    const deeds: (readonly [weight: number, deed: () => void])[] = [
      [6, () => this.#kill(name)],
      [3, () => this.#cut(name)],
      [2, () => this.#cutPower(name)],
      [4, () => this.#killShim(name)],
      [1, () => this.#setClock(name)],
      [3, () => this.#cancel(name)],
      [2, () => this.#move(name)],
      [1, () => this.#withdraw(name)],
    ];
    let left = simulation.random.below(deeds.reduce((sum, [weight]) => sum + weight, 0));
    for (const [weight, deed] of deeds) {
      left -= weight;
      if (left >= 0) continue;
      deed();
      return;
    }
  }

  #kill(name: string): void {
    const { world } = this;
    if (world.workers.get(name)!.process === null) return;
    world.simulation.count('workers killed');
    world.kill(name);
    world.simulation.world(world.simulation.between(100, 15_000), () => world.start(name));
  }

  #cut(name: string): void {
    const { world } = this;
    const { simulation } = world;
    const other = simulation.pick(world.names.filter((each) => each !== name));
    simulation.count('links cut');
    simulation.log(`${name} and ${other} are cut off from each other`);
    world.network.setCut(name, other, true);
    simulation.world(simulation.between(500, 45_000), () => {
      simulation.log(`${name} and ${other} reach each other`);
      world.network.setCut(name, other, false);
    });
  }

  #cutPower(name: string): void {
    const { world } = this;
    if (!world.workers.get(name)!.host.hasPower) return;
    world.simulation.count('power cuts');
    world.cutPower(name);
    world.simulation.world(world.simulation.between(3_000, 30_000), () => {
      if (!world.workers.get(name)!.host.hasPower) world.givePower(name);
    });
  }

  #killShim(name: string): void {
    const { simulation, workers } = this.world;
    const shims = [...workers.get(name)!.host.shims.values()];
    if (shims.length === 0) return;
    const shim = simulation.pick(shims);
    simulation.count('shims killed');
    simulation.log(`${shim.process.name} is killed`);
    shim.process.end();
  }

  #setClock(name: string): void {
    const { simulation, workers } = this.world;
    const byMs = simulation.between(-600_000, 600_000);
    simulation.count('clocks set');
    simulation.log(`the clock of ${name} is set by ${byMs} ms`);
    workers.get(name)!.host.boot.wallOffsetMs += byMs;
  }

  #cancel(name: string): void {
    const { world } = this;
    if (!world.isUp(name)) return;
    void world
      .ask(name, async ({ journal, service }) => {
        const run = world.simulation.pick(journal.open({ kind: MIGRATE_OUT }));
        if (run === undefined) return;
        await service.cancelRun(run.id);
        world.simulation.count('moves cancelled');
        world.simulation.log(`${name} cancels ${run.id}`);
      })
      .catch(this.#notRefused('cancel'));
  }

  #move(name: string): void {
    const { world } = this;
    if (!world.isUp(name)) return;
    void world
      .ask(name, async ({ machines, service }) => {
        const machine = world.simulation.pick(machines.records());
        if (machine === undefined) return;
        await service.moveMachine(machine.id, { target: null });
        world.simulation.count('moves by hand');
      })
      .catch(this.#notRefused('move'));
  }

  #withdraw(name: string): void {
    const { world } = this;
    if (!world.isUp(name)) return;
    void world
      .ask(name, async ({ drain, service }) => {
        if (!drain.desired) return;
        await service.undrain();
        world.simulation.count('drains withdrawn');
      })
      .catch(this.#notRefused('withdraw'));
  }
}
