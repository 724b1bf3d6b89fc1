import assert from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { scratchDir } from '../support/scratch.ts';
import { WriterCollector } from '../support/writer-collector.ts';

const MIB = 2 ** 20;
const WRITER = fileURLToPath(new URL('../support/nbd-writer.ts', import.meta.url));
const CHECKOUT = fileURLToPath(new URL('../..', import.meta.url));

test('a machine that has its encrypted volume as a socket is drained: nothing is lost on either side', {
  skip: fleetNeeds,
}, async (t) => {
  const keyFile = join(scratchDir(t), 'key');
  writeFileSync(keyFile, 'k', { mode: 0o600 });
  const flags = ['--key-file', keyFile];
  const collector = await WriterCollector.open(t);
  // So slow that the machine is on a clone for as long as this takes.
  const fleet = await Fleet.start(t, ['a', 'b'], {
    flags: { a: flags, b: [...flags, '--hydration-rate', '512KiB'] },
  });
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const volume = await a.client.createVolume({ name: 'disk', lengthBytes: 64 * MIB, filesystem: 'none' });
  assert.equal(volume.encrypted, true);
  const { id } = await a.client.createMachine({
    name: 'writer',
    start: true,
    config: {
      command: [
        process.execPath,
        '--disable-warning=ExperimentalWarning',
        ...[WRITER, '/run/godwit/disk.sock', String(collector.port), 'writer'],
      ],
      env: {},
      user: '65534',
      volume: { volumeId: volume.id, nbd: true },
      restart: { policy: 'always', retriesMax: 10 },
      stop: { signal: 'SIGTERM', timeoutMs: 10_000 },
      resources: {},
      network: 'host',
      hostFolders: [CHECKOUT],
      metadata: {},
    },
  });
  const history = collector.history('writer');
  await history.more(50);
  killVolumeServer(a, id);
  await history.more(20);

  const drain = await fleet.run('drain', 'a', '--detach');
  assert.equal(drain.exitCode, 0, drain.stderr);
  await history.incarnation(1);
  await history.more(20);
  killVolumeServer(b, id);
  await history.more(20);
  const moved = await fleet.until('the move to be over', async () => {
    const [run] = await fleet.moves(a, id);
    return run?.endedAtMs ? run : null;
  });
  assert.equal(moved.state, 'done', JSON.stringify(moved.error));
  await history.more(20);
  history.assertSound();
  assert.equal(history.incarnations.length, 2, 'it started once on each worker, whatever was killed');
  assert.deepEqual(await fleet.owners(id), [b]);
  assert.equal(existsSync(join(a.dataDir, 'run', id)), false);
  await fleet.until('the socket and its client to be shown', async () => {
    const { served } = await b.client.showVolume(volume.id);
    return served?.writable && served.connections === 1;
  });
});

function killVolumeServer(worker: FleetWorker, machineId: string): void {
  const shim = worker.shims().find(({ id }) => id === machineId);
  process.kill(shim!.state.volumeServer!.pid, 'SIGKILL');
}
