import { rmSync } from 'node:fs';
import { MIGRATE_OUT } from '../../src/migration/migrate-out.ts';
import { DataLosses } from './data-losses.ts';
import { Deeds } from './deeds.ts';
import { Violation } from './simulation.ts';
import { WhyChecker } from './why-checker.ts';
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

/** A drain that goes on longer has its faults taken away. */
const FAULTY_MS = 120_000;
/** Nothing fails any more: then all ends within this. */
const QUIET_MS = 400_000;
const LOOK_MS = 1_000;

/** Drains one worker after the other, with all that may happen meanwhile. */
export async function live(options: LifeOptions): Promise<LifeResult> {
  const life = new Life(options);
  let violation: string | null = null;
  // Which ends the process of a worker.
  const onRejected = (error: unknown) =>
    void life.world.simulation.fail(`nobody handles ${(error as Error)?.stack ?? error}`);
  process.on('unhandledRejection', onRejected);
  try {
    await life.run();
  } catch (error) {
    if (!(error instanceof Violation)) throw error;
    violation = `${error.message}\n\nThe end of the trace of seed ${options.seed}:\n${life.world.simulation.traceEnd}`;
  } finally {
    process.off('unhandledRejection', onRejected);
    life.world.close();
    rmSync(options.root, { recursive: true, force: true });
  }
  return { ...life.result(), violation };
}

class Life {
  readonly world: World;
  readonly #options: LifeOptions;
  readonly #deeds: Deeds;
  readonly #why: WhyChecker;
  #drains = 0;
  #moves = 0;

  constructor(options: LifeOptions) {
    this.#options = options;
    this.world = new World(options);
    this.#deeds = new Deeds(this.world, options.faults ?? 1);
    this.#why = new WhyChecker(this.world);
    new DataLosses(this.world);
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
    this.#why.begin();
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
      if (done || parts === null || process === asked || !world.isUp(name)) return done;
      asked = process;
      question(world).then(
        () => {
          done = true;
        },
        (error: unknown) => {
          world.refused(what)(error);
          asked = null;
        },
      );
      return false;
    });
    await world.until(`${name} to ${what}`, () => done);
  }

  async #drain(name: string): Promise<void> {
    const { world } = this;
    const { simulation } = world;
    simulation.log(`drain of ${name}`);
    await this.#asked(name, 'be drained', () =>
      world.ask(name, ({ service }) => service.drain({ desired: true, target: null })),
    );
    this.#deeds.begin();
    const untilMs = simulation.nowMs + FAULTY_MS;
    const isOver = this.#drained(name);
    await simulation.run(() => isOver() || simulation.nowMs >= untilMs);
    this.#deeds.end();
    this.#deeds.mend();
    if (!isOver()) await world.until(`${name} to be drained`, isOver, QUIET_MS);
    this.#deeds.mend();
    simulation.log(`${name} is drained`);
    this.#drains += 1;
  }

  /** Whether the worker has said so, looked at now and then. */
  #drained(name: string): () => boolean {
    const { world } = this;
    let over = false;
    this.#look(() => {
      if (over || !world.isUp(name)) return over;
      void world
        .ask(name, async ({ drain, machines, service }) => {
          // Somebody had withdrawn it.
          if (!drain.desired) await service.drain({ desired: true, target: null });
          if (machines.records().length > 0) return;
          const { state } = await drain.status();
          over = state === 'drained';
          // Something was not healthy where it arrived, which is told until somebody asks again.
          if (!over) await service.drain({ desired: true, target: null });
        })
        .catch(world.refused('drain'));
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
    this.#deeds.mend();
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
      throw world.simulation.fail(
        `${machines} of ${this.#options.machines} machines are left\n${world.describe()}`,
      );
    await this.#why.silent(QUIET_MS);
    this.#moves = world.names.reduce(
      (sum, name) =>
        sum + world.workers.get(name)!.parts!.journal.find({ kind: MIGRATE_OUT, state: 'done' }).length,
      0,
    );
  }
}
