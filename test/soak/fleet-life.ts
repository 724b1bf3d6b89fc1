import { setTimeout as sleep } from 'node:timers/promises';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { NotWorthWaiting, NotYet, until } from '../support/patience.ts';
import { doSomething } from './fleet-deeds.ts';
import { type Known, WORKERS, World } from './fleet-world.ts';
import type { SoakContext } from './soaks.ts';

/**
 * Thirty machines on three real workers, to which everything happens, by seed: shims, volume servers and
 * workers are killed, processes are stopped (SIGSTOP), disks are full, and operators move, drain, undrain,
 * stop, start, exec, cancel, force, nudge, destroy and clone. Each machine writes numbers and makes each
 * durable (writer.ts).
 *
 * What must hold: at no time two writers; no acknowledged number is lost; no command ends with `INTERNAL`;
 * when it is over each machine is as it was asked to be; and of each that something is done to on purpose
 * `why` says that, first, and of the others nothing.
 */
const MACHINES = Number(process.env.GODWIT_SOAK_MACHINES ?? 30);
const AT_ONCE = 4;
const PAUSE_MS_MAX = 2_000;
/** What has been done to a machine is known to whoever is asked by then. */
const WHY_MS_MAX = 120_000;

export async function run(context: SoakContext): Promise<void> {
  const endings: (() => unknown)[] = [];
  const abort = new AbortController();
  for (const signal of ['SIGTERM', 'SIGINT'] as const)
    process.once(signal, () => abort.abort(new Error('ended')));
  const ended = new Promise<never>((_resolve, reject) =>
    abort.signal.addEventListener('abort', () => reject(abort.signal.reason)),
  );
  try {
    await Promise.race([live(context, (ending) => endings.push(ending), abort.signal), ended]);
  } finally {
    for (const ending of endings.reverse()) await ending();
  }
}

async function live(
  { minutes, seed, stateFolder, log }: SoakContext,
  after: (ending: () => unknown) => void,
  signal: AbortSignal,
): Promise<void> {
  const random = seededRandom(seed);
  const world = await World.make(after, { stateFolder, log });
  let failure: unknown = null;
  try {
    const endMs = performance.now() + minutes * 60_000;
    for (let index = 0; index < MACHINES; index++)
      await world.addMachine(world.fleet.workers[index % WORKERS.length]!);
    world.say(`${MACHINES} machines`);
    await disturb(world, random, endMs, signal);
    world.say('nothing is done any more');
    await settle(world);
    await checkWhy(world, random);
    await readAll(world);
  } catch (error) {
    failure = error;
  }
  world.write('fleet.json', {
    failure: failure instanceof Error ? failure.message : failure,
    faults: world.faults,
    commands: Object.fromEntries([...world.commands].sort()),
  });
  for (const [key, { times, first }] of [...world.commands].sort())
    world.say(`${String(times).padStart(4)} ${key}${key.includes(': 0 ') ? '' : `   e.g. ${first}`}`);
  const writes = world.machines.reduce(
    (sum, { name }) => sum + world.collector.history(name).acknowledged,
    0,
  );
  world.say(`${writes} writes of ${world.machines.length} machines`);
  if (failure !== null || world.faults.length > 0) {
    const told =
      failure === null
        ? []
        : [failure instanceof Error ? (failure.stack ?? failure.message) : String(failure)];
    throw new Error([...told, ...world.faults].join('\n'));
  }
}

async function disturb(world: World, random: Random, endMs: number, signal: AbortSignal): Promise<void> {
  const underWay = new Set<Promise<void>>();
  while (performance.now() < endMs && !signal.aborted) {
    const deed = doSomething(world, random).finally(() => underWay.delete(deed));
    underWay.add(deed);
    await sleep(random.below(PAUSE_MS_MAX));
    while (underWay.size >= AT_ONCE && !signal.aborted) await Promise.race(underWay);
  }
  await Promise.all(underWay);
}

/** All is well again, and what nobody knows the end of is asked for once more. */
async function settle(world: World): Promise<void> {
  await world.heal();
  for (const machine of world.machines.filter(({ desired }) => desired === 'unsure')) {
    await until(`an answer about ${machine.name}`, async () => {
      const { exitCode, stderr } = await world.godwit('machine', 'start', machine.name);
      if (exitCode === 5) machine.desired = 'gone';
      else if (exitCode === 0) machine.desired = 'running';
      else return new NotYet(stderr);
      return true;
    });
  }
  await world.settled();
  world.say('all machines are as they were asked to be');
}

/** What is done to a machine on purpose, and the words in which `why` must name it before everything else. */
type Affliction = { machine: Known; what: string; says: RegExp };

