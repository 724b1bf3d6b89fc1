import assert from 'node:assert/strict';
import { createServer as createHttp } from 'node:http';
import { type AddressInfo, createServer } from 'node:net';
import { test } from 'node:test';
import { patient } from '../../test/support/patience.ts';
import type { HealthCheck } from '../contract/machine-config.ts';
import { listens, makeProbe } from './probe.ts';

const check = { intervalMs: 2_000, retries: 3, startPeriodMs: 1_000 };
const target = {
  network: 'host' as const,
  initPid: 0,
  nsenter: '',
  enter: () => ({ file: 'false', args: [] }),
};

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
