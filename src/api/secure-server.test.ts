import assert from 'node:assert/strict';
import { copyFileSync } from 'node:fs';
import { request as httpRequest, type IncomingMessage, type RequestOptions } from 'node:http';
import { type AddressInfo, connect, createServer } from 'node:net';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { connect as tlsConnect } from 'node:tls';
import { FakeWorkerService, machineView } from '../../test/support/fake-service.ts';
import { patient } from '../../test/support/patience.ts';
import { PeerCalls } from '../../test/support/peer-calls.ts';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { readPems, TestAuthority } from '../../test/support/test-authority.ts';
import { isGodwitError } from '../base/errors.ts';
import { type Logger, silentLogger } from '../base/logger.ts';
import { type TlsClient, type TlsFiles, TlsIdentity, TlsTrust } from '../sys/tls-identity.ts';
import { ApiClient } from './client.ts';
import { createApiServer } from './server.ts';

const TOKEN = 'a-token-of-the-fleet';
const skip = requires('openssl');

type Worker = { service: FakeWorkerService; port: number; close: () => Promise<void> };

async function startWorker(
  t: TestContext,
  files: TlsFiles,
  { optional = false, logger = silentLogger }: { optional?: boolean; logger?: Logger } = {},
): Promise<Worker> {
  const service = new FakeWorkerService('worker-1');
  const tls = { identity: new TlsIdentity(files, silentLogger), optional };
  const app = await createApiServer({ service, token: TOKEN, logger, version: '1', tls });
  await app.listen({ host: '127.0.0.1', port: 0 });
  t.after(() => app.close());
  return { service, port: (app.server.address() as AddressInfo).port, close: () => app.close() };
}

function clientOf(t: TestContext, port: number, tls: TlsClient | undefined, scheme = 'https'): ApiClient {
  const client = new ApiClient({
    url: `${scheme}://127.0.0.1:${port}`,
    token: TOKEN,
    tls,
    timeoutMs: patient(20_000),
  });
  t.after(() => client.close());
  return client;
}

const identityOf = (files: TlsFiles) => new TlsIdentity(files, silentLogger);
const fails =
  (code: string, values: Record<string, unknown> = {}) =>
  (error: unknown) => {
    assert.ok(isGodwitError(error, code), `${code} and not ${String(error)}`);
    for (const [name, value] of Object.entries(values)) assert.equal(error.values[name], value, name);
    assert.ok(error.nextAction.length > 0);
    return true;
  };

/** One request without ApiClient. */
function ask(
  options: RequestOptions,
  body?: string,
): Promise<{ status: number; code: string | undefined; headers: IncomingMessage['headers'] }> {
  return new Promise((resolve, reject) => {
    const headers = { authorization: `Bearer ${TOKEN}`, 'content-type': 'application/json' };
    const request = httpRequest({ host: '127.0.0.1', headers, ...options }, async (response) => {
      let text = '';
      for await (const chunk of response) text += chunk;
      const reply = JSON.parse(text) as { error?: { code: string } };
      resolve({ status: response.statusCode!, code: reply.error?.code, headers: response.headers });
    });
    request.once('error', reject);
    request.end(body);
  });
}

test('a person needs the CA and the token, another worker a certificate too', { skip }, async (t) => {
  const authority = new TestAuthority(scratchDir(t));
  const { port } = await startWorker(t, authority.issue('worker-1'));
  const person = clientOf(t, port, new TlsTrust(authority.caFile));
  assert.equal((await person.worker()).name, 'worker-1');
  assert.deepEqual(await person.healthz(), { ok: true });
  await assert.rejects(
    new PeerCalls(person).run('known'),
    fails('API_CERTIFICATE_REQUIRED', { reason: 'none was shown' }),
  );
  const peer = clientOf(t, port, identityOf(authority.issue('worker-2')));
  assert.deepEqual(await new PeerCalls(peer).run('known'), { state: 'running', step: 'stop' });
  assert.equal((await peer.worker()).name, 'worker-1');
});

test('a route of peers is one however its path is written', { skip }, async (t) => {
  const authority = new TestAuthority(scratchDir(t));
  const { port } = await startWorker(t, authority.issue('worker-1'));
  for (const path of ['/v1/rpc/runs/known', '/v1/%72pc/runs/known', '/%76%31/rp%63/runs/known?x=1']) {
    const { status, code } = await ask({ port, path });
    assert.deepEqual([status, code], [400, 'API_TLS_REQUIRED'], path);
  }
});

