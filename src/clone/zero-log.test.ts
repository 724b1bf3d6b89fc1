import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FaultDevice } from '../../test/support/fault-device.ts';
import { PowerSupply } from '../../test/support/power-supply.ts';
import { seededRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { WHOLE_BLOCK, ZERO_LOG_BYTES, ZeroLog } from './zero-log.ts';

const IDENTITY = { volumeId: 'v_1', generation: 2, lengthBytes: 2 ** 46 };
const LAST_BLOCK = 2 ** 34 - 1;

async function freshLog(device = new MemoryDevice({ lengthBytes: ZERO_LOG_BYTES })) {
  await ZeroLog.create(device, IDENTITY);
  return { device, log: await ZeroLog.open(device, IDENTITY) };
}

test('what was added is there after an opening, for volumes of any size', async () => {
  const { device, log } = await freshLog();
  await Promise.all(Array.from({ length: 100 }, (_, index) => log.add(index * 7, 1 << (index % 8))));
  await log.add(LAST_BLOCK, 0b1000_0000);
  await log.add(7, 0b0100_0000);
  await log.flush();
  const again = await ZeroLog.open(device, IDENTITY);
  assert.equal(again.maskOf(7), 0b0100_0010);
  assert.equal(again.maskOf(LAST_BLOCK), 0b1000_0000);
  assert.equal(again.maskOf(8), 0);
  assert.equal([...again.blocks].length, 101);
  // A record that is added then goes behind them.
  await again.add(8, 1);
  assert.deepEqual([...(await ZeroLog.open(device, IDENTITY)).blocks].sort(), [...again.blocks].sort());
});

test('the zeros are put into a copy, also where a block is cut short by the end of the volume', async () => {
  const { log } = await freshLog();
  await log.add(11, 0b0000_0101);
  await log.add(12, WHOLE_BLOCK);
  const content = new Uint8Array(2 * 4096 + 512).fill(7);
  assert.equal(log.applied(20, content), content);
  const applied = log.applied(10, content);
  assert.ok(content.every((byte) => byte === 7));
  const expected = new Uint8Array(content);
  for (const sector of [8, 10, 16]) expected.fill(0, sector * 512, (sector + 1) * 512);
  assert.deepEqual(applied, expected);
});

test('a log of another clone, and a damaged one, are errors with names', async () => {
  const { device, log } = await freshLog();
  await log.add(3, 1);
  await assert.rejects(ZeroLog.open(device, { ...IDENTITY, generation: 3 }), { code: 'CLONE_ZEROS_FOREIGN' });
  const byte = new Uint8Array(512);
  for (let at = 512; at < 528; at++) {
    await device.read(512, byte);
    byte[at - 512]! ^= 0x10;
    await device.write(512, byte);
    await assert.rejects(ZeroLog.open(device, IDENTITY), { code: 'CLONE_ZEROS_CORRUPT' });
    byte[at - 512]! ^= 0x10;
    await device.write(512, byte);
  }
  assert.equal((await ZeroLog.open(device, IDENTITY)).maskOf(3), 1);
});

test('a power cut at any operation leaves what was flushed, and nothing that was never added', async () => {
  for (let cutAt = 1; ; cutAt++) {
    const power = new PowerSupply(seededRandom(cutAt));
    const device = new FaultDevice({ lengthBytes: ZERO_LOG_BYTES, power });
    await ZeroLog.create(device, IDENTITY);
    const log = await ZeroLog.open(device, IDENTITY);
    power.cutAt = power.operations + cutAt;
    let flushed = 0;
    let added = 0;
    try {
      for (; added < 80; added++) {
        await log.add(added, 1);
        if (added % 5 !== 4) continue;
        await log.flush();
        flushed = added + 1;
      }
    } catch {
      added++; // the one that was under way may be there
    }
    const over = power.on;
    if (!over) power.restore();
    const found = [...(await ZeroLog.open(device, IDENTITY)).blocks];
    for (let block = 0; block < flushed; block++) assert.ok(found.includes(block), `${block} of ${flushed}`);
    assert.ok(found.every((block) => block < added));
    if (over) break;
  }
});
