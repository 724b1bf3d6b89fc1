import type { Process } from './simulation.ts';
import type { World } from './world.ts';

/** Before an operator has read that a volume lost writes, and between one try of what he does and the next. */
const NOTICED_MS = 15_000;
const AGAIN_MS = 3_000;

/** Who decides what becomes of volumes whose disk lost writes: he goes on with what the disk has. */
export class DataLosses {
  readonly #world: World;
  /** True: it was told again meanwhile. */
  readonly #inHand = new Map<string, boolean>();
  /** Whom it was asked of, and has not answered yet. */
  readonly #asked = new Map<string, Process>();

  constructor(world: World) {
    this.#world = world;
    world.onDataLost = (volumeId) => this.#noticed(volumeId);
  }

  #noticed(volumeId: string): void {
    const isKnown = this.#inHand.has(volumeId);
    this.#inHand.set(volumeId, isKnown);
    if (!isKnown) this.#world.simulation.world(NOTICED_MS, () => this.#turn(volumeId));
  }

  /**
   * Again until nothing is lost any more, its machine is wanted, and nobody is at it: each of it may be asked
   * twice, but a stop that comes late would be the last word.
   */
  #turn(volumeId: string): void {
    const { simulation } = this.#world;
    let isOver = false;
    for (const name of this.#world.names) {
      const { process } = this.#world.workers.get(name)!;
      const key = `${name} ${volumeId}`;
      if (process === null || !this.#world.isUp(name) || this.#asked.get(key) === process) continue;
      this.#asked.set(key, process);
      void this.#accept(name, volumeId)
        .then((done) => {
          isOver ||= done;
        }, this.#world.refused('accept a loss'))
        .finally(() => this.#asked.delete(key));
    }
    simulation.world(AGAIN_MS, () => {
      const isTold = this.#inHand.get(volumeId) === true;
      const isAsked = this.#world.names.some((name) => {
        const asked = this.#asked.get(`${name} ${volumeId}`);
        return asked !== undefined && asked === this.#world.workers.get(name)!.process;
      });
      this.#inHand.set(volumeId, false);
      if (isOver && !isTold && !isAsked) this.#inHand.delete(volumeId);
      else this.#turn(volumeId);
    });
  }

  /** At whoever has the volume. True: it is accepted, and its machine runs. */
  async #accept(name: string, volumeId: string): Promise<boolean> {
    const { checkers, simulation } = this.#world;
    return this.#world.ask(name, async ({ machines, service, volumes }) => {
      const record = (await volumes.list()).volumes.find(({ id }) => id === volumeId);
      const machine = machines.records().find(({ config }) => config.volume?.volumeId === volumeId);
      if (record === undefined || machine === undefined || checkers.ownerOf(volumeId) !== name) return false;
      const { dataLoss } = await service.showVolume(volumeId);
      if (dataLoss !== undefined) {
        await service.stopMachine(machine.id);
        await service.acceptLoss(volumeId, { atMs: dataLoss.atMs });
        checkers.lossIsOver(volumeId);
        simulation.count('losses accepted');
        simulation.log(`at ${name} the loss of ${volumeId} is accepted`);
      }
      if (checkers.isLost(volumeId)) return false;
      if (machines.get(machine.id).desired === 'stopped') {
        checkers.ownerStarts(machine.id);
        await service.startMachine(machine.id);
      }
      return true;
    });
  }
}
