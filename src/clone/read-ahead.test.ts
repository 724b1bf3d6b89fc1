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
    assert.ok(range.first > block && range.end <= 4000 && range.end - range.first <= 512);
    for (let each = range.first; each < range.end; each++) {
      assert.equal(brought[each], 0, 'brought once');
      brought[each] = 1;
    }
  }
  assert.ok(ranges >= 8 && ranges < 40, `${ranges} ranges`);
});

test('several readers at once are each followed', () => {
  const readAhead = new ReadAhead(100_000);
  const starts = [0, 20_000, 40_000, 60_000];
  for (const start of starts) assert.equal(readAhead.observe(start, start + 8), null);
  for (const start of starts) {
    assert.deepEqual(readAhead.observe(start + 8, start + 16), { first: start + 16, end: start + 48 });
  }
});

test('random misses and repeated ones bring nothing', () => {
  const readAhead = new ReadAhead(1_000_000);
  for (let index = 1; index < 200; index++) {
    const block = (index * 7919 * 101) % 1_000_000;
    assert.equal(readAhead.observe(block, block + 1), null);
    assert.equal(readAhead.observe(block, block + 1), null);
  }
});
