import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type TLSSocket, connect as tlsConnect } from 'node:tls';
import { fileURLToPath } from 'node:url';
import { FakeWorkerService } from '../../test/support/fake-service.ts';
import { letPass, patient, until } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { TestAuthority } from '../../test/support/test-authority.ts';
import { silentLogger } from '../base/logger.ts';
import { TlsIdentity } from '../sys/tls-identity.ts';
import type { ApiExhaustion, ApiLimits } from './connection-guard.ts';
import { createApiServer } from './server.ts';

/* Peers that know HTTP and want to stay, at a real socket. */

const TOKEN = 'a-token-of-the-fleet';
const AUTHORIZED = `authorization: Bearer ${TOKEN}\r\n`;

type Place = {
  port: number;
  exhausted: ApiExhaustion[];
  /** Over TLS where the server does. Its end is no error. */
  open: () => Promise<Socket>;
};

async function start(
  t: TestContext,
  limits: Partial<ApiLimits>,
  authority: TestAuthority | null = null,
): Promise<Place> {
  const exhausted: ApiExhaustion[] = [];
  const app = await createApiServer({
    service: new FakeWorkerService('worker-1'),
    token: TOKEN,
    logger: silentLogger,
    version: '1',
    limits,
    onExhausted: (what) => exhausted.push(what),
    tls:
      authority === null
        ? null
        : { identity: new TlsIdentity(authority.issue('worker-1'), silentLogger), optional: false },
  });
  await app.listen({ host: '127.0.0.1', port: 0 });
  t.after(() => app.close());
  const { port } = app.server.address() as AddressInfo;
  const open = async () => {
    const socket: Socket | TLSSocket =
      authority === null
        ? connect(port, '127.0.0.1')
        : tlsConnect({ port, host: '127.0.0.1', rejectUnauthorized: false });
    t.after(() => socket.destroy());
    socket.on('error', () => {});
    const early = once(socket, 'close').then(() => {
      throw new Error('the connection ended before it was there');
    });
    await Promise.race([once(socket, authority === null ? 'connect' : 'secureConnect'), early]);
    return socket;
  };
  return { port, exhausted, open };
}

/** Resolves when the connection is gone, in whatever way. */
function closed(socket: Socket): Promise<void> {
  return socket.closed ? Promise.resolve() : new Promise((gone) => void socket.once('close', () => gone()));
}

/** All that comes until the other side ends the connection. */
async function untilClosed(socket: Socket): Promise<string> {
  let text = '';
  socket.on('data', (bytes) => {
    text += bytes;
  });
  await closed(socket);
  return text;
}

/** The status of one good request on a new connection. */
async function ask({ open }: Place): Promise<string> {
  const socket = await open();
  socket.write(`GET /v1/worker HTTP/1.1\r\nhost: x\r\n${AUTHORIZED}connection: close\r\n\r\n`);
  return (await untilClosed(socket)).split('\r\n')[0]!;
}

/** A byte now and then until the connection is gone. */
function drip(socket: Socket, words = 'x'): void {
  if (socket.closed) return;
  const timer = setInterval(() => socket.write(words), 20);
  socket.once('close', () => clearInterval(timer));
}

const post = (...headers: string[]) =>
  `POST /v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 900000\r\n${headers.join('')}\r\n`;

async function dripsAreEnded(t: TestContext, authority: TestAuthority | null): Promise<void> {
  const ordinary = await start(t, {}, authority);
  // Without the token: an answer, and the end, though the rest of the body never comes.
  const stranger = await ordinary.open();
  stranger.write(post());
  drip(stranger);
  const refusal = await untilClosed(stranger);
  assert.match(refusal, /^HTTP\/1\.1 401 /);
  assert.match(refusal, /connection: close/i);
  // With it: no longer than a body may take.
  const bodies = await start(t, { bodyTimeoutMs: letPass(300) }, authority);
  const friend = await bodies.open();
  friend.write(post(AUTHORIZED));
  drip(friend);
  await untilClosed(friend);
  assert.match(await ask(bodies), / 200 /);
  // Time enough for a handshake on a slow host.
  const heads = await start(t, { headTimeoutMs: letPass(3_000) }, authority);
  const [head, silent] = [await heads.open(), await heads.open()];
  head.write('GET /v1/worker HTTP/1.1\r\nx-long: ');
  drip(head);
  await Promise.all([untilClosed(head), untilClosed(silent)]);
  // A head that never ends, after a request that was good.
  const idlers = await start(t, { idleTimeoutMs: letPass(300) }, authority);
  const second = await idlers.open();
  second.write(`GET /v1/worker HTTP/1.1\r\nhost: x\r\n${AUTHORIZED}\r\n`);
  await once(second, 'data');
  second.write('GET /v1/worker HTTP/1.1\r\nx-long: ');
  drip(second);
  await untilClosed(second);
}

test('a body, a head or a silence that has no end ends', (t) => dripsAreEnded(t, null));

const skip = requires('openssl');
test('the same over TLS, and half of a handshake', { skip }, async (t) => {
  const authority = new TestAuthority(scratchDir(t));
  await dripsAreEnded(t, authority);
  const { port } = await start(t, { headTimeoutMs: letPass(300) }, authority);
  const half = connect(port, '127.0.0.1');
  half.on('error', () => {});
  // A record that says that 512 bytes of a handshake follow (RFC 8446, section 5.1).
  half.write(Buffer.from('1603010200', 'hex'));
  drip(half);
  await untilClosed(half);
});

