import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import { isGodwitError } from '../../src/base/errors.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import { format } from '../../src/crypt/format.ts';
import { luks2Geometry } from '../../src/crypt/geometry.ts';
import { backupHeader, restoreHeader } from '../../src/crypt/header-backup.ts';
import { type Luks2Header, readHeader } from '../../src/crypt/header-store.ts';
import { DEFAULT_KDF_LIMITS } from '../../src/crypt/kdf.ts';
import { addKey, changeKey, removeKey, unlock } from '../../src/crypt/key-slots.ts';
import { openLuks2 } from '../../src/crypt/open.ts';
import { Secret } from '../../src/crypt/secret.ts';
import { patient } from '../support/patience.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';

/** Against Debian's cryptsetup, in both directions and byte for byte. Nothing here needs device-mapper. */
const skip = requires('cryptsetup');
const MAKE = join(import.meta.dirname, '../fixtures/make-luks2.sh');
const PLAIN_BYTES = 1024 * 1024;
const MIB = 1024 * 1024;
const run = promisify(execFile);

const VARIANTS = [
  { name: 'argon2id-512', sectorBytes: 512, dataOffsetBytes: 16 * MIB, keyBytes: 64, kdf: 'argon2id' },
  { name: 'argon2id-4096', sectorBytes: 4096, dataOffsetBytes: 16 * MIB, keyBytes: 64, kdf: 'argon2id' },
  { name: 'pbkdf2-512', sectorBytes: 512, dataOffsetBytes: 16 * MIB, keyBytes: 64, kdf: 'pbkdf2' },
  { name: 'header-4m', sectorBytes: 512, dataOffsetBytes: 4 * MIB, keyBytes: 64, kdf: 'pbkdf2' },
  { name: 'aes-128', sectorBytes: 2048, dataOffsetBytes: 16 * MIB, keyBytes: 32, kdf: 'pbkdf2' },
  { name: 'detached', sectorBytes: 4096, dataOffsetBytes: 0, keyBytes: 64, kdf: 'pbkdf2' },
  // What cryptsetup chooses without being told: argon2id with up to 1 GiB, tuned to two seconds of this
  // machine.
  {
    name: 'default',
    sectorBytes: 4096,
    dataOffsetBytes: 16 * MIB,
    keyBytes: 64,
    kdf: 'argon2id',
    long: true,
  },
];

for (const variant of VARIANTS) {
  const skipLong = variant.long === true && process.env.GODWIT_LONG !== '1' ? 'GODWIT_LONG=1 runs it' : skip;
  test(`a volume of cryptsetup opens here byte for byte: ${variant.name}`, { skip: skipLong }, async (t) => {
    const lab = new Lab(t);
    await run(MAKE, [variant.name, lab.plain, lab.key, lab.volume, lab.header]);
    const detached = variant.name === 'detached';
    const device = await lab.open(lab.volume);
    const header = await readHeader(detached ? await lab.open(lab.header) : device);
    assert.equal(header.damaged, null);
    const geometry = luks2Geometry(header);
    assert.equal(geometry.sectorBytes, variant.sectorBytes);
    assert.equal(geometry.dataOffsetBytes, variant.dataOffsetBytes);
    assert.equal(geometry.keyBytes, variant.keyBytes);
    assert.deepEqual(
      geometry.slots.map(({ kdf }) => kdf),
      [variant.kdf],
    );
    const headerDevice = detached ? await lab.open(lab.header) : device;
    await assertPlain(headerDevice, device, header, lab, { detached });

    if (detached) return;
    // The backup holds the same header, and ours of the same volume is the same bytes.
    const backup = readFileSync(lab.header);
    assert.ok(backup.equals(await backupHeader(device)), 'header backups differ');
    await assertPlain(await lab.open(lab.header), device, header, lab, { detached: true });
    await device.write(0, randomBytes(4 * MIB));
    await assert.rejects(readHeader(device), (error) => isGodwitError(error, 'CRYPT_NOT_LUKS2'));
    await assertPlain(device, device, await restoreHeader(device, backup), lab, {});
  });
}

