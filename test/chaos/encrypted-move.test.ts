import assert from 'node:assert/strict';
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { isGodwitError } from '../../src/base/errors.ts';
import { verifyReceipt } from '../../src/receipt/envelope.ts';
import { unlockVolume } from '../../src/volume/encryption.ts';
import { readRecord } from '../../src/volume/record-file.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { WriterCollector } from '../support/writer-collector.ts';

/** Encrypted volumes with real workers: moved under a machine that writes all the time. */

const PASSPHRASE_START = 'hush-this-is-the-passphrase-of';

test('an encrypted volume moves: nothing is lost, and its keys are nowhere but in memory', {
  skip: fleetNeeds,
}, async (t) => {
  // Beside the fleet's folder, which is searched for what this prints.
  const script = join(scratchDir(t), 'key.sh');
  writeFileSync(script, `printf '${PASSPHRASE_START}-%s' "$GODWIT_VOLUME_ID"\n`);
  const keys = ['--key-exec', `sh ${script}`];
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, ['a', 'b', 'c'], { flags: { a: keys, b: keys } });
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const machine = await fleet.writerMachine(a, collector, { name: 'writer' });
  const history = collector.history('writer');
  const [volume] = await a.client.listVolumes();
  assert.equal(volume?.encrypted, true);
  const folder = join(a.dataDir, 'volumes', volume.id);
  assert.ok(!readFileSync(join(folder, 'data.raw')).includes('lost+found'), 'a filesystem in the clear');

  // A worker without keys is asked, and refuses before anything stops.
  const refused = await a.client.moveMachine('writer', { target: 'c' });
  await fleet.until('the move to c to say why it cannot be', async () => {
    const run = await a.client.showRun(refused.id);
    return /has no keys/.test(JSON.stringify(run)) ? run : null;
  });
  if ((await a.client.showRun(refused.id)).endedAtMs === null) await a.client.cancelRun(refused.id);
  await a.ended(refused.id);
  assert.equal(history.incarnations.length, 1, 'the machine was stopped for nothing');

  const move = await a.client.moveMachine('writer', { target: 'b' });
  const run = await fleet.ended(a, b, move.id);
  assert.equal(run.state, 'done');
  await history.incarnation(1);
  await history.more(5);

  // Whoever restarts the volume server must get at the key again.
  const before = history.acknowledged;
  killVolumeServer(b, machine.id);
  await history.more(5);
  assert.ok(history.acknowledged >= before + 5);
  history.assertSound();

  // Both have the receipt of the move that succeeded, signed by the keys that they show.
  const receipt = await a.client.showReceipt(move.id);
  assert.deepEqual(await b.client.showReceipt('writer'), receipt);
  const fingerprints = [(await a.client.worker()).keyFingerprint, (await b.client.worker()).keyFingerprint];
  const { bytes, root, rangesMended } = verifyReceipt(receipt, { fingerprints });
  assert.equal(bytes.total, volume.lengthBytes);
  assert.ok(bytes.compared > 0 && bytes.readBack > 0, 'nothing was read back');
  assert.equal(rangesMended, 0);
  assert.equal(run.output.root, root);
  await assert.rejects(a.client.showReceipt(refused.id), (error) =>
    isGodwitError(error, 'WORKER_RECEIPT_NOT_FOUND'),
  );

  const [arrived] = (await b.client.listVolumes()).filter(({ id }) => id === volume.id);
  assert.equal(arrived?.encrypted, true);

  const record = await readRecord(join(b.dataDir, 'volumes', volume.id));
  const { volumeKey } = await unlockVolume({
    volumeId: volume.id,
    generation: record.generation,
    volumeDir: join(b.dataDir, 'volumes', volume.id),
    encryption: { uuid: record.encryption!.uuid, keys: { kind: 'exec', argv: ['sh', script] } },
  });
  const key = volumeKey.bytes;
  const secrets = [
    Buffer.from(PASSPHRASE_START),
    Buffer.from(Buffer.from(PASSPHRASE_START).toString('base64').slice(0, 36)),
    key,
    Buffer.from(key.toString('hex')),
    Buffer.from(key.toString('base64')),
    Buffer.from(key.toString('base64url')),
  ];
  let searched = 0;
  for (const path of filesBelow(fleet.dir)) {
    searched++;
    const bytes = readFileSync(path);
    for (const [index, secret] of secrets.entries())
      assert.ok(!bytes.includes(secret), `secret ${index} is in ${path}`);
  }
  assert.ok(searched > 10, `${searched} files`);
  for (const worker of [a, b]) {
    const answers = JSON.stringify([
      await worker.client.listVolumes(),
      await worker.client.listMachines(),
      await worker.client.listRuns({ state: 'all', limit: 100 }),
      await worker.client.why('writer').catch(String),
    ]);
    for (const secret of secrets) assert.ok(!answers.includes(secret.toString('latin1')));
  }
});

test('who wants no encryption says so, and who demands it gets it or a refusal', {
  skip: fleetNeeds,
}, async (t) => {
  const keyFile = join(scratchDir(t), 'key');
  writeFileSync(keyFile, 'k', { mode: 0o600 });
  const fleet = await Fleet.start(t, ['a', 'b'], { flags: { a: ['--key-file', keyFile] } });
  const create = (worker: string, name: string, ...flags: string[]) =>
    fleet.run('volume', 'create', name, '--size', '64MiB', '--worker', worker, ...flags);
  assert.match((await create('a', 'one')).stdout, /encrypted/);
  const two = await create('a', 'two', '--no-encryption');
  assert.equal(two.exitCode, 0, two.stderr);
  assert.doesNotMatch(two.stdout, /encrypted/);
  const four = await create('b', 'four');
  assert.equal(four.exitCode, 0, four.stderr);
  assert.doesNotMatch(four.stdout, /encrypted/);
  const five = await create('b', 'five', '--encrypted');
  assert.notEqual(five.exitCode, 0);
  assert.match(five.stderr, /has no keys/);
});

test('XFS, which keeps to the sectors that it was made for, mounts on an encrypted volume', {
  skip: fleetNeeds || requires('mkfs.xfs'),
}, async (t) => {
  const keyFile = join(scratchDir(t), 'key');
  writeFileSync(keyFile, 'k', { mode: 0o600 });
  const fleet = await Fleet.start(t, ['a'], { flags: { a: ['--key-file', keyFile] } });
  const collector = await WriterCollector.open(t);
  const { client } = fleet.worker('a');
  const volume = await client.createVolume({
    name: 'xfs',
    lengthBytes: 512 * 2 ** 20,
    filesystem: 'xfs',
    encrypted: true,
  });
  await fleet.writerMachine(fleet.worker('a'), collector, {
    name: 'writer',
    config: { volume: { volumeId: volume.id, mountPath: '/data' } },
  });
  await collector.history('writer').more(5);
  collector.history('writer').assertSound();
});

function killVolumeServer(worker: FleetWorker, machineId: string): void {
  const shim = worker.shims().find(({ id }) => id === machineId);
  process.kill(shim!.state.volumeServer!.pid, 'SIGKILL');
}

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((path) => statSync(path).size > 0);
}
