import assert from 'node:assert/strict';
import test from 'node:test';
import { HEAT_REGION_BYTES } from '../opening/guest.ts';
import { Heat, hottestRegions } from './heat.ts';

test('the first reads come first and in order, then what was touched latest, each region once', () => {
  const writer = new Heat();
  const heat = new Heat(writer.shared);
  for (const region of [7, 7, 3]) writer.read(region * HEAT_REGION_BYTES + 4096, 4096);
  for (const region of [1, 2, 1, 9]) writer.write(region * HEAT_REGION_BYTES, 512);
  assert.deepEqual(hottestRegions([heat]), [7, 3, 9, 1, 2]);
  assert.deepEqual(hottestRegions([heat], 3), [7, 3, 9]);
  assert.deepEqual(hottestRegions([new Heat(), heat, heat]), [7, 3, 9, 1, 2]);
});

test('a request over several regions touches each of them', () => {
  const heat = new Heat();
  heat.read(HEAT_REGION_BYTES - 512, HEAT_REGION_BYTES + 1024);
  assert.deepEqual([...heat.firstReads()], [0, 1, 2]);
});

test('a guest that touches more than the record holds: its boot stays, the rest is the latest', () => {
  const heat = new Heat();
  for (let region = 0; region < 10_000; region++) heat.read(region * HEAT_REGION_BYTES, 4096);
  assert.equal(heat.firstReads().length, 1024);
  assert.equal(heat.latest().length, 4096);
  assert.deepEqual(heat.latest().slice(0, 2), [9_999, 9_998]);
  assert.deepEqual(hottestRegions([heat], 1_026).slice(-2), [9_999, 9_998]);
});
