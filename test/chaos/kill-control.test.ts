import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { isGodwitError } from '../../src/base/errors.ts';
import { seededRandom } from '../../src/base/random.ts';
import { crashPointNames } from '../../src/journal/crash-points.ts';
import type { RunDefinition } from '../../src/journal/run.ts';
import { migrateIn } from '../../src/migration/migrate-in.ts';
import { migrateOut } from '../../src/migration/migrate-out.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { assertOneOwner } from '../support/move-end.ts';
import { testSeed } from '../support/seed.ts';
import { WriterCollector } from '../support/writer-collector.ts';

/**
 * The control process of the source or of the target is killed at a step of the journal, before or after the
 * append, while a machine moves and writes. It is started again, and then: the move ends, every acknowledged
 * write is there, and there was never a second writer.
 *
 * One machine goes to and fro between two workers. Always `a` is killed: on the way out at a point of
 * migrate-out, on the way back at one of migrate-in. With GODWIT_FULL=1 all points are tried; else those at
 * both ends of a run, one of the two around the ends of some steps, and some of the others, drawn by seed.
 * (Every point is tried against the model in src/migration/moves.test.ts, each time.)
 */
const seed = testSeed();
const full = process.env.GODWIT_FULL === '1';
/** Each run draws others; `npm run soak` and GODWIT_FULL=1 come by all. */
const ENDS_PER_SIDE = 2;
const OTHERS_PER_SIDE = 1;
/** An undone move is right only when the worker was away for as long as the other side is patient. */
const PATIENCE_OF_A_MOVE_MS = 8_000;

// Only the names of the steps are asked for.
const outDefinition = migrateOut({} as Parameters<typeof migrateOut>[0]) as RunDefinition<never>;
const inDefinition = migrateIn({} as Parameters<typeof migrateIn>[0]) as RunDefinition<never>;

const points = {
  out: choosePoints(crashPointNames(outDefinition, 'forward')),
  in: choosePoints(crashPointNames(inDefinition, 'forward')),
};

function choosePoints(forward: string[]): string[] {
  if (full) return forward;
  const random = seededRandom(seed);
  const ofRun = forward.filter((name) => name.includes(':run:'));
  const aroundEnds = forward.filter((name) => name.endsWith(':before-done-append'));
  const ends = aroundEnds.map((name) => (random.below(2) === 0 ? name : name.replace(':before-', ':after-')));
  while (ends.length > ENDS_PER_SIDE) ends.splice(random.below(ends.length), 1);
  const others = forward.filter((name) => !ofRun.includes(name) && !name.endsWith('-done-append'));
  while (others.length > OTHERS_PER_SIDE) others.splice(random.below(others.length), 1);
  return [...ofRun, ...ends, ...others];
}

test(`control killed at ${points.out.length} steps of the source and ${points.in.length} of the target: the move ends, nothing is lost, one writer`, {
  skip: fleetNeeds,
}, async (t) => {
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, ['a', 'b']);
  const a = fleet.worker('a');
  const b = fleet.worker('b');
  const machine = await fleet.writerMachine(b, collector, { name: 'writer' });
  const history = collector.history('writer');
  const watch = watchOwners(t, [a, b], machine.volumeId!);
  let position: 'a' | 'b' = 'b';
  let armed: string | null = null;

  // In turns, so that the machine comes back by the next point; where one side has more of them, the way back
  // is without a crash.
  const schedule = Array.from({ length: Math.max(points.out.length, points.in.length) }, (_, index) => [
    points.in[index],
    points.out[index],
  ])
    .flat()
    .filter((point) => point !== undefined);
  for (const [index, point] of schedule.entries()) await round(point, schedule[index + 1] ?? null);
  t.diagnostic(`${history.acknowledged} writes by ${history.incarnations.length} incarnations`);

  async function round(point: string, next: string | null): Promise<void> {
    const [source, target] = point.startsWith('migrate-out') ? [a, b] : [b, a];
    if (position !== source.name) await move(target, source, null, null);
    if (armed !== point) {
      await a.kill();
      await a.start({ crashAt: point });
    }
    // A worker that is started again dies at the next point, unless the run that goes on would come by there
    // too.
    armed = next?.split(':')[0] === point.split(':')[0] ? null : next;
    try {
      await move(source, target, point, armed);
    } catch (error) {
      throw new Error(`GODWIT_SEED=${seed}, killed at ${point}: ${(error as Error).message}`, {
        cause: error,
      });
    }
  }

  async function move(
    source: FleetWorker,
    target: FleetWorker,
    point: string | null,
    next: string | null,
  ): Promise<void> {
    const startedMs = performance.now();
    const incarnations = history.incarnations.length;
    const before = new Set((await fleet.moves(source, machine.id)).map(({ id }) => id));
    await history.more(1);
    const asked = source.client.moveMachine(machine.id, { target: target.name }).catch((error: unknown) => {
      if (point === null || !isGodwitError(error, 'API_UNREACHABLE')) throw error;
    });
    let awayMs = 0;
    if (point !== null) {
      await Promise.all([asked, a.crashed()]);
      const diedMs = performance.now();
      await a.start({ crashAt: next });
      awayMs = performance.now() - diedMs;
    }
    await asked;
    const find = async () => (await fleet.moves(source, machine.id)).find(({ id }) => !before.has(id));
    // Killed before the run was written down: there is none, and the caller asks again.
    const run =
      (await fleet.until('the list of moves', async () => [await find()]))[0] ??
      (await source.client.moveMachine(machine.id, { target: target.name }));
    const end = await fleet.ended(source, target, run.id);
    const moved = end.state === 'done';
    if (!moved) {
      assert.equal(end.state, 'undone', `the move is ${end.state}: ${end.error?.message}`);
      assert.ok(
        awayMs >= PATIENCE_OF_A_MOVE_MS,
        `undone although the worker was back in ${awayMs} ms: ${end.error?.message}`,
      );
    }
    const owner = moved ? target : source;
    await history.incarnation(incarnations);
    history.assertSound();
    assert.deepEqual(watch.faults, []);
    await assertOneOwner(fleet, machine, owner, moved);
    position = owner.name as 'a' | 'b';
    const took = `${Math.round(performance.now() - startedMs)} ms`;
    t.diagnostic(`${point ?? 'no crash'}: ${end.state}, ${took}, ${history.acknowledged} writes`);
  }
});

/**
 * Invariant 1, from the records on disk: never may both workers open the volume for writing. A record that is
 * the same before and after the other one is read was so in between too.
 */
function watchOwners(
  t: Pick<test.TestContext, 'after'>,
  workers: readonly [FleetWorker, FleetWorker],
  volumeId: string,
): { faults: string[] } {
  const [one, other] = workers;
  const faults: string[] = [];
  const writable = (worker: FleetWorker) => {
    const record = worker.volumeRecord(volumeId);
    return record && (record.state === 'ready' || record.state === 'clone') ? record.generation : null;
  };
  let stopped = false;
  const watching = (async () => {
    while (!stopped) {
      const first = writable(one);
      const second = writable(other);
      if (first !== null && second !== null && writable(one) === first) {
        faults.push(`${one.name} may write at generation ${first}, and ${other.name} at ${second}`);
      }
      await sleep(15);
    }
  })();
  t.after(async () => {
    stopped = true;
    await watching;
  });
  return { faults };
}
