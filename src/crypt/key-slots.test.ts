import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FaultDevice } from '../../test/support/fault-device.ts';
import { PowerSupply } from '../../test/support/power-supply.ts';
import { testSeed } from '../../test/support/seed.ts';
import { isGodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { mergeKey, splitKey } from './anti-forensic.ts';
import { format } from './format.ts';
import { luks2Geometry } from './geometry.ts';
import { backupHeader, restoreHeader } from './header-backup.ts';
import { type Luks2Header, readHeader, repairHeader, updateHeader } from './header-store.ts';
import { deriveKey } from './kdf.ts';
import { addKey, changeKey, removeKey, unlock } from './key-slots.ts';
import { Secret } from './secret.ts';

const LIMITS = { memoryKib: 1024, memoryPassesKib: 4096, lanes: 4, iterations: 2000 };
const CHEAP = { type: 'pbkdf2', iterations: 1000 } as const;
const DATA_OFFSET_BYTES = 1024 * 1024;

const secret = (text: string) => Secret.take(Buffer.from(text));
const code = (wanted: string) => (error: unknown) => isGodwitError(error, wanted);

async function make(device: BlockDevice): Promise<{ header: Luks2Header; volumeKey: Secret }> {
  return format(device, secret('first'), LIMITS, {
    dataOffsetBytes: DATA_OFFSET_BYTES,
    kdf: CHEAP,
    keyBytes: 32,
  });
}

const memory = () => new MemoryDevice({ lengthBytes: DATA_OFFSET_BYTES + 65536 });

async function opens(device: BlockDevice, header: Luks2Header, passphrase: string): Promise<number | null> {
  try {
    const { slot, volumeKey } = await unlock(device, header, secret(passphrase), LIMITS);
    volumeKey.dispose();
    return slot;
  } catch (error) {
    if (isGodwitError(error, 'CRYPT_WRONG_KEY')) return null;
    throw error;
  }
}

test('Argon2id as its reference program has it, and PBKDF2 as RFC 7914', async () => {
  // The vector of the RFC has a secret and associated data, which LUKS2 does not use; this one is of the
  // reference program: argon2 somesalt -id -t 2 -k 65536 -p 1 -l 32, password "password".
  using argon2id = await deriveKey(
    { type: 'argon2id', salt: Buffer.from('somesalt'), passes: 2, memoryKib: 65536, lanes: 1 },
    Buffer.from('password'),
    32,
    { ...LIMITS, memoryKib: 65536, memoryPassesKib: 2 * 65536 },
  );
  assert.equal(
    argon2id.bytes.toString('hex'),
    '09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7',
  );
  // RFC 7914, section 11.
  using pbkdf2 = await deriveKey(
    { type: 'pbkdf2', hash: 'sha256', salt: Buffer.from('salt'), iterations: 1 },
    Buffer.from('passwd'),
    64,
    LIMITS,
  );
  assert.equal(
    pbkdf2.bytes.toString('hex'),
    '55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc' +
      '49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783',
  );
});

test('a split key comes back, and not without each of its stripes', () => {
  for (const [keyBytes, stripes, hashName] of [
    [32, 2, 'sha256'],
    [64, 40, 'sha1'],
    [48, 7, 'sha512'],
  ] as const) {
    const key = Buffer.from(seededRandom(keyBytes).bytes(keyBytes));
    const split = splitKey(key, stripes, hashName);
    assert.equal(split.length, keyBytes * stripes);
    assert.deepEqual(mergeKey(split, keyBytes, stripes, hashName), key);
    for (let stripe = 0; stripe < stripes; stripe++) {
      const lost = Buffer.from(split);
      lost[stripe * keyBytes]! ^= 1;
      assert.notDeepEqual(mergeKey(lost, keyBytes, stripes, hashName), key);
    }
  }
});

test('keys are added, changed and removed; the slot that is gone is gone from the disk', async () => {
  const device = memory();
  let { header, volumeKey } = await make(device);
  const before = header.metadata.slots.get(0)!.area;
  const raw = Buffer.alloc(before.lengthBytes);
  await device.read(before.offsetBytes, raw);
  ({ header } = await addKey(device, header, volumeKey, secret('second'), LIMITS, CHEAP, 5));
  assert.equal(await opens(device, header, 'second'), 5);
  ({ header } = await changeKey(device, header, secret('first'), secret('third'), LIMITS, CHEAP));
  assert.equal(await opens(device, header, 'first'), null);
  assert.equal(await opens(device, header, 'third'), 1);
  const wiped = Buffer.alloc(before.lengthBytes);
  await device.read(before.offsetBytes, wiped);
  for (let at = 0; at < 128_000; at += 512)
    assert.notDeepEqual(wiped.subarray(at, at + 512), raw.subarray(at, at + 512));
  await assert.rejects(removeKey(device, header, 9), code('CRYPT_NO_SLOT'));
  header = await removeKey(device, header, 5);
  await assert.rejects(removeKey(device, header, 1), code('CRYPT_LAST_SLOT'));
  const opened = await unlock(device, await readHeader(device), secret('third'), LIMITS);
  assert.deepEqual(opened.volumeKey.bytes, volumeKey.bytes);
  header = await removeKey(device, header, 1, { lastToo: true });
  assert.equal(await opens(device, header, 'third'), null);
});

test('slots run out, and a freed one is used again', async () => {
  const device = memory();
  let { header, volumeKey } = await make(device);
  // (1 MiB - 32 KiB) of areas of 128000 bytes, rounded up to 131072.
  for (let slot = 1; slot < 7; slot++)
    ({ header } = await addKey(device, header, volumeKey, secret(`key ${slot}`), LIMITS, CHEAP));
  await assert.rejects(
    addKey(device, header, volumeKey, secret('more'), LIMITS, CHEAP),
    code('CRYPT_NO_SLOT'),
  );
  header = await removeKey(device, header, 3);
  const added = await addKey(device, header, volumeKey, secret('more'), LIMITS, CHEAP);
  assert.equal(added.slot, 3);
  assert.equal(await opens(device, added.header, 'more'), 3);
  assert.equal(await opens(device, added.header, 'key 6'), 6);
  await assert.rejects(
    addKey(device, header, secret('x'.repeat(32)), secret('y'), LIMITS, CHEAP),
    code('CRYPT_WRONG_KEY'),
  );
});

test('a slot that asks for too much is said so, and does not keep another from opening', async () => {
  const device = memory();
  const { header, volumeKey } = await make(device);
  const wide = { ...LIMITS, iterations: 5000 };
  const { header: two } = await addKey(device, header, volumeKey, secret('dear'), wide, {
    type: 'pbkdf2',
    iterations: 4000,
  });
  await assert.rejects(unlock(device, two, secret('dear'), LIMITS), code('CRYPT_KDF_LIMIT'));
  assert.equal(await opens(device, two, 'first'), 0);
  const costly = { type: 'argon2id', passes: 100, memoryKib: 1024, lanes: 1 } as const;
  await assert.rejects(addKey(device, two, volumeKey, secret('z'), LIMITS, costly), code('CRYPT_KDF_LIMIT'));
});

test('an ignored slot opens only when it is named; a preferred one is tried first', async () => {
  const device = memory();
  const { header, volumeKey } = await make(device);
  const two = (await addKey(device, header, volumeKey, secret('first'), LIMITS, CHEAP)).header;
  const slots = two.json.keyslots as Record<string, object>;
  const priorities = (first: number, second: number) =>
    updateHeader(device, two, {
      ...two.json,
      keyslots: { '0': { ...slots[0], priority: first }, '1': { ...slots[1], priority: second } },
    });
  assert.equal(await opens(device, await priorities(1, 2), 'first'), 1);
  const ignored = await priorities(0, 0);
  assert.equal(await opens(device, ignored, 'first'), null);
  assert.equal((await unlock(device, ignored, secret('first'), LIMITS, 0)).slot, 0);
});

test('a blank device is formatted, a used one only when told; a slot area behind the end is no crash', async () => {
  const device = memory();
  await make(device);
  await assert.rejects(make(device), code('CRYPT_NOT_BLANK'));
  for (const options of [
    { dataOffsetBytes: 4096 },
    { dataOffsetBytes: 2 ** 30 },
    { sectorBytes: 100 },
    { headerBytes: 5000 },
    { dataOffsetBytes: 0, slotsAreaBytes: 2 ** 26 },
  ])
    await assert.rejects(format(memory(), secret('x'), LIMITS, options), code('CRYPT_BAD_GEOMETRY'));
  const header = await backupHeader(device);
  const short = new MemoryDevice({ lengthBytes: 65536, content: header.subarray(0, 65536) });
  await assert.rejects(
    unlock(short, await readHeader(short), secret('first'), LIMITS),
    code('CRYPT_HEADER_CORRUPT'),
  );
});

test('a header backup puts keys back, and only onto its own volume', async () => {
  const device = memory();
  const { header } = await make(device);
  const backup = await backupHeader(device);
  await changeKey(device, header, secret('first'), secret('other'), LIMITS, CHEAP);
  const restored = await restoreHeader(device, backup);
  assert.equal(await opens(device, restored, 'first'), 0);
  assert.equal(await opens(device, restored, 'other'), null);
  const stranger = memory();
  await make(stranger);
  await assert.rejects(restoreHeader(stranger, backup), code('CRYPT_HEADER_MISMATCH'));
  await assert.rejects(restoreHeader(device, backup.subarray(0, 65536)), code('CRYPT_HEADER_MISMATCH'));
  await assert.rejects(restoreHeader(device, new Uint8Array(65536)), code('CRYPT_NOT_LUKS2'));
  await restoreHeader(stranger, backup, { overwrite: true });
  assert.equal(await opens(stranger, await readHeader(stranger), 'first'), 0);
});

const SEEDS = process.env.GODWIT_LONG === '1' ? 200 : 3;

test('power may go at any point of an update: the header opens, and each key does or does not', async (_t) => {
  const seed = testSeed();
  type Step = (device: BlockDevice, header: Luks2Header, volumeKey: Secret) => Promise<unknown>;
  const steps: { name: string; step: Step; always: string[] }[] = [
    {
      name: 'add',
      step: (device, header, volumeKey) => addKey(device, header, volumeKey, secret('new'), LIMITS, CHEAP),
      always: ['first', 'second'],
    },
    {
      name: 'remove',
      step: (device, header) => removeKey(device, header, 0),
      always: ['second'],
    },
    {
      name: 'change',
      step: (device, header) => changeKey(device, header, secret('first'), secret('new'), LIMITS, CHEAP),
      always: ['second'],
    },
    { name: 'mend', step: (device, header) => repairHeader(device, header), always: ['first', 'second'] },
  ];
  for (const { name, step, always } of steps) {
    for (let round = 0; round < SEEDS; round++) {
      for (let cutAt = 1, cut = true; cut; cutAt++) {
        const power = new PowerSupply(seededRandom(seed + cutAt * 1000 + round));
        const device = new FaultDevice({ lengthBytes: DATA_OFFSET_BYTES + 65536, power });
        let { header, volumeKey } = await make(device);
        ({ header } = await addKey(device, header, volumeKey, secret('second'), LIMITS, CHEAP));
        // Half of the rounds begin with a copy that is damaged already.
        const damaged = name === 'mend' || round % 2 === 1;
        if (damaged) {
          device.corrupt(cutAt % 2 === 0 ? 0 : header.binary.headerBytes, new Uint8Array(512));
          header = await readHeader(device);
        }
        power.cutAt = power.operations + cutAt;
        cut = await step(device, header, volumeKey).then(
          () => false,
          (error: unknown) => {
            if (isGodwitError(error, 'BLOCK_POWER_LOST')) return true;
            throw error;
          },
        );
        power.restore();
        const found = await readHeader(device);
        const at = `${name}, cut at ${cutAt}, round ${round}, seed ${seed}`;
        for (const passphrase of always)
          assert.notEqual(await opens(device, found, passphrase), null, `${passphrase}: ${at}`);
        if (name === 'change') {
          const either = (await opens(device, found, 'first')) ?? (await opens(device, found, 'new'));
          assert.notEqual(either, null, at);
        }
        await repairHeader(device, found);
        assert.equal((await readHeader(device)).damaged, null, at);
      }
    }
  }
});

test('power may go while a volume is made: it opens, or there is none', async () => {
  for (let cutAt = 1, cut = true; cut; cutAt++) {
    const power = new PowerSupply(seededRandom(cutAt), cutAt);
    const device = new FaultDevice({ lengthBytes: DATA_OFFSET_BYTES + 65536, power });
    cut = await make(device).then(
      () => false,
      () => true,
    );
    power.restore();
    const found = await readHeader(device).catch((error: unknown) => {
      assert.ok(isGodwitError(error, 'CRYPT_NOT_LUKS2') || isGodwitError(error, 'CRYPT_HEADER_CORRUPT'));
      return null;
    });
    if (found) assert.equal(await opens(device, found, 'first'), 0);
    else assert.ok(cut);
  }
});

test('a slot that asks for what is not done here does not keep the others from opening the volume', async () => {
  const device = memory();
  const { header, volumeKey } = await make(device);
  const added = await addKey(device, header, volumeKey, secret('second'), LIMITS, CHEAP);
  volumeKey.dispose();
  const edits: ((slot: {
    kdf: { hash?: string; type: string };
    af: { hash: string };
    area: { encryption: string };
  }) => void)[] = [
    ({ kdf }) => (kdf.hash = 'sha3-256'),
    ({ kdf }) => (kdf.type = 'scrypt'),
    ({ af }) => (af.hash = 'whirlpool'),
    ({ area }) => (area.encryption = 'serpent-xts-plain64'),
  ];
  let current = added.header;
  for (const edit of edits) {
    const json = structuredClone(added.header.json);
    edit((json.keyslots as Record<string, never>)['1']!);
    current = await updateHeader(device, current, json);
    const read = await readHeader(device);
    assert.equal(read.damaged, null);
    assert.equal(await opens(device, read, 'first'), 0);
    assert.deepEqual(
      luks2Geometry(read).slots.map(({ slot }) => slot),
      [0],
    );
    await assert.rejects(
      unlock(device, read, secret('second'), LIMITS),
      /does not open this volume; slot 1 could not be tried: .* is not supported/,
    );
  }
  // Its area is not taken for another, and the slot can be given up.
  using key = (await unlock(device, current, secret('first'), LIMITS)).volumeKey;
  const third = await addKey(device, current, key, secret('third'), LIMITS, CHEAP);
  assert.equal(third.slot, 2);
  const fewer = await removeKey(device, third.header, 1);
  assert.deepEqual(fewer.metadata.digest.slots, [0, 2]);
  assert.equal(await opens(device, fewer, 'third'), 2);
  await assert.rejects(removeKey(device, await removeKey(device, fewer, 2), 0), code('CRYPT_LAST_SLOT'));
});
