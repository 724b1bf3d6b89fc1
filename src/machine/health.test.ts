import assert from 'node:assert/strict';
import { createServer as createHttp } from 'node:http';
import { type AddressInfo, createServer } from 'node:net';
import { test } from 'node:test';
import { patient } from '../../test/support/patience.ts';
import { systemClock } from '../base/clock.ts';
import { FakeClock } from '../base/fake-clock.ts';
import type { HealthCheck } from '../contract/machine-config.ts';
import { HealthMonitor, HealthTracker } from './health.ts';
import { listens, makeProbe } from './probe.ts';

const check = { intervalMs: 2_000, retries: 3, startPeriodMs: 1_000 };
const target = {
  network: 'host' as const,
  initPid: 0,
  nsenter: '',
  enter: () => ({ file: 'false', args: [] }),
};

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

test('tcp and http probes tell yes from no', async (t) => {
  const listener = createServer((socket) => socket.destroy()).listen(0, '127.0.0.1');
  const http = createHttp((request, response) => {
    if (request.url === '/hang') return;
    response.writeHead(request.url === '/ok' ? 204 : 503).end();
  }).listen(0, '127.0.0.1');
  await Promise.all(
    [listener, http].map((server) => new Promise((resolve) => server.once('listening', resolve))),
  );
  t.after(() => {
    listener.close();
    http.closeAllConnections();
    http.close();
  });
  const port = (listener.address() as AddressInfo).port;
  const base = `http://127.0.0.1:${(http.address() as AddressInfo).port}`;
  const probe = (kind: object, signal = AbortSignal.timeout(patient(10_000))) =>
    makeProbe({ ...check, timeoutMs: patient(1_000), ...kind } as HealthCheck, target)(signal);

  assert.equal((await probe({ kind: 'tcp', port })).ok, true);
  assert.equal((await probe({ kind: 'http', url: `${base}/ok` })).ok, true);
  assert.deepEqual(await probe({ kind: 'http', url: `${base}/bad` }), {
    ok: false,
    message: 'HTTP status 503',
  });
  assert.equal((await probe({ kind: 'http', url: `${base}/hang` }, AbortSignal.timeout(50))).ok, false);
  assert.equal((await probe({ kind: 'exec', command: ['x'] })).ok, false);
  listener.close();
  await new Promise((resolve) => listener.once('close', resolve));
  assert.equal((await probe({ kind: 'tcp', port })).ok, false);
});

test('a listener is found in the table of a network namespace by its port and state', () => {
  const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   106        0 21 1 0 100 0 0 10 0
   1: 0100007F:0050 0100007F:9C40 01 00000000:00000000 00:00000000 00000000   106        0 22 1 0 100 0 0 10 0`;
  assert.equal(listens(table, 0x1538), true);
  assert.equal(listens(table, 80), false, 'a connection is no listener');
  assert.equal(listens(table, 0x538), false);
});
