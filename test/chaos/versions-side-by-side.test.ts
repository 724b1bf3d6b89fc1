import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { type GodwitError, isGodwitError } from '../../src/base/errors.ts';
import type { RunView } from '../../src/journal/run.ts';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import { EARLIER, earlierVersion, lacksEarlierVersion } from '../support/earlier-version.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { scratchDir } from '../support/scratch.ts';
import { WriterCollector } from '../support/writer-collector.ts';

/**
 * A fleet in the middle of its upgrade: workers of the last version and of this one answer each other, and
 * this one takes over what that one left.
 */

test('workers of two versions move machines both ways, and the later one goes on with the data, runs and machines of the earlier', {
  skip: fleetNeeds || lacksEarlierVersion(EARLIER.plainErrors),
}, async (t) => {
  const collector = await WriterCollector.open(t);
  const { main } = earlierVersion(scratchDir(t), EARLIER.plainErrors);
  const fleet = await Fleet.start(t, ['old', 'new', 'third'], { main: { old: main } });
  const [old, now] = [fleet.worker('old'), fleet.worker('new')];
  const command = (pid: number) => readFileSync(`/proc/${pid}/cmdline`, 'utf8');
  assert.ok(command(old.pid).includes(main) && !command(now.pid).includes(main));
  const move = async (source: FleetWorker, target: FleetWorker, machineId: string): Promise<RunView> => {
    const { id } = await source.client.moveMachine(machineId, { target: target.name });
    const moved = await fleet.ended(source, target, id);
    assert.equal(moved.state, 'done', JSON.stringify(moved.error));
    return moved;
  };
  const same = async (runId: string, ...workers: FleetWorker[]) => {
    const [first, ...others] = await Promise.all(workers.map(({ client }) => client.showReceipt(runId)));
    assert.ok(first);
    for (const other of others) assert.deepEqual(other, first, 'both have signed the same');
    return first;
  };

  // 1. There and back: offers, preparation, handoff, blocks, proof and receipt are understood on both sides.
  const there = await fleet.writerMachine(old, collector, { name: 'there' });
  const back = await fleet.writerMachine(now, collector, { name: 'back' });
  const stays = await fleet.writerMachine(old, collector, { name: 'stays' });
  const moved = await move(old, now, there.id);
  const came = await move(now, old, back.id);
  for (const name of ['there', 'back', 'stays']) await collector.history(name).more(3);
  const receipts = [await same(moved.id, old, now), await same(came.id, old, now)];

  // 2. What the earlier one answers is read, and what it does not say of its errors is judged by their codes.
  const failsWith = async (expected: string, work: Promise<unknown>) => {
    const error = await work.then(
      () => null,
      (thrown: unknown) => thrown,
    );
    assert.ok(isGodwitError(error, expected), String(error));
    return (error as GodwitError).retry;
  };
  const idle = { ...stays.config, volume: undefined };
  const named = (worker: FleetWorker) =>
    worker.client.createMachine({
      name: worker === old ? 'stays' : 'there',
      start: false,
      config: idle as never,
    });
  assert.equal(await failsWith('MACHINE_NOT_FOUND', old.client.showMachine('nobody')), 'unknown');
  assert.equal(await failsWith('MACHINE_NAME_TAKEN', named(old)), 'never');
  assert.equal(await failsWith('MACHINE_NAME_TAKEN', named(now)), 'never');
  const list = await fleet.reply(0, 'machine', 'list');
  assert.match(list.stdout, /^back .* old .* running/m);
  assert.match(list.stdout, /^there .* new .* running/m);
  await fleet.reply(0, 'why', 'back');
  for (const worker of ['old', 'new']) await fleet.reply(0, 'drain', worker, '--dry-run');

  // 3. The earlier one dies in the middle of a move, between two that it has finished and one that it
  // receives; this one is started on its data.
  await old.kill();
  await old.start({ crashAt: 'migrate-out:serve:after-start-append' });
  const half = await old.client.moveMachine(back.id, { target: 'third' });
  await old.crashed();
  const { pid } = await now.client.showMachine(there.id);
  old.upgrade();
  await old.start();
  assert.ok(!command(old.pid).includes(main));

  const runs = await old.client.listRuns({ state: 'all', limit: 100 });
  const known = runs.map(({ id }) => id);
  for (const id of [moved.id, targetRunId(came.id), half.id])
    assert.ok(known.includes(id), `${id} in ${known}`);
  const finished = await old.client.showRun(moved.id);
  assert.deepEqual([finished.state, finished.error], ['done', null]);
  assert.equal(
    (await fleet.ended(old, fleet.worker('third'), half.id)).state,
    'done',
    'the open one came to its end',
  );
  assert.deepEqual([await same(moved.id, old, now), await same(came.id, old, now)], receipts);
  await same(half.id, old, fleet.worker('third'));

  // 4. Its machine ran on all the time, in the hands of a shim of the earlier version; it can be stopped,
  // started and moved.
  const seen = await old.client.showMachine(stays.id);
  assert.equal(seen.state, 'running');
  assert.equal(seen.restarts, 0);
  assert.equal(seen.pid, stays.pid, 'nobody touched it');
  await collector.history('stays').more(3);
  const out = await move(old, now, stays.id);
  await same(out.id, old, now);
  await fleet.reply(0, 'machine', 'restart', 'there');
  assert.notEqual((await now.client.showMachine(there.id)).pid, pid);
  for (const name of ['there', 'back', 'stays']) {
    await collector.history(name).more(3);
    collector.history(name).assertSound();
  }
});
