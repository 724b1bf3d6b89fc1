import { MIGRATE_OUT } from '../../src/migration/migrate-out.ts';
import type { WorkerParts } from '../../src/worker/parts.ts';
import { BALLAST_BYTES } from './disk.ts';
import { Owners } from './owners.ts';
import type { Process } from './simulation.ts';
import type { Trouble } from './troubles.ts';
import type { World } from './world.ts';

/** Between one deed and the next. */
const DEED_EVERY_MS = [500, 9_000] as const;
const MIB = 2 ** 20;
/** What is free of a disk that is full for volumes: in what is kept back of it for machines that leave. */
const RESERVE_MIB = [70, 250] as const;

/** What is done to a fleet while a drain is on, by lot. */
export class Deeds {
  readonly #world: World;
  readonly #rate: number;
  #isOn = false;
  /** Takes back, each, what lasts. */
  readonly #lasting = new Set<() => void>();
  readonly #owners: Owners;

  /** `rate`: 1, as much as usual. */
  constructor(world: World, rate: number) {
    this.#world = world;
    this.#rate = rate;
    this.#owners = new Owners(world);
  }

  begin(): void {
    this.#isOn = true;
    this.#later();
  }

  end(): void {
    this.#isOn = false;
  }

  /** Everything comes back. */
  mend(): void {
    const { world } = this.#here();
    for (const takeBack of [...this.#lasting]) takeBack();
    for (const name of world.names) {
      if (!world.workers.get(name)!.host.hasPower) world.givePower(name);
      world.start(name);
      for (const other of world.names) world.network.setCut(name, other, false);
    }
  }

  #here() {
    return { world: this.#world, simulation: this.#world.simulation };
  }

  #later(): void {
    const { simulation } = this.#here();
    simulation.world(simulation.between(...DEED_EVERY_MS) / this.#rate, () => {
      if (!this.#isOn) return;
      this.#one();
      this.#later();
    });
  }

  #one(): void {
    const { world, simulation } = this.#here();
    const name = simulation.pick(world.names);
    const { lossIgnored } = world.bugs;
    const deeds: (readonly [weight: number, deed: () => void])[] = [
      [6, () => this.#kill(name)],
      [3, () => this.#cut(name)],
      [2, () => this.#cutPower(name)],
      [4, () => this.#killShim(name)],
      [1, () => this.#setClock(name)],
      [3, () => this.#cancel(name)],
      [2, () => this.#move(name)],
      [1, () => this.#withdraw(name)],
      [2, () => this.#fillDisk(name)],
      [lossIgnored ? 20 : 1, () => this.#failDisk(name)],
      [2, () => this.#hangWorker(name)],
      [3, () => this.#hangShim(name)],
      [2, () => this.#owners.stopOne(name)],
    ];
    let left = simulation.random.below(deeds.reduce((sum, [weight]) => sum + weight, 0));
    for (const [weight, deed] of deeds) {
      left -= weight;
      if (left >= 0) continue;
      deed();
      return;
    }
  }

  /** Until its time is over, or all is mended. */
  #last(forMs: readonly [number, number], takeBack: () => void): void {
    const { simulation } = this.#here();
    const once = () => {
      if (this.#lasting.delete(once)) takeBack();
    };
    this.#lasting.add(once);
    simulation.world(simulation.between(...forMs), once);
  }

  #kill(name: string): void {
    const { world, simulation } = this.#here();
    if (world.workers.get(name)!.process === null) return;
    simulation.count('workers killed');
    world.kill(name);
    simulation.world(simulation.between(100, 15_000), () => world.start(name));
  }

  #cut(name: string): void {
    const { world, simulation } = this.#here();
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
    const { world, simulation } = this.#here();
    if (!world.workers.get(name)!.host.hasPower) return;
    simulation.count('power cuts');
    world.cutPower(name);
    simulation.world(simulation.between(3_000, 30_000), () => {
      if (!world.workers.get(name)!.host.hasPower) world.givePower(name);
    });
  }

  #killShim(name: string): void {
    const { world, simulation } = this.#here();
    const shims = [...world.workers.get(name)!.host.shims.values()];
    if (shims.length === 0) return;
    const shim = simulation.pick(shims);
    simulation.count('shims killed');
    simulation.log(`${shim.process.name} is killed`);
    simulation.troubles.happened('shim', shim.process.name);
    shim.process.end();
  }

  #setClock(name: string): void {
    const { world, simulation } = this.#here();
    const byMs = simulation.between(-600_000, 600_000);
    simulation.count('clocks set');
    simulation.log(`the clock of ${name} is set by ${byMs} ms`);
    simulation.troubles.happened('clock', name);
    world.workers.get(name)!.host.boot.wallOffsetMs += byMs;
  }

  /** For volumes only, for journal and records too until what is kept back for them is opened, or for longer. */
  #fillDisk(name: string): void {
    const { world, simulation } = this.#here();
    const { disk } = world.workers.get(name)!.host;
    if (!disk.isPlentiful || disk.fails || disk.failsNext > 0) return;
    const how = simulation.pick(['reserve', 'reserve', 'ballast', 'last'] as const);
    const freeBytes = { reserve: simulation.between(...RESERVE_MIB) * MIB, ballast: 0, last: -BALLAST_BYTES };
    disk.freeBytes = freeBytes[how];
    const troubles: Trouble[] = how === 'reserve' ? ['full'] : ['full', 'full to the last'];
    simulation.count(how === 'reserve' ? 'disks full' : 'disks full to the last');
    simulation.log(`the disk of ${name} is full, ${disk.freeBytes / MIB} MiB are left`);
    for (const trouble of troubles) simulation.troubles.begin(trouble, name);
    this.#last(how === 'last' ? [500, 15_000] : [2_000, 40_000], () => {
      simulation.log(`the disk of ${name} has room`);
      for (const trouble of troubles) simulation.troubles.end(trouble, name);
      disk.mend();
    });
  }

  /** Its next writes, or all for a while; what volumes write, or only what the worker does. */
  #failDisk(name: string): void {
    const { world, simulation } = this.#here();
    const { disk } = world.workers.get(name)!.host;
    if (disk.fails || !disk.isPlentiful) return;
    const isLong = simulation.chance(0.6);
    if (isLong) Object.assign(disk, { fails: true, failsData: simulation.chance(0.4) });
    else disk.failsNext = simulation.between(1, 4);
    simulation.count(isLong ? 'disks that failed for a while' : 'disks that failed for some writes');
    simulation.log(`the disk of ${name} fails${isLong ? '' : ` ${disk.failsNext} times`}`);
    simulation.troubles.begin('failing', name);
    this.#last([1_000, 25_000], () => {
      simulation.log(`the disk of ${name} is well`);
      simulation.troubles.end('failing', name);
      disk.mend();
    });
  }

  #hangWorker(name: string): void {
    const { process } = this.#world.workers.get(name)!;
    if (process === null) return;
    this.#world.simulation.count('workers stopped for a while');
    this.#hang('hung', process);
  }

  #hangShim(name: string): void {
    const { world, simulation } = this.#here();
    const shims = [...world.workers.get(name)!.host.shims.values()];
    if (shims.length === 0) return;
    const shim = simulation.pick(shims);
    const isServer = simulation.chance(0.5);
    simulation.count(isServer ? 'volume servers stopped for a while' : 'shims stopped for a while');
    this.#hang(isServer ? 'server hung' : 'shim hung', isServer ? shim.server : shim.process);
  }

  /** SIGSTOP; mostly for less than anybody gives up for. */
  #hang(trouble: Trouble, process: Process): void {
    const { simulation } = this.#here();
    if (process.isStopped) return;
    simulation.log(`${process.name} is stopped`);
    simulation.troubles.begin(trouble, process.name);
    process.stop();
    process.onEnd(() => simulation.troubles.end(trouble, process.name));
    this.#last(simulation.chance(0.7) ? [1_000, 15_000] : [20_000, 60_000], () => {
      if (!process.alive) return;
      simulation.log(`${process.name} goes on`);
      simulation.troubles.end(trouble, process.name);
      process.goOn();
    });
  }

  #cancel(name: string): void {
    const { simulation } = this.#here();
    this.#operator(name, 'cancel', async ({ journal, service }) => {
      const run = simulation.pick(journal.open({ kind: MIGRATE_OUT }));
      if (run === undefined) return;
      await service.cancelRun(run.id);
      simulation.count('moves cancelled');
      simulation.log(`${name} cancels ${run.id}`);
    });
  }

  #move(name: string): void {
    const { simulation } = this.#here();
    this.#operator(name, 'move', async ({ machines, service }) => {
      const machine = simulation.pick(machines.records());
      if (machine === undefined) return;
      await service.moveMachine(machine.id, { target: null });
      simulation.count('moves by hand');
    });
  }

  #withdraw(name: string): void {
    const { simulation } = this.#here();
    this.#operator(name, 'withdraw', async ({ drain, service }) => {
      if (!drain.desired) return;
      await service.undrain();
      simulation.count('drains withdrawn');
    });
  }

  /** What a person asks of a worker that is up, and may be refused. */
  #operator(name: string, what: string, act: (parts: WorkerParts) => Promise<void>): void {
    const { world } = this.#here();
    if (world.isUp(name)) void world.ask(name, act).catch(world.refused(what));
  }
}
