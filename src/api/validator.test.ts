import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Type } from 'typebox';
import { isGodwitError } from '../base/errors.ts';
import { CreateMachineRequest, LogsQuery, Name } from '../contract/schemas.ts';
import { strict } from './strict.ts';
import { validatorCompiler } from './validator.ts';

function validate(schema: object, httpPart: string, input: unknown): unknown {
  const validator = validatorCompiler({ schema, httpPart, method: 'POST', url: '/' } as never);
  const result = validator(input) as { value: unknown } | { error: Error };
  if ('error' in result) {
    assert.ok(isGodwitError(result.error, 'API_INVALID_REQUEST'));
    return result.error.message;
  }
  return result.value;
}

const machine = (config: object) =>
  validate(strict(CreateMachineRequest), 'body', { name: 'pg', config: { command: ['x'], ...config } });

test('defaults are filled in, at every depth', () => {
  assert.deepEqual(machine({ health: { kind: 'tcp', port: 5432 } }), {
    name: 'pg',
    start: true,
    config: {
      command: ['x'],
      env: {},
      restart: { policy: 'always', retriesMax: 10 },
      stop: { signal: 'SIGTERM', timeoutMs: 10_000 },
      resources: {},
      network: 'host',
      metadata: {},
      health: {
        kind: 'tcp',
        port: 5432,
        intervalMs: 2_000,
        timeoutMs: 2_000,
        retries: 3,
        startPeriodMs: 60_000,
      },
    },
  });
});

test('what runs may have its kind said, and is as strict then', () => {
  const run = (more: object) =>
    validate(strict(CreateMachineRequest), 'body', {
      name: 'pg',
      config: { run: { kind: 'process', command: ['x'], ...more } },
    });
  assert.deepEqual((run({}) as { config: { run: unknown } }).config.run, {
    kind: 'process',
    command: ['x'],
    env: {},
  });
  assert.equal(run({ image: 'x' }), 'body /config/run: unknown property image');
  assert.equal(run({ kind: 'image' }), 'body /config/run/kind: must be one of process');
});

test('an unknown property is refused by name, at every depth', () => {
  assert.equal(machine({ comand: ['x'] }), 'body /config: unknown property comand');
  assert.equal(machine({ resources: { memory: 1 } }), 'body /config/resources: unknown property memory');
  assert.equal(
    machine({ health: { kind: 'tcp', port: 1, path: '/' } }),
    'body /config/health: unknown property path',
  );
  assert.equal(
    validate(strict(LogsQuery), 'querystring', { line: '1' }),
    'querystring: unknown property line',
  );
});

test('a record takes any property', () => {
  assert.equal(typeof machine({ env: { ANY_THING: 'x' }, metadata: { a: 'b' } }), 'object');
});

test('the message names the place and what is wrong there', () => {
  assert.equal(machine({ command: 'x' }), 'body /config/command: must be array');
  assert.equal(machine({ network: 'bridge' }), 'body /config/network: must be one of host, none');
  assert.equal(
    machine({ health: { kind: 'tcp' } }),
    'body /config/health: must have required properties port',
  );
  assert.equal(
    machine({ health: { kind: 'udp' } }),
    'body /config/health/kind: must be one of exec, tcp, http',
  );
  assert.equal(
    machine({ health: { kind: 'tcp', port: 70000 } }),
    'body /config/health/port: must be <= 65535',
  );
  assert.match(String(validate(strict(CreateMachineRequest), 'body', null)), /^body: must be object/);
});

test('query strings are converted, bodies are not', () => {
  assert.deepEqual(validate(strict(LogsQuery), 'querystring', { lines: '5', follow: 'true' }), {
    lines: 5,
    follow: true,
  });
  assert.equal(
    validate(strict(LogsQuery), 'querystring', { lines: 'many' }),
    'querystring /lines: must be integer',
  );
  assert.equal(
    validate(strict(Type.Object({ n: Type.Integer() })), 'body', { n: '5' }),
    'body /n: must be integer',
  );
});

test('closing a schema leaves the original open', () => {
  const schema = Type.Object({ inner: Type.Object({ a: Type.String() }) });
  strict(schema);
  assert.deepEqual(validate(schema, 'body', { inner: { a: 'x', b: 1 }, c: 2 }), {
    inner: { a: 'x', b: 1 },
    c: 2,
  });
});

test('a bound of a size or a time is said in its unit, and without the path of a schema', () => {
  const schema = Type.Object({
    lengthBytes: Type.Integer({ minimum: 16 * 2 ** 20, maximum: 2 ** 46 }),
    stopTimeoutMs: Type.Optional(Type.Integer({ minimum: 1, maximum: 3_600_000 })),
    count: Type.Optional(Type.Integer({ minimum: 1 })),
    name: Type.Optional(Name),
  });
  const check = (body: object) => validate(schema, 'body', body);
  assert.equal(check({ lengthBytes: 2 ** 20 }), 'the length must be at least 16 MiB');
  assert.equal(check({ lengthBytes: 2 ** 47 }), 'the length must be at most 64 TiB');
  const long = { lengthBytes: 2 ** 30, stopTimeoutMs: 3_600_001 };
  assert.equal(check(long), 'the stop timeout must be at most 1 h');
  assert.equal(check({ lengthBytes: 2 ** 30, count: 0 }), 'body /count: must be >= 1');
  assert.equal(
    check({ lengthBytes: 2 ** 30, name: 'a b' }),
    'the name must be 1 to 63 of a-z, 0-9 and "-", without "-" at its ends',
  );
  assert.deepEqual(check({ lengthBytes: 2 ** 30, name: 'a-b' }), { lengthBytes: 2 ** 30, name: 'a-b' });
  assert.deepEqual(check({ lengthBytes: 2 ** 30 }), { lengthBytes: 2 ** 30 });
});
