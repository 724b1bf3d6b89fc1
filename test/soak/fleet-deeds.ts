import { setTimeout as sleep } from 'node:timers/promises';
import { type Random, seededRandom } from '../../src/base/random.ts';
import type { RunView } from '../../src/journal/run.ts';
import type { FleetWorker } from '../support/fleet.ts';
import { type Known, pick, WORKERS, type World } from './fleet-world.ts';

const STOPPED_MS_MAX = 20_000;
const FULL_MS_MAX = 20_000;
const WORKER_AWAY_MS_MAX = 5_000;
const MACHINES_MAX = 34;

/** Drawn when a deed begins, so that a seed gives the same deeds whatever becomes of them. */
type Deed = (
  world: World,
  draw: { random: Random; machine: Known | null; worker: FleetWorker },
) => Promise<void>;

/** What happens to a fleet, and how often among a hundred. */
const DEEDS: readonly [number, string, Deed][] = [
  [6, 'kill the shim', (world, { machine }) => onShim(world, machine, (shim) => world.kill(shim.shim))],
  [
    6,
    'kill the volume server',
    (world, { machine }) =>
      onShim(world, machine, ({ volumeServer }) => volumeServer && world.kill(volumeServer)),
  ],
  [4, 'kill the worker', killWorker],
  [4, 'stop the shim for a while', (world, draw) => stopProcess(world, draw, 'shim')],
  [4, 'stop the volume server for a while', (world, draw) => stopProcess(world, draw, 'volumeServer')],
  [4, 'stop the init of the machine for a while', (world, draw) => stopProcess(world, draw, 'machineInit')],
  [3, 'fill the disk', fillDisk],
  [
    14,
    'move',
    async (world, { machine, worker, random }) => {
      if (machine === null) return;
      const to = random.below(2) === 0 ? [] : ['--to', worker.name];
      await world.godwit('move', machine.name, '--detach', ...to);
    },
  ],
  [
    6,
    'drain',
    async (world, { worker }) => {
      // One at least takes machines.
      if (world.drained.size >= WORKERS.length - 1) return;
      world.drained.add(worker.name);
      await world.godwit('drain', worker.name, '--detach');
    },
  ],
  [
    8,
    'undrain',
    async (world, { worker }) => {
      world.drained.delete(worker.name);
      await world.godwit('undrain', worker.name);
    },
  ],
  [6, 'stop', (world, { machine }) => want(world, machine, 'stopped')],
  [8, 'start', (world, { machine }) => want(world, machine, 'running')],
  [3, 'restart', (world, { machine }) => want(world, machine, 'running', 'restart')],
  [
    6,
    'exec',
    async (world, { machine }) => {
      if (machine !== null)
        await world.godwit(
          'machine',
          'exec',
          machine.name,
          '--timeout',
          '20s',
          '--',
          'tail',
          '-n1',
          '/data/log',
        );
    },
  ],
  [
    5,
    'why',
    async (world, { machine, worker }) => {
      await world.godwit('why', machine?.name ?? worker.name);
    },
  ],
  [3, 'cancel', (world, draw) => onRun(world, draw, (run) => ['cancel', run.id])],
  [2, 'nudge', (world, draw) => onRun(world, draw, (run) => ['nudge', run.id])],
  [
    2,
    'force',
    (world, draw) =>
      onRun(world, draw, (run) => [
        'force',
        run.id,
        draw.random.below(2) === 0 ? 'undo' : 'forward',
        '--yes',
      ]),
  ],
  [3, 'destroy, and another', destroy],
  [3, 'clone', clone],
];
/** Each as often as it is drawn. */
const DECK = DEEDS.flatMap(([times, name, deed]) =>
  Array.from({ length: times }, () => [name, deed] as const),
);

