import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { isGodwitError } from '../../src/base/errors.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import { plaintextOf, readHeaderFile, unlockVolume } from '../../src/volume/encryption.ts';
import { type KeySource, VOLUME_FILES } from '../../src/volume/index.ts';
import type { VolumeRecord } from '../../src/volume/record.ts';
import type { VolumeStore } from '../../src/volume/store.ts';
import { leisurely } from '../support/patience.ts';
import { requires } from '../support/requires.ts';
import { type Attachment, LAB_NEEDS, tool, VolumeLab } from '../support/volume-lab.ts';

/**
 * Clones under another key, with volume servers and loop devices, and cryptsetup as the judge of what they
 * leave.
 */
const skip = requires(...LAB_NEEDS, 'cryptsetup', 'blkdiscard');
const MIB = 2 ** 20;
const LENGTH = 64 * MIB;

const MOVES = [
  { name: 'from a header of 4 MiB to one of 16', from: 4 * MIB, to: 16 * MIB },
  {
    name: "from cryptsetup's own of 16 MiB, with sectors of 512 bytes, to one of 4",
    from: 'cryptsetup',
    to: 4 * MIB,
  },
] as const;

for (const { name, from, to } of MOVES) {
  test(`a volume moves to another key ${name}: the same plaintext, to the byte`, { skip }, async (t) => {
    const lab = new VolumeLab(t);
    const keyDir = join(lab.dir, 'keys');
    mkdirSync(keyDir, { mode: 0o700 });
    const keys: KeySource = { kind: 'file', path: join(keyDir, '{volume}') };
    const sourceStore = await lab.store('source', from === 'cryptsetup' ? {} : { headerFileBytes: from });
    const targetStore = await lab.store('target', { headerFileBytes: to });
    let made = await sourceStore.create({ name: 'data', lengthBytes: LENGTH, filesystem: 'none', keys });
    const oldKeyPath = join(keyDir, made.id);
    if (from === 'cryptsetup') made = await cryptsetupHeader(lab, sourceStore, made, oldKeyPath);
    else assert.equal(statSync(headerPath(sourceStore, made.id)).size, from);
    const expected = await fill(sourceStore, made, keys);

    const source = await lab.export(sourceStore, made.id, 'standby');
    const header = await readHeaderFile(sourceStore.folder(made.id));
    const { uuid } = made.encryption!;
    const wanted = { ...made, generation: 2, luks2: { uuid, header, rekey: keys } };
    const incoming = await targetStore.createIncoming(wanted);
    assert.deepEqual(await targetStore.createIncoming(wanted), incoming, 'asking again changes nothing');
    assert.equal(incoming.lengthBytes, made.lengthBytes);
    assert.equal(statSync(headerPath(targetStore, made.id)).size, to);
    assert.notEqual(incoming.encryption?.uuid, uuid);
    assert.deepEqual(incoming.encryption?.source, { uuid, keyGeneration: 1 });

    const target = await lab.attach(targetStore, incoming, {
      access: 'standby',
      source: source.source,
      paused: true,
      keys,
    });
    await sourceStore.apply(made.id, { kind: 'seal', generation: 1 });
    await source.server.call('activate', { access: 'readonly' });
    await targetStore.apply(made.id, { kind: 'activate', generation: 2 });
    await target.server.call('activate', { access: 'writable' });

    // Reads through the clone, of data, encrypted zeros and holes; then writes and discards of what is
    // absent.
    for (const [offset, bytes] of [
      [0, MIB],
      [10 * MIB - 4096, 8192],
      [20 * MIB, 64 * 1024],
      [40 * MIB - 4096, 8192],
      [LENGTH - 4096, 4096],
    ] as const)
      assert.ok(
        (await readLoop(lab, target, offset, bytes)).equals(expected.subarray(offset, offset + bytes)),
        `at ${offset}`,
      );
    const patch = randomBytes(3 * 4096);
    await writeLoop(lab, target, 5 * MIB + 4096, patch);
    patch.copy(expected, 5 * MIB + 4096);
    await tool('blkdiscard', '-o', String(7 * MIB), '-l', String(MIB), target.loop);
    expected.fill(0, 7 * MIB, 8 * MIB);

    // A server that is killed half-way opens both sides again.
    await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: leisurely(8 * MIB) });
    await target.until('some of it', ({ wireBytes }) => wireBytes > 4 * MIB);
    const { exposedBytes } = await target.hydration();
    assert.ok(exposedBytes > 0, 'the server is killed while blocks are missing');
    await target.killServer();
    assert.ok((await readLoop(lab, target, 0, 9 * MIB)).equals(expected.subarray(0, 9 * MIB)));
    await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
    const whole = await target.until('hydrated', ({ state }) => state === 'complete');
    assert.ok(whole.wireBytes < 40 * MIB, `holes did not travel: ${whole.wireBytes}`);
    await target.server.call('finish');
    const after = await targetStore.apply(made.id, { kind: 'complete', generation: 2 });
    assert.equal(after.encryption?.source, undefined);
    assert.ok(!existsSync(join(targetStore.folder(made.id), VOLUME_FILES.sourceHeader)));
    await source.server.stop();

    // The old key is not needed any more, and of no use.
    renameSync(oldKeyPath, `${oldKeyPath}.away`);
    await target.killServer();
    assert.equal(digest(await readLoop(lab, target, 0, LENGTH)), digest(expected));
    await target.server.stop();
    assert.equal(digest(await plaintext(targetStore, after, keys)), digest(expected));
    const newKeyPath = `${oldKeyPath}.g2`;
    await passphraseOpens(headerPath(targetStore, made.id), newKeyPath);
    await assert.rejects(passphraseOpens(headerPath(targetStore, made.id), `${oldKeyPath}.away`));
    await assert.rejects(passphraseOpens(headerPath(sourceStore, made.id), newKeyPath));
    const dump = await tool('cryptsetup', 'luksDump', headerPath(targetStore, made.id));
    for (const line of [
      after.encryption!.uuid,
      made.id,
      'sector: 4096',
      'cipher: aes-xts-plain64',
      'offset: 0 [bytes]',
      `Keyslots area: \t${to - 2 * 16384} [bytes]`,
    ])
      assert.ok(dump.includes(line), `${line} in:\n${dump}`);
    assert.notDeepEqual(
      await volumeKey(lab, headerPath(targetStore, made.id), newKeyPath),
      await volumeKey(lab, headerPath(sourceStore, made.id), `${oldKeyPath}.away`),
    );

    // The source is what it was, with its own key: a way back.
    renameSync(`${oldKeyPath}.away`, oldKeyPath);
    const kept = await plaintext(sourceStore, await sourceStore.get(made.id), keys);
    assert.ok(kept.subarray(0, MIB).equals(expected.subarray(0, MIB)));
    assert.equal(kept.length, LENGTH);
    await sourceStore.apply(made.id, { kind: 'retain', generation: 1, destroyAfterMs: 0 });
    const recovered = await sourceStore.recover(made.id, 'back');
    assert.ok((await plaintext(sourceStore, recovered, keys)).equals(kept), 'under its new id too');
  });
}

