import assert from 'node:assert/strict';
import { join } from 'node:path';
import test from 'node:test';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { patient } from '../support/patience.ts';
import { requires } from '../support/requires.ts';
import { VolumeLab } from '../support/volume-lab.ts';
import { WriterCollector } from '../support/writer-collector.ts';
import { writerConfig } from '../support/writer-config.ts';

test('a machine with an XFS of 64 TiB is made, runs, and moves from worker to worker, proved', {
  skip: fleetNeeds || requires('mkfs.xfs'),
}, async (t) => {
  const lab = new VolumeLab();
  // A log of XFS is 2 GiB at this size.
  for (const name of ['source', 'target']) await lab.xfsDisk(name, 12 * 2 ** 30);
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, ['source', 'target'], {
    dataDir: { source: join(lab.dir, 'source'), target: join(lab.dir, 'target') },
    flags: { target: ['--hydration-rate', '4MiB'] },
  });
  try {
    const [source, target] = [fleet.worker('source'), fleet.worker('target')];
    const volume = await source.client.createVolume({
      name: 'big',
      lengthBytes: 64 * 2 ** 40,
      filesystem: 'xfs',
      encrypted: false,
    });
    const machine = await source.client.createMachine({
      name: 'writer',
      start: true,
      config: writerConfig(volume.id, String(collector.port), 'writer'),
    });
    await collector.history('writer').more(1);
    const filled = await source.client.execInMachine(machine.id, {
      command: [
        'sh',
        '-c',
        'for i in 1 2 3 4; do mkdir -p /data/d$i; dd if=/dev/urandom of=/data/d$i/f bs=1M count=10 status=none; done; sync; sha256sum /data/d*/f',
      ],
      timeoutMs: patient(60_000),
    });
    const { id: runId } = await source.client.moveMachine(machine.id, { target: target.name });
    await collector.history('writer').incarnation(1);
    const moveId = targetRunId(runId);
    await fleet.until('hydration', async () => (await target.client.showRun(moveId)).step === 'hydrate');
    const done = await fleet.ended(source, target, runId);
    assert.equal(done.state, 'done', JSON.stringify(done.error));
    const again = await target.client.execInMachine(machine.id, {
      command: ['sh', '-c', 'sha256sum /data/d*/f'],
      timeoutMs: patient(60_000),
    });
    assert.equal(filled.exitCode, 0, filled.stderr);
    assert.equal(again.stdout, filled.stdout, 'the files are what they were');
    collector.history('writer').assertSound();
  } finally {
    await fleet.close();
    await lab.close();
  }
});
