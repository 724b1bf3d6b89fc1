import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { isGodwitError } from '../../src/base/errors.ts';
import { seededRandom } from '../../src/base/random.ts';
import type { MachineView } from '../../src/contract/schemas.ts';
import { isAlive } from '../../src/host/process-identity.ts';
import type { RunView } from '../../src/journal/run.ts';
import { IN_STEPS, MIGRATE_IN } from '../../src/migration/migrate-in.ts';
import { MIGRATE_OUT, OUT_STEPS } from '../../src/migration/migrate-out.ts';
import { verifyReceipt } from '../../src/receipt/envelope.ts';
import { readShimState } from '../../src/shim/state.ts';
import {
  EARLIER,
  type EarlierVersion,
  earlierVersion,
  lacksEarlierVersion,
} from '../support/earlier-version.ts';
import { Fleet, type FleetWorker, fleetNeeds, killProcess } from '../support/fleet.ts';
import { assertOneOwner } from '../support/move-end.ts';
import { until } from '../support/patience.ts';
import { scratchDir } from '../support/scratch.ts';
import { testSeed } from '../support/seed.ts';
import { WriterCollector, type WriterHistory } from '../support/writer-collector.ts';

/**
 * Two workers of an earlier version are in the middle of a move when one of them dies, at a step of its run
 * that has just begun, or is done and not yet written down. Then both hosts are upgraded in place, or one of
 * them: each of its volume servers is killed, so that its old shims start those of this version by the
 * specifications that they have, and this version's worker is started on its data folder. The move comes to
 * its end, nothing that was acknowledged is lost, and the receipt holds.
 *
 * Three points are tried each time, and one of each run is drawn. With GODWIT_FULL=1 all are, and how hosts
 * are upgraded (`HOW`) goes by turns, shifted by the seed: GODWIT_SEED=0 to 4 have all. GODWIT_EARLIER:
 * another commit to begin at.
 */
const HOSTS = ['source', 'target'] as const;
type Host = (typeof HOSTS)[number];
type How = {
  /** At the death of the one worker. The other host keeps its version, and its worker is started again. */
  upgraded: readonly Host[];
  /**
   * The programs are replaced before the move begins: workers of the earlier version start shims of this
   * one.
   */
  before?: true;
  /** The old volume servers go on. */
  kept?: true;
};
type Upgrade = How & {
  /** Where the worker dies whose run it names (src/journal/crash-points.ts). */
  point: string;
  /** In the middle of a hydration, with a machine at the target that does not move. */
  slowly?: true;
};

const MIB = 2 ** 20;
const seed = testSeed();
const full = process.env.GODWIT_FULL === '1';
const earlier = process.env.GODWIT_EARLIER ?? EARLIER.plainOpenings;
/** A move that is undone is right only when a worker was away for as long as the other side is patient. */
const PATIENCE_OF_A_MOVE_MS = 8_000;

const POINTS = {
  source: pointsOf(MIGRATE_OUT, OUT_STEPS),
  target: pointsOf(MIGRATE_IN, IN_STEPS),
};
const HOW: readonly How[] = [
  { upgraded: HOSTS },
  { upgraded: ['source'] },
  { upgraded: ['target'] },
  { upgraded: HOSTS, before: true },
  { upgraded: HOSTS, kept: true },
];
const ALWAYS: readonly Upgrade[] = [
  { point: `${MIGRATE_OUT}:serve:after-start-append`, upgraded: HOSTS, slowly: true },
  // Nobody has the machine: sealed and exported here, in standby there.
  { point: `${MIGRATE_OUT}:handoff:after-start-append`, upgraded: HOSTS },
  // The volume is the target's, and its journal does not know.
  { point: `${MIGRATE_IN}:activate:before-done-append`, upgraded: HOSTS },
];

function pointsOf(kind: string, steps: readonly { name: string }[]): string[] {
  return [
    `${kind}:run:after-started-append`,
    ...steps.flatMap(({ name }) => [
      `${kind}:${name}:after-start-append`,
      `${kind}:${name}:before-done-append`,
    ]),
    `${kind}:run:before-finished-append`,
  ];
}

