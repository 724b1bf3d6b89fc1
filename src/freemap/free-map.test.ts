import assert from 'node:assert/strict';
import test from 'node:test';
import { seededRandom } from '../base/random.ts';
import { FreeMap } from './free-map.ts';

const seed = Number(process.env.GODWIT_SEED ?? Date.now() % 1_000_000);
const PAGE_BLOCKS = 32_768;
const TIB_BLOCKS = 2 ** 40 / 4096;

test(`a map answers as an array of booleans would, across pages (GODWIT_SEED=${seed})`, () => {
  const random = seededRandom(seed);
  for (let round = 0; round < 20; round++) {
    const blockCount = 1 + random.below(3 * PAGE_BLOCKS);
    const map = new FreeMap(blockCount * 4096 + random.below(4096));
    const model = new Uint8Array(blockCount);
    for (let step = 0; step < 20; step++) {
      const page = random.below(4) * PAGE_BLOCKS;
      const first = Math.min(blockCount, random.below(2) === 0 ? page : random.below(blockCount));
      const end = Math.min(blockCount, first + random.below(random.below(2) === 0 ? 70 : 2 * PAGE_BLOCKS));
      const free = random.below(2) === 0;
      if (free) map.markFree(first, end);
      else map.markUsed(first, end);
      model.fill(free ? 1 : 0, first, end);
    }
    const runs: { first: number; end: number }[] = [];
    for (let first = model.indexOf(1); first !== -1; ) {
      const end = model.indexOf(0, first);
      runs.push({ first, end: end === -1 ? blockCount : end });
      first = end === -1 ? -1 : model.indexOf(1, end);
    }
    assert.deepEqual([...map.runs()], runs);
    assert.equal(map.countFree(), model.filter((bit) => bit === 1).length);
    for (let probe = 0; probe < 50; probe++) {
      const block = random.below(blockCount);
      assert.equal(map.has(block), model[block] === 1);
    }
    assert.ok(!map.has(blockCount));
  }
});

test('blocks around 2^31, 2^32 (16 TiB) and the end of 64 TiB are told apart', () => {
  const map = new FreeMap(64 * 2 ** 40 - 1);
  const { blockCount } = map;
  map.markFree(0, blockCount);
  const edges = [2 ** 31, 2 ** 32, 16 * TIB_BLOCKS + 2 ** 31, blockCount - 1];
  for (const edge of edges) map.markUsed(edge, edge + 1);
  const runs = [...map.runs()];
  assert.deepEqual(
    runs.map(({ first }) => first),
    [0, ...edges.slice(0, -1).map((edge) => edge + 1)],
  );
  assert.deepEqual(
    runs.map(({ end }) => end),
    edges,
  );
  for (const edge of edges) assert.ok(!map.has(edge) && map.has(edge - 1));
  assert.equal(map.countFree(), blockCount - edges.length);
});
