import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { seededRandom } from '../../src/base/random.ts';
import type { NbdClient, NbdClientOptions } from '../../src/nbd/index.ts';
import { startNbdClient } from '../support/nbd-pair.ts';
import { type NbdProgram, startQemuNbd } from '../support/nbd-programs.ts';
import { STRIPED_BYTES, StripedWriters } from '../support/nbd-stripes.ts';
import { letPass, NotYet, until } from '../support/patience.ts';
import { TcpRelay } from '../support/relay.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { testSeed } from '../support/seed.ts';
import { readPems, TestAuthority } from '../support/test-authority.ts';

/**
 * The NBD client on a bad network, while writers and readers check every byte (nbd-stripes.ts). Whatever
 * happens in between, every call ends well, every byte is right, and nothing stays behind in a queue. At the
 * end the whole disk is compared. Recovery is from the end of the trouble to the next answer. The server is
 * qemu-nbd: nbdkit 1.32 aborts when a connection goes away under several requests.
 */
const QEMU = requires('qemu-nbd');
const LONG = process.env.GODWIT_LONG === '1';
const ROUNDS = LONG ? 40 : 6;
const SEED = testSeed();

/** Short times, so that what is silent is noticed while the test runs. */
const IMPATIENT = {
  keepAliveIntervalMs: letPass(40),
  keepAliveTimeoutMs: letPass(80),
  requestTimeoutMs: letPass(160),
  handshakeTimeoutMs: letPass(500),
};

async function setUp(
  t: TestContext,
  relay: TcpRelay,
  connections: number,
  options: Partial<NbdClientOptions> = {},
): Promise<{ client: NbdClient; workload: StripedWriters }> {
  await relay.listen();
  t.after(() => relay.close());
  const address = { host: '127.0.0.1', port: relay.port };
  const client = await startNbdClient(t, address, { exportName: '', connections, ...IMPATIENT, ...options });
  return { client, workload: new StripedWriters(client, SEED) };
}

function fileServer(t: TestContext, dir: string): Promise<NbdProgram> {
  return startQemuNbd(t, join(dir, 's'), '-f', 'raw', '-x', '', join(dir, 'disk'));
}

const troubles: Record<string, (relay: TcpRelay) => Promise<void>> = {
  cut: async (relay) => relay.cut(),
  'reset of every new connection': async (relay) => {
    const { accepted } = relay;
    relay.refuse();
    await until('two connections that are reset', () => relay.accepted >= accepted + 2);
  },
  'stall, shorter than the time-outs': async (relay) => {
    relay.stall();
    await systemClock.sleep(letPass(40));
  },
  'half-open connections, given up and made anew': async (relay) => {
    const { accepted } = relay;
    relay.stall();
    await until('the next connections', () => relay.accepted >= accepted + 2);
    // What hung stays behind: only connections from now on go through.
    relay.cut();
  },
};

for (const [name, trouble] of Object.entries(troubles)) {
  test(`${name}: nothing lost, nothing stuck`, { skip: QEMU }, async (t) => {
    const dir = scratchDir(t);
    writeFileSync(join(dir, 'disk'), Buffer.alloc(STRIPED_BYTES));
    const { path } = await fileServer(t, dir);
    const bridge = await tcpToUnix(t, path);
    const relay = new TcpRelay(bridge);
    const { client, workload } = await setUp(t, relay, 2);
    const recoveriesMs: number[] = [];
    for (let round = 0; round < ROUNDS; round += 1) {
      await workload.progress(20);
      await trouble(relay);
      relay.resume();
      const startMs = systemClock.monotonicMs();
      await workload.progress(1);
      recoveriesMs.push(Math.round(systemClock.monotonicMs() - startMs));
    }
    if (name.startsWith('stall')) relay.cut();
    await workload.progress(20);
    await workload.finish();
    t.diagnostic(`recovery ${recoveriesMs.join(', ')} ms; ${client.statistics.replayed} requests sent again`);
  });
}

