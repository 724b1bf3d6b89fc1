import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { FakeWorkerService, machineView, runView } from '../../test/support/fake-service.ts';
import { GodwitError, type WireError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { traceIdOf, traceparentOf } from '../base/trace-context.ts';
import { HEALTH, OPERATOR } from '../contract/operator.ts';
import { PEER } from '../contract/peer.ts';
import type { ApiApp } from './app.ts';
import { createApiServer } from './server.ts';

const TOKEN = 'a-token-of-the-fleet';

async function start(t: TestContext, service = new FakeWorkerService('worker-1')) {
  const app = await createApiServer({ service, token: TOKEN, logger: silentLogger, version: '1.2.3' });
  t.after(() => app.close());
  return { app, service };
}

type Method = 'GET' | 'POST' | 'PUT' | 'DELETE';

async function call(app: ApiApp, method: Method, url: string, body?: object) {
  const response = await app.inject({
    method,
    url,
    headers: { authorization: `Bearer ${TOKEN}` },
    ...(body === undefined ? {} : { payload: body }),
  });
  return { status: response.statusCode, body: response.json(), headers: response.headers };
}

const errorOf = (body: { error: WireError }) => body.error;

test('every route but health and description asks for the token', async (t) => {
  const { app } = await start(t);
  for (const url of ['/healthz', '/openapi.json']) assert.equal((await app.inject(url)).statusCode, 200, url);
  for (const url of [
    '/v1/worker',
    '/v1/machines',
    '/v1/events',
    '/v1/rpc/runs/x',
    '/metrics',
    '/v1/nothing',
    '/',
  ]) {
    for (const authorization of [
      undefined,
      '',
      'Bearer',
      'Bearer wrong',
      `Basic ${TOKEN}`,
      `Bearer ${TOKEN}x`,
    ]) {
      const response = await app.inject({
        url,
        headers: authorization === undefined ? {} : { authorization },
      });
      assert.equal(response.statusCode, 401, `${url} with ${authorization}`);
      assert.equal(errorOf(response.json()).code, 'API_UNAUTHORIZED');
      assert.ok(!response.body.includes(TOKEN));
    }
  }
});

test('machines are made, shown, stopped and destroyed', async (t) => {
  const { app, service } = await start(t);
  const made = await call(app, 'POST', '/v1/machines', { name: 'pg', config: { command: ['sleep', '9'] } });
  assert.equal(made.status, 201);
  assert.equal(made.body.config.stop.signal, 'SIGTERM', 'defaults reach the service');
  assert.equal(JSON.parse(service.calls[0]!.slice('createMachine '.length)).start, true);
  assert.equal((await call(app, 'GET', '/v1/machines')).body.machines.length, 1);
  assert.equal((await call(app, 'GET', `/v1/machines/${made.body.id}`)).body.name, 'pg');

  const refused = await call(app, 'DELETE', '/v1/machines/pg');
  assert.equal(refused.status, 409);
  assert.equal(errorOf(refused.body).code, 'MACHINE_NOT_STOPPED');
  assert.equal((await call(app, 'POST', '/v1/machines/pg/stop')).body.state, 'stopped');
  assert.deepEqual((await call(app, 'DELETE', '/v1/machines/pg')).body, {});
  const missing = await call(app, 'GET', '/v1/machines/pg');
  assert.equal(missing.status, 404);
  assert.deepEqual(errorOf(missing.body), {
    code: 'MACHINE_NOT_FOUND',
    message: 'no machine pg on worker-1',
    values: { ref: 'pg' },
    nextAction: 'godwit machine list',
    retry: 'unknown',
  });
});

test('force in the query destroys a running machine', async (t) => {
  const { app, service } = await start(t);
  service.machines.set('m_1', machineView({}));
  assert.equal((await call(app, 'DELETE', '/v1/machines/pg?force=true')).status, 200);
  assert.equal(service.machines.size, 0);
});

test('bad requests are refused before the service sees them', async (t) => {
  const { app, service } = await start(t);
  const cases: [Method, string, object | undefined, RegExp][] = [
    ['POST', '/v1/machines', { name: 'pg' }, /body: must have required properties config/],
    ['POST', '/v1/machines', { name: 'P G', config: { command: ['x'] } }, /the name must be 1 to 63 of a-z/],
    ['POST', '/v1/machines', { name: 'pg', config: { command: ['x'] }, cpu: 1 }, /unknown property cpu/],
    ['POST', '/v1/volumes', { name: 'v', lengthBytes: 5 }, /the length must be at least 16 MiB/],
    ['PUT', '/v1/drain', { desired: false }, /\/desired/],
    ['PUT', '/v1/drain', undefined, /body: must be object/],
    ['GET', '/v1/machines/pg/logs?lines=-1', undefined, /\/lines: must be >= 0/],
    ['GET', '/v1/runs?state=some', undefined, /\/state: must be one of unfinished, all/],
    [
      'GET',
      `/v1/machines/${'x'.repeat(90)}${'y'.repeat(90)}`,
      undefined,
      /params \/ref: must not have more than 128/,
    ],
  ];
  for (const [method, url, body, message] of cases) {
    const reply = await call(app, method, url, body);
    assert.equal(reply.status, 400, url);
    assert.match(errorOf(reply.body).message, message, `${method} ${url}`);
    assert.ok(errorOf(reply.body).nextAction.length > 0);
  }
  assert.deepEqual(service.calls, []);
});

test('text that is not JSON, a foreign content type and a large body are refused in our words', async (t) => {
  const { app } = await start(t);
  const send = async (payload: string, type = 'application/json') => {
    const response = await app.inject({
      method: 'POST',
      url: '/v1/machines',
      headers: { authorization: `Bearer ${TOKEN}`, 'content-type': type },
      payload,
    });
    return `${response.statusCode} ${errorOf(response.json()).code}`;
  };
  assert.equal(await send('{"name":'), '400 API_INVALID_REQUEST');
  assert.equal(await send('{"name":"x","__proto__":{"a":1}}'), '400 API_INVALID_REQUEST');
  assert.equal(await send('<x/>', 'text/xml'), '400 API_INVALID_REQUEST');
  assert.equal(await send(JSON.stringify({ name: 'x'.repeat(1024 * 1024) })), '413 API_TOO_LARGE');
});

test('a code gives the status; what is not a GodwitError is a 500 without its stack', async (t) => {
  const { app, service } = await start(t);
  const thrown: [Error, number, string][] = [
    [new GodwitError('JOURNAL_BUSY', 'a run is there', { nextAction: 'wait' }), 409, 'JOURNAL_BUSY'],
    [
      new GodwitError('MIGRATION_NO_CAPACITY', 'no room', { nextAction: 'add' }),
      507,
      'MIGRATION_NO_CAPACITY',
    ],
    [new TypeError('x is not a function'), 500, 'INTERNAL'],
  ];
  for (const [error, status, code] of thrown) {
    service.moveMachine = () => Promise.reject(error);
    const reply = await call(app, 'POST', '/v1/machines/pg/move', {});
    assert.equal(reply.status, status);
    assert.equal(errorOf(reply.body).code, code);
    assert.ok(!JSON.stringify(reply.body).includes('server.test.ts'));
  }
});

test('runs are shown without the secrets of their input', async (t) => {
  const { app, service } = await start(t);
  service.machines.set('m_1', machineView({}));
  const moved = await call(app, 'POST', '/v1/machines/pg/move', { target: 'worker-2' });
  assert.equal(moved.status, 202);
  service.runs.push(runView({ id: 'run9', output: { grant: { chapSecret: 'not to be seen' } } }));
  for (const url of ['/v1/runs', '/v1/runs/run9', '/v1/why/pg']) {
    const reply = await call(app, 'GET', url);
    assert.equal(reply.status, 200, url);
    assert.ok(!JSON.stringify(reply.body).includes('not to be seen'), url);
  }
  assert.deepEqual(moved.body.input, { target: 'worker-2', chapSecret: '***' });
});

test('ids of requests and runs come back, harmful ones do not', async (t) => {
  const { app } = await start(t);
  const headers = { authorization: `Bearer ${TOKEN}`, 'x-request-id': 'abc-1', 'godwit-run-id': 'run7' };
  const echoed = await app.inject({ url: '/v1/worker', headers });
  assert.equal(echoed.headers['x-request-id'], 'abc-1');
  assert.equal(echoed.headers['godwit-run-id'], 'run7');
  const replaced = await app.inject({ url: '/v1/worker', headers: { ...headers, 'x-request-id': 'a b"c' } });
  assert.match(String(replaced.headers['x-request-id']), /^[0-9a-f-]{36}$/);
});

test('the calls of another worker: the run id of path and body must agree, an unknown run is null', async (t) => {
  const { app } = await start(t);
  const placement = {
    machineId: 'm_1',
    machineName: 'pg',
    group: null,
    memoryBytes: 0,
    cpus: 0,
    volumeLengthBytes: 0,
    volumeUsedBytes: 0,
  };
  const offer = { sourceWorker: 'worker-2', machine: placement, planned: [] };
  assert.equal((await call(app, 'POST', '/v1/rpc/offers', offer)).body.accepted, true);
  const prepare = {
    runId: 'run1',
    sourceWorker: 'worker-2',
    sourceUrl: 'http://127.0.0.1:2',
    machineId: 'm_1',
    machineName: 'pg',
    config: machineView({}).config,
    placement,
    volume: null,
    startMachine: true,
  };
  const prepared = await call(app, 'PUT', '/v1/rpc/moves/run1', prepare);
  assert.deepEqual([prepared.status, prepared.body.phase], [200, 'prepared']);
  assert.equal((await call(app, 'PUT', '/v1/rpc/moves/run2', prepare)).status, 400);
  assert.equal(
    (await call(app, 'POST', '/v1/rpc/moves/run1/handoff', { freeMap: null })).body.phase,
    'handed-over',
  );
  assert.equal((await call(app, 'POST', '/v1/rpc/moves/run1/cancel')).body.phase, 'forgotten');
  assert.deepEqual((await call(app, 'GET', '/v1/rpc/runs/known')).body, {
    run: { state: 'running', step: 'stop' },
  });
  assert.deepEqual((await call(app, 'GET', '/v1/rpc/runs/other')).body, { run: null });
});

test('the description covers every route: id, summary, parameters, body and reply', async (t) => {
  const { app } = await start(t);
  const made = t.mock.method(app, 'swagger');
  const asked = await app.inject('/openapi.json');
  assert.match(String(asked.headers['content-type']), /^application\/json/);
  const document = asked.json();
  assert.equal((await app.inject('/openapi.json')).body, asked.body);
  assert.equal(made.mock.callCount(), 1, 'who asks again and again costs little: no token is asked for');
  assert.equal(document.openapi, '3.1.0');
  assert.equal(document.info.version, '1.2.3');

  const operationIds = new Set<string>();
  let operations = 0;
  for (const [path, methods] of Object.entries<Record<string, Operation>>(document.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const where = `${method} ${path}`;
      operations++;
      assert.ok(operation.operationId && !operationIds.has(operation.operationId), `${where}: operationId`);
      operationIds.add(operation.operationId);
      assert.ok(operation.summary, `${where}: summary`);
      const inPath = [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]);
      const described = (operation.parameters ?? []).filter((p) => p.in === 'path').map((p) => p.name);
      assert.deepEqual(described, inPath, `${where}: parameters`);
      const ok = Object.keys(operation.responses).filter((status) => /^(2|101$)/.test(status));
      assert.equal(ok.length, 1, `${where}: one good reply`);
      // An upgrade has no body.
      if (ok[0] !== '101')
        assert.ok(Object.values(operation.responses[ok[0]!]!.content)[0]?.schema, `${where}: reply schema`);
      assert.ok(operation.responses['4XX'] && operation.responses['5XX'], `${where}: errors`);
      if (method === 'put') assert.ok(operation.requestBody, `${where}: body`);
    }
  }
  assert.equal(operations, operationIds.size);
  assert.deepEqual(document.paths['/healthz'].get.security, []);
  assert.equal(
    document.paths['/v1/drain'].put.requestBody.content['application/json'].schema.additionalProperties,
    false,
  );
  const described = Object.entries<object>(document.paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
  );
  assert.deepEqual(described.sort(), ROUTES);
});