test('a volume made here is one for cryptsetup', { skip }, async (t) => {
  for (const { sectorBytes, keyBytes, kdf } of [
    { sectorBytes: 512, keyBytes: 64, kdf: { type: 'pbkdf2', iterations: 1000 } },
    { sectorBytes: 4096, keyBytes: 32, kdf: { type: 'argon2id', passes: 4, memoryKib: 32, lanes: 1 } },
  ] as const) {
    const lab = new Lab(t);
    const device = await lab.create(lab.volume, 5 * MIB);
    const { volumeKey, header } = await format(device, lab.secret(), DEFAULT_KDF_LIMITS, {
      sectorBytes,
      keyBytes,
      kdf,
      dataOffsetBytes: 4 * MIB,
      label: 'vol-1',
    });
    const dump = await lab.cryptsetup('luksDump', lab.volume);
    for (const line of [
      header.binary.uuid,
      `sector: ${sectorBytes}`,
      `${keyBytes * 8} bits`,
      'vol-1',
      'offset: 4194304',
    ])
      assert.ok(dump.includes(line), `${line} in:\n${dump}`);

    await lab.cryptsetup('open', '--test-passphrase', '--key-file', lab.key, lab.volume);
    await assert.rejects(lab.cryptsetup('open', '--test-passphrase', '--key-file', lab.plain, lab.volume));

    // The volume key that it finds is ours.
    const keyDump = join(lab.dir, 'volume-key');
    await lab.cryptsetup(
      'luksDump',
      '--dump-volume-key',
      '--volume-key-file',
      keyDump,
      '--key-file',
      lab.key,
      lab.volume,
    );
    assert.ok(readFileSync(keyDump).equals(volumeKey.bytes));

    // A key that it adds opens here, and one that is added here opens there.
    const theirs = lab.keyFile('theirs');
    const cheap = ['--pbkdf', 'pbkdf2', '--pbkdf-force-iterations', '1000'];
    await lab.cryptsetup('luksAddKey', ...cheap, '--key-file', lab.key, lab.volume, theirs);
    let now = await readHeader(device);
    const opened = await unlock(device, now, Secret.take(readFileSync(theirs)), DEFAULT_KDF_LIMITS);
    assert.equal(opened.slot, 1);
    assert.ok(opened.volumeKey.bytes.equals(volumeKey.bytes));
    const ours = lab.keyFile('ours');
    ({ header: now } = await addKey(
      device,
      now,
      volumeKey,
      Secret.take(readFileSync(ours)),
      DEFAULT_KDF_LIMITS,
      kdf,
    ));
    await lab.cryptsetup('open', '--test-passphrase', '--key-slot', '2', '--key-file', ours, lab.volume);

    // Removed and changed keys are so for both.
    now = await removeKey(device, now, 1);
    await assert.rejects(lab.cryptsetup('open', '--test-passphrase', '--key-file', theirs, lab.volume));
    const changed = lab.keyFile('changed');
    ({ header: now } = await changeKey(
      device,
      now,
      lab.secret(),
      Secret.take(readFileSync(changed)),
      DEFAULT_KDF_LIMITS,
      kdf,
    ));
    await lab.cryptsetup('open', '--test-passphrase', '--key-file', changed, lab.volume);
    await assert.rejects(lab.cryptsetup('open', '--test-passphrase', '--key-file', lab.key, lab.volume));
    await lab.cryptsetup('luksKillSlot', '--key-file', changed, lab.volume, '2');
    now = await readHeader(device);
    assert.equal(now.metadata.slots.size, 1);

    // Its backup is ours.
    await lab.cryptsetup('luksHeaderBackup', lab.volume, '--header-backup-file', lab.header);
    assert.ok(readFileSync(lab.header).equals(await backupHeader(device)));
  }
});

