import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import { testConformance } from './block-conformance.ts';
import { DelayDevice } from './delay-device.ts';
import { FakeClock } from './fake-clock.ts';

testConformance('delay', {
  open: async (_t, { lengthBytes, writable, content }) => {
    const inner = new MemoryDevice({ lengthBytes, writable, ...(content === null ? {} : { content }) });
    return new DelayDevice(inner, systemClock, { latencyMs: 0.1, bytesPerSecond: 2 ** 30 });
  },
  runs: 20,
});

/** The times at which the calls end, in the order of the calls. */
async function endTimes(clock: FakeClock, calls: Promise<void>[]): Promise<number[]> {
  const times = calls.map((call) => call.then(() => clock.monotonicMs()));
  return clock.runUntil(Promise.all(times));
}

test('latency adds to each call and the calls wait side by side', async () => {
  const clock = new FakeClock();
  const device = new DelayDevice(new MemoryDevice({ lengthBytes: 8192 }), clock, { latencyMs: 10 });
  const bytes = new Uint8Array(512);
  const calls = [device.read(0, bytes), device.write(0, bytes), device.flush(), device.discard(0, 512)];
  assert.deepEqual(await endTimes(clock, calls), [10, 10, 10, 10]);
});

test('bandwidth is one wire that transfers share, and it does not save up', async () => {
  const clock = new FakeClock();
  const inner = new MemoryDevice({ lengthBytes: 8192 });
  const device = new DelayDevice(inner, clock, { latencyMs: 5, bytesPerSecond: 4096 });
  const two = [device.read(0, new Uint8Array(4096)), device.write(0, new Uint8Array(2048)), device.flush()];
  assert.deepEqual(await endTimes(clock, two), [1005, 1505, 5]);
  await clock.run(60_000);
  const startMs = clock.monotonicMs();
  const [endMs] = await endTimes(clock, [device.read(0, new Uint8Array(4096))]);
  assert.equal(endMs! - startMs, 1005);
});

test('settings hold for calls that start after they changed', async () => {
  const clock = new FakeClock();
  const device = new DelayDevice(new MemoryDevice({ lengthBytes: 8192 }), clock, { latencyMs: 10 });
  const slow = device.flush();
  device.settings = {};
  await device.flush();
  assert.equal(clock.monotonicMs(), 0);
  assert.deepEqual(await endTimes(clock, [slow]), [10]);
});
