import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, linkSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { patient, until } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { seededRandom } from '../base/random.ts';
import type { Tools } from '../host/tools.ts';
import { readDataLoss } from './data-guard.ts';
import { lockData } from './data-lock.ts';
import { encodeImportSource, readImportSource } from './import-source-file.ts';
import { VolumeStore } from './store.ts';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

async function openStore(
  t: TestContext,
  options: { dataDir?: string; clock?: Clock; tools?: Tools } = {},
): Promise<VolumeStore> {
  return VolumeStore.open(options.dataDir ?? scratchDir(t), {
    clock: options.clock ?? systemClock,
    random: seededRandom(1),
    logger: silentLogger,
    ...(options.tools && { tools: options.tools }),
  });
}

const KEEP_MS = 1_000;

function wallClock(): Clock & { nowMs: number } {
  return {
    ...systemClock,
    nowMs: 1_000_000,
    wallMs() {
      return this.nowMs;
    },
    monotonicMs() {
      return this.nowMs;
    },
  };
}

const code = (expected: string) => (error: unknown) => isGodwitError(error, expected);

test('a new volume is ready, sparse and readable again by another store', async (t) => {
  const dataDir = scratchDir(t);
  const store = await openStore(t, { dataDir });
  const made = await store.create({ name: 'data', lengthBytes: 8 * GIB, filesystem: 'none' });
  assert.match(made.id, /^v_[0-9a-z]{26}$/);
  assert.equal(made.state, 'ready');
  assert.equal(made.generation, 1);
  assert.equal(await store.usedBytes(made.id), 0);
  assert.equal(statSync(join(store.folder(made.id), 'data.raw')).size, 8 * GIB);
  const again = await openStore(t, { dataDir });
  assert.deepEqual(await again.get(made.id), made);
  assert.deepEqual(await again.list(), { volumes: [made], broken: [] });
  const capacity = await again.capacity();
  assert.equal(capacity.logicalBytes, 8 * GIB);
  assert.equal(capacity.usedBytes, 0);
  assert.ok(capacity.freeBytes > 0 && capacity.freeBytes <= capacity.totalBytes);
});

test('a volume whose disk lost writes is not sealed for want of a server that says so', async (t) => {
  const store = await openStore(t);
  const { id } = await store.create({ name: 'data', lengthBytes: 8 * MIB, filesystem: 'none' });
  await store.makeDataDurable(id);
  const loss = { formatVersion: 1, volumeId: id, generation: 1, atMs: 7, reason: 'flush failed: EIO' };
  writeFileSync(join(store.folder(id), 'data-loss.json'), JSON.stringify(loss));
  await assert.rejects(store.makeDataDurable(id), code('VOLUME_DATA_LOST'));
  await store.acceptDataLoss(id, 7);
  await store.makeDataDurable(id);
});

test('100 GiB of ext4 take a few MiB, and the filesystem is sound', {
  skip: requires('mkfs.ext4', 'e2fsck'),
}, async (t) => {
  const store = await openStore(t);
  const made = await store.create({ name: 'data', lengthBytes: 100 * GIB, filesystem: 'ext4' });
  const usedBytes = await store.usedBytes(made.id);
  assert.ok(usedBytes < 8 * MIB, `${usedBytes} bytes used`);
  execFileSync('/sbin/e2fsck', ['-f', '-n', join(store.folder(made.id), 'data.raw')], { stdio: 'ignore' });
});

test('an xfs volume is sound and takes little more than its log', {
  skip: requires('mkfs.xfs', 'xfs_repair'),
}, async (t) => {
  const store = await openStore(t);
  const made = await store.create({ name: 'data', lengthBytes: 10 * GIB, filesystem: 'xfs' });
  const usedBytes = await store.usedBytes(made.id);
  assert.ok(usedBytes < 72 * MIB, `${usedBytes} bytes used`);
  execFileSync('/sbin/xfs_repair', ['-n', '-f', join(store.folder(made.id), 'data.raw')], {
    stdio: 'ignore',
  });
});

