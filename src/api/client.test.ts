import assert from 'node:assert/strict';
import { createServer as createHttpServer } from 'node:http';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { FakeWorkerService, machineView, runView } from '../../test/support/fake-service.ts';
import { patient } from '../../test/support/patience.ts';
import { PeerCalls } from '../../test/support/peer-calls.ts';
import { reset } from '../../test/support/reset.ts';
import { systemClock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import type { Endpoint } from '../contract/endpoint.ts';
import { HEALTH } from '../contract/operator.ts';
import { ApiClient } from './client.ts';
import { httpTransport, PeerClient } from './peer-client.ts';
import { createApiServer } from './server.ts';

const TOKEN = 'a-token-of-the-fleet';

async function start(t: TestContext) {
  const service = new FakeWorkerService('worker-1');
  const app = await createApiServer({ service, token: TOKEN, logger: silentLogger, version: '1' });
  const url = await app.listen({ host: '127.0.0.1', port: 0 });
  const client = new ApiClient({ url, token: TOKEN });
  t.after(async () => {
    client.close();
    await app.close();
  });
  return { service, app, url, client };
}

/** A TCP server that does `act` with every connection. */
async function listen(t: TestContext, act: (socket: Socket) => void): Promise<string> {
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    act(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** Of a server that does not listen yet; both end with the test. */
async function clientOf(t: TestContext, server: Server): Promise<ApiClient> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => server.close());
  const client = new ApiClient({
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    token: 'x',
  });
  t.after(() => client.close());
  return client;
}

async function rejection(promise: Promise<unknown>): Promise<GodwitError> {
  const error = await promise.then(
    () => assert.fail('did not reject'),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof GodwitError, String(error));
  return error;
}

test('what the service says comes through, errors too', async (t) => {
  const { client, service } = await start(t);
  assert.deepEqual(await client.healthz(), { ok: true });
  assert.equal((await client.worker()).name, 'worker-1');
  const machine = await client.createMachine({ name: 'pg', config: machineView({}).config, start: true });
  assert.deepEqual(await client.listMachines(), [machine]);
  assert.deepEqual(await client.showMachine(machine.id), machine);
  assert.equal((await client.execInMachine('pg', { command: ['false'], timeoutMs: 5 })).exitCode, 1);
  const volume = await client.createVolume({ name: 'v', lengthBytes: 2 ** 30, filesystem: 'xfs' });
  assert.deepEqual(await client.listVolumes(), [volume]);
  await client.destroyVolume('v');
  assert.equal((await client.drain()).desired, true);
  assert.equal((await client.undrain()).desired, false);
  assert.equal((await client.plan()).steps.length, 1);
  service.runs.push(runView({ id: 'run9' }));
  assert.equal((await client.listRuns({ state: 'all', limit: 5 }))[0]!.id, 'run9');
  assert.equal((await client.cancelRun('run9')).id, 'run9');
  assert.equal((await client.why('pg')).conditions.length, 1);

  const error = await rejection(client.showMachine('no-such-machine'));
  assert.equal(error.code, 'MACHINE_NOT_FOUND');
  assert.deepEqual(error.values, { ref: 'no-such-machine' });
  assert.equal(error.nextAction, 'godwit machine list');
  // One segment of the path all the same, and no name of anything.
  assert.equal((await rejection(client.showMachine('no/such machine?'))).code, 'API_INVALID_REQUEST');
});

test('a wrong token is said so', async (t) => {
  const { url } = await start(t);
  const client = new ApiClient({ url, token: 'wrong' });
  t.after(() => client.close());
  assert.equal((await rejection(client.worker())).code, 'API_UNAUTHORIZED');
});

test('logs end by themselves, followed ones when the reader leaves', async (t) => {
  const { client, service } = await start(t);
  service.machines.set('m_1', machineView({}));
  const text: Buffer[] = [];
  for await (const chunk of client.machineLogs('pg')) text.push(chunk);
  assert.equal(Buffer.concat(text).toString(), 'line one\nline two\n');

  const leave = new AbortController();
  const followed = client.machineLogs('pg', { follow: true }, leave.signal);
  assert.equal((await followed.next()).value?.toString(), 'line one\nline two\n');
  leave.abort(new Error('enough'));
  await assert.rejects(followed.next(), /enough/);
  while (!service.calls.includes('log follower left')) await new Promise((resolve) => setImmediate(resolve));
  const missing = client.machineLogs('nobody');
  assert.equal((await rejection(missing.next())).code, 'MACHINE_NOT_FOUND');
});

test('events come one by one, and closing the server ends them', async (t) => {
  const { client, service, app } = await start(t);
  const event = { atMs: 1, worker: 'worker-1', kind: 'run', subject: 'run1', data: {} } as const;
  service.eventScript = [
    { ...event, message: 'one\nwith a line' },
    { ...event, message: 'zwei ü' },
  ];
  const events = client.events();
  assert.equal((await events.next()).value?.message, 'one\nwith a line');
  assert.equal((await events.next()).value?.message, 'zwei ü');
  const rest = events.next();
  await app.close();
  assert.deepEqual(await rest, { value: undefined, done: true });
  assert.ok(service.calls.includes('event listener left'));
});

test('a worker that refuses what came later is one of an earlier version; the rest it refuses as ever', async (t) => {
  let unknown = 'copies';
  const server = createHttpServer((_request, response) => {
    const message = `querystring: unknown property ${unknown}`;
    const error = { code: 'API_INVALID_REQUEST', message, values: {}, nextAction: 'x' };
    response.writeHead(400).end(JSON.stringify({ error }));
  });
  const client = await clientOf(t, server);
  const refused = async () => rejection(client.destroyVolume('v', { copies: true }));
  const { code, values } = await refused();
  assert.deepEqual([code, values.part], ['API_EARLIER_VERSION', 'copies']);
  unknown = 'forse';
  assert.equal((await refused()).code, 'API_INVALID_REQUEST');
});

test('a worker that has no such route is one of an earlier version where the question came later', async (t) => {
  const { client } = await start(t);
  const row = { ...HEALTH.healthz, path: '/v1/later' } as const;
  const ask = async (endpoint: Endpoint) =>
    (await rejection(client.ask(endpoint, { path: endpoint.path, parameters: {} }, {}))).code;
  assert.equal(await ask({ ...row, since: '0.2.0' }), 'API_EARLIER_VERSION');
  assert.equal(await ask(row), 'API_NO_ROUTE');
});

test('nobody listens: certainly not delivered', async () => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  for (const target of [`http://127.0.0.1:${port}`, 'http://no-such-host.invalid:1']) {
    const error = await rejection(new ApiClient({ url: target, token: 'x' }).worker());
    assert.equal(error.code, 'API_UNREACHABLE', target);
    assert.equal(error.values.delivered, false, target);
    assert.match(error.nextAction, /godwit worker/);
  }
});

