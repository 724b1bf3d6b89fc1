import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { Luks2Device } from '../crypt/luks2-device.ts';
import { createXts } from '../crypt/xts.ts';
import { DecryptedSource } from './decrypted-source.ts';

const KEY = seededRandom(11).bytes(64);
const LENGTH = 64 * 4096;

/**
 * A volume with data, encrypted zeros, holes, and, where sectors are smaller than blocks, blocks that are a
 * hole in part.
 */
async function volume(sectorBytes: number, tweakOffset: number) {
  const ciphertext = new MemoryDevice({ lengthBytes: LENGTH });
  const owner = new Luks2Device(ciphertext, {
    cipher: createXts(KEY, sectorBytes),
    tweakOffset,
    holes: 'all',
  });
  const random = seededRandom(sectorBytes);
  await owner.write(0, random.bytes(20 * 4096));
  await owner.write(24 * 4096, new Uint8Array(8 * 4096));
  await owner.write(40 * 4096 + (4096 - sectorBytes), random.bytes(sectorBytes));
  return { ciphertext, owner };
}

for (const [sectorBytes, tweakOffset] of [
  [512, 0],
  [512, 2 ** 33 + 8],
  [2048, 0],
  [4096, 0],
  [4096, 64],
] as const) {
  test(`sectors of ${sectorBytes}, tweaks from ${tweakOffset}: plaintext as its owner reads it, and the way back`, async () => {
    const { ciphertext, owner } = await volume(sectorBytes, tweakOffset);
    const source = new DecryptedSource(ciphertext, { cipher: createXts(KEY, sectorBytes), tweakOffset });
    const random = seededRandom(99 + sectorBytes);
    for (let turn = 0; turn < 100; turn++) {
      const first = turn === 0 ? 0 : random.below(64);
      const bytes = (turn === 0 ? 64 : 1 + random.below(64 - first)) * 4096;
      const [found, expected, wire] = [0, 0, 0].map(() => new Uint8Array(bytes));
      await source.read(first * 4096, found!, { priority: 'guest' });
      await owner.read(first * 4096, expected!);
      assert.deepEqual(found, expected);
      await ciphertext.read(first * 4096, wire!);
      assert.deepEqual(source.ciphertextUnderOldKey(first * 4096, found!), wire);
    }
    const changed = new Uint8Array(4096).fill(1);
    const other = source.ciphertextUnderOldKey(60 * 4096, changed);
    assert.ok(!Buffer.from(other).equals(Buffer.alloc(4096)), 'what was changed does not pass for a hole');
    await source.close();
    await assert.rejects(source.read(0, changed), (error) => isGodwitError(error, 'BLOCK_CLOSED'));
    assert.throws(
      () => source.ciphertextUnderOldKey(0, changed),
      (error) => isGodwitError(error, 'BLOCK_CLOSED'),
    );
  });
}
