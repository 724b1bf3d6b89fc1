import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import type { MigrateOutOutput } from '../../src/migration/migrate-out.ts';
import { tool } from '../support/filesystem-image.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { patient } from '../support/patience.ts';
import { requires } from '../support/requires.ts';

/**
 * A whole move with the free map: what was deleted on the source does not travel, and what was not is all
 * there.
 */

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const skip = fleetNeeds || requires('e2fsck', 'sha256sum', 'dd');

/**
 * Writes files and checks them ever after: healthy is that all of them have the content that they were
 * written with.
 */
async function machineWithFiles(
  worker: FleetWorker,
  options: { lengthBytes: number; keptMib: number; deletedMib: number },
): Promise<{ machineId: string; volumeId: string }> {
  const volume = await worker.client.createVolume({
    name: 'files-data',
    lengthBytes: options.lengthBytes,
    filesystem: 'ext4',
    encrypted: false,
  });
  // Kept and deleted files in turns, so that the free blocks lie among the used ones.
  const fill = [
    `set -e; cd /data; if [ ! -e sums ]; then`,
    `for i in 1 2 3 4 5; do`,
    ...[`dd if=/dev/urandom of=keep.$i bs=64k count=$((${options.keptMib} * 16 / 5)) status=none;`],
    ...[`dd if=/dev/urandom of=gone.$i bs=64k count=$((${options.deletedMib} * 16 / 5)) status=none;`],
    `done; sync -f .; rm -f gone.*; sync -f .; sha256sum keep.* > sums; sync -f .; fi; exec sleep infinity`,
  ].join('\n');
  const machine = await worker.client.createMachine({
    name: 'files',
    start: true,
    config: {
      command: ['sh', '-c', fill],
      env: {},
      volume: { volumeId: volume.id, mountPath: '/data' },
      restart: { policy: 'always', retriesMax: 10 },
      stop: { signal: 'SIGKILL', timeoutMs: 10_000 },
      health: {
        kind: 'exec',
        command: ['sh', '-c', 'cd /data && sha256sum --quiet -c sums'],
        ...{ intervalMs: 60_000, timeoutMs: Math.min(600_000, patient(60_000)), retries: 3 },
        startPeriodMs: Math.min(3_600_000, patient(120_000)),
      },
      resources: {},
      network: 'host',
      metadata: {},
    },
  });
  return { machineId: machine.id, volumeId: volume.id };
}

async function move(t: Parameters<typeof Fleet.start>[0], options: Parameters<typeof machineWithFiles>[1]) {
  const fleet = await Fleet.start(t, ['source', 'target']);
  const [source, target] = [fleet.worker('source'), fleet.worker('target')];
  const { machineId, volumeId } = await machineWithFiles(source, options);
  await fleet.until(
    'the files',
    async () => (await source.client.showMachine(machineId)).health.state === 'healthy',
  );
  const run = await source.client.moveMachine(machineId, { target: target.name });
  const end = await fleet.ended(source, target, run.id);
  assert.equal(end.state, 'done', end.error?.message);
  const output = end.output as MigrateOutOutput;
  assert.equal(output.freeMapReason, null);
  // The move is over only when the machine is healthy, which is that every file has its checksum.
  assert.ok(output.last!.timesMs.healthy !== null);
  await target.client.stopMachine(machineId);
  await tool('e2fsck', ['-f', '-n', join(target.dataDir, 'volumes', volumeId, 'data.raw')]);
  const { hydrated, activated } = output.last!.timesMs;
  return {
    output,
    wireBytes: output.last!.hydration!.wireBytes,
    hydratedMs: hydrated! - activated!,
    usedBytes: options.lengthBytes - output.unusedBytes!,
  };
}

test('deleted files stay behind: at most 1.05 bytes on the wire for a byte in use, and the filesystem is whole', {
  skip,
}, async (t) => {
  const { output, wireBytes } = await move(t, { lengthBytes: 10 * GIB, keptMib: 110, deletedMib: 160 });
  t.diagnostic(`wire ${wireBytes}, avoided ${output.bytesAvoided}, seal ${output.sealMs} ms`);
  assert.ok(wireBytes <= 1.05 * 110 * MIB, `${wireBytes} bytes for 110 MiB`);
  assert.ok(output.bytesAvoided! >= 0.98 * 160 * MIB, `${output.bytesAvoided} bytes avoided of 160 MiB`);
});

test('of 100 GiB with 5 MiB in use nothing else travels', { skip }, async (t) => {
  const { wireBytes, hydratedMs, output } = await move(t, {
    lengthBytes: 100 * GIB,
    keptMib: 5,
    deletedMib: 60,
  });
  t.diagnostic(
    `wire ${wireBytes}, hydrated in ${hydratedMs} ms, avoided ${output.bytesAvoided}, seal ${output.sealMs} ms`,
  );
  assert.ok(wireBytes < 24 * MIB, `${wireBytes} bytes for 5 MiB`);
  assert.ok(output.bytesAvoided! >= 0.95 * 60 * MIB, `${output.bytesAvoided} bytes avoided of 60 MiB`);
});
