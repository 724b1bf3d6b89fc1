import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { WriterCollector } from '../support/writer-collector.ts';

const MIB = 2 ** 20;
const BALLAST_BYTES = 48 * MIB;
/** Longer than the target needs to notice. */
const AWAY_MS = 5_000;

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
    timeoutMs: 60_000,
  });
  assert.equal(filled.exitCode, 0, filled.stderr);
  const { id: runId } = await source.client.moveMachine(machine.id, { target: target.name });
  await history.incarnation(1);
  const moveId = targetRunId(runId);
  await fleet.until('hydration', async () => (await target.client.showRun(moveId)).step === 'hydrate');
  await source.powerOff();

  const reading = target.client
    .execInMachine(machine.id, { command: ['sh', '-c', 'cat /data/file > /dev/null'], timeoutMs: 600_000 })
    .then(
      ({ exitCode }) => exitCode,
      () => null,
    );
  let isReading = true;
  void reading.then(() => {
    isReading = false;
  });
  await sleep(AWAY_MS);
  // It writes on as long as what it needs of its filesystem is here; then it waits as well.
  history.assertSound();
  assert.ok(isReading, 'a read of what only the source has waits, and gets no error');
  assert.equal(history.incarnations.length, 2);
  const why = await fleet.until('a reason', async () => {
    const { conditions } = await target.client.why(machine.id);
    return conditions.find(({ message }) => /source does not answer/.test(message)) ?? null;
  });
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