test('a request that is refused keeps its connection when it came whole', async (t) => {
  const { open } = await start(t, {});
  const socket = await open();
  socket.write(`${post()}${'x'.repeat(900_000)}`);
  const [answer] = (await once(socket, 'data')) as [Buffer];
  assert.match(String(answer), /^HTTP\/1\.1 401 /);
  assert.doesNotMatch(String(answer), /connection: close/i);
  socket.write(`GET /v1/worker HTTP/1.1\r\nhost: x\r\n${AUTHORIZED}connection: close\r\n\r\n`);
  assert.match(await untilClosed(socket), /^HTTP\/1\.1 200 /);
});

/** Holds `count` connections to the place that say `words`, and opens another for each that ends. */
function hold(t: TestContext, { port }: Place, count: number, words: string | Buffer): void {
  let over = false;
  t.after(() => {
    over = true;
  });
  const open = () => {
    if (over) return;
    const socket = connect(port, '127.0.0.1');
    t.after(() => socket.destroy());
    socket.on('error', () => {});
    socket.on('connect', () => socket.write(words));
    socket.on('close', () => setTimeout(open, 10));
  };
  for (let index = 0; index < count; index += 1) open();
}

async function friendsGetIn(t: TestContext, authority: TestAuthority | null, words: string): Promise<void> {
  const place = await start(t, { connectionsPerAddressMax: 64, admissionsPerSecond: 50 }, authority);
  const { exhausted } = place;
  hold(t, place, 100, words);
  await until('somebody to be dropped', () => exhausted.length > 0);
  for (let round = 0; round < 3; round += 1) assert.match(await ask(place), / 200 /, `round ${round}`);
  assert.ok(exhausted[0]!.evicted > 0);
  assert.equal(exhausted[0]!.busiestAddress, '127.0.0.1');
}

test('who has the token gets in beside connections that say nothing, or half of something', async (t) => {
  await friendsGetIn(t, null, '');
  // Half of a head: who sends a whole one without the token is gone at once, and holds no place.
  await friendsGetIn(t, null, 'GET /v1/worker HTTP/1.1\r\nx-long: ');
});

test('who has the token gets in over TLS beside half handshakes', { skip }, async (t) => {
  await friendsGetIn(t, new TestAuthority(scratchDir(t)), '\x16\x03\x01\x02\x00');
});

test('connections at work are not dropped for others, and who waits for their place waits for a while', async (t) => {
  const place = await start(t, { connectionsPerAddressMax: 4, waitMsMax: letPass(300) });
  const streams: Socket[] = [];
  for (let index = 0; index < 4; index += 1) {
    const stream = await place.open();
    stream.write(`GET /v1/events HTTP/1.1\r\nhost: x\r\n${AUTHORIZED}\r\n`);
    await once(stream, 'data');
    streams.push(stream);
  }
  const fifth = await place.open();
  assert.equal(await untilClosed(fifth), '');
  assert.equal(place.exhausted[0]?.refused, 1);
  assert.ok(streams.every((stream) => !stream.closed));
  const sixth = ask(place);
  streams[0]!.destroy();
  assert.match((await sixth) || (await ask(place)), / 200 /);
});

test('who asks on and on without reading an answer is dropped', async (t) => {
  const place = await start(t, {});
  const socket = await place.open();
  socket.pause();
  const request = 'GET /v1/worker HTTP/1.1\r\nhost: x\r\n\r\n';
  socket.write(request.repeat(10_000));
  // It never reads, and learns of the end by writing.
  drip(socket, request);
  await closed(socket);
});

test('an answer that nobody takes is not kept', async (t) => {
  const place = await start(t, { stallTimeoutMs: letPass(300), bodyTimeoutMs: patient(60_000) });
  const socket = await place.open();
  socket.pause();
  for (let index = 0; index < 2_000 && !socket.destroyed; index += 1) {
    socket.write(`GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n`);
    await sleep(1);
  }
  drip(socket);
  await closed(socket);
  assert.match(await ask(place), / 200 /);
});

const bash = requires('bash');
test('connections leave descriptors to the process, whoever wants them', { skip: bash }, async (t) => {
  const script = fileURLToPath(new URL('../../test/support/api-server-process.ts', import.meta.url));
  const command = `ulimit -n 200 && exec "$0" ${script} ${TOKEN}`;
  const child = spawn('bash', ['-c', command, process.execPath], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  const said: { port?: number; controlPort?: number; exhausted?: ApiExhaustion }[] = [];
  const lines = createInterface(child.stdout);
  lines.on('line', (line) => said.push(JSON.parse(line)));
  while (said.length === 0) await once(lines, 'line');
  const { port, controlPort } = said[0]!;
  const open = async () => {
    const socket = connect(port!, '127.0.0.1');
    t.after(() => socket.destroy());
    socket.on('error', () => {});
    await once(socket, 'connect');
    return socket;
  };
  const place = { port: port!, exhausted: [], open };
  // Each of them asks with the token and keeps the connection: nobody is easier to drop than another.
  hold(t, place, 400, `GET /v1/events HTTP/1.1\r\nhost: x\r\n${AUTHORIZED}\r\n`);
  while (!said.some(({ exhausted }) => exhausted !== undefined)) await once(lines, 'line');
  const answer = await fetch(`http://127.0.0.1:${controlPort}/`);
  const { descriptors } = (await answer.json()) as { descriptors: number };
  assert.ok(descriptors <= 160, `${descriptors} of 200 are in use`);
});