test('a mkfs that fails leaves nothing behind', async (t) => {
  const failing = await openStore(t, {
    tools: { run: async () => ({ exitCode: 1, stdout: '', stderr: 'no good' }) },
  });
  await assert.rejects(
    failing.create({ name: 'data', lengthBytes: MIB, filesystem: 'ext4' }),
    code('HOST_MKFS_FAILED'),
  );
  assert.deepEqual(readdirSync(failing.directory), []);
});

test('lengths and ids that cannot be are refused', async (t) => {
  const store = await openStore(t);
  for (const lengthBytes of [0, 4095, 4097, -4096, 1.5, Number.NaN, 2 ** 60]) {
    await assert.rejects(
      store.create({ name: 'data', lengthBytes, filesystem: 'none' }),
      code('VOLUME_BAD_LENGTH'),
      String(lengthBytes),
    );
  }
  for (const id of ['../../etc', 'v_', 'v_A', 'x_1', `v_${'a'.repeat(99)}`, 'v_a/b']) {
    await assert.rejects(store.get(id), code('VOLUME_BAD_ID'), id);
  }
  await assert.rejects(store.get('v_0'), code('VOLUME_NOT_FOUND'));
});

test('what a crash left half made or half destroyed is swept at open', async (t) => {
  const dataDir = scratchDir(t);
  const store = await openStore(t, { dataDir });
  const made = await store.create({ name: 'data', lengthBytes: MIB, filesystem: 'none' });
  for (const name of ['.new-v_1', '.gone-v_2']) {
    mkdirSync(join(store.directory, name));
    writeFileSync(join(store.directory, name, 'data.raw'), 'x');
  }
  const again = await openStore(t, { dataDir });
  assert.deepEqual(readdirSync(again.directory), [made.id]);
});

test('a corrupt record is an error that names the file, and the other volumes load', async (t) => {
  const store = await openStore(t);
  const good = await store.create({ name: 'good', lengthBytes: MIB, filesystem: 'none' });
  const bad = await store.create({ name: 'bad', lengthBytes: MIB, filesystem: 'none' });
  const path = join(store.folder(bad.id), 'volume.json');
  const text = readFileSync(path, 'utf8');
  const corruptions = [
    '',
    text.slice(0, text.length / 2),
    '[]',
    text.replace('"generation": 1', '"generation": 0'),
    text.replace('"ready"', '"redy"'),
    text.replace(bad.id, good.id),
    ' '.repeat(100_000),
  ];
  for (const corruption of corruptions) {
    writeFileSync(path, corruption);
    const { volumes, broken } = await store.list();
    assert.deepEqual(volumes, [good]);
    assert.equal(broken.length, 1);
    assert.equal(broken[0]?.error.code, 'VOLUME_RECORD_CORRUPT');
    assert.equal(broken[0]?.error.values.path, path);
    await assert.rejects(store.get(bad.id), code('VOLUME_RECORD_CORRUPT'));
  }
});

test('a move out and its undo, and a move out to the end', async (t) => {
  const clock = wallClock();
  const store = await openStore(t, { clock });
  const { id } = await store.create({ name: 'data', lengthBytes: MIB, filesystem: 'none' });
  await store.apply(id, { kind: 'seal', generation: 1 });
  await store.apply(id, { kind: 'unseal', generation: 1 });
  await store.apply(id, { kind: 'unseal', generation: 1 });
  assert.equal((await store.get(id)).generation, 3);
  await assert.rejects(store.apply(id, { kind: 'seal', generation: 1 }), code('VOLUME_BAD_TRANSITION'));
  await store.apply(id, { kind: 'seal', generation: 3 });
  await assert.rejects(store.destroy(id), code('VOLUME_KEPT'));
  await store.apply(id, { kind: 'retain', generation: 3, destroyAfterMs: clock.nowMs + 1000 });
  await assert.rejects(store.destroy(id), code('VOLUME_KEPT'));
  assert.deepEqual(await store.sweepRetained(KEEP_MS), []);
  clock.nowMs += 1000;
  assert.deepEqual(await store.sweepRetained(KEEP_MS), [id]);
  assert.deepEqual(readdirSync(store.directory), ['.retention.json']);
  await store.destroy(id);
});

