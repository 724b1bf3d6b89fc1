import assert from 'node:assert/strict';
import { test } from 'node:test';
import { machineView } from '../../test/support/fake-service.ts';
import { systemClock } from '../base/clock.ts';
import { type Logger, silentLogger } from '../base/logger.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import { httpTransport, isInClear, PeerClient } from './peer-client.ts';

test('in the clear is what crosses a network without TLS', () => {
  for (const url of ['http://10.0.0.1:4680', 'http://[2001:db8::1]:4680', 'http://db.example'])
    assert.equal(isInClear(url), true, url);
  for (const url of [
    'https://10.0.0.1:4680',
    'http://127.0.0.1:4680',
    'http://[::1]:1',
    'http://localhost:1',
  ])
    assert.equal(isInClear(url), false, url);
});

test('a move whose secret would cross the network in the clear is logged, and no other', async () => {
  const warnings: object[] = [];
  const logger: Logger = { ...silentLogger, warn: (fields) => void warnings.push(fields) };
  const ended = AbortSignal.abort(new Error('enough'));
  const prepare = async (url: string, volume: object | null) => {
    const transport = httpTransport({ name: 'worker-2', url, token: 'x' });
    const peer = new PeerClient({ name: 'worker-2', url, transport, logger, clock: systemClock });
    const { config } = machineView({});
    const request = { runId: 'run1', machineId: 'm_1', config, volume } as PrepareRequest;
    await assert.rejects(peer.prepare(request, { signal: ended }), /enough/);
    peer.close();
  };
  await prepare('http://192.0.2.1:1', null);
  await prepare('http://127.0.0.1:1', {});
  await prepare('https://192.0.2.1:1', {});
  assert.deepEqual(warnings, []);
  await prepare('http://192.0.2.1:1', {});
  assert.deepEqual(warnings, [{ runId: 'run1', peer: 'worker-2', url: 'http://192.0.2.1:1' }]);
});