test('the connection breaks, or the time is up, after the request was sent: outcome unknown', async (t) => {
  const cutter = await listen(t, (socket) => socket.once('data', () => socket.destroy()));
  const silent = await listen(t, () => {});
  const halfway = await listen(t, (socket) =>
    socket.once('data', () => socket.end('HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"state"')),
  );
  for (const url of [cutter, silent, halfway]) {
    const client = new ApiClient({ url, token: 'x', timeoutMs: patient(300) });
    t.after(() => client.close());
    const error = await rejection(new PeerCalls(client).handoff('run1', { freeMap: null }));
    assert.equal(error.code, 'API_UNREACHABLE', url);
    assert.equal(error.values.delivered, 'unknown', url);
  }
});

test("the caller's own abort comes back as it is", async (t) => {
  const url = await listen(t, () => {});
  const client = new ApiClient({ url, token: 'x' });
  t.after(() => client.close());
  const reason = new Error('the step is over');
  const abort = new AbortController();
  const call = new PeerCalls(client).status('run1', { signal: abort.signal });
  abort.abort(reason);
  await assert.rejects(call, (error) => error === reason);
  await assert.rejects(
    new PeerCalls(client).status('run1', { signal: abort.signal }),
    (error) => error === reason,
  );
});

test('something else answers', async (t) => {
  const answers = [
    ['<html>', 200],
    ['<html>', 502],
    ['{"error":"text"}', 500],
    ['null', 404],
  ] as const;
  for (const [body, status] of answers) {
    const server = createHttpServer((_request, response) => response.writeHead(status).end(body));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    t.after(() => server.close());
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const client = new ApiClient({ url, token: 'x' });
    t.after(() => client.close());
    assert.equal((await rejection(client.worker())).code, 'API_BAD_REPLY', body);
  }
  assert.throws(() => new ApiClient({ url: 'worker-1', token: 'x' }), { code: 'API_BAD_URL' });
  assert.throws(
    () => new ApiClient({ url: 'https://ann:hush@h:1', token: 'x' }),
    (error) => error instanceof GodwitError && !JSON.stringify(error.toWire()).includes('hush'),
  );
});