test('a loss that the seal of a move found stands when the move is undone, until it is accepted', async (t) => {
  const store = await openStore(t);
  const { id, generation } = await store.create({ name: 'data', lengthBytes: 2 ** 20, filesystem: 'none' });
  await store.apply(id, { kind: 'seal', generation });
  const loss = { formatVersion: 1, volumeId: id, generation, atMs: 7, reason: 'flush failed' };
  writeFileSync(join(store.folder(id), 'data-loss.json'), JSON.stringify(loss));
  const undone = await store.apply(id, { kind: 'unseal', generation });
  const found = () => readDataLoss(store.folder(id), { volumeId: id, generation: undone.generation });
  assert.equal(found()?.atMs, 7);
  await store.acceptDataLoss(id, 7);
  assert.equal(found(), null);
});

test('a move in: incoming, clone, ready; asking twice changes nothing', async (t) => {
  const store = await openStore(t);
  const request = {
    id: 'v_abc',
    name: 'data',
    lengthBytes: MIB,
    filesystem: 'ext4',
    generation: 4,
  } as const;
  const made = await store.createIncoming(request);
  assert.equal(made.state, 'incoming');
  assert.deepEqual(await store.createIncoming(request), made);
  const metadata = join(store.folder('v_abc'), 'clone.meta');
  assert.ok(existsSync(metadata));
  await store.apply('v_abc', { kind: 'activate', generation: 4 });
  await assert.rejects(store.createIncoming(request), code('VOLUME_EXISTS'));
  await assert.rejects(store.apply('v_abc', { kind: 'seal', generation: 4 }), code('VOLUME_BAD_TRANSITION'));
  await store.apply('v_abc', { kind: 'complete', generation: 4 });
  assert.ok(!existsSync(metadata));
  await store.destroy('v_abc');
});

test('a volume that comes back keeps its retained generation beside it until the sweep', async (t) => {
  const clock = wallClock();
  const store = await openStore(t, { clock });
  const { id } = await store.create({ name: 'data', lengthBytes: MIB, filesystem: 'none' });
  const back = {
    id,
    name: 'data',
    lengthBytes: MIB,
    filesystem: 'none',
  } as const;
  await store.apply(id, { kind: 'seal', generation: 1 });
  await assert.rejects(store.createIncoming({ ...back, generation: 3 }), code('VOLUME_EXISTS'));
  await store.apply(id, { kind: 'retain', generation: 1, destroyAfterMs: clock.nowMs + 1 });
  await store.createIncoming({ ...back, generation: 3 });
  assert.deepEqual(
    (await store.list()).volumes.map((record) => `${record.state} ${record.generation}`).sort(),
    ['incoming 3', 'retained 1'],
  );
  // A later attempt of the move replaces what was never activated; an earlier one does not come back.
  await store.createIncoming({ ...back, generation: 5 });
  await assert.rejects(store.createIncoming({ ...back, generation: 3 }), code('VOLUME_EXISTS'));
  assert.deepEqual(await store.sweepRetained(KEEP_MS), []);
  clock.nowMs += KEEP_MS;
  assert.deepEqual(await store.sweepRetained(KEEP_MS), [id]);
  assert.equal((await store.get(id)).generation, 5);
});

test('a volume that is open in a server is never destroyed', async (t) => {
  const store = await openStore(t);
  const { id } = await store.create({ name: 'data', lengthBytes: MIB, filesystem: 'none' });
  const lock = lockData(join(store.folder(id), 'data.raw'));
  try {
    await assert.rejects(store.destroy(id, { force: true }), code('VOLUME_ATTACHED'));
  } finally {
    lock.release();
  }
  await store.destroy(id);
  assert.ok(!existsSync(store.folder(id)));
});

test('a volume has at most one machine', async (t) => {
  const store = await openStore(t);
  const { id } = await store.create({ name: 'data', lengthBytes: MIB, filesystem: 'none' });
  await store.assignMachine(id, 'm_1');
  await store.assignMachine(id, 'm_1');
  await assert.rejects(store.assignMachine(id, 'm_2'), code('VOLUME_IN_USE'));
  await store.assignMachine(id, null);
  assert.equal((await store.assignMachine(id, 'm_2')).machineId, 'm_2');
});

