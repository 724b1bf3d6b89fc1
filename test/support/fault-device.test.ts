import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../../src/base/errors.ts';
import { seededRandom } from '../../src/base/random.ts';
import { testConformance } from './block-conformance.ts';
import { FaultDevice, SECTOR_BYTES } from './fault-device.ts';
import { PowerSupply } from './power-supply.ts';

const powerLost = (error: unknown) => isGodwitError(error, 'BLOCK_POWER_LOST');
const closed = (error: unknown) => isGodwitError(error, 'BLOCK_CLOSED');
const filled = (lengthBytes: number, value: number) => new Uint8Array(lengthBytes).fill(value);

async function contents(device: FaultDevice): Promise<Uint8Array> {
  const into = new Uint8Array(device.lengthBytes);
  await device.read(0, into);
  return into;
}

testConformance('fault', {
  open: async (_t, { lengthBytes, writable, content }) => {
    const device = new FaultDevice({ lengthBytes });
    if (content !== null) await device.write(0, content);
    return writable ? device : device.reopen({ writable });
  },
});

test('the nth matching call fails, once, and does nothing', async () => {
  const device = new FaultDevice({ lengthBytes: 8192 });
  device.fail({ kinds: ['write'], nth: 2 });
  await device.write(0, filled(512, 1));
  await device.read(0, filled(512, 0));
  await assert.rejects(device.write(512, filled(512, 2)), (error) => isGodwitError(error, 'BLOCK_IO'));
  await device.write(1024, filled(512, 3));
  assert.deepEqual(
    [0, 512, 1024].map((offset) => {
      const into = new Uint8Array(512);
      device.peek(offset, into);
      return into[0];
    }),
    [1, 0, 3],
  );
});

test('a failure can last, can be of one range, and can be disarmed', async () => {
  const device = new FaultDevice({ lengthBytes: 8192 });
  const error = new Error('out of order');
  const disarm = device.fail({
    kinds: ['read'],
    range: { offsetBytes: 4096, lengthBytes: 512 },
    times: Number.POSITIVE_INFINITY,
    error,
  });
  assert.equal(device.readNow(0, new Uint8Array(512)), false, 'the fast path must not slip past the rule');
  for (let i = 0; i < 3; i++) await assert.rejects(device.read(0, new Uint8Array(8192)), error);
  await device.read(0, new Uint8Array(4096));
  await device.read(4608, new Uint8Array(512));
  disarm();
  await device.read(0, new Uint8Array(8192));
});

test('a stalled call takes effect when it is released, in no hurry', async () => {
  const device = new FaultDevice({ lengthBytes: 4096 });
  const release = device.stall(['write']);
  let done = false;
  const write = device.write(0, filled(512, 7)).then(() => {
    done = true;
  });
  assert.equal((await contents(device))[0], 0);
  assert.deepEqual([done, device.stalledCalls], [false, 1]);
  release();
  await write;
  assert.deepEqual([(await contents(device))[0], device.stalledCalls], [7, 0]);
});

test('a call that was stalled when power went never takes effect', async () => {
  const device = new FaultDevice({ lengthBytes: 4096 });
  const release = device.stall();
  const write = device.write(0, filled(512, 7));
  device.power.cut();
  device.power.restore();
  release();
  await assert.rejects(write, powerLost);
  assert.equal((await contents(device))[0], 0);
});

test('without power every call rejects until it is back', async () => {
  const device = new FaultDevice({ lengthBytes: 4096 });
  device.power.cut();
  const calls = [
    device.read(0, new Uint8Array(512)),
    device.write(0, filled(512, 1)),
    device.flush(),
    device.discard(0, 512),
    device.writeZeroes(0, 512),
    device.extents(0, 4096, 8),
  ];
  for (const call of calls) await assert.rejects(call, powerLost);
  assert.equal(device.readNow(0, new Uint8Array(512)), false);
  device.power.restore();
  await device.read(0, new Uint8Array(512));
});