test('what cannot be moved to another key is refused before there is anything', { skip }, async (t) => {
  const lab = new VolumeLab(t);
  const keyDir = join(lab.dir, 'keys');
  mkdirSync(keyDir, { mode: 0o700 });
  const keys: KeySource = { kind: 'file', path: join(keyDir, '{volume}') };
  const sourceStore = await lab.store('source');
  const targetStore = await lab.store('target');
  const made = await sourceStore.create({ name: 'data', lengthBytes: LENGTH, filesystem: 'none', keys });
  const header = await readHeaderFile(sourceStore.folder(made.id));
  const { uuid } = made.encryption!;
  const incoming = (luks2: { uuid: string; header: Buffer; rekey: KeySource; keyGeneration?: number }) =>
    targetStore.createIncoming({ ...made, generation: 2, luks2 });
  const code = (wanted: string) => (error: unknown) => isGodwitError(error, wanted);

  await assert.rejects(incoming({ uuid: 'another', header, rekey: keys }), code('VOLUME_WRONG_HEADER'));
  await assert.rejects(
    incoming({ uuid, header, rekey: keys, keyGeneration: 9 }),
    code('CRYPT_KEY_UNAVAILABLE'),
  );
  const same: KeySource = { kind: 'exec', argv: ['cat', join(keyDir, made.id)] };
  await assert.rejects(incoming({ uuid, header, rekey: same }), code('CRYPT_KEY_NOT_NEW'));
  const wrong: KeySource = { kind: 'exec', argv: ['sh', '-c', 'printf "$GODWIT_KEY_ACTION"'] };
  await assert.rejects(incoming({ uuid, header, rekey: wrong }), code('CRYPT_WRONG_KEY'));
  const readOnly: KeySource = {
    kind: 'exec',
    argv: ['sh', '-c', `test "$GODWIT_KEY_ACTION" = get && cat ${join(keyDir, made.id)}`],
  };
  await assert.rejects(incoming({ uuid, header, rekey: readOnly }), code('CRYPT_KEY_UNAVAILABLE'));
  assert.deepEqual(await targetStore.list(), { volumes: [], broken: [] });
  // A header that is another volume's opens nothing, though its key would.
  const other = await sourceStore.create({ name: 'other', lengthBytes: LENGTH, filesystem: 'none', keys });
  renameSync(headerPath(sourceStore, other.id), headerPath(sourceStore, made.id));
  await assert.rejects(plaintext(sourceStore, made, keys), code('VOLUME_WRONG_HEADER'));
  // One that came without another key makes room for one that shall get it, and the other way round.
  await incoming({ uuid, header, rekey: keys });
  const plain = await targetStore.createIncoming({ ...made, generation: 2, luks2: { uuid, header } });
  assert.deepEqual(plain.encryption, { uuid });
  assert.ok(!existsSync(join(targetStore.folder(made.id), VOLUME_FILES.sourceHeader)));
  assert.notEqual((await incoming({ uuid, header, rekey: keys })).encryption?.uuid, uuid);
});

