import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, type Socket, connect as tcpConnect } from 'node:net';
import { test } from 'node:test';
import { createServer, type TLSSocket, connect as tlsConnect } from 'node:tls';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { readPems, TestAuthority } from '../../test/support/test-authority.ts';
import { startReading, stopReading } from './stopped-reads.ts';

const BYTES = 16 * 1024;

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

test('over TLS nothing more comes together once reading is stopped, and all of it comes afterwards', {
  skip: requires('openssl'),
}, async (t) => {
  const { ca, certificate, key } = readPems(new TestAuthority(scratchDir(t)).issue('server'));
  const server = createServer({ cert: certificate, key, minVersion: 'TLSv1.3' });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  const { port } = server.address() as AddressInfo;
  const raw: Socket = tcpConnect(port, '127.0.0.1');
  const client = tlsConnect({ socket: raw, ca, host: '127.0.0.1' });
  t.after(() => client.destroy());
  const [socket] = (await once(server, 'secureConnection')) as [TLSSocket];
  t.after(() => socket.destroy());
  let receivedBytes = 0;
  socket.on('data', (bytes: Buffer) => {
    receivedBytes += bytes.length;
  });
  const send = () => new Promise<void>((resolve) => client.write(Buffer.alloc(BYTES, 1), () => resolve()));
  for (let round = 1; round <= 3; round += 1) {
    await send();
    while (receivedBytes < BYTES * (2 * round - 1)) await turns(1);
    stopReading(socket);
    await send();
    await turns(200);
    assert.deepEqual([receivedBytes, socket.readableLength], [BYTES * (2 * round - 1), 0]);
    startReading(socket);
    while (receivedBytes < BYTES * 2 * round) await turns(1);
  }
});
