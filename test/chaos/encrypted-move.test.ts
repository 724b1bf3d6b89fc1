import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type TestContext } from 'node:test';
import { verifyReceipt } from '../../src/receipt/envelope.ts';
import { unlockVolume } from '../../src/volume/encryption.ts';
import { readRecord } from '../../src/volume/record-file.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { patient } from '../support/patience.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { WriterCollector } from '../support/writer-collector.ts';

/** Encrypted volumes with real workers: moved under a machine that writes all the time. */

const PART_BYTES = 64 * 1024;
const ZEROS = Buffer.alloc(PART_BYTES);
/** Of a key in hexadecimal. */
const SECRET_BYTES_MAX = 256;
const PASSPHRASE_START = 'hush-this-is-the-passphrase-of';

/** A worker's keys: `wrong` for one whose key service gives others. */
function keyFlags(t: TestContext, start = PASSPHRASE_START): string[] {
  // Beside the fleet's folder, which is searched for what this prints.
  const script = join(scratchDir(t), 'key.sh');
  writeFileSync(script, `printf '${start}-%s-%s' "$GODWIT_VOLUME_ID" "$GODWIT_KEY_GENERATION"\n`);
  return ['--key-exec', `sh ${script}`];
}

test('an encrypted volume moves: nothing is lost, and its keys are nowhere but in memory', {
  skip: fleetNeeds || requires('prlimit'),
}, async (t) => {
  const keys = keyFlags(t);
  const collector = await WriterCollector.open(t);
  const flags = { a: keys, b: keys, d: keyFlags(t, 'other') };
  const fleet = await Fleet.start(t, ['a', 'b', 'c', 'd'], { flags });
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const machine = await fleet.writerMachine(a, collector, { name: 'writer' });
  const history = collector.history('writer');
  const [volume] = await a.client.listVolumes();
  assert.equal(volume?.encrypted, true);
  const folder = join(a.dataDir, 'volumes', volume.id);
  assert.ok(!readFileSync(join(folder, 'data.raw')).includes('lost+found'), 'a filesystem in the clear');

  // One without keys makes no offer, and one that gets another key finds out; both before anything stops.
  for (const { target, rekey, code, reason } of [
    { target: 'c', rekey: false, code: 'MIGRATION_NO_CAPACITY', reason: /has no keys/ },
    {
      target: 'd',
      rekey: false,
      code: 'MIGRATION_TARGET_FORGOT',
      reason: /the key does not open this volume/,
    },
    {
      target: 'd',
      rekey: true,
      code: 'MIGRATION_TARGET_FORGOT',
      reason: /the key does not open this volume/,
    },
  ]) {
    const refused = await a.ended((await a.client.moveMachine('writer', { target, rekey })).id);
    assert.equal(refused.error?.code, code, JSON.stringify(refused.error));
    assert.match(refused.error?.message ?? '', reason);
  }
  assert.equal(history.incarnations.length, 1, 'the machine was stopped for nothing');

  const move = await a.client.moveMachine('writer', { target: 'b' });
  const run = await fleet.ended(a, b, move.id);
  assert.equal(run.state, 'done');
  await history.incarnation(1);
  await history.more(5);

  // Whoever restarts the volume server must get at the key again, and one that crashes leaves no memory
  // behind.
  const before = history.acknowledged;
  const folderOfCores = crashVolumeServer(b, machine.id);
  await history.more(5);
  assert.ok(history.acknowledged >= before + 5);
  assert.deepEqual(coresIn(folderOfCores.path), folderOfCores.before);
  history.assertSound();
  const [arrived] = (await b.client.listVolumes()).filter(({ id }) => id === volume.id);
  assert.equal(arrived?.encrypted, true);
  await assertNoSecrets(fleet, [a, b], [await keyOf(b, volume.id, keys)]);
});