test('a full disk is a typed error and leaves nothing behind', {
  skip: requires('root', 'mount'),
}, async (t) => {
  const dataDir = scratchDir(t);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'godwit-test', dataDir], {
    timeout: patient(10_000),
  });
  try {
    const store = await openStore(t, { dataDir });
    const incoming = {
      id: 'v_full',
      name: 'data',
      lengthBytes: 100 * GIB,
      filesystem: 'none',
      generation: 2,
    } as const;
    await assert.rejects(store.createIncoming(incoming), code('VOLUME_NO_SPACE'));
    assert.deepEqual(readdirSync(store.directory), []);
  } finally {
    execFileSync('umount', [dataDir], { timeout: patient(10_000) });
  }
});

test('an imported volume is a clone that knows its source until it is whole, and nobody else does', async (t) => {
  const store = await openStore(t);
  const source = {
    location: 'iscsi://user%a-secret@host/iqn/0',
    sourceLengthBytes: MIB + 512,
    usedBytes: 8192,
  };
  const lengthBytes = MIB + 4096;
  const record = await store.createImported({ name: 'disk', lengthBytes, filesystem: 'xfs', source });
  assert.deepEqual([record.state, record.generation, record.filesystem], ['clone', 1, 'xfs']);
  const folder = store.folder(record.id);
  const path = join(folder, 'source.json');
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.deepEqual(await readImportSource(folder), source);
  assert.doesNotMatch(JSON.stringify(await store.list()), /a-secret/);
  const identified = {
    ...source,
    unit: { serial: 's', designators: '00' },
    nbdExport: { name: 'disk', description: '', minimumBlockBytes: 512 },
  };
  writeFileSync(path, encodeImportSource(identified));
  assert.deepEqual(await readImportSource(folder), identified);
  for (const nbdExport of [null, {}, { ...identified.nbdExport, minimumBlockBytes: 0 }]) {
    writeFileSync(path, JSON.stringify({ formatVersion: 1, ...source, nbdExport }));
    await assert.rejects(readImportSource(folder), (error) => isGodwitError(error, 'VOLUME_SOURCE_CORRUPT'));
  }
  const { usedBytes: _, ...ofEarlierVersion } = source;
  writeFileSync(path, JSON.stringify({ formatVersion: 1, ...ofEarlierVersion }));
  assert.equal((await readImportSource(folder))?.usedBytes, MIB + 512, 'all of it');
  for (const text of ['', 'null', '[]', '{"formatVersion":2}', '{"formatVersion":1,"location":"a-secret"}']) {
    writeFileSync(path, text);
    await assert.rejects(readImportSource(folder), (error: unknown) => {
      assert.ok(isGodwitError(error, 'VOLUME_SOURCE_CORRUPT'));
      return !JSON.stringify(error.toWire()).includes('a-secret');
    });
  }
  assert.equal((await store.apply(record.id, { kind: 'complete', generation: 1 })).state, 'ready');
  assert.equal(await readImportSource(folder), null);
  assert.equal(existsSync(join(folder, 'clone.meta')), false);
});

test('what a move left comes back as another volume: new id, generation 1, no byte copied', async (t) => {
  const dataDir = scratchDir(t);
  const store = await openStore(t, { dataDir });
  const made = await store.create({ name: 'data', lengthBytes: 16 * MIB, filesystem: 'none' });
  writeFileSync(join(store.folder(made.id), 'data.raw'), 'as it was sealed', { flag: 'r+' });
  await assert.rejects(store.recover(made.id, 'again'), code('VOLUME_NOT_RETAINED'));
  await store.apply(made.id, { kind: 'seal', generation: 1 });
  await assert.rejects(store.recover(made.id, 'again'), code('VOLUME_NOT_RETAINED'));
  await store.apply(made.id, { kind: 'retain', generation: 1, destroyAfterMs: Number.MAX_SAFE_INTEGER });
  const inode = statSync(join(store.folder(made.id), 'data.raw')).ino;
  const lock = lockData(join(store.folder(made.id), 'data.raw'));
  await assert.rejects(store.recover(made.id, 'again'), code('VOLUME_ATTACHED'));
  lock.release();
  const recovered = await store.recover(made.id, 'again');
  assert.notEqual(recovered.id, made.id);
  assert.deepEqual(
    [recovered.name, recovered.generation, recovered.state, recovered.lengthBytes, recovered.machineId],
    ['again', 1, 'ready', 16 * MIB, null],
  );
  const data = join(store.folder(recovered.id), 'data.raw');
  assert.equal(statSync(data).ino, inode);
  assert.equal(readFileSync(data, 'latin1').slice(0, 16), 'as it was sealed');
  assert.equal(existsSync(store.folder(made.id)), false);
  await assert.rejects(store.recover(made.id, 'more'), code('VOLUME_NOT_RETAINED'));
});