test('cryptsetup mends the copy of a header that we damaged, and we mend the one that it sees', {
  skip,
}, async (t) => {
  const lab = new Lab(t);
  const device = await lab.create(lab.volume, 5 * MIB);
  const kdf = { type: 'pbkdf2', iterations: 1000 } as const;
  await format(device, lab.secret(), DEFAULT_KDF_LIMITS, { kdf, dataOffsetBytes: 4 * MIB });
  await device.write(0, new Uint8Array(512));
  assert.equal((await readHeader(device)).damaged, 'first');
  await lab.cryptsetup('open', '--test-passphrase', '--key-file', lab.key, lab.volume);
  await lab.cryptsetup('repair', '--batch-mode', lab.volume);
  assert.equal((await readHeader(device)).damaged, null);
});

test('cryptsetup decrypts what was written here, byte for byte', { skip }, async (t) => {
  for (const sectorBytes of [512, 4096]) {
    const lab = new Lab(t);
    const headerDevice = await lab.create(lab.header, 16 * MIB);
    const device = await lab.create(lab.volume, PLAIN_BYTES);
    const { header, volumeKey } = await format(headerDevice, lab.secret(), DEFAULT_KDF_LIMITS, {
      sectorBytes,
      dataOffsetBytes: 0,
      kdf: { type: 'pbkdf2', iterations: 1000 },
    });
    const plain = readFileSync(lab.plain);
    const opened = openLuks2(device, header, volumeKey, { detached: true });
    await opened.write(0, plain);
    // Zeros that filesystems rely on must be zeros for dm-crypt as well.
    await opened.writeZeroes(65536, 131072);
    plain.fill(0, 65536, 65536 + 131072);
    await opened.flush();
    await lab.cryptsetup(
      'reencrypt',
      '--decrypt',
      '--force-offline-reencrypt',
      '--batch-mode',
      '--header',
      lab.header,
      '--key-file',
      lab.key,
      lab.volume,
    );
    assert.ok(readFileSync(lab.volume).equals(plain), `sectors of ${sectorBytes}`);
  }
});

async function assertPlain(
  headerDevice: BlockDevice,
  device: BlockDevice,
  header: Luks2Header,
  lab: Lab,
  options: { detached?: boolean },
): Promise<void> {
  using secret = lab.secret();
  const { volumeKey } = await unlock(headerDevice, header, secret, DEFAULT_KDF_LIMITS);
  const opened = openLuks2(device, header, volumeKey, options);
  volumeKey.dispose();
  const bytes = Buffer.alloc(PLAIN_BYTES);
  await opened.read(0, bytes);
  const plain = readFileSync(lab.plain);
  assert.ok(bytes.equals(plain), 'the plaintext differs');
  using wrong = Secret.take(randomBytes(13));
  await assert.rejects(unlock(headerDevice, header, wrong, DEFAULT_KDF_LIMITS), (error) =>
    isGodwitError(error, 'CRYPT_WRONG_KEY'),
  );
}

class Lab {
  readonly dir: string;
  readonly plain: string;
  readonly key: string;
  readonly volume: string;
  readonly header: string;
  readonly #t: TestContext;

  constructor(t: TestContext) {
    this.#t = t;
    this.dir = scratchDir(t);
    this.plain = join(this.dir, 'plain');
    this.volume = join(this.dir, 'volume');
    this.header = join(this.dir, 'header');
    this.key = this.keyFile('key');
    writeFileSync(this.plain, randomBytes(PLAIN_BYTES));
  }

  /** A file with a random key, a newline at its end, which is part of it. */
  keyFile(name: string): string {
    const path = join(this.dir, name);
    writeFileSync(path, `${randomBytes(24).toString('base64')}\n`, { mode: 0o600 });
    return path;
  }

  secret(): Secret {
    return Secret.take(readFileSync(this.key));
  }

  async open(path: string): Promise<FileDevice> {
    // A header backup is read-only for its owner too.
    const writable = path === this.volume;
    return this.#own(await FileDevice.open({ file: path, lengthBytes: statSync(path).size, writable }));
  }

  async create(path: string, lengthBytes: number): Promise<FileDevice> {
    return this.#own(await FileDevice.create(path, { lengthBytes }));
  }

  async cryptsetup(...args: string[]): Promise<string> {
    return (await run(findProgram('cryptsetup')!, args, { timeout: patient(120_000) })).stdout;
  }

  #own(device: FileDevice): FileDevice {
    this.#t.after(() => device.close());
    return device;
  }
}
