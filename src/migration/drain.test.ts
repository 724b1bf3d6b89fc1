import assert from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { until } from '../../test/support/patience.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { nextTurn } from '../base/turn.ts';
import type { RunView } from '../journal/run.ts';
import {
  DRAIN_LIMITS,
  DrainController,
  type LocalMachine,
  machineView,
  nextMoves,
  retryDelayMs,
} from './drain.ts';
import type { MigrateOutOutput } from './migrate-out.ts';

function machine(name: string, usedBytes = 1): LocalMachine {
  return { machineId: name, name, volumeBytes: 1000, usedBytes };
}

function run(machineId: string, more: Partial<RunView> = {}, doneSteps: string[] = []): RunView {
  return {
    id: `run-${machineId}`,
    kind: 'migrate-out',
    resource: `machine:${machineId}`,
    state: 'running',
    input: { machineId, targetWorker: null, requestedBy: 'drain' },
    output: {},
    step: 'stop',
    steps: doneSteps.map((name) => ({ name, state: 'done', attempts: 1, startedAtMs: 1, endedAtMs: 2 })),
    pastPointOfNoReturn: false,
    cancelRequested: false,
    reason: null,
    error: null,
    createdAtMs: Date.now(),
    endedAtMs: null,
    ...more,
  };
}

const names = (machines: LocalMachine[]) => machines.map(({ name }) => name);

test('the smallest machine goes first, one at a time is between stop and healthy', () => {
  const machines = [machine('big', 100), machine('small', 1), machine('middle', 10)];
  assert.deepEqual(names(nextMoves(machines, [], new Map(), DRAIN_LIMITS, 0)), ['small']);
  assert.deepEqual(nextMoves(machines, [run('small')], new Map(), DRAIN_LIMITS, 0), []);
  assert.deepEqual(names(nextMoves(machines, [run('small', {}, ['settle'])], new Map(), DRAIN_LIMITS, 0)), [
    'middle',
  ]);
});

test('not more than so many volumes arrive at once', () => {
  const serving = Array.from({ length: 8 }, (_, index) => run(`s${index}`, {}, ['settle']));
  assert.deepEqual(nextMoves([machine('m')], serving, new Map(), DRAIN_LIMITS, 0), []);
  assert.deepEqual(names(nextMoves([machine('m')], serving.slice(1), new Map(), DRAIN_LIMITS, 0)), ['m']);
});

test('a machine with an obstacle is passed over until its time comes; the others go', () => {
  const error = new GodwitError('MIGRATION_NO_CAPACITY', 'full', { nextAction: 'make room' }).toWire();
  const obstacles = new Map([['stuck', { error, sinceMs: 0, attempts: 1, retryAtMs: 500, runId: null }]]);
  const machines = [machine('stuck', 1), machine('free', 2)];
  assert.deepEqual(names(nextMoves(machines, [], obstacles, DRAIN_LIMITS, 100)), ['free']);
  assert.deepEqual(names(nextMoves(machines, [], obstacles, DRAIN_LIMITS, 500)), ['stuck']);
});

test('retries get rarer, up to a minute', () => {
  assert.deepEqual([1, 2, 3, 10].map(retryDelayMs), [2_000, 4_000, 8_000, 60_000]);
});

test('the view of a machine tells its state by the steps of its run', () => {
  const state = (view: RunView | null) => machineView(machine('m'), view, null, null).state;
  assert.equal(state(null), 'queued');
  assert.equal(state(run('m')), 'moving');
  assert.equal(state(run('m', {}, ['settle'])), 'hydrating');
  assert.equal(state(run('m', { state: 'done', endedAtMs: 1 })), 'moved');
  assert.equal(state(run('m', { state: 'failed', endedAtMs: 1 })), 'failed');
});

test('a move that comes no further makes room for the next one; all that is under way together has a limit', () => {
  const machines = [machine('a', 1), machine('b', 2), machine('c', 3)];
  const stubborn = run('a');
  const next = (runs: RunView[], held: string[]) =>
    names(nextMoves(machines, runs, new Map(), DRAIN_LIMITS, 0, new Set(held)));
  assert.deepEqual(next([stubborn], []), []);
  assert.deepEqual(next([stubborn], [stubborn.id]), ['b']);
  assert.deepEqual(next([stubborn, run('b')], [stubborn.id]), []);
  const many = Array.from({ length: 8 }, (_, index) => run(`s${index}`));
  assert.deepEqual(
    next(
      many,
      many.map(({ id }) => id),
    ),
    [],
    'they may all have the same trouble',
  );
  const view = (held: boolean, reason: RunView['reason'] = null) =>
    machineView(machine('a'), { ...stubborn, reason }, null, null, held);
  assert.equal(view(false).state, 'moving');
  assert.equal(view(true).state, 'waiting');
  assert.match(view(true).reason ?? '', /comes no further in step stop/);
  const why = { message: 'it is stopping', nextAction: 'nothing', sinceMs: 1 };
  assert.equal(view(true, why).reason, 'it is stopping');
});