test('certificates of another authority, of another day and of another name', { skip }, async (t) => {
  const dir = scratchDir(t);
  const [ours, theirs] = [new TestAuthority(join(dir, 'ours')), new TestAuthority(join(dir, 'theirs'))];
  const worker = await startWorker(t, ours.issue('worker-1'));
  // The client does not believe the worker: nothing is sent.
  const notBelieved = clientOf(t, worker.port, identityOf(theirs.issue('stranger')));
  await assert.rejects(
    new PeerCalls(notBelieved).run('known'),
    fails('API_TLS_REFUSED', { delivered: false }),
  );
  await assert.rejects(
    clientOf(t, worker.port, undefined).worker(),
    fails('API_TLS_REFUSED', { delivered: false }),
  );
  // The worker does not believe the client.
  const forged = { ...theirs.issue('worker-2'), caFile: ours.caFile };
  await assert.rejects(
    new PeerCalls(clientOf(t, worker.port, identityOf(forged))).run('known'),
    fails('API_CERTIFICATE_REQUIRED', { reason: 'UNABLE_TO_VERIFY_LEAF_SIGNATURE' }),
  );
  const expired = ours.issue('worker-3', { expired: true });
  await assert.rejects(
    new PeerCalls(clientOf(t, worker.port, identityOf(expired))).run('known'),
    fails('API_CERTIFICATE_REQUIRED', { reason: 'CERT_HAS_EXPIRED' }),
  );
  assert.deepEqual(worker.service.calls, [], 'none of them came to the service');

  const trust = new TlsTrust(ours.caFile);
  const old = await startWorker(t, expired);
  await assert.rejects(
    clientOf(t, old.port, trust).worker(),
    fails('API_TLS_REFUSED', { reason: 'CERT_HAS_EXPIRED', delivered: false }),
  );
  const elsewhere = await startWorker(t, ours.issue('elsewhere', { addresses: 'IP:192.0.2.1' }));
  await assert.rejects(
    clientOf(t, elsewhere.port, trust).worker(),
    fails('API_TLS_REFUSED', { reason: 'ERR_TLS_CERT_ALTNAME_INVALID', delivered: false }),
  );
});

test('in the clear: only on the own host, and never what is for peers', { skip }, async (t) => {
  const authority = new TestAuthority(scratchDir(t));
  const { port, service } = await startWorker(t, authority.issue('worker-1'));
  const local = clientOf(t, port, undefined, 'http');
  const machine = await local.createMachine({
    name: 'pg',
    // Of several segments, so that not all of it is there when the first byte is looked at.
    config: { ...machineView({}).config, metadata: { long: 'x'.repeat(500_000) } },
    start: true,
  });
  assert.deepEqual(await local.listMachines(), [machine]);
  await assert.rejects(new PeerCalls(local).run('known'), fails('API_TLS_REQUIRED'));

  const other = Object.values(networkInterfaces())
    .flat()
    .find((address) => address?.family === 'IPv4' && !address.internal);
  if (other === undefined) {
    t.diagnostic('this host has no other address than loopback');
    return;
  }
  const before = service.calls.length;
  const refused = await ask(
    { port, method: 'POST', path: '/v1/machines', localAddress: other.address },
    '{"a":1}',
  );
  assert.deepEqual(
    [refused.status, refused.code, refused.headers.connection],
    [400, 'API_TLS_REQUIRED', 'close'],
  );
  assert.equal(service.calls.length, before);
});

test('while a fleet gets its certificates everybody may ask, and who asks without is in the log once', {
  skip,
}, async (t) => {
  const authority = new TestAuthority(scratchDir(t));
  const warnings: object[] = [];
  const logger: Logger = { ...silentLogger, warn: (fields) => void warnings.push(fields) };
  const { port } = await startWorker(t, authority.issue('worker-1'), { optional: true, logger });
  const run = { state: 'running', step: 'stop' };
  assert.deepEqual(await new PeerCalls(clientOf(t, port, undefined, 'http')).run('known'), run);
  assert.deepEqual(await new PeerCalls(clientOf(t, port, new TlsTrust(authority.caFile))).run('known'), run);
  assert.deepEqual(warnings, [{ remoteAddress: '127.0.0.1', code: 'API_TLS_REQUIRED' }]);
});