function headerPath(store: VolumeStore, id: string): string {
  return join(store.folder(id), VOLUME_FILES.header);
}

/** As cryptsetup makes one by default, but for a cheaper KDF: 16 MiB, sectors of 512 bytes. */
async function cryptsetupHeader(
  lab: VolumeLab,
  store: VolumeStore,
  record: VolumeRecord,
  keyPath: string,
): Promise<VolumeRecord> {
  const path = headerPath(store, record.id);
  rmSync(path);
  // Its size is cryptsetup's choice.
  const disk = join(lab.scratch(), 'disk');
  writeFileSync(disk, '');
  truncateSync(disk, LENGTH);
  const kdf = ['--pbkdf', 'pbkdf2', '--pbkdf-force-iterations', '1000'];
  const format = ['luksFormat', '--type', 'luks2', '--sector-size', '512', '--key-file', keyPath];
  await tool('cryptsetup', '--batch-mode', ...format, ...kdf, '--header', path, disk);
  assert.equal(statSync(path).size, 16 * MIB);
  const uuid = (await tool('cryptsetup', 'luksUUID', path)).trim();
  const changed = { ...record, encryption: { uuid } };
  writeFileSync(join(store.folder(record.id), VOLUME_FILES.record), JSON.stringify(changed));
  return store.get(record.id);
}

/**
 * Data, zeros that are written, a hole, data behind it, and zeros in the ciphertext that take space. Answers
 * the plaintext.
 */
async function fill(store: VolumeStore, record: VolumeRecord, keys: KeySource): Promise<Buffer> {
  const content = Buffer.alloc(LENGTH);
  randomBytes(10 * MIB).copy(content, 0);
  randomBytes(MIB).copy(content, 40 * MIB);
  randomBytes(4096).copy(content, LENGTH - 4096);
  await withPlaintext(store, record, keys, async (device) => {
    await device.write(0, content.subarray(0, 10 * MIB));
    await device.write(20 * MIB, new Uint8Array(4 * MIB));
    await device.write(40 * MIB, content.subarray(40 * MIB, 41 * MIB));
    await device.write(LENGTH - 4096, content.subarray(LENGTH - 4096));
    await device.flush();
  });
  const data = await open(join(store.folder(record.id), VOLUME_FILES.data), 'r+');
  await data.write(Buffer.alloc(MIB), 0, MIB, 30 * MIB);
  await data.close();
  return content;
}

async function plaintext(store: VolumeStore, record: VolumeRecord, keys: KeySource): Promise<Buffer> {
  const bytes = Buffer.alloc(LENGTH);
  await withPlaintext(store, record, keys, (device) => device.read(0, bytes));
  return bytes;
}

async function withPlaintext(
  store: VolumeStore,
  record: VolumeRecord,
  keys: KeySource,
  work: (device: ReturnType<typeof plaintextOf>) => Promise<void>,
): Promise<void> {
  const volumeDir = store.folder(record.id);
  const { keyGeneration = 1, ...encryption } = record.encryption!;
  const unlocked = await unlockVolume({
    volumeId: record.id,
    generation: record.generation,
    volumeDir,
    encryption: { ...encryption, keyGeneration, keys },
  });
  const file = join(volumeDir, VOLUME_FILES.data);
  const device = plaintextOf(await FileDevice.open({ file, lengthBytes: LENGTH }), unlocked);
  try {
    await work(device);
  } finally {
    await device.close();
    unlocked.volumeKey.dispose();
  }
}

/** By another process, and past the page cache: this one has the supervisor in it. */
async function readLoop(
  lab: VolumeLab,
  target: Attachment,
  offsetBytes: number,
  lengthBytes: number,
): Promise<Buffer> {
  const path = join(lab.scratch(), 'read');
  await dd(
    `if=${target.loop}`,
    `of=${path}`,
    `skip=${offsetBytes / 4096}`,
    `count=${lengthBytes / 4096}`,
    'iflag=direct',
  );
  return readFileSync(path);
}

async function writeLoop(
  lab: VolumeLab,
  target: Attachment,
  offsetBytes: number,
  bytes: Buffer,
): Promise<void> {
  const path = join(lab.scratch(), 'write');
  writeFileSync(path, bytes);
  await dd(`if=${path}`, `of=${target.loop}`, `seek=${offsetBytes / 4096}`, 'oflag=direct', 'conv=notrunc');
}

function dd(...words: string[]): Promise<string> {
  return tool('dd', 'bs=4096', 'status=none', ...words);
}

function passphraseOpens(header: string, keyPath: string): Promise<string> {
  return tool('cryptsetup', 'open', '--test-passphrase', '--key-file', keyPath, header);
}

async function volumeKey(lab: VolumeLab, header: string, keyPath: string): Promise<Buffer> {
  const path = join(lab.scratch(), 'volume-key');
  const dump = ['luksDump', '--dump-volume-key', '--volume-key-file', path, '--key-file', keyPath];
  await tool('cryptsetup', '--batch-mode', ...dump, header);
  return readFileSync(path);
}

function digest(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
