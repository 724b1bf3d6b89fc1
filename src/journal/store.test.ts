import assert from 'node:assert/strict';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { type TestContext, test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { seededRandom } from '../base/random.ts';
import { Journal } from './journal.ts';
import type { RunDefinition } from './run.ts';

const definition: RunDefinition<string> = {
  kind: 'move',
  resource: (machine) => `machine:${machine}`,
  steps: [
    { name: 'one', quietMs: 60_000, do: async ({ put }) => put({ x: 1 }) },
    {
      name: 'two',
      quietMs: 60_000,
      do: async () => {
        throw new Error('not yet');
      },
    },
  ],
};

const open = (clock: FakeClock, database: string) =>
  new Journal({
    database,
    clock,
    random: seededRandom(1),
    logger: silentLogger,
    definitions: [definition as RunDefinition<never>],
  });

/** A closed journal with an open run `a` (in step two) and another, `b`. */
async function twoRuns(t: TestContext): Promise<{ clock: FakeClock; path: string }> {
  const clock = new FakeClock();
  const path = join(scratchDir(t), 'journal.sqlite');
  const journal = open(clock, path);
  journal.start('move', 'a', { runId: 'a' });
  journal.start('move', 'b', { runId: 'b' });
  await clock.run(1_000);
  await clock.runUntil(journal.close());
  return { clock, path };
}

const DAMAGES: readonly (readonly [string, string])[] = [
  [
    'a step begun after a cancel',
    `UPDATE events SET type = 'cancel-requested', step = NULL, data = '{"reason":"x"}' WHERE run_id = 'a' AND type = 'put'`,
  ],
  [
    'an event that is missing',
    "DELETE FROM events WHERE run_id = 'a' AND type = 'step-started' AND step = 0",
  ],
  ['no events at all', "DELETE FROM events WHERE run_id = 'a'"],
  [
    'an event out of order',
    "UPDATE events SET sequence = 1000 WHERE run_id = 'a' AND type = 'step-succeeded'",
  ],
  ['an event of no known type', "UPDATE events SET type = 'step-flown' WHERE run_id = 'a' AND sequence = 3"],
  ['a step that is not there', "UPDATE events SET step = 7 WHERE run_id = 'a' AND step = 1"],
  ['data that is not JSON', "UPDATE events SET data = '{' WHERE run_id = 'a' AND type = 'put'"],
  ['data of the wrong form', `UPDATE events SET data = '{"values":7}' WHERE run_id = 'a' AND type = 'put'`],
  ['data that is null', "UPDATE events SET data = 'null' WHERE run_id = 'a' AND type = 'put'"],
  ['a step list of the wrong form', "UPDATE runs SET steps = '[]' WHERE id = 'a'"],
  [
    'a success written twice',
    "INSERT INTO events SELECT run_id, 5000, at_ms, type, step, attempt, data FROM events WHERE run_id = 'a' AND type = 'step-succeeded'",
  ],
  [
    'an undo of a run that goes forward',
    `INSERT INTO events VALUES ('a', 5000, 0, 'undo-started', 1, 1, '{"limitAtMs":1}')`,
  ],
  [
    'an end before the last step',
    `INSERT INTO events VALUES ('a', 5000, 0, 'finished', NULL, NULL, '{"state":"done","error":null,"holdsResource":false,"handedOffTo":null}')`,
  ],
];

for (const [what, statement] of DAMAGES) {
  test(`damage: ${what}: the run is parked with JOURNAL_CORRUPT, the other goes on`, async (t) => {
    const { clock, path } = await twoRuns(t);
    const database = new DatabaseSync(path);
    assert.ok(Number(database.prepare(statement).run().changes) > 0, 'the damage is done');
    database.close();

    const journal = open(clock, path);
    t.after(() => clock.runUntil(journal.close()));
    journal.resume();
    const before = journal.get('b').steps[1]!.attempts;
    await clock.run(20_000);
    assert.ok(journal.get('b').steps[1]!.attempts > before);
    const parked = journal.get('a');
    assert.deepEqual([parked.state, parked.error?.code], ['waiting', 'JOURNAL_CORRUPT']);
    assert.throws(
      () => journal.events('c'),
      (error) => isGodwitError(error, 'JOURNAL_UNKNOWN_RUN'),
    );
    assert.throws(
      () => journal.start('move', 'a'),
      (error) => isGodwitError(error, 'JOURNAL_RESOURCE_BUSY'),
    );
    assert.throws(
      () => journal.force('a', 'undo', 'ann'),
      (error) => isGodwitError(error, 'JOURNAL_RUN_PARKED'),
    );
    const waiting = journal.wait('a');
    journal.force('a', 'forget', 'ann');
    assert.equal((await waiting).state, 'failed');
    assert.deepEqual([journal.get('a').state, journal.get('a').error?.code], ['failed', 'JOURNAL_CORRUPT']);
    assert.equal(journal.start('move', 'a').state, 'running');
  });
}

test('a file that is no database, one of a later version, and one that cannot be made', async (t) => {
  const clock = new FakeClock();
  const folder = scratchDir(t);
  const path = join(folder, 'journal.sqlite');
  const code = (expected: string) => (error: unknown) => isGodwitError(error, expected);
  writeFileSync(path, Buffer.alloc(8192, 0x55));
  assert.throws(() => open(clock, path), code('JOURNAL_CORRUPT'));
  rmSync(path);
  const database = new DatabaseSync(path);
  database.exec('PRAGMA user_version = 99');
  database.close();
  assert.throws(() => open(clock, path), code('JOURNAL_NEWER'));
  assert.throws(() => open(clock, join(folder, 'missing', 'journal.sqlite')), code('JOURNAL_UNUSABLE'));
});

test('an append is durable in the sense of SQLite: WAL with synchronous FULL', (t) => {
  const database = new DatabaseSync(join(scratchDir(t), 'journal.sqlite'));
  t.after(() => database.close());
  const clock = new FakeClock();
  const journal = new Journal({
    database,
    clock,
    random: seededRandom(1),
    logger: silentLogger,
    definitions: [],
  });
  assert.deepEqual({ ...database.prepare('PRAGMA journal_mode').get() }, { journal_mode: 'wal' });
  assert.deepEqual({ ...database.prepare('PRAGMA synchronous').get() }, { synchronous: 2 });
  void journal.close();
});

test('the newest run of a resource is the one that was made last, also when the clock was set back in between', async () => {
  const clock = new FakeClock();
  const journal = new Journal({
    ...{ database: new DatabaseSync(':memory:'), clock, random: seededRandom(1), logger: silentLogger },
    definitions: [
      { kind: 'move', resource: () => 'm', steps: [{ name: 'go', quietMs: 1000, do: async () => {} }] },
    ],
  });
  journal.resume();
  const ids: string[] = [];
  for (let run = 0; run < 2; run++) {
    const { id } = journal.start('move', {});
    ids.push(id);
    await clock.runUntil(journal.wait(id));
    clock.stepWall(-60_000);
  }
  assert.deepEqual(
    journal.newest('move', 0).map(({ id }) => id),
    [ids[1]],
  );
  await journal.close();
});