/** As much of an OpenAPI operation as is looked at. */
type Operation = {
  operationId?: string;
  summary?: string;
  parameters?: { in: string; name: string }[];
  requestBody?: unknown;
  responses: Record<string, { content: Record<string, { schema?: unknown }> }>;
};

/** The whole API; a route that comes or goes shows in docs/endpoints.md. */
const ROUTES = [
  ...['GET /metrics', 'GET /openapi.json'],
  // Streams, which are no rows of a conversation.
  ...['GET /v1/events', 'GET /v1/machines/{ref}/logs', 'GET /v1/machines/{ref}/session'],
  ...Object.values({ ...HEALTH, ...OPERATOR, ...PEER }).map(
    ({ method, path }) => `${method} ${path.replace(/:(\w+)/g, '{$1}')}`,
  ),
].sort();

test('a connection that the system does not hand over ends nobody else', async (t) => {
  const service = new FakeWorkerService('worker-1');
  const app = await createApiServer({ service, token: TOKEN, logger: silentLogger, version: '1' });
  t.after(() => app.close());
  await app.listen({ host: '127.0.0.1', port: 0 });
  app.server.emit('error', Object.assign(new Error('accept EMFILE'), { code: 'EMFILE', syscall: 'accept' }));
  assert.equal((await app.inject({ url: '/healthz' })).statusCode, 200);
});

