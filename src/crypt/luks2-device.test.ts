import assert from 'node:assert/strict';
import { test } from 'node:test';
import { testConformance } from '../../test/support/block-conformance.ts';
import { FaultDevice } from '../../test/support/fault-device.ts';
import { isGodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { type HolePolicy, Luks2Device } from './luks2-device.ts';
import { createXts, NodeXts, type XtsCipher } from './xts.ts';

const KEY = seededRandom(7).bytes(64);
const POLICIES: HolePolicy[] = ['none', 'discards', 'all'];

for (const [holes, sectorBytes, innerBlockBytes, make] of [
  ['discards', 512, 512, createXts],
  ['none', 4096, 512, createXts],
  ['all', 512, 4096, createXts],
  ['discards', 2048, 512, (key: Uint8Array, bytes: number) => new NodeXts(key, bytes)],
] as const) {
  const name = `Luks2Device, holes ${holes}, sectors of ${sectorBytes} on blocks of ${innerBlockBytes}`;
  testConformance(name, {
    runs: 25,
    open: async (t, want) => {
      const content = want.content?.slice();
      if (content) withCipher(sectorBytes, (cipher) => cipher.encrypt(content, content, 0));
      const inner = new MemoryDevice({
        lengthBytes: want.lengthBytes,
        writable: want.writable,
        blockBytes: innerBlockBytes,
        ...(content && { content }),
      });
      t.after(() => inner.close());
      return new Luks2Device(inner, { cipher: make(KEY, sectorBytes), holes });
    },
  });
}

test('the tweak counts sectors of 512 bytes from the start of the segment, whatever a sector is', async () => {
  for (const sectorBytes of [512, 1024, 2048, 4096]) {
    for (const tweakOffset of [0, 2 ** 33 + 8]) {
      const inner = new MemoryDevice({ lengthBytes: 65536 });
      const device = new Luks2Device(inner, { cipher: createXts(KEY, sectorBytes), tweakOffset });
      const plain = seededRandom(sectorBytes).bytes(16384);
      await device.write(32768, plain);
      const raw = new Uint8Array(16384);
      await inner.read(32768, raw);
      const expected = new Uint8Array(16384);
      const node = new NodeXts(KEY, sectorBytes);
      node.encrypt(plain, expected, 64 + tweakOffset);
      assert.deepEqual(raw, expected);
    }
  }
});

test('what each policy leaves on the disk', async () => {
  for (const holes of POLICIES) {
    const inner = new MemoryDevice({ lengthBytes: 65536 });
    const device = new Luks2Device(inner, { cipher: createXts(KEY, 4096), holes });
    await device.write(0, new Uint8Array(65536).fill(3));
    await device.discard(0, 16384);
    await device.writeZeroes(32768, 16384);
    const raw = new Uint8Array(65536);
    await inner.read(0, raw);
    const isHole = (at: number) => raw.subarray(at, at + 16384).every((byte) => byte === 0);
    assert.equal(isHole(0), holes !== 'none', `discard with ${holes}`);
    assert.equal(isHole(32768), holes === 'all', `writeZeroes with ${holes}`);
    const plain = new Uint8Array(65536);
    await device.read(0, plain);
    const expected = new Uint8Array(65536).fill(3).fill(0, 0, 16384).fill(0, 32768, 49152);
    assert.deepEqual(plain, expected);
  }
});

test('zeros that are written are ciphertext, and long writes arrive whole', async () => {
  const inner = new MemoryDevice({ lengthBytes: 4 * 1024 * 1024 });
  const device = new Luks2Device(inner, { cipher: createXts(KEY, 4096) });
  const plain = seededRandom(5).bytes(2 * 1024 * 1024 + 4096);
  plain.fill(0, 0, 8192);
  const before = plain.slice();
  await device.write(4096, plain);
  assert.deepEqual(plain, before, 'the caller’s bytes are as they were');
  const raw = new Uint8Array(4096);
  await inner.read(4096, raw);
  assert.ok(raw.some((byte) => byte !== 0));
  const back = new Uint8Array(plain.length);
  await device.read(4096, back);
  assert.ok(Buffer.from(back).equals(plain));
});

test('a read that is in flight when the device closes never meets the key that is gone', async () => {
  const inner = new FaultDevice({ lengthBytes: 65536 });
  const release = inner.stall(['read']);
  const device = new Luks2Device(inner, { cipher: createXts(KEY, 4096) });
  const read = device.read(0, new Uint8Array(4096));
  await device.close();
  release();
  await assert.rejects(read, (error) => isGodwitError(error, 'BLOCK_CLOSED'));
});

test('a device that is not whole sectors long is refused', () => {
  const inner = new MemoryDevice({ lengthBytes: 4096 + 512 });
  assert.throws(
    () => new Luks2Device(inner, { cipher: createXts(KEY, 4096) }),
    (error) => isGodwitError(error, 'BLOCK_BAD_GEOMETRY'),
  );
});

function withCipher(sectorBytes: number, use: (cipher: XtsCipher) => void): void {
  const cipher = createXts(KEY, sectorBytes);
  use(cipher);
  cipher.dispose();
}