test('a machine that was not healthy where it arrived is not simply moved', () => {
  const last = { unhealthy: 'it ends whenever it is started' } as MigrateOutOutput['last'] & object;
  const done = run('m', { state: 'done', endedAtMs: 1, output: { target: 'w2', last } });
  const view = machineView(machine('m'), done, null, null);
  assert.equal(view.state, 'failed');
  assert.match(view.reason ?? '', /moved to w2.*ends whenever it is started/);
  assert.match(view.nextAction ?? '', /machine logs m/);
});

/** A worker with machines and moves that end when the test says so. */
function controller(
  t: { after(fn: () => void): void },
  machineNames: string[],
  limits: Partial<typeof DRAIN_LIMITS> = {},
) {
  const database = new DatabaseSync(':memory:');
  let behindMs = 0;
  const clock: Clock = {
    monotonicMs: () => systemClock.monotonicMs(),
    wallMs: () => systemClock.wallMs() - behindMs,
    sleep: (ms, signal) => systemClock.sleep(ms, signal),
    timer: (ms, callback) => systemClock.timer(ms, callback),
  };
  const setBack = (ms: number) => {
    behindMs = ms;
  };
  const machines = new Map(machineNames.map((name) => [name, machine(name)]));
  const runs: RunView[] = [];
  const refused = new Set<string>();
  /** What looks at a machine before it goes waits for this. */
  const look = { held: Promise.resolve(), asked: 0 };
  const copies = () => runs.map((view) => ({ ...view }));
  const volumes: { volumeId: string; name: string; usedBytes: number }[] = [];
  const endings: number[] = [];
  const make = () =>
    new DrainController({
      worker: 'w1',
      database,
      clock,
      logger: silentLogger,
      limits: { ...DRAIN_LIMITS, ...limits },
      machines: async () => [...machines.values()],
      volumes: async () => volumes,
      runs: {
        open: () => copies().filter(({ endedAtMs }) => endedAtMs === null),
        newest: (sinceMs) => copies().filter(({ createdAtMs }) => createdAtMs >= sinceMs),
        newestInTurns: async (sinceMs) => copies().filter(({ createdAtMs }) => createdAtMs >= sinceMs),
        newestOf: (machineId) => {
          const own = copies().filter(({ resource }) => resource === `machine:${machineId}`);
          return own.length === 0 ? null : { run: own.at(-1)!, attempts: own.length };
        },
      },
      live: () => null,
      onEnded: () => endings.push(clock.monotonicMs()),
      precheck: async (machineId) => {
        look.asked++;
        await look.held;
        if (!refused.has(machineId)) return;
        throw new GodwitError('MIGRATION_NO_CAPACITY', `no worker takes ${machineId}`, {
          nextAction: 'make room',
        });
      },
      start: (machineId) => {
        const started = run(machineId, { createdAtMs: clock.wallMs() });
        runs.push(started);
        return started;
      },
    });
  const drain = make();
  t.after(() => drain.close());
  return { drain, make, machines, volumes, runs, refused, look, setBack, endings };
}

function finish(machines: Map<string, LocalMachine>, view: RunView, output: MigrateOutOutput = {}): void {
  Object.assign(view, { state: 'done', endedAtMs: Date.now(), output });
  machines.delete((view.input as { machineId: string }).machineId);
}

test('a drain moves all machines, ends as drained, and asking twice adds nothing', async (t) => {
  const { drain, machines, runs, endings } = controller(t, ['a', 'b']);
  drain.request(null);
  drain.request(null);
  await until('run 1', () => runs, { is: ({ length }) => length === 1 });
  drain.request(null);
  finish(machines, runs[0]!);
  drain.wake();
  await until('run 2', () => runs, { is: ({ length }) => length === 2 });
  assert.equal((await drain.status()).state, 'draining');
  finish(machines, runs[1]!);
  drain.wake();
  assert.equal(machines.size, 0);
  const status = await until('the end', () => drain.status(), {
    is: ({ state, endedAtMs }) => state === 'drained' && endedAtMs !== null,
  });
  assert.notEqual(status.endedAtMs, null);
  assert.equal(endings.length, 1, 'its end is told once');
  assert.deepEqual(
    status.machines.map(({ state }) => state),
    ['moved', 'moved'],
  );
  assert.equal(runs.length, 2);
});

test('a machine that nobody takes waits with the reason while the others go', async (t) => {
  const { drain, machines, runs, refused } = controller(t, ['stuck', 'free']);
  refused.add('stuck');
  drain.request(null);
  await until('run 1', () => runs, { is: ({ length }) => length === 1 });
  finish(machines, runs[0]!);
  drain.wake();
  const status = await until('the wait', () => drain.status(), { is: ({ state }) => state === 'waiting' });
  const stuck = status.machines.find(({ name }) => name === 'stuck');
  assert.equal(stuck?.state, 'waiting');
  assert.equal(stuck?.reason, 'no worker takes stuck');
  assert.equal(stuck?.nextAction, 'make room');
});

