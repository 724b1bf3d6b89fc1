import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { toWireError } from '../../src/base/errors.ts';
import { replaceFile } from '../../src/sys/durable-file.ts';
import { scratchDir } from '../support/scratch.ts';
import { Database } from './database.ts';
import { Disk } from './disk.ts';
import { Process, running, Simulation } from './simulation.ts';

const BOOT = { host: 'w1', sinceMs: 0, wallOffsetMs: 0 };

function bench(t: TestContext) {
  const simulation = new Simulation(1);
  t.after(() => simulation.close());
  return { simulation, process: new Process('w1', BOOT) };
}

/** What a simulated process comes to. */
async function outcome<T>(
  simulation: Simulation,
  process: Process,
  work: () => Promise<T>,
): Promise<unknown> {
  let result: unknown;
  let isOver = false;
  const end = (value: unknown) => {
    result = value;
    isOver = true;
  };
  void running.run(process, () => work().then(end, end));
  assert.equal(await simulation.run(() => isOver, simulation.nowMs + 60_000), true);
  return result;
}

test('what comes due to a stopped process happens when it goes on, in order, and what is taken back by then does not', async (t) => {
  const { simulation, process } = bench(t);
  const happened: string[] = [];
  let takeBack = () => {};
  running.run(process, () => {
    simulation.after(10, () => {
      happened.push('first');
      takeBack();
    });
    takeBack = simulation.after(20, () => happened.push('taken back'));
    simulation.after(30, () => happened.push('last'));
  });
  simulation.world(5, () => process.stop());
  simulation.world(1_000, () => {
    assert.deepEqual([happened, process.isStopped], [[], true]);
    process.goOn();
  });
  await simulation.run(() => false, 2_000);
  assert.deepEqual([happened, process.isStopped], [['first', 'last'], false]);
});

test('a process that is killed while it is stopped never goes on', async (t) => {
  const { simulation, process } = bench(t);
  let isCalled = false;
  process.stop();
  running.run(process, () => simulation.after(10, () => (isCalled = true)));
  simulation.world(20, () => process.end());
  simulation.world(30, () => process.goOn());
  await simulation.run(() => false, 100);
  assert.deepEqual([isCalled, process.isStopped], [false, false]);
});

test('a full disk takes no content and no commit, lets names go, and leaves what was there', async (t) => {
  const { simulation, process } = bench(t);
  const root = join(scratchDir(t), 'w1');
  const disk = new Disk(root, simulation);
  t.after(() => disk.close());
  const path = join(root, 'record.json');
  const ask = <T>(work: () => Promise<T>) => outcome(simulation, process, work);
  assert.equal(await ask(() => replaceFile(path, 'old')), undefined);
  const database = new Database(join(root, 'state.sqlite'), disk);
  t.after(() => database.close());
  database.exec('CREATE TABLE words (word TEXT PRIMARY KEY)');
  const insert = database.prepare('INSERT OR IGNORE INTO words VALUES (?)');
  insert.run('old');

  disk.freeBytes = -(2 ** 30);
  assert.equal(toWireError(await ask(() => replaceFile(path, 'new'))).code, 'DISK_FULL');
  assert.equal(readFileSync(path, 'utf8'), 'old');
  assert.throws(
    () => insert.run('new'),
    (error) => toWireError(error).code === 'DISK_FULL',
  );
  assert.equal(insert.run('old').changes, 0);
  database.exec('BEGIN');
  insert.run('new');
  assert.throws(
    () => database.exec('COMMIT'),
    (error) => toWireError(error).code === 'DISK_FULL',
  );
  database.exec('ROLLBACK');
  assert.deepEqual(
    database
      .prepare('SELECT word FROM words')
      .all()
      .map(({ word }) => word),
    ['old'],
  );
  assert.equal(await ask(() => rename(path, `${path}.away`)), undefined);

  disk.mend();
  assert.equal(insert.run('new').changes, 1);
});

test('a disk that fails takes nothing, for a number of writes or for a while', async (t) => {
  const { simulation, process } = bench(t);
  const root = join(scratchDir(t), 'w1');
  const disk = new Disk(root, simulation);
  t.after(() => disk.close());
  const ask = <T>(work: () => Promise<T>) => outcome(simulation, process, work);
  const path = join(root, 'record.json');
  disk.failsNext = 1;
  assert.equal(toWireError(await ask(() => writeFile(path, 'x'))).code, 'DISK_FAILED');
  assert.equal(await ask(() => writeFile(path, 'x')), undefined);
  disk.fails = true;
  for (let each = 0; each < 3; each++)
    assert.equal(toWireError(await ask(() => rm(path))).code, 'DISK_FAILED');
  assert.equal(readFileSync(path, 'utf8'), 'x');
  disk.syncData();
  disk.failsData = true;
  assert.throws(() => disk.syncData(), { code: 'EIO' });
});
