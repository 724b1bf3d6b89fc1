import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { type TLSSocket, connect as tlsConnect } from 'node:tls';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { HeldDevice } from '../../test/support/held-device.ts';
import { startNbdClient, startNbdServer } from '../../test/support/nbd-pair.ts';
import { RawNbdClient } from '../../test/support/nbd-raw-client.ts';
import { until } from '../../test/support/patience.ts';
import { TcpRelay } from '../../test/support/relay.ts';
import { reached } from '../../test/support/remote-state.ts';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { readPems, TestAuthority } from '../../test/support/test-authority.ts';
import { BufferPool } from '../base/buffer-pool.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { seededRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { TlsIdentity } from '../sys/tls-identity.ts';
import type { NbdServerTls } from './index.ts';
import { COMMAND, encodeInfoRequest, OPTION } from './protocol.ts';

/*
 * What server.test.ts and client.test.ts show of hostile peers in the clear, under TLS, where bytes come in
 * other pieces and buffers.
 */

const KIB = 1024;
const MIB = 2 ** 20;
const skip = requires('openssl');

type Pems = ReturnType<typeof readPems>;

function identities(t: TestContext): { server: NbdServerTls; client: Pems } {
  const authority = new TestAuthority(scratchDir(t));
  const { certificate, key, ca } = readPems(authority.issue('server'));
  const server = { certificate, privateKey: key, clientAuthority: ca };
  return { server, client: readPems(authority.issue('client')) };
}

/** A client in transmission, and the connection below its TLS. */
async function begun(
  address: { host: string; port: number },
  { ca, certificate, key }: Pems,
): Promise<{ raw: RawNbdClient; socket: Socket; secure: TLSSocket }> {
  const socket = connect(address.port, address.host);
  const raw = new RawNbdClient(socket);
  await raw.greet();
  await raw.option(OPTION.startTls);
  const secure = tlsConnect({ socket, ca, cert: certificate, key });
  await once(secure, 'secureConnect');
  raw.switchTo(secure);
  await raw.option(OPTION.go, encodeInfoRequest('disk', []));
  return { raw, socket, secure };
}

test('a server that comes back with another export of the same size is refused for good', {
  skip,
}, async (t) => {
  const { server, client } = identities(t);
  const { ca, certificate, key } = client;
  const device = new MemoryDevice({ lengthBytes: MIB });
  const described = (description: string) => ({ share: { description }, server: { tls: server } });
  const first = await startNbdServer(t, device, described('a disk'));
  const other = await startNbdServer(t, device, described('another disk'));
  let { address } = first;
  const relay = new TcpRelay(() => address);
  await relay.listen();
  t.after(() => relay.close());
  const disk = await startNbdClient(
    t,
    { host: '127.0.0.1', port: relay.port },
    { tls: { mode: 'require', ca, certificate, key } },
  );
  await disk.read(0, Buffer.alloc(4096));
  relay.cut();
  await disk.read(0, Buffer.alloc(4096));
  address = other.address;
  relay.cut();
  await reached(disk, 'failed');
  await assert.rejects(disk.read(0, Buffer.alloc(4096)), (error) =>
    isGodwitError(error, 'NBD_EXPORT_CHANGED'),
  );
});

test('a device that is slow is not the debt of its client', { skip }, async (t) => {
  const clock = new FakeClock();
  const device = new HeldDevice(new MemoryDevice({ lengthBytes: 4 * MIB }));
  const { server: tls, client } = identities(t);
  const { server, address } = await startNbdServer(t, device, { server: { tls, clock } });
  const { raw, socket } = await begun(address, client);
  t.after(() => socket.destroy());
  const reads = 17;
  for (let index = 0; index < reads; index += 1) raw.send({ type: COMMAND.read, lengthBytes: MIB });
  await until('the device to be asked', () => device.asked >= 12);
  for (let turn = 0; turn < 34; turn += 1) {
    clock.advance(5_000);
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.equal(server.connections, 1);
  device.release();
  for (let index = 0; index < reads; index += 1) assert.equal((await raw.reply()).error, 0);
});

test('a buffer of a request that is cut off goes to nobody else before it is whole or gone', {
  skip,
}, async (t) => {
  const pool = new BufferPool(32 * MIB, { checked: true });
  const random = seededRandom(12);
  const device = new MemoryDevice({ lengthBytes: 8 * MIB });
  const { server: tls, client } = identities(t);
  const { server, address } = await startNbdServer(t, device, { server: { tls, pool } });
  const { raw: live, socket } = await begun(address, client);
  t.after(() => socket.destroy());
  for (let round = 0; round < 30; round += 1) {
    const { raw: cut, socket: below } = await begun(address, client);
    const lengthBytes = (1 + random.below(8)) * 64 * KIB;
    if (random.below(3) === 0) {
      for (let index = 0; index < 8; index += 1) cut.send({ type: COMMAND.read, lengthBytes });
    } else {
      cut.send({ type: COMMAND.write, offsetBytes: 4 * MIB, lengthBytes });
      cut.write(Buffer.alloc(1 + random.below(lengthBytes - 1), 0xaa));
    }
    if (random.below(2) === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    const data = Buffer.from(random.bytes(lengthBytes));
    const writing = live.call({ type: COMMAND.write, offsetBytes: 0 }, data);
    below.destroy();
    assert.equal((await writing).error, 0);
    assert.ok((await live.read(0, lengthBytes)).data.equals(data), `round ${round}`);
    pool.check();
  }
  await until('one connection', () => server.connections === 1);
  pool.check();
});

test('the files of a server’s identity may be replaced: each connection gets what is in them then', {
  skip,
}, async (t) => {
  const authority = new TestAuthority(scratchDir(t));
  const files = authority.issue('server');
  const client = readPems(authority.issue('client'));
  const tls: NbdServerTls = { identity: new TlsIdentity(files, silentLogger) };
  const device = new MemoryDevice({ lengthBytes: MIB });
  const { address } = await startNbdServer(t, device, { server: { tls } });
  const subjects: (string | undefined)[] = [];
  for (let round = 0; round < 2; round += 1) {
    const { raw, socket, secure } = await begun(address, client);
    t.after(() => socket.destroy());
    assert.equal((await raw.read(0, 512)).data.length, 512);
    subjects.push(secure.getPeerCertificate().serialNumber);
    authority.issue('server');
  }
  assert.notEqual(subjects[0], subjects[1]);
  const stranger = readPems(new TestAuthority(scratchDir(t)).issue('client'));
  await assert.rejects(begun(address, { ...stranger, ca: client.ca }));
});
