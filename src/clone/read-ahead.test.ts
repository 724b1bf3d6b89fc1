import assert from 'node:assert/strict';
import test from 'node:test';
import { ReadAhead } from './read-ahead.ts';

test('one reader from front to back gets growing ranges that do not overlap and stay inside the device', () => {
  const readAhead = new ReadAhead(4000);
  const brought = new Uint8Array(4000);
  let ranges = 0;
  for (let block = 0; block < 4000; block++) {
    if (brought[block] === 1) continue;
    const range = readAhead.observe(block, block + 1);
    if (range === null) continue;
    ranges++;
    assert.ok(range.end > block && range.end <= 4000 && range.end - range.first <= 512);
    brought[block] = 1;
    for (let each = range.first; each < range.end; each++) {
      // The neighbourhood of the first miss has that in it.
      if (each === block) continue;
      assert.equal(brought[each], 0, 'brought once');
      brought[each] = 1;
    }
  }
  assert.ok(ranges >= 8 && ranges < 40, `${ranges} ranges`);
});

test('several readers at once are each followed', () => {
  const readAhead = new ReadAhead(100_000);
  const starts = [0, 20_000, 40_000, 60_000];
  for (const start of starts) readAhead.observe(start, start + 8);
  for (const start of starts) {
    assert.deepEqual(readAhead.observe(start + 8, start + 16), {
      first: Math.ceil((start + 16) / 16) * 16,
      end: start + 48,
    });
  }
});

test('a miss in a new place brings the aligned 64 KiB around it, once', () => {
  const readAhead = new ReadAhead(1_000_000);
  for (let index = 1; index < 200; index++) {
    const block = (index * 7919 * 101) % 1_000_000;
    const first = Math.floor(block / 16) * 16;
    assert.deepEqual(readAhead.observe(block, block + 1), { first, end: first + 16 });
    assert.equal(readAhead.observe(block, block + 1), null);
  }
  assert.equal(new ReadAhead(100).observe(16, 32), null, 'a miss that is its own neighbourhood');
  assert.deepEqual(new ReadAhead(20).observe(18, 19), { first: 16, end: 20 }, 'not behind the end');
});
