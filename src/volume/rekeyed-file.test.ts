import assert from 'node:assert/strict';
import { test } from 'node:test';
import { testConformance } from '../../test/support/block-conformance.ts';
import { seededRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { Luks2Device } from '../crypt/luks2-device.ts';
import { createXts } from '../crypt/xts.ts';
import { DecryptedSource } from './decrypted-source.ts';
import { RekeyedFile } from './rekeyed-file.ts';

const OLD = seededRandom(21).bytes(64);
const NEW = seededRandom(22).bytes(64);
const BLOCKS = 64;
const LENGTH = BLOCKS * 4096;

function sourceOf(ciphertext: MemoryDevice, sectorBytes = 4096): DecryptedSource {
  return new DecryptedSource(ciphertext, { cipher: createXts(OLD, sectorBytes), tweakOffset: 0 });
}

testConformance('RekeyedFile', {
  runs: 25,
  open: async (t, want) => {
    const content = want.content?.slice();
    if (content) createXts(NEW, 4096).encrypt(content, content, 0);
    const file = new MemoryDevice({
      lengthBytes: want.lengthBytes,
      writable: want.writable,
      ...(content && { content }),
    });
    t.after(() => file.close());
    // A source of which the blocks came as zeros: the harder case.
    const source = sourceOf(new MemoryDevice({ lengthBytes: want.lengthBytes }));
    await source.read(0, new Uint8Array(Math.min(want.lengthBytes, 2 ** 20)));
    return new RekeyedFile(file, source, { cipher: createXts(NEW, 4096), tweakOffset: 0, holes: 'all' });
  },
});

for (const sectorBytes of [512, 4096]) {
  test(`what was zeros stays zeros, and the file tells what came, with sectors of ${sectorBytes} at the source`, async () => {
    const seed = 5000 + sectorBytes;
    const random = seededRandom(seed);
    const ciphertext = new MemoryDevice({ lengthBytes: LENGTH });
    const owner = new Luks2Device(ciphertext, { cipher: createXts(OLD, sectorBytes), holes: 'all' });
    for (let block = 0; block < BLOCKS; block++) {
      const kind = random.below(3);
      if (kind === 0) await owner.write(block * 4096, random.bytes(4096));
      if (kind === 1) await owner.write(block * 4096, new Uint8Array(4096));
    }
    const file = new MemoryDevice({ lengthBytes: LENGTH });
    const source = sourceOf(ciphertext, sectorBytes);
    const open = (from: DecryptedSource) =>
      new RekeyedFile(file, from, { cipher: createXts(NEW, 4096), tweakOffset: 0, holes: 'none' });
    const device = open(source);
    const plain = new Uint8Array(LENGTH);
    for (let block = 0; block < BLOCKS; ) {
      const blocks = Math.min(BLOCKS - block, 1 + random.below(9));
      const piece = plain.subarray(block * 4096, (block + blocks) * 4096);
      await source.read(block * 4096, piece);
      await device.write(block * 4096, piece);
      block += blocks;
    }
    const [found, stored, sent] = [0, 0, 0].map(() => new Uint8Array(LENGTH)) as [
      Uint8Array,
      Uint8Array,
      Uint8Array,
    ];
    await device.read(0, found);
    assert.deepEqual(found, plain, `seed ${seed}`);
    await file.read(0, stored);
    await ciphertext.read(0, sent);
    const isZero = (bytes: Uint8Array, block: number) =>
      bytes.subarray(block * 4096, (block + 1) * 4096).every((byte) => byte === 0);
    let zeros = 0;
    for (let block = 0; block < BLOCKS; block++) {
      assert.equal(isZero(stored, block), isZero(sent, block), `block ${block}, seed ${seed}`);
      if (isZero(sent, block)) zeros++;
    }
    assert.ok(zeros > 5 && zeros < BLOCKS - 5, `${zeros} blocks of zeros: the case is in it`);
    assert.notDeepEqual(stored, sent);
    // The next volume server has not seen what came.
    const later = sourceOf(ciphertext, sectorBytes);
    await open(later).decrypting(file).read(0, found);
    assert.deepEqual(found, plain);
    assert.deepEqual(later.ciphertextUnderOldKey(0, found), sent);
    // A guest's content is kept, whatever the source had there.
    const own = random.bytes(LENGTH);
    await device.write(0, own);
    await device.read(0, found);
    assert.deepEqual(found, own);
  });
}