function chosen(): readonly Upgrade[] {
  const how = (turn: number) => HOW[turn % HOW.length]!;
  const all = [...POINTS.source, ...POINTS.target];
  if (full) return [ALWAYS[0]!, ...all.map((point, index) => ({ point, ...how(index + seed) }))];
  const random = seededRandom(seed);
  const drawn = HOSTS.map((host) => ({
    point: POINTS[host][random.below(POINTS[host].length)]!,
    ...how(random.below(HOW.length)),
  }));
  return [...ALWAYS, ...drawn];
}

describe('hosts are upgraded in the middle of a move', {
  // Most of it is waiting.
  concurrency: full ? 3 : 1,
  skip: fleetNeeds || lacksEarlierVersion(earlier),
}, () => {
  for (const upgrade of chosen()) {
    const { point, upgraded, before, kept, slowly } = upgrade;
    const flags = {
      'programs before it': before,
      'without volume servers': kept,
      'in mid-hydration': slowly,
    };
    const words = Object.entries(flags).flatMap(([word, holds]) => (holds ? [word] : []));
    const what = [upgraded.join(' and '), ...words, `at ${point}`].join(', ');
    it(`${what}: the move comes to its end`, async (t) => {
      const moving = await begin(t, upgrade);
      await comesToItsEnd(moving, await upgradeAt(moving));
      await isWhole(moving);
    });
  }
});

type Writing = { machine: MachineView; history: WriterHistory };
type Moving = Writing & {
  t: TestContext;
  upgrade: Upgrade;
  versions: Readonly<Record<Host, EarlierVersion>>;
  fleet: Fleet;
  source: FleetWorker;
  target: FleetWorker;
  /** Does not move. */
  rests: Writing | null;
};

async function begin(t: TestContext, upgrade: Upgrade): Promise<Moving> {
  const { point, slowly } = upgrade;
  const dir = scratchDir(t);
  const versions = {
    source: earlierVersion(join(dir, 'source'), earlier),
    target: earlierVersion(join(dir, 'target'), earlier),
  };
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, HOSTS, {
    main: { source: versions.source.main, target: versions.target.main },
    crashAt: { [hostOf(point)]: point },
    // So slow that it is under way at the upgrade.
    ...(slowly && { flags: { target: ['--hydration-rate', '16KiB'] } }),
  });
  const writes = async (worker: FleetWorker, name: string): Promise<Writing> => ({
    machine: await fleet.writerMachine(worker, collector, { name, lengthBytes: 128 * MIB }),
    history: collector.history(name),
  });
  const [source, target] = [fleet.worker('source'), fleet.worker('target')];
  const moves = await writes(source, 'moves');
  // More than is brought first, whatever the rate.
  const ballast = ['dd', 'if=/dev/urandom', 'of=/data/ballast', 'bs=1M', 'count=48', 'conv=fsync'];
  if (slowly) assert.equal((await fleet.run('machine', 'exec', 'moves', '--', ...ballast)).exitCode, 0);
  const rests = slowly ? await writes(target, 'rests') : null;
  return { t, upgrade, versions, fleet, source, target, ...moves, rests };
}

/** Resolves with the milliseconds that a worker was away, when both answer again. */
async function upgradeAt(moving: Moving): Promise<number> {
  const { upgrade, versions, fleet, history, rests } = moving;
  const { upgraded, before, kept, point, slowly } = upgrade;
  if (before) for (const host of HOSTS) versions[host].upgrade();
  const asked = move(moving).catch((error: unknown) => {
    if (hostOf(point) !== 'source' || !isGodwitError(error, 'API_UNREACHABLE')) throw error;
  });
  await fleet.worker(hostOf(point)).crashed();
  const diedMs = performance.now();
  await asked;
  if (slowly) {
    const isRunning = async () => (await hydration(moving))?.state === 'running';
    await fleet.until('a clone in the middle', isRunning);
    await history.more(1);
  }
  const workers = upgraded.map((host) => fleet.worker(host));
  await Promise.all(workers.map((worker) => worker.kill()));
  if (!before) for (const host of upgraded) versions[host].upgrade();
  const counts = kept ? [] : await Promise.all(workers.map(replaceVolumeServers));
  if (ALWAYS.includes(upgrade)) assert.ok(!counts.includes(0), `volume servers: ${counts}`);
  // The next volume servers serve before there is a worker again.
  if (rests !== null) for (const writer of [history, rests.history]) await writer.more(3);
  // A source that goes on with its choice takes no target that does not answer yet.
  for (const worker of [moving.target, moving.source]) if (!worker.isRunning) await worker.start();
  return performance.now() - diedMs;
}