test('an encrypted volume moves to another key under its machine, and on from there', {
  skip: fleetNeeds || requires('cryptsetup', 'e2fsck'),
}, async (t) => {
  const keys = keyFlags(t);
  const collector = await WriterCollector.open(t);
  // A rate that lets the volume server be killed, and the blocks be counted, half-way.
  const slow = ['--hydration-rate', '2MiB', '--header-size', '4MiB'];
  const flags = { a: [...keys, '--header-size', '16MiB'], b: [...keys, ...slow] };
  const fleet = await Fleet.start(t, ['a', 'b'], { flags });
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const machine = await fleet.writerMachine(a, collector, { name: 'writer' });
  const fill = ['sh', '-c', 'head -c 6000000 /dev/urandom > /data/bulk && sync -f /data'];
  await a.client.execInMachine(machine.id, { command: fill, timeoutMs: patient(60_000) });
  const history = collector.history('writer');
  const { id } = (await a.client.listVolumes())[0]!;
  const header = (worker: FleetWorker) => join(worker.dataDir, 'volumes', id, 'header.luks2');
  assert.equal(statSync(header(a)).size, 16 * 2 ** 20);
  const oldUuid = a.volumeRecord(id)?.encryption?.uuid;

  const drain = await fleet.run('drain', 'a', '--rekey', '--detach');
  assert.equal(drain.exitCode, 0, drain.stderr);
  await history.incarnation(1);
  await fleet.until('the clone to be on its way', () => b.volumeRecord(id)?.state === 'clone');
  assert.deepEqual(b.volumeRecord(id)?.encryption?.source, { uuid: oldUuid, keyGeneration: 1 });
  const before = history.acknowledged;
  killVolumeServer(b, machine.id);
  await history.more(5);
  assert.ok(history.acknowledged >= before + 5);
  const [move] = await fleet.moves(a, machine.id);
  assert.equal((await fleet.ended(a, b, move!.id)).state, 'done');
  history.assertSound();
  // What was proved is the ciphertext that crossed the wire, though what is stored is another.
  const body = verifyReceipt(await a.client.showReceipt(move!.id));
  assert.equal(body.rangesMended, 0);
  assert.ok(body.bytes.compared >= 6_000_000 && body.bytes.readBack > 0, JSON.stringify(body.bytes));

  const record = b.volumeRecord(id)!;
  assert.notEqual(record.encryption?.uuid, oldUuid);
  assert.equal(record.encryption?.keyGeneration, 2);
  assert.equal(record.encryption?.source, undefined);
  assert.equal(record.lengthBytes, a.volumeRecord(id)?.lengthBytes);
  assert.equal(statSync(header(b)).size, 4 * 2 ** 20);
  const [oldKey, newKey] = [await keyOf(a, id, keys), await keyOf(b, id, keys)];
  assert.ok(!oldKey.equals(newKey));

  // The next move is an ordinary one, with the key that the volume has now.
  await a.client.undrain();
  const back = await b.client.moveMachine('writer', { target: 'a' });
  assert.equal((await fleet.ended(b, a, back.id)).state, 'done');
  await history.incarnation(2);
  await history.more(5);
  history.assertSound();
  assert.deepEqual(a.volumeRecord(id)?.encryption, record.encryption);
  await a.client.stopMachine('writer');
  await assertNoSecrets(fleet, [a, b], [oldKey, newKey]);
});

/** The volume key, from the volume's header and the passphrase of that worker's key program. */
async function keyOf(worker: FleetWorker, volumeId: string, flags: readonly string[]): Promise<Buffer> {
  const volumeDir = join(worker.dataDir, 'volumes', volumeId);
  const { generation, encryption } = await readRecord(volumeDir);
  const { uuid, keyGeneration = 1 } = encryption!;
  const { volumeKey } = await unlockVolume({
    ...{ volumeId, generation, volumeDir },
    encryption: { uuid, keyGeneration, keys: { kind: 'exec', argv: flags[1]!.split(' ') } },
  });
  return volumeKey.bytes;
}

/**
 * Searches every file of the fleet (records, journals, logs, headers, data) and every answer of the workers
 * for the keys and passphrases.
 */
