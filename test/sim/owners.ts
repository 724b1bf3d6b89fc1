import type { Process } from './simulation.ts';
import type { World } from './world.ts';

/** For so long the owner of a machine wants it stopped. */
const STOPPED_MS = [1_000, 30_000] as const;
/** Between one try to have it started again and the next. */
const AGAIN_MS = 2_000;

/** Who machines are of: they stop them, and start them again some seconds later, wherever they are then. */
export class Owners {
  readonly #world: World;
  /** Machines that were stopped, and whom it was asked of, as long as there is no answer. */
  readonly #stopped = new Map<string, Process | null>();

  constructor(world: World) {
    this.#world = world;
  }

  /** Of one of its machines. */
  stopOne(name: string): void {
    const { simulation, workers, checkers } = this.#world;
    const { parts, process } = workers.get(name)!;
    if (parts === null || process === null || !this.#world.isUp(name)) return;
    const record = simulation.pick(parts.machines.records());
    if (record === undefined || this.#stopped.has(record.id)) return;
    const { id } = record;
    this.#stopped.set(id, process);
    simulation.count('machines stopped by their owners');
    simulation.log(`the owner of ${id} has ${name} stop it`);
    const starts = checkers.startsOf(id);
    void this.#world
      .ask(name, ({ service }) => service.stopMachine(id))
      .then(() => checkers.ownerStopped(id, starts), this.#world.refused('stop a machine'))
      .finally(() => {
        if (this.#stopped.has(id)) this.#stopped.set(id, null);
      });
    simulation.world(simulation.between(...STOPPED_MS), () => this.#start(id, name));
  }

  /** Again until somebody has done it. `stoppedAt`: a stop that comes late would be the last word. */
  #start(id: string, stoppedAt: string): void {
    const world = this.#world;
    const asked = this.#stopped.get(id) ?? null;
    const isOut = asked !== null && asked === world.workers.get(stoppedAt)!.process;
    const keeper = isOut ? undefined : world.names.find((name) => this.#isFree(name, id));
    if (keeper !== undefined) {
      world.checkers.ownerStarts(id);
      void world
        .ask(keeper, ({ service }) => service.startMachine(id))
        .then(() => this.#stopped.delete(id), world.refused('start a machine'));
    }
    world.simulation.world(AGAIN_MS, () => {
      if (this.#stopped.has(id)) this.#start(id, stoppedAt);
    });
  }

  /** It has the machine, and no move has it. */
  #isFree(name: string, id: string): boolean {
    if (!this.#world.isUp(name)) return false;
    const records = this.#world.workers.get(name)!.parts!.machines.records();
    return records.some((record) => record.id === id && record.claimedBy === null);
  }
}
