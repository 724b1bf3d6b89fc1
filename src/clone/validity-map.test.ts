import assert from 'node:assert/strict';
import test from 'node:test';
import { testSeed } from '../../test/support/seed.ts';
import { seededRandom } from '../base/random.ts';
import { HeapMapMemory, type MapMemory, PAGE_BLOCKS } from './map-memory.ts';
import { blockCountOf, popcount, ValidityMap } from './validity-map.ts';

const seed = testSeed();

test('a map answers as an array of booleans would', () => {
  const random = seededRandom(seed);
  for (let round = 0; round < 60; round++) {
    const blockCount = 1 + random.below(300);
    const memory = new HeapMapMemory(blockCount);
    const map = new ValidityMap(memory, blockCount);
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
      new ValidityMap(memory, blockCount).presentCount,
      map.presentCount,
      'a second opener counts the same',
    );
  }
});

test('words copied out of one map and put into another carry every bit', () => {
  const source = new ValidityMap(new HeapMapMemory(250), 250);
  source.setRange(3, 200);
  source.setRange(249, 250);
  const words = new Uint32Array(10);
  source.copyWords(0, words);
  const target = new ValidityMap(new HeapMapMemory(250), 250);
  assert.equal(target.orWords(0, words.subarray(0, 8)), 198);
  assert.equal(target.orWords(0, words.subarray(0, 8)), 0);
  assert.equal(target.firstAbsent(3, 250), 200);
  assert.equal(words[8], 0);
});

test('the last block of a device that ends within it counts', () => {
  assert.equal(blockCountOf(4096), 1);
  assert.equal(blockCountOf(4097), 2);
  const map = new ValidityMap(new HeapMapMemory(32), 32);
  map.setRange(0, 32);
  assert.ok(map.complete);
});

test('popcount', () => {
  for (const word of [0, 1, 0x80000000, 0xffffffff, 0x12345678, 0xdeadbeef]) {
    assert.equal(popcount(word), (word >>> 0).toString(2).replaceAll('0', '').length);
  }
});

const TIB_BLOCKS = 2 ** 40 / 4096;

test('blocks around 2^31, 2^32 (16 TiB) and the end of 64 TiB are told apart', () => {
  const blockCount = 64 * TIB_BLOCKS;
  for (const edge of [2 ** 31, 2 ** 32, 2 ** 32 + 2 ** 31, 3 * 2 ** 32, blockCount]) {
    for (const block of [edge - 1, edge, edge + 1].filter((each) => each < blockCount)) {
      const map = new ValidityMap(new HeapMapMemory(blockCount), blockCount);
      assert.equal(map.setRange(block, block + 1), 1);
      assert.ok(map.has(block));
      // What 32 bits make of it, and the next of it.
      for (const other of [
        block % 2 ** 32,
        block % 2 ** 31,
        block - 1,
        block + 1,
        block - 2 ** 32,
        block + 2 ** 32,
      ]) {
        if (other !== block && other >= 0 && other < blockCount)
          assert.ok(!map.has(other), `${block} is not ${other}`);
      }
      assert.equal(map.firstPresent(0, blockCount), block);
      assert.equal(map.firstAbsent(block, blockCount), block + 1);
      assert.equal(map.firstPresent(block + 1, blockCount), blockCount);
      assert.equal(map.mustFetch('read', block * 4096, 4096), false);
      assert.equal(map.mustFetch('read', (block - 1) * 4096, 8192), true);
    }
  }
});

test('ranges across every edge of 64 TiB are set whole, counted, and carried in words', () => {
  const blockCount = 64 * TIB_BLOCKS - 5;
  for (const edge of [2 ** 31, 2 ** 32, 2 ** 33, blockCount]) {
    const memory = new HeapMapMemory(blockCount);
    const map = new ValidityMap(memory, blockCount);
    const first = edge - 3 * PAGE_BLOCKS - 7;
    const end = Math.min(blockCount, edge + 3 * PAGE_BLOCKS + 9);
    assert.equal(map.setRange(first, end), end - first);
    assert.equal(map.setRange(first - 1, end), 1);
    assert.ok(map.hasAll(first - 1, end));
    assert.ok(!map.hasAll(first - 2, end));
    assert.equal(map.firstAbsent(first, blockCount), end);
    assert.equal(map.presentCount, end - first + 1);
    const copy = new ValidityMap(new HeapMapMemory(blockCount), blockCount);
    const words = new Uint32Array(126);
    for (let word = Math.floor(first / 32) - 126; word * 32 < end; word += 126) {
      map.copyWords(word, words);
      copy.orWords(word, words);
    }
    assert.equal(copy.presentCount, map.presentCount);
    assert.equal(copy.firstPresent(0, blockCount), first - 1);
    assert.equal(copy.firstAbsent(first, blockCount), end);
  }
});

/** Counts the pages that have memory. */
function counting(blockCount: number): { memory: MapMemory; reserved: Set<number> } {
  const memory = new HeapMapMemory(blockCount);
  const reserved = new Set<number>();
  const { reserve, release } = memory;
  memory.reserve = (page) => {
    reserved.add(page);
    reserve.call(memory, page);
  };
  memory.release = (page) => {
    reserved.delete(page);
    release.call(memory, page);
  };
  return { memory, reserved };
}