test('an idle connection that the worker has closed is no reason to fail a call that may be repeated', async (t) => {
  let connections = 0;
  const reply = 'HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-length: 12\r\n\r\n{"runs": []}';
  // Answers the first request of a connection and breaks it at the second.
  const url = await listen(t, (socket) => {
    connections++;
    socket.once('data', () => {
      socket.write(reply);
      socket.once('data', () => socket.destroy());
    });
  });
  const client = new ApiClient({ url, token: 'x' });
  t.after(() => client.close());
  await client.listRuns();
  await client.listRuns();
  assert.equal(connections, 2);
  await client.listRuns();
  const error = await rejection(client.moveMachine('pg', { target: null }));
  assert.deepEqual([error.code, error.values.delivered], ['API_UNREACHABLE', 'unknown']);
});

test('a worker that dies over a request on an idle connection may have had it, although no second connection comes about', async (t) => {
  const server = createServer();
  const reply = 'HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-length: 12\r\n\r\n{"runs": []}';
  server.on('connection', (socket) => {
    socket.on('error', () => {});
    socket.once('data', () => {
      socket.write(reply);
      socket.once('data', () => {
        server.close();
        reset(socket);
      });
    });
  });
  const client = await clientOf(t, server);
  await client.listRuns();
  const error = await rejection(new PeerCalls(client).handoff('run1', { freeMap: null }));
  assert.deepEqual([error.code, error.values.delivered], ['API_UNREACHABLE', 'unknown']);
});

test('a peer over HTTP', async (t) => {
  const { url } = await start(t);
  const transport = httpTransport({ name: 'worker-1', url, token: TOKEN });
  const peer = new PeerClient({ name: 'worker-1', url, transport, logger: silentLogger, clock: systemClock });
  t.after(() => peer.close());
  const machine = {
    machineId: 'm_1',
    machineName: 'pg',
    group: null,
    memoryBytes: 1,
    cpus: 1,
    volumeLengthBytes: 4096,
    volumeUsedBytes: 0,
  };
  assert.equal((await peer.offer({ sourceWorker: 'worker-2', machine, planned: [machine] })).accepted, true);
  const prepared = await peer.prepare({
    runId: 'run1',
    sourceWorker: 'worker-2',
    sourceUrl: 'http://127.0.0.1:2',
    machineId: 'm_1',
    machineName: 'pg',
    config: machineView({}).config,
    placement: machine,
    volume: null,
    startMachine: true,
  });
  assert.equal(prepared.phase, 'prepared');
  assert.equal((await peer.status('run1')).runId, 'run1');
  assert.equal((await peer.handoff('run1', { freeMap: null })).phase, 'handed-over');
  assert.equal((await peer.cancel('run1')).phase, 'forgotten');
  assert.deepEqual(await peer.run('known'), { state: 'running', step: 'stop' });
  assert.equal(await peer.run('other'), null);
});

/**
 * Two workers whose addresses a fleet file has the wrong way round: what is meant for `worker-1` reaches
 * `worker-2`.
 */
async function swapped(t: TestContext, version: 'names itself' | 'old') {
  const service = new FakeWorkerService('worker-2');
  const app = await createApiServer({
    service,
    token: TOKEN,
    logger: silentLogger,
    version: '1',
    ...(version === 'names itself' && { worker: 'worker-2' }),
  });
  const url = await app.listen({ host: '127.0.0.1', port: 0 });
  const client = (name: string, isOld: 'ask' | 'believe') => {
    const made = new ApiClient({ url, token: TOKEN, worker: { name, isOld } });
    t.after(() => made.close());
    return made;
  };
  t.after(() => app.close());
  return { service, client };
}

test('what is meant for another worker is refused by the one that answers, and by who asked it', async (t) => {
  for (const version of ['names itself', 'old'] as const) {
    const { client, service } = await swapped(t, version);
    const error = await rejection(client('worker-1', 'ask').drain());
    assert.equal(error.code, 'API_WRONG_WORKER', version);
    assert.match(error.message, /is worker-2, and not worker-1$/);
    assert.equal((await service.drainStatus()).desired, false, 'nothing was done');
    await client('worker-2', 'ask').drain();
    assert.equal((await service.drainStatus()).desired, true);
  }
  const { client } = await swapped(t, 'names itself');
  assert.equal((await rejection(client('worker-1', 'believe').listMachines())).code, 'API_WRONG_WORKER');
  assert.equal((await rejection(client('worker-1', 'believe').drain())).code, 'API_WRONG_WORKER');
  assert.deepEqual(await client('worker-2', 'believe').listMachines(), []);
});
