import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { patient } from '../../test/support/patience.ts';
import { systemClock } from '../base/clock.ts';
import type { HealthCheck } from '../contract/machine-config.ts';
import { HealthMonitor, HealthTracker } from './health.ts';

const check = { intervalMs: 2_000, retries: 3, startPeriodMs: 1_000 };

test('failures in the start period do not count; after it, retries in a row make it unhealthy', () => {
  const tracker = new HealthTracker(check, 0);
  for (let nowMs = 0; nowMs < 1_000; nowMs += 100) assert.equal(tracker.apply(false, nowMs), false);
  assert.equal(tracker.state, 'starting');
  tracker.apply(false, 1_000);
  tracker.apply(false, 1_100);
  assert.equal(tracker.state, 'starting');
  assert.equal(tracker.apply(false, 1_200), true);
  assert.equal(tracker.state, 'unhealthy');
});

test('one success makes it healthy, whatever was before; failures that are not in a row do not count', () => {
  const tracker = new HealthTracker(check, 0);
  assert.equal(tracker.apply(true, 10), true);
  assert.equal(tracker.state, 'healthy');
  for (let round = 0; round < 5; round++) {
    tracker.apply(false, 20);
    tracker.apply(false, 20);
    tracker.apply(true, 20);
  }
  assert.equal(tracker.state, 'healthy');
  for (let round = 0; round < 3; round++) tracker.apply(false, 30);
  assert.equal(tracker.state, 'unhealthy');
  assert.equal(tracker.apply(true, 40), true);
  assert.equal(tracker.state, 'healthy');
});

test('probes come every 10 to 100 ms until the first success, then at the interval', () => {
  const tracker = new HealthTracker(check, 0);
  const delays: number[] = [];
  for (let round = 0; round < 30; round++) {
    tracker.apply(false, 0);
    delays.push(tracker.nextDelayMs());
  }
  assert.equal(delays[0], 10);
  assert.equal(delays.at(-1), 100);
  assert.deepEqual(
    delays,
    [...delays].sort((a, b) => a - b),
  );
  tracker.apply(true, 0);
  assert.equal(tracker.nextDelayMs(), 2_000);
});

test('probes never overlap, and a probe that hangs is aborted at the timeout', async () => {
  const clock = new FakeClock();
  const healthCheck: HealthCheck = { ...check, timeoutMs: 500, kind: 'tcp', port: 1 };
  let running = 0;
  let probes = 0;
  const changes: string[] = [];
  const monitor = new HealthMonitor({
    check: healthCheck,
    clock,
    onChange: ({ state, message }) => changes.push(`${state}: ${message}`),
    probe: async (signal) => {
      probes++;
      assert.equal(++running, 1);
      await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }));
      running--;
      return { ok: false, message: 'aborted' };
    },
  });
  monitor.start();
  await clock.run(3_100);
  assert.deepEqual(changes, ['unhealthy: no answer within 500 ms']);
  assert.ok(probes >= 4 && probes <= 6, `${probes} probes`);
  await monitor.stop();
  assert.equal(running, 0);
});

test('a probe that throws is a failure, not the end of the checks', async () => {
  let calls = 0;
  const healthy = Promise.withResolvers<void>();
  const monitor = new HealthMonitor({
    check: { ...check, intervalMs: 10, timeoutMs: patient(1_000), kind: 'tcp', port: 1 },
    clock: systemClock,
    onChange: () => healthy.resolve(),
    probe: async () => {
      if (++calls < 3) throw new Error('broken');
      return { ok: true, message: '' };
    },
  });
  monitor.start();
  await healthy.promise;
  assert.equal(monitor.health.state, 'healthy');
  await monitor.stop();
});