test('metrics are text of the version that Prometheus reads, and each answer is told with its route, without names', async (t) => {
  const answered: unknown[][] = [];
  const app = await createApiServer({
    ...{ service: new FakeWorkerService('worker-1'), token: TOKEN, logger: silentLogger, version: '1' },
    onAnswered: (method, route, status, durationMs) =>
      answered.push([method, route, status, durationMs >= 0]),
  });
  t.after(() => app.close());
  const headers = { authorization: `Bearer ${TOKEN}` };
  const response = await app.inject({ url: '/metrics', headers });
  assert.equal(response.headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8');
  assert.match(response.body, /^# HELP fake_total .*\nfake_total 1\n$/s);
  await app.inject({ url: '/v1/machines/nobody-has-this', headers });
  await app.inject({ url: '/wp-login.php', headers });
  assert.deepEqual(answered, [
    ['GET', '/metrics', 200, true],
    ['GET', '/v1/machines/:ref', 404, true],
    ['GET', 'none', 404, true],
  ]);
});

test('a trace that comes with a question is in the log beside its run, and one that is none is not', async (t) => {
  const lines: Record<string, unknown>[] = [];
  const logger = { ...silentLogger, debug: (fields: Record<string, unknown>) => lines.push(fields) };
  const app = await createApiServer({
    ...{ service: new FakeWorkerService('worker-1'), token: TOKEN, version: '1' },
    logger: logger as never,
  });
  t.after(() => app.close());
  for (const traceparent of [traceparentOf('run7'), 'ff-not-one']) {
    const headers = { authorization: `Bearer ${TOKEN}`, 'godwit-run-id': 'run7', traceparent };
    assert.equal((await app.inject({ url: '/v1/machines', headers })).statusCode, 200);
  }
  assert.deepEqual(
    lines.map(({ runId, traceId }) => [runId, traceId]),
    [
      ['run7', traceIdOf('run7')],
      ['run7', undefined],
    ],
  );
});
