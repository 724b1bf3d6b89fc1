import assert from 'node:assert/strict';
import test from 'node:test';
import { seededRandom } from '../base/random.ts';
import { blockCountOf, popcount, ValidityMap, wordCountOf } from './validity-map.ts';

const seed = Number(process.env.GODWIT_SEED ?? Date.now() % 1_000_000);

test(`a map answers as an array of booleans would (GODWIT_SEED=${seed})`, () => {
  const random = seededRandom(seed);
  for (let round = 0; round < 60; round++) {
    const blockCount = 1 + random.below(300);
    const words = new Uint32Array(wordCountOf(blockCount));
    const map = new ValidityMap(words, blockCount);
    const model = new Array<boolean>(blockCount).fill(false);
    for (let step = 0; step < 40; step++) {
      const first = random.below(blockCount);
      const end = first + 1 + random.below(Math.min(blockCount - first, step % 2 === 0 ? 3 : 100));
      if (random.below(3) === 0) {
        let added = 0;
        for (let block = first; block < end; block++) {
          if (!model[block]) added++;
          model[block] = true;
        }
        assert.equal(map.setRange(first, end), added);
      }
      const absent = model.findIndex((present, block) => block >= first && block < end && !present);
      const present = model.findIndex((value, block) => block >= first && block < end && value);
      assert.equal(map.firstAbsent(first, end), absent === -1 ? end : absent);
      assert.equal(map.firstPresent(first, end), present === -1 ? end : present);
      assert.equal(map.hasAll(first, end), absent === -1);
      const bytes = [first * 4096 + 512 * random.below(8), end * 4096 - 512 * random.below(8)] as const;
      if (bytes[0] < bytes[1]) {
        const lengthBytes = bytes[1] - bytes[0];
        assert.equal(map.mustFetch('read', bytes[0], lengthBytes), absent !== -1);
        const cut = [bytes[0], bytes[1]].filter((byte) => byte % 4096 !== 0);
        const fetched = cut.some((byte) => !model[Math.floor(byte / 4096)]);
        assert.equal(map.mustFetch('write', bytes[0], lengthBytes), fetched);
      }
      assert.equal(map.mustFetch('read', first * 4096, 0), false);
      assert.equal(map.has(first), model[first]);
      assert.equal(map.presentCount, model.filter(Boolean).length);
    }
    assert.equal(
      new ValidityMap(words, blockCount).presentCount,
      map.presentCount,
      'a second opener counts the same',
    );
  }
});

test('words copied out of one map and put into another carry every bit', () => {
  const source = new ValidityMap(new Uint32Array(8), 250);
  source.setRange(3, 200);
  source.setRange(249, 250);
  const words = new Uint32Array(10);
  source.copyWords(0, words);
  const target = new ValidityMap(new Uint32Array(8), 250, { counted: false });
  assert.equal(target.orWords(0, words.subarray(0, 8)), 198);
  assert.equal(target.orWords(0, words.subarray(0, 8)), 0);
  assert.equal(target.firstAbsent(3, 250), 200);
  assert.equal(words[8], 0);
});

test('the last block of a device that ends within it counts', () => {
  assert.equal(blockCountOf(4096), 1);
  assert.equal(blockCountOf(4097), 2);
  const map = new ValidityMap(new Uint32Array(1), 32);
  map.setRange(0, 32);
  assert.ok(map.complete);
});

test('popcount', () => {
  for (const word of [0, 1, 0x80000000, 0xffffffff, 0x12345678, 0xdeadbeef]) {
    assert.equal(popcount(word), (word >>> 0).toString(2).replaceAll('0', '').length);
  }
});