async function assertNoSecrets(
  fleet: Fleet,
  workers: readonly FleetWorker[],
  keys: readonly Buffer[],
): Promise<void> {
  const secrets = [
    Buffer.from(PASSPHRASE_START),
    Buffer.from(Buffer.from(PASSPHRASE_START).toString('base64').slice(0, 36)),
    Buffer.from(Buffer.from(PASSPHRASE_START).toString('hex')),
    ...keys.flatMap((key) => [
      key,
      // Either half is a key of AES.
      key.subarray(0, key.length / 2),
      key.subarray(key.length / 2),
      Buffer.from(key.toString('hex')),
      Buffer.from(key.toString('base64')),
      Buffer.from(key.toString('base64url')),
    ]),
  ];
  const files = forEachFileBelow(fleet.dir, (path, bytes) => {
    for (const part of partsOf(bytes))
      for (const [index, secret] of secrets.entries())
        assert.ok(!part.includes(secret), `secret ${index} is in ${path}`);
  });
  assert.ok(files > 10, `${files} files`);
  for (const worker of workers) {
    const runs = await worker.client.listRuns({ state: 'all', limit: 100 });
    const answers = JSON.stringify([
      await worker.client.listVolumes(),
      await worker.client.listMachines(),
      runs,
      await Promise.all(runs.map(({ id }) => worker.client.showRun(id))),
      await worker.client.drainStatus(),
      await worker.client.why('writer').catch(String),
    ]);
    for (const secret of secrets) assert.ok(!answers.includes(secret.toString('latin1')));
  }
}

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
  for (const flags of [[], ['--encrypted']]) {
    const refused = await create('b', 'three', ...flags);
    assert.notEqual(refused.exitCode, 0);
    assert.match(refused.stderr, /VOLUME_NO_KEYS.* has no keys/);
    assert.match(refused.stderr, /--key-file or --key-exec.*--no-encryption/);
  }
  const four = await create('b', 'four', '--no-encryption');
  assert.equal(four.exitCode, 0, four.stderr);
  assert.doesNotMatch(four.stdout, /encrypted/);
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

/** With a signal that leaves a core where one may be left; answers where that would be. */
function crashVolumeServer(worker: FleetWorker, machineId: string): { path: string; before: string[] } {
  const { pid } = worker.shims().find(({ id }) => id === machineId)!.state.volumeServer!;
  const path = readlinkSync(`/proc/${pid}/cwd`);
  const before = coresIn(path);
  execFileSync('prlimit', [`--core=${2 ** 20}`, '--pid', String(pid)]);
  process.kill(pid, 'SIGSEGV');
  return { path, before };
}

function coresIn(path: string): string[] {
  return readdirSync(path).filter((name) => name.startsWith('core'));
}

function killVolumeServer(worker: FleetWorker, machineId: string): void {
  const shim = worker.shims().find(({ id }) => id === machineId);
  process.kill(shim!.state.volumeServer!.pid, 'SIGKILL');
}

/** What is not zeros, in pieces that overlap by more than a secret has bytes: most of a volume is holes. */
function* partsOf(bytes: Buffer): Generator<Buffer> {
  for (let start = 0; start < bytes.length; start += PART_BYTES) {
    const part = bytes.subarray(start, start + PART_BYTES);
    if (part.compare(ZEROS, 0, part.length) === 0) continue;
    yield bytes.subarray(Math.max(0, start - SECRET_BYTES_MAX), start + PART_BYTES + SECRET_BYTES_MAX);
  }
}

/**
 * Shows `visit` every file below the folder that is not empty; their number. The workers go on replacing
 * theirs meanwhile: after a pass in which one was gone before it could be read, all of them are read again,
 * so that what it became is not missed.
 */
function forEachFileBelow(folder: string, visit: (path: string, bytes: Buffer) => void): number {
  for (let pass = 1; ; pass++) {
    try {
      let files = 0;
      for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
        if (!entry.isFile()) continue;
        const path = join(entry.parentPath, entry.name);
        const bytes = readFileSync(path);
        if (bytes.length === 0) continue;
        visit(path, bytes);
        files++;
      }
      return files;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || pass === 20) throw error;
    }
  }
}
