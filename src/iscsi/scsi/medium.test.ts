import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HeldDevice } from '../../../test/support/held-device.ts';
import { until } from '../../../test/support/patience.ts';
import { MemoryDevice } from '../../block/memory-device.ts';
import { Medium } from './medium.ts';
import { DONE } from './plan.ts';
import { decodeSense, encodeSense, SENSE, STATUS } from './sense.ts';

const BLOCK = 512;
const MIB = 2 ** 20;
const range = (first: number, blocks: number) => ({
  offsetBytes: first * BLOCK,
  lengthBytes: blocks * BLOCK,
});
const blocks = (...values: number[]): Buffer =>
  Buffer.concat(values.map((value) => Buffer.alloc(BLOCK, value)));

function memory(...values: number[]): MemoryDevice {
  return new MemoryDevice({ lengthBytes: 64 * BLOCK, content: blocks(...values) });
}

test('a check finds the first difference, also against one block repeated', async () => {
  const medium = new Medium(memory(1, 1, 2), () => 0);
  assert.deepEqual(await medium.check(range(0, 3), blocks(1, 1, 2)), DONE);
  assert.deepEqual(await medium.check(range(0, 2), blocks(1)), DONE);
  for (const [lengthBlocks, expected] of [
    [3, blocks(1, 1, 1)],
    [3, blocks(1)],
  ] as const) {
    const sense = { ...SENSE.miscompare, information: 2 * BLOCK };
    assert.deepEqual(await medium.check(range(0, lengthBlocks), expected), { kind: 'sense', sense });
    for (const format of ['fixed', 'descriptor'] as const) {
      const bytes = encodeSense(sense, format);
      assert.deepEqual(decodeSense(bytes), SENSE.miscompare);
      assert.equal(bytes.readUInt32BE(format === 'fixed' ? 3 : 16), 2 * BLOCK);
    }
  }
});

test('of two that compare and write at once, one loses', async () => {
  const device = memory(0);
  const medium = new Medium(device, () => 0);
  const results = await Promise.all(
    [1, 2, 3].map((value) => medium.compareAndWrite(range(0, 1), blocks(0, value), false)),
  );
  assert.deepEqual(
    results.map(({ kind }) => kind),
    ['answer', 'sense', 'sense'],
  );
  const now = Buffer.alloc(BLOCK);
  await device.read(0, now);
  assert.deepEqual(now, blocks(1));
});

test('ORWRITE sets bits, all of those that came at once', async () => {
  const device = memory(0x01);
  const medium = new Medium(device, () => 0);
  await Promise.all([0x02, 0x40, 0x80].map((bits) => medium.orWrite(range(0, 1), blocks(bits), true)));
  const now = Buffer.alloc(BLOCK);
  await device.read(0, now);
  assert.deepEqual(now, blocks(0xc3));
});

test('prefetch says CONDITION MET for all, GOOD for a part', async () => {
  const medium = new Medium(new MemoryDevice({ lengthBytes: 32 * 2 ** 20 }), () => 0);
  assert.deepEqual(await medium.prefetch(range(0, 64)), { kind: 'status', status: STATUS.conditionMet });
  assert.deepEqual(await medium.prefetch({ offsetBytes: 0, lengthBytes: 32 * 2 ** 20 }), DONE);
});

test('a write on the spot that was held up sends the next ones to the other thread', () => {
  let nowMs = 0;
  let tookMs = 0;
  let calls = 0;
  const device = Object.assign(memory(0), {
    writeNow: () => {
      nowMs += tookMs;
      calls += 1;
      return true;
    },
  });
  const medium = new Medium(device, () => nowMs);
  assert.equal(medium.writeNow(0, blocks(1)), true);
  assert.equal(medium.writeNow(0, Buffer.alloc(64 * 1024)), false);
  tookMs = 50;
  assert.equal(medium.writeNow(0, blocks(1)), true);
  tookMs = 0;
  let refused = 0;
  while (!medium.writeNow(0, blocks(1))) refused += 1;
  assert.deepEqual([refused, calls], [1024, 3]);
});

test('of commands that work in memory of their own four are at it, whatever is asked; prefetches beyond are left out', async () => {
  const device = new HeldDevice(new MemoryDevice({ lengthBytes: 4 * MIB }));
  const medium = new Medium(device, () => 0);
  const whole = { offsetBytes: 0, lengthBytes: 4 * MIB };
  const zeros = Buffer.alloc(512);
  const checks = Array.from({ length: 60 }, (_, index) =>
    medium.check(whole, index % 2 === 0 ? null : zeros),
  );
  for (let index = 0; index < 100; index += 1) medium.prefetchSoon(whole);
  await until('four to be at it', () => device.asked >= 4);
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(device.asked, 4);
  device.release();
  for (const result of await Promise.all(checks)) assert.equal(result.kind, 'answer');
  assert.equal(device.asked, 60 * 4, 'a MiB at a time, and nothing for the prefetches');
});