/** Begins one deed; resolves when it is done. */
export function doSomething(world: World, random: Random): Promise<void> {
  const [name, deed] = DECK[random.below(DECK.length)]!;
  const machine = pick(
    random,
    world.machines.filter(({ desired, busy }) => desired !== 'gone' && !busy),
  );
  const worker = world.fleet.worker(WORKERS[random.below(WORKERS.length)]!);
  world.say(`${name}: ${machine?.name ?? '-'}, ${worker.name}`);
  const drawn = { random: seededRandom(random.below(2 ** 31)), machine, worker };
  return deed(world, drawn).catch((error: unknown) => {
    world.say(
      `${name} did not come about: ${error instanceof Error ? error.message.slice(0, 200) : String(error)}`,
    );
  });
}

async function onShim(
  world: World,
  machine: Known | null,
  act: (state: ReturnType<World['shimsOf']>[number]['shim']['state']) => unknown,
): Promise<void> {
  const found = machine === null ? undefined : world.shimsOf(machine.id)[0];
  if (found !== undefined) await act(found.shim.state);
}

async function stopProcess(
  world: World,
  { machine, random }: { machine: Known | null; random: Random },
  which: 'shim' | 'volumeServer' | 'machineInit',
): Promise<void> {
  const forMs = 1_000 + random.below(STOPPED_MS_MAX);
  await onShim(world, machine, async (state) => {
    const identity = state[which];
    if (identity !== null) await world.stopProcess(identity, `${which} of ${machine!.name}`, forMs);
  });
}

async function killWorker(
  _world: World,
  { worker, random }: { worker: FleetWorker; random: Random },
): Promise<void> {
  const awayMs = random.below(WORKER_AWAY_MS_MAX);
  if (!worker.isRunning) return;
  await worker.kill();
  await sleep(awayMs);
  if (!worker.isRunning) await worker.start();
}

async function fillDisk(
  world: World,
  { worker, random }: { worker: FleetWorker; random: Random },
): Promise<void> {
  const forMs = 1_000 + random.below(FULL_MS_MAX);
  if (world.full.has(worker.name)) return;
  await world.fill(worker.name);
  await sleep(forMs);
  world.empty(worker.name);
}

/** One who asks at a time, so that it is known who was last. */
async function want(
  world: World,
  machine: Known | null,
  desired: 'running' | 'stopped',
  verb = desired === 'running' ? 'start' : 'stop',
): Promise<void> {
  if (machine === null) return;
  machine.busy = true;
  const { exitCode } = await world.godwit('machine', verb, machine.name);
  machine.desired = exitCode === 0 ? desired : 'unsure';
  machine.busy = false;
}

async function onRun(
  world: World,
  { worker, random }: { worker: FleetWorker; random: Random },
  words: (run: RunView) => string[],
): Promise<void> {
  const drawn = random.below(1_000);
  const runs = await worker.client.listRuns({ state: 'unfinished' });
  const run = runs[drawn % Math.max(1, runs.length)];
  if (run !== undefined) await world.godwit('runs', ...words(run));
}

async function destroy(
  world: World,
  { machine, worker }: { machine: Known | null; worker: FleetWorker },
): Promise<void> {
  if (machine === null) return;
  machine.busy = true;
  const { exitCode } = await world.godwit('machine', 'destroy', machine.name, '--force');
  // Whether it went is asked again at the end.
  machine.desired = exitCode === 0 ? 'gone' : 'unsure';
  machine.busy = false;
  if (exitCode === 0) await world.addMachine(worker);
}

/**
 * The copy that a move left, as a volume of its own, with a machine on it: what it has is older, and whole.
 */
async function clone(world: World, { worker }: { worker: FleetWorker }): Promise<void> {
  if (world.machines.filter(({ desired }) => desired !== 'gone').length >= MACHINES_MAX) return;
  const copies = (await worker.client.listVolumes()).filter(({ state }) => state === 'retained');
  const copy = copies[0];
  if (copy === undefined) return;
  const name = `copy-${world.machines.length}-${copy.id.slice(-6)}`.toLowerCase();
  const { exitCode } = await world.godwit('volume', 'recover', copy.id, '--as', name);
  if (exitCode !== 0) return;
  const recovered = (await worker.client.listVolumes()).find((volume) => volume.name === name);
  if (recovered !== undefined) await world.addMachine(worker, recovered.id);
}