test('a worker without TLS is told from one whose certificate is not believed; a silent one from both', {
  skip,
}, async (t) => {
  const authority = new TestAuthority(scratchDir(t));
  const service = new FakeWorkerService('worker-1');
  const app = await createApiServer({ service, token: TOKEN, logger: silentLogger, version: '1' });
  await app.listen({ host: '127.0.0.1', port: 0 });
  t.after(() => app.close());
  const trust = new TlsTrust(authority.caFile);
  const client = clientOf(t, (app.server.address() as AddressInfo).port, trust);
  await assert.rejects(client.worker(), (error) => {
    assert.match(String(error), /does not speak TLS/);
    return fails('API_TLS_REFUSED', { delivered: false })(error);
  });

  const silent = createServer((socket) => socket.on('error', () => {}).resume());
  await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
  const url = `https://127.0.0.1:${(silent.address() as AddressInfo).port}`;
  const waiting = new ApiClient({ url, token: TOKEN, tls: trust, timeoutMs: 100 });
  // Before the handshake was over nothing can have been delivered.
  await assert.rejects(waiting.worker(), fails('API_UNREACHABLE', { delivered: false }));
  waiting.close();
  await new Promise((resolve) => silent.close(resolve));
  // Nobody is there, under one address and under several.
  for (const host of ['127.0.0.1', 'localhost']) {
    const nobody = new ApiClient({ url: url.replace('127.0.0.1', host), token: TOKEN, tls: trust });
    await assert.rejects(nobody.worker(), fails('API_UNREACHABLE', { delivered: false }));
  }
});

test('one connection for many questions; new files of either side for the next one', { skip }, async (t) => {
  const authority = new TestAuthority(scratchDir(t));
  const [first, second] = [authority.issue('first'), authority.issue('second')];
  const used = {
    certFile: join(authority.dir, 'used.pem'),
    keyFile: join(authority.dir, 'used.key'),
    caFile: authority.caFile,
  };
  const use = ({ certFile, keyFile }: TlsFiles) => {
    copyFileSync(keyFile, used.keyFile);
    copyFileSync(certFile, used.certFile);
  };
  use(first);
  const { port } = await startWorker(t, used);
  /**
   * The name in the worker's certificate, as a new connection sees it, and whether its session could be
   * resumed.
   */
  let session: Buffer | undefined;
  const look = () =>
    new Promise<{ name: string; resumed: boolean }>((resolve, reject) => {
      const socket = tlsConnect({ host: '127.0.0.1', port, ca: readPems(first).ca, session }, () => {
        const name = String(socket.getPeerCertificate().subject?.CN ?? 'resumed');
        socket.write(`GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`);
        socket.resume();
        socket.once('end', () => resolve({ name, resumed: socket.isSessionReused() }));
      });
      socket.on('session', (ticket) => {
        session = ticket;
      });
      socket.once('error', reject);
    });
  const expired = authority.issue('worker-2', { expired: true });
  const mine = {
    ...used,
    certFile: join(authority.dir, 'mine.pem'),
    keyFile: join(authority.dir, 'mine.key'),
  };
  const good = authority.issue('worker-3');
  copyFileSync(good.certFile, mine.certFile);
  copyFileSync(good.keyFile, mine.keyFile);
  const peer = clientOf(t, port, identityOf(mine));
  await new PeerCalls(peer).run('known');
  assert.deepEqual(await look(), { name: 'first', resumed: false });
  assert.deepEqual(await look(), { name: 'first', resumed: false }, 'every connection proves itself anew');

  use(second);
  assert.deepEqual(await look(), { name: 'second', resumed: false });
  copyFileSync(expired.certFile, mine.certFile);
  copyFileSync(expired.keyFile, mine.keyFile);
  await new PeerCalls(peer).run('known');
  await assert.rejects(
    new PeerCalls(clientOf(t, port, identityOf(mine))).run('known'),
    fails('API_CERTIFICATE_REQUIRED'),
  );
});

test('it closes under idle, silent and half-spoken connections', { skip }, async (t) => {
  const authority = new TestAuthority(scratchDir(t));
  const worker = await startWorker(t, authority.issue('worker-1'));
  const client = clientOf(t, worker.port, new TlsTrust(authority.caFile));
  await client.worker();
  const open = async (text: string) => {
    const socket = connect({ host: '127.0.0.1', port: worker.port });
    socket.on('error', () => {});
    t.after(() => socket.destroy());
    await new Promise((resolve) => socket.once('connect', resolve));
    socket.write(text);
    return new Promise((resolve) => socket.once('close', resolve));
  };
  const ends = [open(''), open('GET /v1/worker HTTP/1.1\r\nhos')];
  // All of them are accepted when a later one is answered.
  await client.worker();
  assert.equal((await ask({ port: worker.port, path: '/v1/worker' })).status, 200);
  worker.service.eventScript = [
    { atMs: 1, worker: 'worker-1', kind: 'run', subject: 'run1', message: 'one', data: {} },
  ];
  const events = client.events();
  assert.equal((await events.next()).value?.message, 'one');
  const ended = events.next();
  await worker.close();
  await Promise.all(ends);
  assert.equal((await ended).done, true);
});