async function checkWhy(world: World, random: Random): Promise<void> {
  const well = world.machines.filter(({ desired }) => desired === 'running');
  const take = (): Known => {
    const [taken] = well.splice(random.below(well.length), 1);
    if (taken === undefined) throw new Error('no machine is left to do something to');
    return taken;
  };
  const afflictions: Affliction[] = [];
  const hung = take();
  const [found] = world.shimsOf(hung.id);
  if (found === undefined) throw new Error(`${hung.name} has no shim`);
  await world.stopProcess(found.shim.state.shim, `the shim of ${hung.name}`, null);
  afflictions.push({ machine: hung, what: 'its shim is stopped', says: /\(its shim\) does not answer/ });

  const sick = take();
  const { exitCode } = await world.godwit('machine', 'exec', sick.name, '--', 'rm', '/run/ready');
  if (exitCode !== 0) throw new Error(`${sick.name} does not do as it is told`);
  afflictions.push({ machine: sick, what: 'its health check fails', says: /it runs but is not healthy/ });

  const greedy = take();
  const home = await world.owner(greedy);
  if (home === null) throw new Error(`${greedy.name} is nowhere`);
  await world.fill(home.worker.name);
  const fresh = home.worker.client
    .execInMachine(greedy.id, {
      command: ['sh', '-c', 'dd if=/dev/urandom of=/data/fresh bs=1M count=24 conv=fsync 2>/dev/null'],
      timeoutMs: 1_800_000,
    })
    .catch(() => null);
  afflictions.push({
    machine: greedy,
    what: 'the disk of its worker is full',
    says: new RegExp(`the data disk of ${home.worker.name} is full`),
  });

  for (const { machine, what, says } of afflictions) {
    await expectWhy(world, machine, what, ([first]) => first !== undefined && says.test(first.message));
  }
  // A full disk is everybody's who writes there, and nobody else's; a stopped machine waits for nothing.
  for (const machine of world.machines) {
    if (machine.desired === 'gone' || afflictions.some((one) => one.machine === machine)) continue;
    await expectWhy(world, machine, 'nothing', (conditions) =>
      conditions.every(
        ({ message }) => /the data disk of . is full/.test(message) && machine.desired === 'running',
      ),
    );
  }
  world.continueAll();
  world.empty(home.worker.name);
  await fresh;
  await world.godwit('machine', 'restart', sick.name);
  await world.settled();

  // A drain that can go nowhere says so of each machine; a worker that is away is named by whoever is asked
  // about its machines.
  for (const { client } of world.fleet.workers) await client.drain();
  const stuck = take();
  await expectWhy(
    world,
    stuck,
    'its drain has nowhere to go',
    ([one]) => one !== undefined && /^the drain of [abc] cannot move it:/.test(one.message),
  );
  for (const { client } of world.fleet.workers) await client.undrain();
  await world.settled();
  const last = await world.owner(stuck);
  if (last === null) throw new Error(`${stuck.name} is nowhere`);
  await last.worker.kill();
  const { exitCode: away, stderr } = await world.why(stuck.name);
  if (away !== 4 || !stderr.includes(last.worker.name))
    world.faults.push(`why ${stuck.name}, whose worker is away, ended with ${away}: ${stderr}`);
  await last.worker.start();
  await world.settled();
  world.say('why has said what was done');
}

async function expectWhy(
  world: World,
  machine: Known,
  what: string,
  isRight: (conditions: Awaited<ReturnType<World['why']>>['conditions']) => boolean,
): Promise<void> {
  let told = '';
  const startedMs = performance.now();
  await until(`why ${machine.name} to say: ${what}`, async () => {
    const { conditions, stderr } = await world.why(machine.name);
    told = `${conditions.map(({ message }) => message).join(' | ')} ${stderr}`;
    if (isRight(conditions)) return true;
    if (performance.now() - startedMs > WHY_MS_MAX) throw new NotWorthWaiting(told);
    return new NotYet(told);
  }).catch(() => {
    world.faults.push(`of ${machine.name} the truth is: ${what}; why says: ${told || 'nothing'}`);
  });
}

/** Each machine begins anew, and so reads all that it has ever written. */
async function readAll(world: World): Promise<void> {
  for (const machine of world.machines) {
    if (machine.desired === 'gone') continue;
    const history = world.collector.history(machine.name);
    const before = history.incarnations.length;
    const verb = machine.desired === 'stopped' ? 'start' : 'restart';
    const { exitCode, stderr } = await world.godwit('machine', verb, machine.name);
    if (exitCode !== 0) world.faults.push(`${machine.name} could not begin anew: ${stderr}`);
    else await history.incarnation(before).catch((error: Error) => world.faults.push(error.message));
    machine.desired = 'running';
  }
  await world.settled();
}
