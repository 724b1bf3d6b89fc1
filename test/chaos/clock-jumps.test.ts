import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { MIGRATE_OUT } from '../../src/migration/migrate-out.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { clockNeeds, forgetClocks, HostClock } from '../support/host-clock.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { WriterCollector } from '../support/writer-collector.ts';

/*
 * The clocks of hosts are set while they work: by a month, as where a battery is empty, and back. Nothing waits
 * for the time that was, nothing that is kept goes, and no figure is of it.
 */

const HOUR_MS = 3_600_000;
const MONTH_MS = 31 * 24 * HOUR_MS;
const NAMES = ['a', 'b', 'c'] as const;
/** A text of days, or of more than some minutes: nothing in this test takes so long. */
const TOO_LONG = /\b\d+ ?d\b|\b\d+ ?h\b/;

test('clocks that jump by a month and back by hours, in the middle of a drain, lengthen nothing and lose nothing', {
  skip: fleetNeeds || clockNeeds,
}, async (t) => {
  const dir = scratchDir(t);
  const clocks = Object.fromEntries(NAMES.map((name) => [name, new HostClock(dir, name)]));
  const through = Object.fromEntries(NAMES.map((name) => [name, clocks[name]!.through]));
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, NAMES, { through });
  t.after(forgetClocks);
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const machines = [];
  for (const name of ['one', 'two', 'three'])
    machines.push(await fleet.writerMachine(a, collector, { name }));
  await b.client.createVolume({ name: 'plain', lengthBytes: 2 ** 24, filesystem: 'ext4', encrypted: false });

  // One has gone before: its copy is the way back.
  const first = machines[0]!;
  const before = await fleet.run('move', 'one', '--to', 'b');
  assert.equal(before.exitCode, 0, before.stderr);
  const copies = async () => {
    const volumes = await a.client.listVolumes();
    return volumes.filter(({ state }) => state === 'retained').map(({ id }) => id);
  };
  await fleet.until('the copy of the first', copies, { is: (ids) => ids.includes(first.volumeId!) });

  const drain = fleet.follow('drain', 'a', '--wait', '600s');
  const moving = async () => (await a.client.drainStatus()).machines.some(({ state }) => state !== 'queued');
  await fleet.until('the drain to move a machine', moving);
  await clocks.a!.set(MONTH_MS);
  await clocks.b!.set(-2 * HOUR_MS);
  await clocks.c!.set(MONTH_MS);
  await clocks.a!.set(-2 * HOUR_MS);
  await clocks.c!.set(0);
  const { exitCode, stderr } = await drain.ended;
  assert.equal(exitCode, 0, stderr);

  for (const { id, name } of machines) {
    await collector.history(name).more(3);
    collector.history(name).assertSound();
    assert.equal((await fleet.owners(id)).length, 1, name);
  }
  await figuresOf(fleet, a);

  // A month later by the clock: what is kept is there, and so is what was done.
  await clocks.a!.set(MONTH_MS);
  await a.kill();
  await a.start();
  assert.equal((await copies()).length, 3);
  for (const { id, name } of machines) assert.ok((await fleet.moves(a, id)).length > 0, name);
  const list = await fleet.run('volume', 'list', '--all');
  assert.equal((list.stdout.match(/retained@/g) ?? []).length, 3, list.stdout);

  // Back again, and machines come back: nobody waits for a time that has been.
  await clocks.a!.set(-2 * HOUR_MS);
  await clocks.b!.set(MONTH_MS);
  assert.equal((await fleet.run('undrain', 'a')).exitCode, 0);
  const back = await fleet.run('move', 'one', '--to', 'a');
  assert.equal(back.exitCode, 0, back.stderr);
  await collector.history('one').more(3);
  collector.history('one').assertSound();
  const retried = await fleet.run('drain', 'b', '--to', 'a', '--wait', '20s');
  assert.equal(retried.exitCode, 3, `only the volume is left: ${retried.stderr}`);
});

/** What people and dashboards read of it. */
async function figuresOf(fleet: Fleet, source: FleetWorker): Promise<void> {
  const runs = (await source.client.listRuns({ state: 'all', limit: 100 })).filter(
    ({ kind }) => kind === MIGRATE_OUT,
  );
  for (const { output, id } of runs) {
    const { interruptionMs } = output as { interruptionMs?: Record<string, number> };
    for (const [phase, ms] of Object.entries(interruptionMs ?? {}))
      assert.ok(ms >= 0 && ms < HOUR_MS / 4, `${id}: ${phase} ${ms}`);
  }
  const said = await fleet.run('drain', 'a');
  assert.equal(said.exitCode, 0, said.stderr);
  const table = said.stdout.split('\n').filter((line) => /one|two|three|moved/.test(line));
  assert.doesNotMatch(table.join('\n'), TOO_LONG);
}

test('a clock that is set back by two hours in the middle of a drain lengthens no wait for what is in its way', {
  skip: fleetNeeds || clockNeeds || requires('chattr'),
}, async (t) => {
  let immutable: string | null = null;
  // Before the hooks that take folders away.
  t.after(() => immutable !== null && spawnSync('chattr', ['-i', immutable]));
  const dir = scratchDir(t);
  const clock = new HostClock(dir, 'a');
  const fleet = await Fleet.start(t, ['a', 'b'], { through: { a: clock.through } });
  t.after(forgetClocks);
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const volume = ['--volume', 'm', '--size', '32MiB', '--no-encryption'];
  const made = await fleet.run(
    ...['machine', 'run', '--name', 'm', '--worker', 'a', ...volume, '--', 'sleep', 'infinity'],
  );
  assert.equal(made.exitCode, 0, made.stderr);
  const { id } = await a.client.showMachine('m');
  const tries = (word: RegExp) =>
    readFileSync(join(fleet.dir, 'a.log'), 'utf8')
      .split('\n')
      .filter((line) => word.test(line)).length;
  const refusals = () => tries(/a machine cannot go now/);
  const moves = async () => (await fleet.moves(a, id)).length;

  // 1. Nobody takes it.
  await b.client.drain();
  await a.client.drain();
  await fleet.until('the first refusal', () => refusals() > 0);
  await clock.set(-2 * HOUR_MS);
  const refused = refusals();
  await fleet.until('it to be tried again', () => refusals() > refused);
  const [waiting] = (await a.client.drainStatus()).machines;
  assert.deepEqual([waiting?.state, /b is draining/.test(waiting?.reason ?? '')], ['waiting', true]);

  // 2. Its moves fail; and the next process of this worker knows of them from the journal only.
  immutable = join(b.dataDir, 'volumes');
  execFileSync('chattr', ['+i', immutable]);
  await b.client.undrain();
  await fleet.until('a move to be undone', async () => (await fleet.moves(a, id))[0]?.state === 'undone');
  const undone = await moves();
  await a.kill();
  await clock.set(-4 * HOUR_MS);
  await a.start();
  await fleet.until('it to be tried again', async () => (await moves()) > undone);
  execFileSync('chattr', ['-i', immutable]);
  await fleet.until('the drain to go on', async () => (await a.client.drainStatus()).state === 'drained');
  const drained = await fleet.run('drain', 'a');
  assert.equal(drained.exitCode, 0, drained.stderr);
});