test('a crash between the two renames of a recovery leaves one volume that can be written', async (t) => {
  const store = await openStore(t);
  const made = await store.create({ name: 'data', lengthBytes: MIB, filesystem: 'none' });
  await store.apply(made.id, { kind: 'seal', generation: 1 });
  await store.apply(made.id, { kind: 'retain', generation: 1, destroyAfterMs: 1 });
  const kept = join(store.directory, 'kept');
  mkdirSync(kept);
  linkSync(join(store.folder(made.id), 'data.raw'), join(kept, 'data.raw'));
  await assert.rejects(store.recover(made.id, 'again'), code('VOLUME_ALREADY_RECOVERED'));
});

test('a mkfs that takes its time keeps nothing of another volume waiting', async (t) => {
  const mkfs = Promise.withResolvers<{ exitCode: number; stdout: string; stderr: string }>();
  const asked: string[] = [];
  const tools: Tools = {
    run: async ([program]) => {
      asked.push(program);
      return mkfs.promise;
    },
  };
  const store = await openStore(t, { tools });
  const other = await store.create({ name: 'other', lengthBytes: 65536, filesystem: 'none' });
  const slow = ['one', 'two'].map((name) => store.create({ name, lengthBytes: 2 ** 26, filesystem: 'ext4' }));
  await until('mkfs', () => asked.length > 0);
  const sealed = await store.apply(other.id, { kind: 'seal', generation: 1 });
  assert.equal(sealed.state, 'sealed');
  assert.deepEqual(asked, ['mkfs.ext4'], 'one at a time');
  await store.apply(other.id, { kind: 'unseal', generation: 1 });
  const again = await Promise.all([
    store.apply(other.id, { kind: 'seal', generation: 3 }),
    store.assignMachine(other.id, 'm_1'),
  ]);
  assert.deepEqual(
    [again[0].state, again[1].state],
    ['sealed', 'sealed'],
    'of one volume, one after the other',
  );
  mkfs.resolve({ exitCode: 0, stdout: '', stderr: '' });
  assert.deepEqual(
    (await Promise.all(slow)).map(({ state }) => state),
    ['ready', 'ready'],
  );
});

test('all copies that moves left of a volume go at once, and those of no other', async (t) => {
  const clock = wallClock();
  const store = await openStore(t, { clock });
  const retain = async (id: string, generation: number) => {
    await store.apply(id, { kind: 'seal', generation });
    await store.apply(id, { kind: 'retain', generation, destroyAfterMs: clock.nowMs + KEEP_MS });
  };
  const wanted = { name: 'data', lengthBytes: MIB, filesystem: 'none' } as const;
  const [{ id }, other] = [await store.create(wanted), await store.create({ ...wanted, name: 'other' })];
  for (const each of [id, other.id]) await retain(each, 1);
  await store.createIncoming({ ...wanted, id, generation: 2 });
  await store.apply(id, { kind: 'activate', generation: 2 });
  await store.apply(id, { kind: 'complete', generation: 2 });
  assert.equal(await store.destroyCopies(id), 1);
  assert.equal(await store.destroyCopies(id), 0);
  assert.equal((await store.get(id)).state, 'ready', 'not what is in use');
  assert.equal((await store.get(other.id)).state, 'retained');
  await retain(id, 2);
  assert.equal(await store.destroyCopies(id), 1);
  await assert.rejects(store.get(id), code('VOLUME_NOT_FOUND'));
});
