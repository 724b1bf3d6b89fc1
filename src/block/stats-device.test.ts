import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '../base/clock.ts';
import { FakeClock } from '../base/fake-clock.ts';
import { testConformance } from './conformance.ts';
import { DelayDevice } from './delay-device.ts';
import { FaultDevice } from './fault-device.ts';
import { MemoryDevice } from './memory-device.ts';
import { StatsDevice } from './stats-device.ts';

testConformance('stats', {
  open: async (_t, { lengthBytes, writable, content }) => {
    const inner = new MemoryDevice({ lengthBytes, writable, ...(content === null ? {} : { content }) });
    return new StatsDevice(inner, systemClock);
  },
});

test('calls, bytes and errors are counted by kind', async () => {
  const inner = new FaultDevice({ lengthBytes: 65536 });
  const device = new StatsDevice(inner, systemClock);
  const bytes = new Uint8Array(4096);
  await device.read(0, bytes);
  assert.equal(device.readNow!(0, bytes), true);
  await device.write(0, bytes);
  await device.discard(0, 8192);
  await device.writeZeroes(0, 65536);
  await device.flush();
  inner.fail({ kinds: ['write'] });
  await assert.rejects(device.write(0, bytes));
  const { statistics } = device;
  const seen = Object.entries(statistics).map(([kind, { calls, bytes, errors, inFlight, latency }]) => [
    kind,
    calls,
    bytes,
    errors,
    inFlight,
    latency.count,
  ]);
  assert.deepEqual(seen, [
    ['read', 2, 8192, 0, 0, 2],
    ['write', 1, 4096, 1, 0, 1],
    ['flush', 1, 0, 0, 0, 1],
    ['discard', 1, 8192, 0, 0, 1],
    ['writeZeroes', 1, 65536, 0, 0, 1],
  ]);
});

test('latency is that of the calls', async () => {
  const clock = new FakeClock();
  const slow = new DelayDevice(new MemoryDevice({ lengthBytes: 4096 }), clock, { latencyMs: 8 });
  const device = new StatsDevice(slow, clock);
  const reads = Promise.all([device.read(0, new Uint8Array(512)), device.read(0, new Uint8Array(512))]);
  assert.equal(device.statistics.read.inFlight, 2);
  await clock.runUntil(reads);
  assert.equal(device.statistics.read.inFlight, 0);
  const p99Ms = device.statistics.read.latency.quantileMs(0.99);
  assert.ok(p99Ms >= 8 && p99Ms < 8 * (1 + 1 / 32), `${p99Ms} ms`);
  assert.equal(device.readNow, undefined, 'what the inner device cannot, the layer does not offer');
});
