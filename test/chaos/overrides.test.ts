import assert from 'node:assert/strict';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import test from 'node:test';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import { workerPaths } from '../../src/worker/paths.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { patient } from '../support/patience.ts';

/** The commands for emergencies, typed at three workers that are real. */

const BEATS = 'while :; do date +%s.%N >>/data/beats; sleep 0.1; done';
/** Most of the ballast is still at the source when somebody looks. */
const SLOW = ['--hydration-rate', '32KiB'];

async function beater(fleet: Fleet): Promise<string> {
  await fleet.godwit(
    0,
    ...['machine', 'run', '--name', 'm', '--worker', 'a', '--volume', 'm', '--size', '96MiB'],
    ...['--no-encryption', '--', 'sh', '-c', `head -c 40000000 /dev/urandom >/data/ballast; sync; ${BEATS}`],
  );
  await fleet.until('the ballast', async () =>
    /beats/.test(await fleet.godwit(0, 'machine', 'exec', 'm', '--', 'ls', '/data')),
  );
  return (await fleet.worker('a').client.showMachine('m')).id;
}

const beats = async (worker: FleetWorker, id: string) =>
  Number(
    (
      await worker.client.execInMachine(id, {
        command: ['sh', '-c', 'wc -l </data/beats'],
        timeoutMs: patient(60_000),
      })
    ).stdout,
  );

test('an override asks the target that lives; only a statement stands in for one that does not, and it can be left again', {
  skip: fleetNeeds,
}, async (t) => {
  const flags = { a: SLOW, b: SLOW, c: SLOW };
  const fleet = await Fleet.start(t, ['a', 'b', 'c'], { flags });
  const [source, target] = [fleet.worker('a'), fleet.worker('b')];
  const id = await beater(fleet);
  const moving = await source.client.moveMachine(id, { target: 'b' });
  await fleet.until(
    'the source to serve',
    async () => (await source.client.showRun(moving.id)).step === 'serve',
  );
  assert.match(
    await fleet.godwit(0, 'drain', 'a', '--dry-run'),
    /^a has no machine\.\nwarning: m runs on b, and blocks of its volume are still only here: keep this worker up/,
  );

  assert.match(await fleet.godwit(0, 'runs', 'show', moving.id), /migrate-out of machine:.* on a/);
  await fleet.godwit(0, 'runs', 'nudge', moving.id);
  assert.match(await fleet.godwit(6, 'runs', 'cancel', moving.id), /JOURNAL_CANCEL_TOO_LATE/);
  assert.match(await fleet.godwit(2, 'runs', 'force', moving.id, 'undo'), /--yes/);
  for (const more of [[], ['--target-is-destroyed']]) {
    const undo = await fleet.godwit(6, 'runs', 'force', moving.id, 'undo', ...more, '--yes');
    assert.match(undo, /MIGRATION_TARGET_HAS_IT[\s\S]*b answers, and has the volume/);
    const forget = await fleet.godwit(6, 'runs', 'force', moving.id, 'forget', ...more, '--yes');
    assert.match(forget, /MIGRATION_TARGET_NEEDS_BLOCKS/);
  }
  assert.equal(source.exports().length, 1, 'its blocks are still served');
  const before = await beats(target, id);
  await fleet.until('beats at the target', async () => (await beats(target, id)) > before);

  await target.powerOff();
  const unasked = await fleet.godwit(6, 'runs', 'force', moving.id, 'undo', '--yes');
  assert.match(
    unasked,
    /MIGRATION_TARGET_UNASKED[\s\S]*what the machine wrote there since 20.* would be lost/,
  );
  const command = new RegExp(`godwit (runs force ${moving.id} undo --target-is-destroyed --yes)`).exec(
    unasked,
  )?.[1];
  await fleet.godwit(0, ...command!.split(' '));
  assert.equal((await source.ended(moving.id)).state, 'undone');
  await fleet.until('the machine at its source', async () => (await beats(source, id)) > 0);
  assert.deepEqual(source.exports(), []);

  // The statement was wrong.
  await target.start();
  const said = await fleet.until('the target to stand down', async () => {
    const { conditions } = await target.client.why(targetRunId(moving.id));
    return conditions.find(({ message }) => /runs there again/.test(message));
  });
  assert.notEqual((await target.client.showMachine(id)).state, 'running');
  assert.equal(
    target.volumeRecord((await source.client.showMachine(id)).volumeId!)?.state,
    'clone',
    'nothing is thrown away unasked',
  );
  const give = /`godwit (runs force [^`]*)`/.exec(said.nextAction)?.[1];
  await fleet.godwit(0, ...give!.split(' '));
  assert.equal((await target.ended(targetRunId(moving.id))).state, 'undone');
  assert.deepEqual(
    (await fleet.owners(id)).map(({ name }) => name),
    ['a'],
  );
  assert.equal(target.volumeRecord((await source.client.showMachine(id)).volumeId!), null);
  const again = await source.client.moveMachine(id, { target: 'c' });
  await fleet.until('it to move again', async () => (await source.client.showRun(again.id)).step === 'serve');

  // The wrong run: what is forgotten at the target is named at the source, and taken up again.
  const third = fleet.worker('c');
  const inside = targetRunId(again.id);
  const told = async (pattern: RegExp) => {
    const { nextAction } = await fleet.until(`why: ${pattern}`, async () =>
      (await source.client.why(again.id)).conditions.find(({ message }) => pattern.test(message)),
    );
    return /`godwit (runs force [^`]*)`/.exec(nextAction)![1]!.split(' ');
  };
  await fleet.godwit(0, 'runs', 'force', inside, 'forget', '--yes');
  await fleet.godwit(0, ...(await told(/nobody brings the move to its end on c/)));
  await fleet.until(
    'the arrival to go on',
    async () => (await third.client.showRun(inside)).step === 'hydrate',
  );

  // It is given up there, as the run's refusals say: its owner has what was sealed.
  await fleet.godwit(0, 'runs', 'force', inside, 'forget', '--yes');
  await fleet.godwit(0, 'machine', 'destroy', 'm', '--force');
  await third.client.destroyVolume((await third.client.listVolumes())[0]!.id, { force: true });
  await fleet.godwit(0, ...(await told(/it was destroyed/)));
  assert.equal((await source.ended(again.id)).state, 'undone');
  await fleet.until('the machine at its source again', async () => (await beats(source, id)) > 0);
});