async function comesToItsEnd(moving: Moving, awayMs: number): Promise<void> {
  const { t, upgrade, fleet, source, target, machine, history } = moving;
  const [written] = await fleet.moves(source, machine.id);
  // Killed before it was written down: there is none, and the caller asks again.
  const run = written ?? (await move(moving));
  if (upgrade.slowly) await hydrateUnlimited(moving, run);
  const end = await fleet.ended(source, target, run.id);
  t.diagnostic(`${end.state}, a worker was away for ${Math.round(awayMs)} ms`);
  if (end.state !== 'done') {
    const why = `${end.state} after ${Math.round(awayMs)} ms: ${JSON.stringify(end.error)}`;
    assert.ok(end.state === 'undone' && awayMs >= PATIENCE_OF_A_MOVE_MS, why);
    await history.more(1);
    isDone(await fleet.ended(source, target, (await move(moving)).id));
  }
  await history.more(3);
  await assertOneOwner(fleet, machine, target, true);
  const [newest] = await fleet.moves(source, machine.id);
  const [receipt, same] = await Promise.all(
    [source, target].map(({ client }) => client.showReceipt(newest!.id)),
  );
  assert.deepEqual(receipt, same, 'both have signed the same');
  verifyReceipt(receipt);
}

async function isWhole({ fleet, source, target, machine, history, rests }: Moving): Promise<void> {
  if (full) {
    // Its shim is of the version that prepared the move.
    const { id } = await target.client.moveMachine(machine.id, { target: 'source' });
    isDone(await fleet.ended(target, source, id));
    await history.more(1);
  }
  history.assertSound();
  if (rests === null) return;
  const { state, pid, restarts } = await target.client.showMachine(rests.machine.id);
  assert.deepEqual([state, pid, restarts], ['running', rests.machine.pid, 0], 'nobody touched it');
  rests.history.assertSound();
}

function move({ source, machine }: Moving): Promise<RunView> {
  return source.client.moveMachine(machine.id, { target: 'target' });
}

async function hydration({ target, machine }: Moving): Promise<MachineView['hydration']> {
  return (await target.client.showMachine(machine.id)).hydration;
}

/** It was in the middle, and goes on without a limit. */
async function hydrateUnlimited(moving: Moving, run: RunView): Promise<void> {
  const { fleet, source, target, machine } = moving;
  const { blocksPresent, blocksTotal } = (await hydration(moving))!;
  assert.ok(blocksPresent < blocksTotal, 'it was in the middle');
  const unlimited = { paused: false, rateBytesPerSecondMax: 0 };
  await fleet.until('the machine to be limited no more', async () => {
    await target.volumeCommand(machine.id, 'hydration', unlimited).catch(() => {});
    return (await source.client.showRun(run.id)).endedAtMs !== null;
  });
}

function hostOf(point: string): Host {
  return point.startsWith(`${MIGRATE_OUT}:`) ? 'source' : 'target';
}

function isDone(run: RunView): void {
  assert.equal(run.state, 'done', JSON.stringify(run.error));
}

/**
 * Kills every volume server of that host, of machines, of clones, in standby and of exports; resolves with
 * how many there were when their shims have started the next ones, or have nothing open any more.
 */
async function replaceVolumeServers(worker: FleetWorker): Promise<number> {
  const held = worker.shims().flatMap(({ id, runtimeDir, state: { volumeServer } }) => {
    return volumeServer !== null && isAlive(volumeServer) ? [{ id, runtimeDir, server: volumeServer }] : [];
  });
  for (const { server } of held) killProcess(server);
  for (const { id, runtimeDir, server } of held) {
    await until(`the next volume server of ${id} at ${worker.name}`, () => {
      const next = readShimState(runtimeDir);
      if (next === null || next.volumeServer === null || !isAlive(next.shim)) return true;
      return next.volumeServer.pid !== server.pid && isAlive(next.volumeServer);
    });
  }
  return held.length;
}
