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
import { openLuks2 } from './open.ts';
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

test('the same plaintext behind headers of 4 MiB and 16 MiB: the devices differ in length, and the volumes do not', async () => {
  const plainBytes = 3 * MIB;
  const small = await encrypted(4 * MIB, plainBytes, 512);
  const large = await encrypted(16 * MIB, plainBytes, 4096);
  for (const { header, device } of [small, large])
    assert.equal(plainLengthBytes(luks2Geometry(header), device.lengthBytes), plainBytes);
  const plain = seededRandom(3).bytes(plainBytes);
  plain.fill(0, MIB, 2 * MIB);
  const from = openLuks2(small.device, small.header, small.volumeKey);
  await from.write(0, plain.subarray(0, MIB));
  await from.write(2 * MIB, plain.subarray(2 * MIB));
  const to = openLuks2(large.device, large.header, large.volumeKey);
  const piece = new Uint8Array(MIB / 2);
  for (let at = 0; at < plainBytes; at += piece.length) {
    await from.read(at, piece);
    await to.write(at, piece);
  }
  const back = new Uint8Array(plainBytes);
  await to.read(0, back);
  assert.ok(Buffer.from(back).equals(plain));
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