test('cuts in the middle of replies, and garbage in place of the greeting', { skip: QEMU }, async (t) => {
  const dir = scratchDir(t);
  writeFileSync(join(dir, 'disk'), Buffer.alloc(STRIPED_BYTES));
  const { path } = await fileServer(t, dir);
  const random = seededRandom(SEED);
  let isOver = false;
  const bridge = await tcpToUnix(t, path, () => {
    if (isOver) return null;
    if (random.below(4) === 0) return { afterBytes: 0, action: 'garbage' };
    return { afterBytes: 200_000 + random.below(3_000_000), action: 'cut' };
  });
  const { client, workload } = await setUp(t, new TcpRelay(bridge), 1);
  for (let round = 0; round < ROUNDS; round += 1) await workload.progress(60);
  isOver = true;
  await workload.finish();
  t.diagnostic(
    `${client.statistics.reconnects} reconnections, ${client.statistics.replayed} requests sent again`,
  );
});

// Without TLS nothing in the protocol could tell a changed byte of data from the right one.
test('garbage anywhere inside of TLS is noticed: the connection goes, the data does not', {
  skip: QEMU || requires('openssl'),
}, async (t) => {
  const dir = scratchDir(t);
  const { ca } = readPems(new TestAuthority(dir).issue('server'));
  writeFileSync(join(dir, 'disk'), Buffer.alloc(STRIPED_BYTES));
  const credentials = `tls-creds-x509,id=tls0,endpoint=server,dir=${dir},verify-peer=no`;
  const tlsArguments = ['--object', credentials, '--tls-creds', 'tls0', '-f', 'raw', '-x', ''];
  const { path } = await startQemuNbd(t, join(dir, 's'), ...tlsArguments, join(dir, 'disk'));
  const random = seededRandom(SEED);
  let isOver = false;
  const bridge = await tcpToUnix(t, path, () =>
    isOver ? null : { afterBytes: 200_000 + random.below(3_000_000), action: 'garbage' },
  );
  const tls = { mode: 'require', ca } as const;
  const { client, workload } = await setUp(t, new TcpRelay(bridge), 1, { tls });
  for (let round = 0; round < ROUNDS; round += 1) await workload.progress(60);
  isOver = true;
  await workload.finish();
  t.diagnostic(
    `${client.statistics.reconnects} reconnections, ${client.statistics.replayed} requests sent again`,
  );
});

test('a server that is killed and started again: nothing lost, nothing stuck', {
  skip: QEMU,
}, async (t) => {
  const dir = scratchDir(t);
  writeFileSync(join(dir, 'disk'), Buffer.alloc(STRIPED_BYTES));
  let server = await fileServer(t, dir);
  const client = await startNbdClient(t, server, { exportName: '', connections: 3, ...IMPATIENT });
  const workload = new StripedWriters(client, SEED);
  for (let round = 0; round < ROUNDS; round += 1) {
    await workload.progress(20);
    await server.stop(round % 3 === 2 ? 'SIGTERM' : 'SIGKILL');
    await until('the client to miss it', () => client.state !== 'connected' || new NotYet(client.state));
    assert.notEqual(client.state, 'failed');
    server = await fileServer(t, dir);
    await workload.progress(1);
  }
  await workload.finish();
});

type Sabotage = { afterBytes: number; action: 'cut' | 'garbage' };

/**
 * A TCP port in front of a Unix socket. With `sabotage` the answers of each connection go through up to a
 * number of bytes; then it is cut, or garbage stands in the place of what follows.
 */
async function tcpToUnix(
  t: TestContext,
  path: string,
  sabotage?: () => Sabotage | null,
): Promise<{ host: string; port: number }> {
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    const plan = sabotage?.() ?? null;
    const upstream = connect({ path });
    let passedBytes = 0;
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        sockets.delete(socket);
        client.destroy();
        upstream.destroy();
      });
    }
    client.on('data', (bytes) => void upstream.write(bytes));
    upstream.on('data', (bytes: Buffer) => {
      const goodBytes = plan === null ? bytes.length : Math.max(0, plan.afterBytes - passedBytes);
      passedBytes += bytes.length;
      if (goodBytes < bytes.length && plan?.action === 'cut') client.end(bytes.subarray(0, goodBytes));
      else client.write(bytes.fill(0x5a, Math.min(goodBytes, bytes.length)));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return { host: '127.0.0.1', port: (server.address() as { port: number }).port };
}