test('a source that comes back when the target has long forgotten the run does not start the machine', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b', 'c']);
  const [source, target] = [fleet.worker('a'), fleet.worker('b')];
  const id = await beater(fleet);
  await source.kill();
  await source.start({ crashAt: 'migrate-out:handoff:before-done-append' });
  const { id: runId } = await source.client.moveMachine(id, { target: 'b' });
  await source.crashed();
  const inside = targetRunId(runId);
  await fleet.until(
    'the wait for the proof',
    async () => (await target.client.showRun(inside)).step === 'prove',
  );
  await target.client.forceRun(inside, { how: 'unproven' });
  assert.equal((await target.ended(inside)).state, 'done');
  await target.kill();
  const journal = new DatabaseSync(workerPaths(target.dataDir).journal);
  // As 30 days or 10,000 runs do it; before the end was noted, as a version does that does not know how.
  journal.exec('DELETE FROM runs');
  journal.close();
  const state = new DatabaseSync(join(target.dataDir, 'state.sqlite'));
  assert.ok(
    state.prepare('SELECT ending FROM move_verdicts WHERE run_id = ?').get(runId)?.ending === 'released',
  );
  state.close();
  await target.start();

  await source.start();
  assert.equal((await source.ended(runId)).state, 'done');
  assert.deepEqual(
    (await fleet.owners(id)).map(({ name }) => name),
    ['b'],
  );
  const { volumeId } = await target.client.showMachine(id);
  assert.equal(source.volumeRecord(volumeId!)?.state, 'retained');
  const before = await beats(target, id);
  await fleet.until('beats', async () => (await beats(target, id)) > before);
});
