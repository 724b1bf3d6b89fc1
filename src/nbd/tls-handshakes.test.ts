import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { TLSSocket, connect as tlsConnect } from 'node:tls';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { readPems, TestAuthority } from '../../test/support/test-authority.ts';
import { TlsHandshakes } from './tls-handshakes.ts';

const skip = requires('openssl');

test('one server is enough for one handshake after the other, and each ends its own connection only', {
  skip,
}, async (t) => {
  const authority = new TestAuthority(scratchDir(t));
  const server = readPems(authority.issue('server'));
  const client = readPems(authority.issue('client'));
  const stranger = readPems(new TestAuthority(scratchDir(t)).issue('client'));
  const optionsOf = ({ ca, certificate, key }: typeof server) => ({ ca, cert: certificate, key });
  let options = { ...optionsOf(server), requestCert: true, rejectUnauthorized: true };
  const handshakes = new TlsHandshakes(() => options);
  const results: (TLSSocket | Error)[] = [];
  let told = Promise.withResolvers<void>();
  const listener = createServer((raw: Socket) => {
    raw.on('error', () => {});
    handshakes.begin(raw, (result) => {
      results.push(result);
      told.resolve();
      if (result instanceof Error) raw.destroy();
      else result.pipe(result);
    });
  });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  t.after(() => listener.close());
  const { port } = listener.address() as AddressInfo;
  const next = async () => {
    await told.promise;
    told = Promise.withResolvers();
    return results.at(-1)!;
  };
  const begin = (who: typeof client, session?: Buffer) => {
    const socket = tlsConnect({
      port,
      host: '127.0.0.1',
      ...optionsOf(who),
      ca: server.ca,
      ...(session && { session }),
    });
    t.after(() => socket.destroy());
    socket.on('error', () => {});
    return socket;
  };

  // Half a handshake that stays, and one that ends.
  const half = connect(port, '127.0.0.1');
  t.after(() => half.destroy());
  half.write(Buffer.from('1603010200', 'hex'));
  const gone = connect(port, '127.0.0.1', () => gone.destroy());
  assert.ok((await next()) instanceof Error);
  let session: Buffer | undefined;
  for (let round = 0; round < 4; round += 1) {
    begin(stranger);
    assert.ok((await next()) instanceof Error);
    const socket = begin(client, session);
    socket.on('session', (bytes) => {
      session = bytes;
    });
    const secured = await next();
    assert.ok(secured instanceof TLSSocket && secured.authorized && !secured.isSessionReused());
    socket.write('back');
    assert.equal(String(await once(socket, 'data')), 'back');
  }
  assert.equal(handshakes.made, 2, 'one of them is in the half handshake');
  assert.equal(results.length, 9);

  options = {
    ...optionsOf(readPems(authority.issue('server'))),
    requestCert: true,
    rejectUnauthorized: true,
  };
  begin(client);
  assert.ok((await next()) instanceof TLSSocket);
  assert.equal(handshakes.made, 3, 'other certificates, another server');
  half.destroy();
  assert.ok((await next()) instanceof Error);
  assert.equal(results.length, 11);
});