test('pages whose bits are all the same take no memory, however they came to be', () => {
  const blockCount = 20 * PAGE_BLOCKS + 100;
  const { memory, reserved } = counting(blockCount);
  const map = new ValidityMap(memory, blockCount);
  map.setRange(100, 15 * PAGE_BLOCKS + 1);
  assert.deepEqual([...reserved].sort(), [0, 15]);
  for (let block = 99; block >= 0; block--) map.setRange(block, block + 1);
  assert.deepEqual([...reserved], [15], 'the last bit of a page came');
  map.orWords(0, new Uint32Array(3000).fill(0xffffffff));
  assert.deepEqual([...reserved], [15], 'what is full stays so');
  map.setRange(15 * PAGE_BLOCKS, blockCount);
  assert.equal(reserved.size, 0);
  assert.ok(map.complete);
});

test('a map that several set bits in gives back what has become full when it is asked to', () => {
  const blockCount = 3 * PAGE_BLOCKS + 40;
  const { memory, reserved } = counting(blockCount);
  const map = new ValidityMap(memory, blockCount, { counted: false });
  const other = new ValidityMap(memory, blockCount, { counted: false });
  assert.equal(other.trySetRange(0, 10), false, 'memory is the first one to reserve');
  assert.ok(!map.has(0));
  map.setRange(0, 1);
  for (let block = 1; block < PAGE_BLOCKS; block++) assert.ok(other.trySetRange(block, block + 1));
  map.setRange(3 * PAGE_BLOCKS + 1, blockCount);
  assert.deepEqual([...reserved], [0, 3]);
  map.compact(1);
  map.compact(1);
  assert.deepEqual([...reserved], [3], 'one bit of the last page is clear');
  assert.ok(other.trySetRange(3 * PAGE_BLOCKS, 3 * PAGE_BLOCKS + 1));
  map.compact(2);
  assert.equal(reserved.size, 0);
  assert.ok(other.hasAll(0, PAGE_BLOCKS) && other.hasAll(3 * PAGE_BLOCKS, blockCount));
  assert.ok(!other.has(PAGE_BLOCKS));
});

test('who looks while a page is given back sees its bits', () => {
  const memory = new HeapMapMemory(PAGE_BLOCKS);
  const map = new ValidityMap(memory, PAGE_BLOCKS);
  map.setRange(0, PAGE_BLOCKS - 1);
  // The other thread reads the entry, then this one sets the last bit, then that one reads the page.
  const page = memory.page.bind(memory);
  let meanwhile = () => void map.setRange(PAGE_BLOCKS - 1, PAGE_BLOCKS);
  const slow: MapMemory = {
    entries: memory.entries,
    count: memory.count,
    page: (index) => {
      meanwhile();
      meanwhile = () => {};
      return page(index);
    },
    reserve: () => {},
    release: () => {},
  };
  const looking = new ValidityMap(slow, PAGE_BLOCKS, { counted: false });
  assert.ok(looking.has(7), 'the page was gone when it was read');
  memory.entries[0] = 0;
  map.setRange(0, PAGE_BLOCKS - 1);
  memory.count[0] = PAGE_BLOCKS - 1;
  meanwhile = () => void map.setRange(PAGE_BLOCKS - 1, PAGE_BLOCKS);
  assert.ok(looking.hasAll(3, 900));
});

test('a process that dies while it sets bits leaves a map that is counted again, and no bit is lost', () => {
  const blockCount = 2 * PAGE_BLOCKS + 64;
  for (let dieAt = 0; dieAt < 40; dieAt++) {
    const memory = new HeapMapMemory(blockCount);
    const map = new ValidityMap(memory, blockCount);
    map.setRange(5, 9);
    map.setRange(PAGE_BLOCKS, 2 * PAGE_BLOCKS);
    const { or } = Atomics;
    let steps = 0;
    Atomics.or = ((...args: Parameters<typeof or>) => {
      if (steps++ === dieAt) throw new Error('dead');
      return or(...args);
    }) as typeof or;
    try {
      map.setRange(1000, 2000);
    } catch {
      // The process is dead.
    } finally {
      Atomics.or = or;
    }
    const again = new ValidityMap(memory, blockCount);
    let found = 0;
    for (let block = 0; block < blockCount; block++) if (again.has(block)) found++;
    assert.equal(again.presentCount, found);
    assert.ok(again.hasAll(5, 9));
    again.setRange(0, blockCount);
    assert.ok(again.complete);
  }
});

test('memory that cannot be had is an error that leaves the map as it was', () => {
  const memory = new HeapMapMemory(2 * PAGE_BLOCKS);
  const map = new ValidityMap(memory, 2 * PAGE_BLOCKS);
  memory.reserve = () => {
    throw new Error('full');
  };
  assert.throws(() => map.setRange(7, 9), /full/);
  assert.equal(map.firstPresent(0, 2 * PAGE_BLOCKS), 2 * PAGE_BLOCKS);
  assert.equal(map.presentCount, 0);
  assert.equal(map.setRange(PAGE_BLOCKS, 2 * PAGE_BLOCKS), PAGE_BLOCKS, 'a whole page needs none');
});

test('a range over pages of which one has no memory is not marked in part', () => {
  for (const lacking of [0, 2]) {
    let full = true;
    const memory = new HeapMapMemory(3 * PAGE_BLOCKS);
    memory.reserve = (page) => {
      if (full && page === lacking) throw new Error('full');
      HeapMapMemory.prototype.reserve.call(memory, page);
    };
    const map = new ValidityMap(memory, 3 * PAGE_BLOCKS);
    const range = [PAGE_BLOCKS - 1, 2 * PAGE_BLOCKS + 1] as const;
    assert.throws(() => map.setRange(...range), /full/);
    assert.equal(map.firstPresent(0, 3 * PAGE_BLOCKS), 3 * PAGE_BLOCKS);
    assert.equal(map.presentCount, 0);
    full = false;
    assert.equal(map.setRange(...range), PAGE_BLOCKS + 2);
  }
});
