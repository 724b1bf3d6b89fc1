import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { format } from './format.ts';
import {
  assessGeometry,
  type HostCapabilities,
  type Luks2Geometry,
  luks2Geometry,
  plainLengthBytes,
} from './geometry.ts';
import { DEFAULT_KDF_LIMITS } from './kdf.ts';
import { CIPHER } from './metadata.ts';
import { openLuks2, openRekey, rekeyedDeviceLengthBytes } from './open.ts';
import { Secret } from './secret.ts';

const MIB = 1024 * 1024;
const KDF = { type: 'pbkdf2', iterations: 1000 } as const;
const HOST: HostCapabilities = { ciphers: [CIPHER], maxSectorBytes: 4096, kdfLimits: DEFAULT_KDF_LIMITS };

const GEOMETRY: Luks2Geometry = {
  uuid: 'a',
  headerBytes: 16384,
  headerAreaBytes: 16 * MIB,
  dataOffsetBytes: 16 * MIB,
  dataLengthBytes: null,
  sectorBytes: 4096,
  cipher: CIPHER,
  keyBytes: 64,
  slots: [{ slot: 0, kdf: 'argon2id', memoryKib: 1024 * 1024, passes: 4, lanes: 4 }],
};
const EXPECTED = { uuid: 'a', plainLengthBytes: 48 * MIB, deviceLengthBytes: 64 * MIB };

test('a host that can open the volume has no problem with it; another one names each', () => {
  const what = (
    geometry: Partial<Luks2Geometry>,
    host: Partial<HostCapabilities> = {},
    expected = EXPECTED,
  ) =>
    assessGeometry({ ...GEOMETRY, ...geometry }, { ...HOST, ...host }, expected).map(
      (problem) => problem.what,
    );
  assert.deepEqual(what({}), []);
  assert.deepEqual(what({ cipher: 'serpent-xts-plain64' }), ['cipher']);
  assert.deepEqual(what({}, { maxSectorBytes: 512 }), ['sector size']);
  assert.deepEqual(what({}, { kdfLimits: { ...DEFAULT_KDF_LIMITS, memoryKib: 65536 } }), ['key slots']);
  assert.deepEqual(what({ slots: [] }), ['key slots']);
  assert.deepEqual(what({ uuid: 'b' }), ['uuid']);
  assert.deepEqual(what({ dataOffsetBytes: 4 * MIB }), ['length']);
  assert.deepEqual(what({ dataOffsetBytes: 65 * MIB }), ['length']);
  const all = what({ uuid: 'b', cipher: 'x', sectorBytes: 4096, slots: [] }, { maxSectorBytes: 512 });
  assert.deepEqual(all, ['cipher', 'sector size', 'key slots', 'uuid']);
  // One slot that this host can open is enough.
  const cheap = { slot: 1, kdf: 'pbkdf2', hash: 'sha256', iterations: 1000 } as const;
  const small = { kdfLimits: { ...DEFAULT_KDF_LIMITS, memoryKib: 65536 } };
  assert.deepEqual(what({ slots: [...GEOMETRY.slots, cheap] }, small), []);
  const [problem] = assessGeometry(GEOMETRY, { ...HOST, ...small });
  assert.match(problem!.message, /slot 0: .*memoryKib 1048576.*65536/);
});

test('the length of the plaintext is exact or refused', () => {
  assert.equal(plainLengthBytes(GEOMETRY, 64 * MIB), 48 * MIB);
  assert.equal(plainLengthBytes({ ...GEOMETRY, dataLengthBytes: MIB }, 64 * MIB), MIB);
  for (const deviceLengthBytes of [0, 16 * MIB, 16 * MIB + 512, 64 * MIB + 2048]) {
    assert.throws(
      () => plainLengthBytes(GEOMETRY, deviceLengthBytes),
      (error) => isGodwitError(error, 'CRYPT_BAD_GEOMETRY'),
    );
  }
});

test('geometry of a real header survives JSON', async () => {
  const { header } = await encrypted(4 * MIB, 2 * MIB, 512);
  const geometry = luks2Geometry(header);
  assert.deepEqual(JSON.parse(JSON.stringify(geometry)), geometry);
  assert.deepEqual(assessGeometry(geometry, HOST), []);
  assert.equal(geometry.headerAreaBytes, 4 * MIB);
});

for (const [from, to] of [
  [4 * MIB, 16 * MIB],
  [16 * MIB, 4 * MIB],
] as const) {
  test(`a move with another key: data at ${from / MIB} MiB to ${to / MIB} MiB, exactly as long`, async () => {
    const plainBytes = 3 * MIB;
    const source = await encrypted(from, plainBytes, 512);
    const plain = seededRandom(from).bytes(plainBytes);
    plain.fill(0, MIB, 2 * MIB);
    const old = openLuks2(source.device, source.header, source.volumeKey);
    await old.write(0, plain.subarray(0, MIB));
    await old.write(2 * MIB, plain.subarray(2 * MIB));

    const lengthBytes = rekeyedDeviceLengthBytes(luks2Geometry(source.header), source.device.lengthBytes, {
      dataOffsetBytes: to,
      sectorBytes: 4096,
    });
    assert.equal(lengthBytes, to + plainBytes);
    const target = await encrypted(to, plainBytes, 4096);
    assert.equal(target.device.lengthBytes, lengthBytes);
    const rekey = openRekey(source, target);
    assert.equal(rekey.source.lengthBytes, plainBytes);
    assert.equal(rekey.target.lengthBytes, plainBytes);
    const piece = new Uint8Array(MIB / 2);
    for (let at = 0; at < plainBytes; at += piece.length) {
      await rekey.source.read(at, piece);
      await rekey.target.write(at, piece);
    }
    const back = new Uint8Array(plainBytes);
    await openLuks2(target.device, target.header, target.volumeKey).read(0, back);
    assert.ok(Buffer.from(back).equals(plain));
    // Under another key: no ciphertext is the same.
    const [a, b] = [new Uint8Array(4096), new Uint8Array(4096)];
    await source.device.read(from, a);
    await target.device.read(to, b);
    assert.notDeepEqual(a, b);
  });
}

test('a move with another key between different lengths is refused', async () => {
  const source = await encrypted(4 * MIB, 2 * MIB, 512);
  const target = await encrypted(4 * MIB, 2 * MIB + 4096, 512);
  assert.throws(
    () => openRekey(source, target),
    (error) => isGodwitError(error, 'CRYPT_BAD_GEOMETRY'),
  );
  assert.throws(
    () =>
      rekeyedDeviceLengthBytes(GEOMETRY, 16 * MIB + 4096 + 512, { dataOffsetBytes: MIB, sectorBytes: 4096 }),
    (error) => isGodwitError(error, 'CRYPT_BAD_GEOMETRY'),
  );
});

async function encrypted(dataOffsetBytes: number, plainBytes: number, sectorBytes: number) {
  const device = new MemoryDevice({ lengthBytes: dataOffsetBytes + plainBytes, chunkBytes: 65536 });
  const passphrase = Secret.take(Buffer.from('k'));
  const made = await format(device, passphrase, DEFAULT_KDF_LIMITS, {
    dataOffsetBytes,
    sectorBytes,
    kdf: KDF,
  });
  return { device, ...made };
}
