import assert from 'node:assert/strict';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { FakeWorkerService } from '../../test/support/fake-service.ts';
import { asking, type Operation, tryHostileNames } from '../../test/support/hostile-names.ts';
import { silentLogger } from '../base/logger.ts';
import { createApiServer } from './server.ts';

const TOKEN = 'a-token-of-the-fleet';

test('no name that leads elsewhere comes past the edge of any route', async (t) => {
  const called: string[] = [];
  const service = new Proxy(new FakeWorkerService('worker-1'), {
    get(target, name, receiver) {
      const value = Reflect.get(target, name, receiver) as unknown;
      if (typeof value !== 'function') return value;
      called.push(String(name));
      return value.bind(target);
    },
  });
  const app = await createApiServer({ service, token: TOKEN, logger: silentLogger, version: '1.2.3' });
  t.after(() => app.close());
  const document = (await app.inject('/openapi.json')).json() as {
    paths: Record<string, Record<string, Operation>>;
  };
  await app.listen({ host: '127.0.0.1', port: 0 });
  const { port } = app.server.address() as AddressInfo;
  const tried = await tryHostileNames(document.paths, asking(`http://127.0.0.1:${port}`, TOKEN));
  assert.ok(tried.path > 20 && tried.body > 10, JSON.stringify(tried));
  assert.deepEqual(called, []);
});