test('a drain survives its process; undrain stops before the next machine', async (t) => {
  const { drain, make, machines, runs } = controller(t, ['a', 'b', 'c']);
  drain.request(null);
  await until('run 1', () => runs, { is: ({ length }) => length === 1 });
  drain.close();
  const next = make();
  t.after(() => next.close());
  assert.equal(next.desired, true);
  finish(machines, runs[0]!);
  next.wake();
  await until('run 2', () => runs, { is: ({ length }) => length === 2 });
  next.withdraw();
  finish(machines, runs[1]!);
  next.wake();
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(runs.length, 2);
  assert.equal((await next.status()).desired, false);
  assert.equal(machines.size, 1);
});

test('an undrain while a machine is looked at moves it no more', async (t) => {
  const { drain, runs, look } = controller(t, ['a']);
  const { promise, resolve } = Promise.withResolvers<void>();
  look.held = promise;
  drain.request(null);
  await until('the look', () => look.asked, { is: (asked) => asked === 1 });
  drain.withdraw();
  resolve();
  for (let turns = 0; turns < 10; turns++) await nextTurn();
  assert.deepEqual(runs, []);
});

test('a move that was undone is an obstacle with its error, not tried again at once', async (t) => {
  const { drain, runs } = controller(t, ['a']);
  drain.request(null);
  await until('run 1', () => runs, { is: ({ length }) => length === 1 });
  const error = new GodwitError('MIGRATION_TARGET_LOST', 'w2 does not answer', {
    nextAction: 'look at w2',
  }).toWire();
  Object.assign(runs[0]!, { state: 'undone', endedAtMs: Date.now(), error });
  drain.wake();
  const { machines } = await until('the obstacle', () => drain.status(), {
    is: (status) => status.machines[0]?.state === 'waiting',
  });
  assert.equal(runs.length, 1);
  const [view] = machines;
  assert.equal(view?.reason, 'w2 does not answer');
});

test('a drain goes on past a machine that is held up, and is waiting when only such are left', async (t) => {
  const { drain, machines, runs } = controller(t, ['a', 'b'], { heldAfterMs: 0 });
  drain.request(null);
  await until('both moves', () => runs, { is: ({ length }) => length === 2 });
  finish(machines, runs[1]!);
  drain.wake();
  const status = await until('the wait', () => drain.status(), { is: ({ state }) => state === 'waiting' });
  assert.deepEqual(
    status.machines.map(({ name, state }) => [name, state]),
    [
      ['a', 'waiting'],
      ['b', 'moved'],
    ],
  );
  finish(machines, runs[0]!);
  drain.wake();
  await until('the end', () => drain.status(), { is: ({ state }) => state === 'drained' });
});

test('who drains again after a machine arrived that was not healthy has seen it', async (t) => {
  const { drain, machines, runs, setBack } = controller(t, ['a']);
  drain.request(null);
  await until('the move', () => runs, { is: ({ length }) => length === 1 });
  finish(machines, runs[0]!, { last: { unhealthy: 'it runs and is not healthy' } as never });
  drain.wake();
  const told = await until('the end', () => drain.status(), { is: ({ endedAtMs }) => endedAtMs !== null });
  assert.equal(told.state, 'waiting');
  assert.equal(told.machines[0]?.state, 'failed');
  // The new drain begins after it, by whole milliseconds.
  setBack(-10);
  drain.request(null);
  const again = await until('the end of that', () => drain.status(), {
    is: ({ endedAtMs }) => endedAtMs !== null,
  });
  assert.deepEqual([again.state, again.machines], ['drained', []]);
});

test('a worker is not drained while it has a volume that no machine has', async (t) => {
  const { drain, machines, volumes, runs } = controller(t, ['a']);
  volumes.push({ volumeId: 'v_1', name: 'spare', usedBytes: 7 });
  drain.request(null);
  await until('the move', () => runs, { is: ({ length }) => length === 1 });
  finish(machines, runs[0]!);
  drain.wake();
  const status = await until('the wait', () => drain.status(), { is: ({ state }) => state === 'waiting' });
  assert.equal(status.endedAtMs, null);
  assert.deepEqual(
    status.volumes.map(({ name, nextAction }) => [name, nextAction]),
    [['spare', 'godwit volume move spare; or godwit volume destroy spare']],
  );
  volumes.length = 0;
  drain.wake();
  await until('the end', () => drain.status(), {
    is: ({ state, endedAtMs }) => state === 'drained' && endedAtMs !== null,
  });
});

test('a clock that goes back does not take the moves of a drain out of it', async (t) => {
  const { drain, machines, runs, setBack } = controller(t, ['a']);
  drain.request(null);
  await until('the move', () => runs, { is: ({ length }) => length === 1 });
  setBack(7_200_000);
  drain.wake();
  await until('a look', async () => runs.length > 0 && (await drain.status()).machines.length === 1);
  // What begins now seems to be from before the drain.
  runs[0]!.createdAtMs -= 7_200_000 - 1_000;
  finish(machines, runs[0]!);
  drain.wake();
  const status = await until('the end', () => drain.status(), { is: ({ endedAtMs }) => endedAtMs !== null });
  assert.deepEqual(
    status.machines.map(({ name, state }) => [name, state]),
    [['a', 'moved']],
  );
});
