import assert from 'node:assert/strict';
import { copyFileSync, rmSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { connect, createServer } from 'node:tls';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { TestAuthority } from '../../test/support/test-authority.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { type TlsFiles, TlsIdentity } from './tls-identity.ts';

const skip = requires('openssl');

/** A server that says 'hello' and ends. */
async function serve(t: TestContext, identity: TlsIdentity): Promise<number> {
  const server = createServer(identity.serverOptions(), (socket) => {
    socket.on('error', () => {});
    socket.end('hello');
  });
  identity.follow(server);
  server.on('tlsClientError', () => {});
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => server.close());
  return (server.address() as AddressInfo).port;
}

/**
 * What the server said, its certificate's name, and the protocol. Rejects with the failure of the handshake.
 */
function greet(
  identity: TlsIdentity,
  port: number,
): Promise<{ text: string; peer: string; protocol: string }> {
  return new Promise((resolve, reject) => {
    let text = '';
    let peer = '';
    let protocol = '';
    const socket = connect({ host: '127.0.0.1', port, ...identity.clientOptions() }, () => {
      peer = String(socket.getPeerCertificate().subject.CN);
      protocol = String(socket.getProtocol());
    });
    socket.on('data', (chunk) => (text += chunk));
    socket.once('error', reject);
    socket.once('close', () =>
      text === '' ? reject(new Error('closed without a word')) : resolve({ text, peer, protocol }),
    );
  });
}

const load = (files: TlsFiles) => new TlsIdentity(files, silentLogger);
const bad = (code: string, file: string) => (error: unknown) =>
  isGodwitError(error, code) && error.values.file === file;

test('both sides prove themselves, with TLS 1.3', { skip }, async (t) => {
  const authority = new TestAuthority(join(scratchDir(t), 'one'));
  const port = await serve(t, load(authority.issue('server')));
  const { text, peer, protocol } = await greet(load(authority.issue('client')), port);
  assert.deepEqual([text, peer, protocol], ['hello', 'server', 'TLSv1.3']);
});

test('a peer of another authority, or another address, is refused by either side', { skip }, async (t) => {
  const dir = scratchDir(t);
  const [ours, theirs] = [new TestAuthority(join(dir, 'ours')), new TestAuthority(join(dir, 'theirs'))];
  const port = await serve(t, load(ours.issue('server')));
  await assert.rejects(greet(load(theirs.issue('client')), port), /self-signed|unable to/);
  // It trusts the server, and the server does not trust it.
  const stranger = { ...theirs.issue('stranger'), caFile: ours.caFile };
  await assert.rejects(greet(load(stranger), port), /closed without a word|ECONNRESET|alert/);
  const elsewhere = await serve(t, load(ours.issue('elsewhere', { addresses: 'IP:192.0.2.1' })));
  await assert.rejects(greet(load(ours.issue('client')), elsewhere), /altnames/);
});

test('new files are used by the next connection; files that do not fit are not', { skip }, async (t) => {
  const authority = new TestAuthority(join(scratchDir(t), 'one'));
  const [first, second] = [authority.issue('first'), authority.issue('second')];
  const used = {
    certFile: join(authority.dir, 'used.pem'),
    keyFile: join(authority.dir, 'used.key'),
    caFile: first.caFile,
  };
  copyFileSync(first.certFile, used.certFile);
  copyFileSync(first.keyFile, used.keyFile);
  const port = await serve(t, load(used));
  const client = load(authority.issue('client'));
  assert.equal((await greet(client, port)).peer, 'first');
  copyFileSync(second.certFile, used.certFile);
  assert.equal((await greet(client, port)).peer, 'first', 'a certificate without its key');
  copyFileSync(second.keyFile, used.keyFile);
  assert.equal((await greet(client, port)).peer, 'second');
  rmSync(used.keyFile);
  assert.equal((await greet(client, port)).peer, 'second', 'a file is away for a moment');
});

test('what clients will refuse a certificate for is seen beforehand', { skip }, (t) => {
  const authority = new TestAuthority(scratchDir(t));
  const good = load(authority.issue('worker-1', { addresses: 'IP:127.0.0.1,IP:::1' }));
  for (const host of ['127.0.0.1', '::1', '[::1]', 'worker-1']) assert.equal(good.flaw(host), null, host);
  for (const host of ['127.0.0.2', 'worker-2', 'localhost'])
    assert.match(good.flaw(host) ?? '', /does not name/, host);
  assert.match(load(authority.issue('worker-3', { expired: true })).flaw('127.0.0.1') ?? '', /has expired/);
});

test('a bad file is named', { skip }, (t) => {
  const authority = new TestAuthority(join(scratchDir(t), 'one'));
  const good = authority.issue('good');
  const missing = join(authority.dir, 'missing.pem');
  const garbage = join(authority.dir, 'garbage.pem');
  writeFileSync(garbage, 'no PEM at all');
  for (const part of ['certFile', 'keyFile', 'caFile'] as const) {
    assert.throws(() => load({ ...good, [part]: missing }), bad('SYS_TLS_UNREADABLE', missing));
    assert.throws(() => load({ ...good, [part]: garbage }), bad('SYS_TLS_BAD_FILE', garbage));
  }
  const { keyFile } = authority.issue('other');
  assert.throws(() => load({ ...good, keyFile }), bad('SYS_TLS_BAD_FILE', keyFile));
});
