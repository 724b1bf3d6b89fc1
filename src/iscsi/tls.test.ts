import assert from 'node:assert/strict';
import { copyFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { testConformance } from '../../test/support/block-conformance.ts';
import { GRANT, initiatorOptions, startInitiator, TARGET_IQN } from '../../test/support/iscsi-pair.ts';
import { patient } from '../../test/support/patience.ts';
import { TcpRelay } from '../../test/support/relay.ts';
import { reached } from '../../test/support/remote-state.ts';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { TestAuthority } from '../../test/support/test-authority.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { seededRandom, systemRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { TlsIdentity } from '../sys/tls-identity.ts';
import { IscsiInitiator } from './initiator.ts';
import { IscsiTarget } from './target.ts';

const MIB = 1024 * 1024;
const HOST = '127.0.0.1';
const skip = requires('openssl');

async function listen(
  t: TestContext,
  device: MemoryDevice,
  identity: TlsIdentity,
  options: { tlsPort?: number; loginTimeoutMs?: number } = {},
): Promise<IscsiTarget> {
  const target = await IscsiTarget.listen({
    host: HOST,
    port: null,
    tls: { port: options.tlsPort ?? 0, identity },
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
    limits: { loginTimeoutMs: options.loginTimeoutMs ?? 15_000 },
  });
  t.after(() => target.close());
  const share = { targetIqn: TARGET_IQN, device, serial: 'volume-1', generation: 3 };
  target.addExport({ ...share, readOnly: !device.writable }).grant(GRANT);
  return target;
}

function identities(t: TestContext): { server: TlsIdentity; client: TlsIdentity; authority: TestAuthority } {
  const authority = new TestAuthority(join(scratchDir(t), 'ca'));
  const identity = (name: string) => new TlsIdentity(authority.issue(name), silentLogger);
  return { server: identity('server'), client: identity('client'), authority };
}

const portals = (port: number, tls: TlsIdentity) => ({ portals: [{ host: HOST, port, tls }] });
const refused = (error: unknown): boolean => isGodwitError(error, 'ISCSI_TLS_REFUSED');

if (skip === false) {
  testConformance('iSCSI over TLS', {
    open: async (t, { lengthBytes, writable, content }) => {
      const { server, client } = identities(t as TestContext);
      const device = new MemoryDevice({ lengthBytes, writable, ...(content === null ? {} : { content }) });
      const target = await listen(t as TestContext, device, server);
      return startInitiator(t as TestContext, 0, { ...portals(target.tlsPort, client), readOnly: !writable });
    },
    runs: 10,
  });
}

test('big transfers over TLS come back as written, and nothing of them is in the clear', {
  skip,
}, async (t) => {
  const { server, client } = identities(t);
  const target = await listen(t, new MemoryDevice({ lengthBytes: 8 * MIB }), server);
  const relay = new TcpRelay({ host: HOST, port: target.tlsPort });
  const seen: Buffer[] = [];
  relay.onBytes = (chunk) => seen.push(Buffer.from(chunk));
  await relay.listen();
  t.after(() => relay.close());
  const initiator = await startInitiator(t, 0, portals(relay.port, client));
  const written = Buffer.from(seededRandom(11).bytes(3 * MIB + 512));
  await initiator.write(1536, written);
  const read = Buffer.alloc(written.length);
  await initiator.read(1536, read);
  assert.ok(read.equals(written));
  const wire = Buffer.concat(seen);
  assert.ok(wire.length > 2 * written.length);
  assert.equal(wire.indexOf(written.subarray(MIB, MIB + 32)), -1);
  assert.equal(wire.indexOf(TARGET_IQN), -1);
});

test('cut under TLS: the connection is made anew and what waited is sent again', { skip }, async (t) => {
  const { server, client } = identities(t);
  const content = seededRandom(5).bytes(4 * MIB);
  const target = await listen(t, new MemoryDevice({ lengthBytes: 4 * MIB, content }), server);
  const relay = new TcpRelay({ host: HOST, port: target.tlsPort });
  await relay.listen();
  t.after(() => relay.close());
  const initiator = await startInitiator(t, 0, portals(relay.port, client));
  const into = Buffer.alloc(4 * MIB);
  for (let round = 0; round < 5; round += 1) {
    into.fill(0);
    const reading = initiator.read(0, into);
    await systemClock.sleep(2);
    relay.cut();
    await reading;
    assert.ok(into.equals(Buffer.from(content)));
  }
  assert.ok(initiator.statistics.reconnects > 0);
});

test('who cannot prove itself is refused at the first connection, on either side', { skip }, async (t) => {
  const { server, client, authority } = identities(t);
  const strangers = new TestAuthority(join(scratchDir(t), 'strangers'));
  const target = await listen(t, new MemoryDevice({ lengthBytes: MIB }), server);
  const attempt = (tls: TlsIdentity, port = target.tlsPort): Promise<IscsiInitiator> =>
    IscsiInitiator.connect(initiatorOptions(0, portals(port, tls)), { timeoutMs: patient(20_000) });
  // Does not trust the target's authority.
  await assert.rejects(attempt(new TlsIdentity(strangers.issue('one'), silentLogger)), refused);
  // Trusts it, and is not trusted.
  const untrusted = { ...strangers.issue('two'), caFile: authority.caFile };
  await assert.rejects(attempt(new TlsIdentity(untrusted, silentLogger)), refused);
  // The target's certificate is of another address.
  const elsewhere = new TlsIdentity(
    authority.issue('elsewhere', { addresses: 'IP:192.0.2.1' }),
    silentLogger,
  );
  const other = await listen(t, new MemoryDevice({ lengthBytes: MIB }), elsewhere);
  await assert.rejects(attempt(client, other.tlsPort), refused);
  assert.equal(target.statistics().sessions, 0);
});

test('in the clear to a TLS port, and TLS to a port in the clear, end in a typed error', {
  skip,
}, async (t) => {
  const { server, client } = identities(t);
  const target = await listen(t, new MemoryDevice({ lengthBytes: MIB }), server);
  await assert.rejects(
    IscsiInitiator.connect(initiatorOptions(target.tlsPort), { timeoutMs: patient(300) }),
    (error) => isGodwitError(error, 'ISCSI_PROTOCOL') || isGodwitError(error, 'ISCSI_CONNECTION_LOST'),
  );
  const plain = await IscsiTarget.listen({
    ...{ host: HOST, port: 0, clock: systemClock, random: systemRandom, logger: silentLogger },
  });
  t.after(() => plain.close());
  const patience = { loginTimeoutMs: patient(200) };
  await assert.rejects(
    IscsiInitiator.connect(initiatorOptions(0, { ...portals(plain.port, client), ...patience }), {
      timeoutMs: patient(500),
    }),
    // The target takes it for a PDU that is longer than any of a login.
    (error) => isGodwitError(error, 'ISCSI_CONNECTION_LOST'),
  );
});

test('one target on both kinds of port; a new certificate is shown to the next connection', {
  skip,
}, async (t) => {
  const { authority, client } = identities(t);
  const [first, second] = [
    authority.issue('first'),
    authority.issue('second', { addresses: 'IP:192.0.2.1' }),
  ];
  const server = new TlsIdentity(first, silentLogger);
  const target = await IscsiTarget.listen({
    ...{ host: HOST, port: 0, tls: { port: 0, identity: server } },
    ...{ clock: systemClock, random: systemRandom, logger: silentLogger },
  });
  t.after(() => target.close());
  const device = new MemoryDevice({ lengthBytes: MIB });
  target.addExport({ targetIqn: TARGET_IQN, device, serial: 'volume-1', generation: 3 }).grant(GRANT);
  await startInitiator(t, target.port);
  const initiator = await startInitiator(t, 0, portals(target.tlsPort, client));
  copyFileSync(second.certFile, first.certFile);
  copyFileSync(second.keyFile, first.keyFile);
  await initiator.read(0, Buffer.alloc(512));
  await assert.rejects(startInitiator(t, 0, portals(target.tlsPort, client)), refused);
});

test('connections that never finish the handshake are few, and end', { skip }, async (t) => {
  const { server, client } = identities(t);
  const target = await listen(t, new MemoryDevice({ lengthBytes: MIB }), server, {
    loginTimeoutMs: patient(200),
  });
  const idle = Array.from({ length: 80 }, () => connect(target.tlsPort, HOST));
  await Promise.all(
    idle.map(
      (socket) =>
        new Promise<void>((resolve) => {
          socket.on('error', () => {});
          socket.resume();
          socket.once('close', () => resolve());
        }),
    ),
  );
  const initiator = await startInitiator(t, 0, portals(target.tlsPort, client));
  assert.equal(initiator.state, 'connected');
  // A half-open handshake does not hold up the end of the target either.
  const late = connect(target.tlsPort, HOST);
  late.on('error', () => {});
  await new Promise<void>((resolve) => late.once('connect', () => resolve()));
  await target.close();
  await reached(initiator, 'lost');
});
