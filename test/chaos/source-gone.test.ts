import assert from 'node:assert/strict';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import { VOLUME_FILES } from '../../src/volume/files.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { patient } from '../support/patience.ts';
import { WriterCollector } from '../support/writer-collector.ts';

const MIB = 2 ** 20;
const BALLAST_BYTES = 48 * MIB;
/** Longer than the target needs to notice. */

test('the source goes in mid-hydration and never comes back: no error before an operator gives the machine up, and nothing left after it', {
  skip: fleetNeeds,
}, async (t) => {
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, ['source', 'target'], {
    flags: { target: ['--hydration-rate', '1MiB'] },
  });
  const [source, target] = [fleet.worker('source'), fleet.worker('target')];
  const machine = await fleet.writerMachine(source, collector, { name: 'writer', lengthBytes: 128 * MIB });
  const history = collector.history('writer');
  const fill = `dd if=/dev/urandom of=/data/file bs=1M count=${BALLAST_BYTES / MIB} status=none; sync`;
  const filled = await source.client.execInMachine(machine.id, {
    command: ['sh', '-c', fill],
    timeoutMs: patient(60_000),
  });
  assert.equal(filled.exitCode, 0, filled.stderr);
  const { id: runId } = await source.client.moveMachine(machine.id, { target: target.name });
  await history.incarnation(1);
  const moveId = targetRunId(runId);
  await fleet.until('hydration', async () => (await target.client.showRun(moveId)).step === 'hydrate');

  // What its machine suffers from is the run's matter, which does not see it itself.
  const loss = join(target.dataDir, 'volumes', machine.volumeId!, VOLUME_FILES.dataLoss);
  writeFileSync(loss, '{}');
  const said = (await target.client.why(moveId)).conditions.map(({ code }) => code);
  assert.match(`${said}`, /^volume-data-lost,.*hydrat/);
  rmSync(loss);

  // An export that hangs is the source's own trouble, and only the source can say which process that is.
  const serverPid = source.exports()[0]!.state.volumeServer!.pid;
  process.kill(serverPid, 'SIGSTOP');
  const hung = await fleet.until('why to name the export', async () => {
    const { conditions } = await source.client.why('writer');
    return conditions.find(({ message }) => /volume server of the export of writer does/.test(message));
  });
  process.kill(serverPid, 'SIGCONT');
  assert.match(hung.nextAction, new RegExp(`pid ${serverPid}`));
  await source.powerOff();

  const reading = target.client
    .execInMachine(machine.id, { command: ['sh', '-c', 'cat /data/file > /dev/null'], timeoutMs: 3_600_000 })
    .then(
      ({ exitCode }) => exitCode,
      () => null,
    );
  let isReading = true;
  void reading.then(() => {
    isReading = false;
  });
  const why = await fleet.until('a reason', async () => {
    const { conditions } = await target.client.why(machine.id);
    return conditions.find(({ message }) => /source does not answer/.test(message)) ?? null;
  });
  // It writes on as long as what it needs of its filesystem is here; then it waits as well.
  history.assertSound();
  assert.ok(isReading, 'a read of what only the source has waits, and gets no error');
  assert.equal(history.incarnations.length, 2);
  assert.match(why.nextAction, new RegExp(`runs force ${moveId} forget`));
  assert.match(why.nextAction, /machine destroy writer --force/);

  const forgotten = await fleet.run('runs', 'force', moveId, 'forget', '--yes');
  assert.equal(forgotten.exitCode, 0, forgotten.stderr);
  const destroyed = await fleet.run('machine', 'destroy', 'writer', '--force');
  assert.equal(destroyed.exitCode, 0, destroyed.stderr);
  assert.notEqual(await reading, 0, 'the reader was told nothing that is not there');
  await target.client.destroyVolume(machine.volumeId!, { force: true });
  assert.deepEqual(await target.client.listVolumes(), []);
  assert.deepEqual(target.shims(), []);
});

test('the source goes when all blocks have come and before it has signed: an operator does without the receipt, and the machine can move on', {
  skip: fleetNeeds,
}, async (t) => {
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, ['source', 'target']);
  const [source, target] = [fleet.worker('source'), fleet.worker('target')];
  const machine = await fleet.writerMachine(source, collector, { name: 'writer', lengthBytes: 128 * MIB });
  const history = collector.history('writer');
  await source.kill();
  await source.start({ crashAt: 'migrate-out:serve:after-done-append' });
  const { id: runId } = await source.client.moveMachine(machine.id, { target: target.name });
  const moveId = targetRunId(runId);
  await source.crashed();
  await source.powerOff();
  const why = await fleet.until('a reason', async () => {
    const { conditions } = await target.client.why(machine.id);
    return conditions.find(({ message }) => /source holds what came/.test(message)) ?? null;
  });
  assert.match(why.nextAction, new RegExp(`runs force ${moveId} unproven --yes`));
  const refused = await fleet.run('runs', 'force', moveId, 'unproven');
  assert.match(refused.stderr, /nobody can show that what arrived is what left/);
  assert.equal(target.volumeRecord(machine.volumeId!)?.state, 'clone');

  const forced = await fleet.run('runs', 'force', moveId, 'unproven', '--yes');
  assert.equal(forced.exitCode, 0, forced.stderr);
  // The record is whole a moment before the run has ended.
  const run = await fleet.until('the end of the run', async () => {
    const now = await target.client.showRun(moveId);
    return now.endedAtMs === null ? null : now;
  });
  assert.equal(run.state, 'done');
  assert.equal(target.volumeRecord(machine.volumeId!)?.state, 'ready');
  await history.more(5);

  await source.start();
  assert.equal((await fleet.ended(source, target, runId)).state, 'done');
  assert.equal(source.volumeRecord(machine.volumeId!)?.state, 'retained');
  const receipt = await fleet.run('receipt', runId);
  assert.match(receipt.stderr, /WORKER_RECEIPT_WAIVED.*an operator said so/);
  const back = await target.client.moveMachine(machine.id, { target: source.name });
  assert.equal((await fleet.ended(target, source, back.id)).state, 'done');
  await history.incarnation(2);
  await history.more(5);
  history.assertSound();
  assert.equal((await fleet.run('receipt', back.id)).exitCode, 0);
});