test('what a flush covered survives every cut; what none covered survives, goes, or tears between sectors', async () => {
  const seen = { kept: 0, lost: 0, prefix: 0, scattered: 0 };
  for (let seed = 1; seed <= 400; seed++) {
    const power = new PowerSupply(seededRandom(seed));
    const device = new FaultDevice({ lengthBytes: 64 * 1024, power });
    await device.write(0, filled(64 * 1024, 1));
    await device.flush();
    await device.write(8192, filled(8192, 2));
    assert.equal(device.unflushedOperations, 1);
    power.cut();
    power.restore();
    const after = await contents(device);
    const sectors: number[] = [];
    for (let at = 0; at < after.length; at += SECTOR_BYTES) {
      const sector = after.subarray(at, at + SECTOR_BYTES);
      assert.ok(
        sector.every((byte) => byte === sector[0]),
        'a sector is never torn',
      );
      const inside = at >= 8192 && at < 16384;
      assert.ok(
        sector[0] === 1 || (inside && sector[0] === 2),
        `seed ${seed}: sector at ${at} is ${sector[0]}`,
      );
      if (inside) sectors.push(sector[0]!);
    }
    const survivors = sectors.filter((value) => value === 2).length;
    if (survivors === 16) seen.kept++;
    else if (survivors === 0) seen.lost++;
    else if (sectors.slice(0, survivors).every((value) => value === 2)) seen.prefix++;
    else seen.scattered++;
  }
  for (const [kind, count] of Object.entries(seen)) assert.ok(count > 10, `${kind}: ${count} of 400`);
});

test('unflushed operations survive in no order: a later one without an earlier one', async () => {
  let reordered = 0;
  for (let seed = 1; seed <= 200; seed++) {
    const power = new PowerSupply(seededRandom(seed));
    const device = new FaultDevice({ lengthBytes: 8192, power });
    await device.write(0, filled(512, 1));
    await device.write(4096, filled(512, 2));
    power.cut();
    power.restore();
    const after = await contents(device);
    if (after[0] === 0 && after[4096] === 2) reordered++;
  }
  assert.ok(reordered > 5, `${reordered} of 200`);
});

test('what becomes durable is what was written, not what the caller did to the buffer since', async () => {
  const seen = new Set<number>();
  for (let seed = 1; seed <= 40; seed++) {
    const power = new PowerSupply(seededRandom(seed));
    const device = new FaultDevice({ lengthBytes: 4096, power });
    const buffer = filled(512, 1);
    await device.write(0, buffer);
    buffer.fill(2);
    if (seed % 2 === 0) await device.flush();
    power.cut();
    power.restore();
    const [survived] = await contents(device);
    if (seed % 2 === 0) assert.equal(survived, 1);
    else seen.add(survived!);
  }
  assert.deepEqual([...seen].sort(), [0, 1]);
});

test('an unflushed discard may come undone and a flushed one may not', async () => {
  const outcomes = new Set<number>();
  for (let seed = 1; seed <= 60; seed++) {
    const power = new PowerSupply(seededRandom(seed));
    const device = new FaultDevice({ lengthBytes: 2 ** 40, power });
    await device.write(0, filled(4096, 1));
    await device.write(2 ** 39, filled(4096, 1));
    await device.discard(2 ** 39, 4096);
    await device.flush();
    await device.discard(0, 2 ** 40);
    power.cut();
    power.restore();
    const into = new Uint8Array(512);
    await device.read(2 ** 39, into);
    assert.equal(into[0], 0);
    await device.read(0, into);
    outcomes.add(into[0]!);
  }
  assert.deepEqual([...outcomes].sort(), [0, 1]);
});

test('one power supply cuts several devices at one operation, counted over all of them', async () => {
  const power = new PowerSupply(seededRandom(5), 4);
  let cuts = 0;
  power.onCut = () => cuts++;
  const data = new FaultDevice({ lengthBytes: 4096, power });
  const metadata = new FaultDevice({ lengthBytes: 4096, power });
  await data.write(0, filled(512, 1));
  await data.flush();
  await metadata.write(0, filled(512, 2));
  await assert.rejects(metadata.flush(), powerLost);
  await assert.rejects(data.read(0, new Uint8Array(512)), powerLost);
  assert.deepEqual([cuts, power.operations, power.on], [1, 4, false]);
  assert.deepEqual([data.unflushedOperations, metadata.unflushedOperations], [0, 0], 'both were settled');
  power.restore();
  assert.equal((await contents(data))[0], 1);
});

test('reopen is a crash of the process: the disk keeps all, the old handle reaches nothing', async () => {
  const before = new FaultDevice({ lengthBytes: 4096 });
  await before.write(0, filled(512, 1));
  const release = before.stall();
  const stalled = before.write(512, filled(512, 2));
  const after = before.reopen({ writable: false });
  release();
  await assert.rejects(stalled, closed);
  await assert.rejects(before.read(0, new Uint8Array(512)), closed);
  await assert.rejects(after.write(0, filled(512, 3)), (error) => isGodwitError(error, 'BLOCK_READ_ONLY'));
  const bytes = await contents(after);
  assert.deepEqual([bytes[0], bytes[512]], [1, 0]);
  assert.equal(after.unflushedOperations, 1, 'unflushed stays unflushed across a crash of the process');
});
