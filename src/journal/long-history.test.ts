import assert from 'node:assert/strict';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { type TestContext, test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { testSeed } from '../../test/support/seed.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { seededRandom } from '../base/random.ts';
import { Journal } from './journal.ts';
import { Abort } from './outcome.ts';
import type { RunDefinition, RunView } from './run.ts';

/** Notes what is prepared, and how often the events of a run are read. */
class WatchedDatabase extends DatabaseSync {
  readonly prepared = new Set<string>();
  runsRead = 0;

  override prepare(sql: string): StatementSync {
    this.prepared.add(sql);
    const statement = super.prepare(sql);
    if (!sql.includes('FROM events WHERE run_id = ? ORDER BY')) return statement;
    const all = statement.all.bind(statement);
    statement.all = (...values: never[]) => {
      this.runsRead++;
      return all(...values);
    };
    return statement;
  }
}

const hang = () => new Promise<void>(() => {});

const definitions = ['move', 'hold'].map(
  (kind): RunDefinition<{ machine: string; end: 'done' | 'undone' | 'open' }> => ({
    kind,
    resource: ({ machine }) => `machine:${machine}`,
    steps: [
      {
        name: 'go',
        quietMs: 60_000,
        do: async ({ input }) => {
          if (input.end === 'open') await hang();
          if (input.end === 'undone') throw new Abort(new Error('no'));
        },
      },
    ],
  }),
);

class LongHistory {
  readonly clock = new FakeClock();
  readonly database = new WatchedDatabase(':memory:');
  readonly journal: Journal;

  constructor(t: TestContext, keepRuns = 100_000) {
    this.journal = new Journal({
      database: this.database,
      clock: this.clock,
      random: seededRandom(1),
      logger: silentLogger,
      definitions: definitions as unknown as RunDefinition<never>[],
      keepRuns,
    });
    this.journal.resume();
    t.after(async () => {
      await this.clock.runUntil(this.journal.close());
      this.database.close();
    });
  }

  async run(id: string, kind: string, machine: string, end: 'done' | 'undone'): Promise<void> {
    await this.clock.runUntil(
      this.journal.wait(this.journal.start(kind, { machine, end }, { runId: id }).id),
    );
    await this.clock.run(10);
  }

  /** Every run so many times more, at later times, under other ids and resources. */
  async copy(times: number): Promise<void> {
    for (let round = 1; round <= times; round++) {
      const [at, tail] = [round * 1_000, `-${round}`];
      this.database.exec(`
        INSERT INTO runs (id, kind, resource, input, steps, created_at_ms, end_state, ended_at_ms, holds_resource)
          SELECT id || '${tail}', kind, resource, input, steps, created_at_ms + ${at}, end_state, ended_at_ms + ${at}, 0 FROM runs
            WHERE id NOT LIKE '%-%';
        INSERT INTO events SELECT run_id || '${tail}', sequence, at_ms + ${at}, type, step, attempt, data FROM events
            WHERE run_id NOT LIKE '%-%';`);
    }
    await this.clock.run((times + 1) * 1_000);
  }
}

const ids = (runs: readonly RunView[]) => runs.map(({ id }) => id);

/** By walking over all there is. */
function newestByHand(runs: readonly RunView[], kind: string, sinceMs: number): string[] {
  const newest = new Map<string, RunView>();
  for (const run of runs) {
    if (run.kind !== kind || run.createdAtMs < sinceMs) continue;
    const other = newest.get(run.resource);
    if (!other || other.createdAtMs < run.createdAtMs) newest.set(run.resource, run);
  }
  return ids([...newest.values()]).sort();
}

test('what is asked of a history is what a walk over all of it finds', async (t) => {
  const history = new LongHistory(t);
  const random = seededRandom(testSeed());
  const pick = <T>(from: readonly T[]): T => from[random.below(from.length)]!;
  for (let index = 0; index < 40; index++)
    await history.run(
      `r${index}`,
      pick(['move', 'hold']),
      pick(['a', 'b', 'c', 'd']),
      pick(['done', 'undone']),
    );
  await history.copy(20);
  const { journal } = history;
  journal.start('move', { machine: 'a', end: 'open' }, { runId: 'open' });
  const all = journal.find({ limit: 10_000 });
  assert.equal(all.length, 40 * 21 + 1);
  assert.equal(all[0]!.id, 'open');
  for (let round = 0; round < 60; round++) {
    const kind = pick([undefined, 'move', 'hold', 'nothing']);
    const resource = pick([undefined, 'machine:a', 'machine:c', 'machine:none']);
    const state = pick([undefined, 'done', 'undone', 'failed', 'running'] as const);
    const limit = pick([1, 3, 20, 10_000]);
    const given = { ...(kind && { kind }), ...(resource && { resource }), ...(state && { state }), limit };
    const wanted = all.filter(
      (run) =>
        (!kind || run.kind === kind) &&
        (!resource || run.resource === resource) &&
        (!state || run.state === state),
    );
    assert.deepEqual(ids(journal.find(given)), ids(wanted.slice(0, limit)), JSON.stringify(given));
    const sinceMs = pick([0, pick(all).createdAtMs, history.clock.wallMs() + 1]);
    const since = wanted.filter((run) => run.createdAtMs >= sinceMs);
    if (kind)
      assert.deepEqual(
        ids(await journal.newestInTurns(kind, sinceMs)).sort(),
        newestByHand(all, kind, sinceMs),
      );
    if (kind && resource && !state) assert.equal(journal.count(resource, kind, sinceMs), since.length);
  }
  assert.deepEqual(ids(journal.open()), ['open']);
  assert.deepEqual(journal.open({ kind: 'hold' }), []);
});

test('open runs cost no reading, the newest of a machine one run, and those of a drain are read once', async (t) => {
  const history = new LongHistory(t);
  for (const machine of ['a', 'b', 'c']) await history.run(machine, 'move', machine, 'done');
  await history.copy(300);
  const { journal, database } = history;
  journal.start('move', { machine: 'a', end: 'open' }, { runId: 'open' });
  const reading = (work: () => unknown): number => {
    const before = database.runsRead;
    work();
    return database.runsRead - before;
  };
  assert.equal(
    reading(() => journal.open({ kind: 'move' })),
    0,
  );
  assert.equal(
    reading(() => journal.find({ state: ['running', 'waiting', 'undoing'] })),
    0,
  );
  assert.equal(
    reading(() => journal.find({ resource: 'machine:a', limit: 1 })),
    0,
  );
  assert.equal(
    reading(() => journal.find({ resource: 'machine:b', limit: 1 })),
    1,
  );
  assert.equal(
    reading(() => journal.count('machine:b', 'move', 0)),
    0,
  );
  assert.equal(
    reading(() => journal.newest('move', 0)),
    1,
    'b is known by now, a is open',
  );
  assert.equal(
    reading(() => journal.newest('move', 0)),
    0,
  );
});

test('every question is answered from an index', async (t) => {
  const history = new LongHistory(t);
  const { journal, database } = history;
  await history.run('r', 'move', 'a', 'done');
  for (const kind of [undefined, 'move']) {
    for (const resource of [undefined, 'machine:a']) {
      journal.find({ ...(kind && { kind }), ...(resource && { resource }) });
      journal.find({ state: 'done', ...(kind && { kind }), ...(resource && { resource }) });
    }
  }
  journal.newest('move', 0);
  journal.count('machine:a', 'move', 0);
  const walks: string[] = [];
  for (const sql of [...database.prepared]) {
    if (/^PRAGMA/.test(sql)) continue;
    const plan = database.prepare(`EXPLAIN QUERY PLAN ${sql}`).all() as { detail: string }[];
    for (const { detail } of plan) {
      // A scan of an index in its order, of which no more is read than is asked for, is none of the table;
      // nor is sorting within one key.
      const isPart = /INDEX runs_one_per_resource/.test(plan.map((step) => step.detail).join());
      const walk =
        /^SCAN (runs|events)(?! USING)/.test(detail) || (/TEMP B-TREE FOR ORDER BY/.test(detail) && !isPart);
      if (walk) walks.push(`${detail}: ${sql}`);
    }
  }
  assert.deepEqual(walks, []);
});

test('the start reads the runs that are open, and none of those that are over', async (t) => {
  const history = new LongHistory(t);
  const { database } = history;
  for (const sql of database.prepared) {
    if (!sql.includes('holds_resource = 1') || !sql.startsWith('SELECT *')) continue;
    const plan = database.prepare(`EXPLAIN QUERY PLAN ${sql}`).all() as { detail: string }[];
    assert.match(plan[0]!.detail, /USING INDEX runs_one_per_resource/);
    return;
  }
  assert.fail('the runs that are open were not asked for');
});

test('a run that was pruned is unknown, and its id is free, also when it was asked for before', async (t) => {
  const history = new LongHistory(t, 2);
  const { journal } = history;
  await history.run('first', 'move', 'a', 'done');
  assert.equal(journal.get('first').state, 'done');
  for (const id of ['second', 'third', 'fourth']) await history.run(id, 'hold', 'a', 'undone');
  assert.throws(
    () => journal.get('first'),
    (error: Error) => isGodwitError(error, 'JOURNAL_UNKNOWN_RUN'),
  );
  assert.deepEqual(ids(journal.find()), ['fourth', 'third']);
  await history.run('first', 'hold', 'b', 'undone');
  assert.equal(journal.get('first').state, 'undone');
});

test('a long history that is all of age is pruned in pieces, and what is asked for meanwhile is answered', async (t) => {
  const history = new LongHistory(t);
  await history.run('r', 'move', 'a', 'done');
  await history.copy(99);
  const { database, clock } = history;
  const left = () => (database.prepare('SELECT count(*) AS runs FROM runs').get() as { runs: number }).runs;
  assert.equal(left(), 100);
  const next = new Journal({
    database,
    clock,
    random: seededRandom(1),
    logger: silentLogger,
    definitions: definitions as unknown as RunDefinition<never>[],
    keepRuns: 3,
  });
  next.resume();
  const afterStart = left();
  assert.ok(afterStart >= 80, `${100 - afterStart} runs were deleted in one turn`);
  const listed = next.findInTurns({ limit: 50 });
  await clock.run(1_000);
  assert.ok((await listed).length <= 50);
  assert.equal(left(), 3);
  assert.deepEqual(ids(await next.findInTurns()), ids(next.find()));
  await clock.runUntil(next.close());
});
