import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { AttackedProcess, SMALL_BOOK } from '../support/attacked-process.ts';
import { mustEndWell, patient, until } from '../support/patience.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { TestAuthority } from '../support/test-authority.ts';

/*
 * Peers that know the protocol and not our code (test/support/hostile-nbd-peer.py), against a server in a
 * process of its own, in the clear and over TLS, and what an honest client, libnbd, gets meanwhile.
 */

const KIB = 1024;
const MIB = 2 ** 20;
const FILE_BYTES = 1024 * MIB;

type Attacked = {
  process: AttackedProcess;
  place: string;
  /** Of the client's files, for the hostile and for nbdinfo. */
  clientFiles: string[];
  uri: string;
};

async function firstLine(child: ChildProcess): Promise<string> {
  const lines = createInterface(child.stdout!);
  const [line] = (await Promise.race([
    once(lines, 'line'),
    once(child, 'exit').then(([code]) => Promise.reject(new Error(`it ended with ${code}`))),
  ])) as [string];
  return line;
}

/** A file with so many places of data, and holes between them. */
async function serve(t: TestContext, tls: boolean, places: number): Promise<Attacked> {
  const file = join(scratchDir(t), 'disk');
  writeDisk(file, FILE_BYTES, places);
  return serveFile(t, tls, file, FILE_BYTES);
}

/** A sparse file with so many blocks of data in it, as far from each other as can be. */
function writeDisk(file: string, lengthBytes: number, places: number): void {
  const fd = openSync(file, 'w');
  ftruncateSync(fd, lengthBytes);
  for (let place = 0; place < places; place += 1)
    writeSync(fd, Buffer.alloc(4096, 7), 0, 4096, place * (lengthBytes / places));
  closeSync(fd);
}

async function serveFile(t: TestContext, tls: boolean, file: string, lengthBytes: number): Promise<Attacked> {
  const script = fileURLToPath(new URL('../support/nbd-server-process.ts', import.meta.url));
  const args = [script, '--file', file, '--bytes', `${lengthBytes}`, '--book', JSON.stringify(SMALL_BOOK)];
  const authority = tls ? new TestAuthority(scratchDir(t)) : null;
  let clientFiles: string[] = [];
  if (authority !== null) {
    const server = authority.issue('server');
    const client = authority.issue('client');
    clientFiles = [client.certFile, client.keyFile, authority.caFile];
    args.push('--tls', server.certFile, '--tls', server.keyFile, '--tls', authority.caFile);
  }
  const attacked = await AttackedProcess.start(args, SMALL_BOOK, (stop) => t.after(stop));
  const { port } = JSON.parse(attacked.greeting) as { port: number };
  const uri =
    authority === null
      ? `nbd://127.0.0.1:${port}/`
      : `nbds://127.0.0.1:${port}/?tls-certificates=${authority.dir}`;
  return { process: attacked, place: `${port}`, clientFiles, uri };
}

/** The hostile, from when they are all at work until the end of the test or `stop`. */
async function attack(
  t: TestContext,
  server: Attacked,
  kind: string,
  count: number,
): Promise<{ stop: () => void }> {
  const script = fileURLToPath(new URL('../support/hostile-nbd-peer.py', import.meta.url));
  const words = [script, kind, `${count}`, server.place, ...server.clientFiles];
  const child = spawn(findProgram('python3')!, words, { stdio: ['pipe', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  assert.equal(await firstLine(child), 'ready');
  return { stop: () => child.kill('SIGKILL') };
}

/** libnbd gets in, and says what is there. Tries again, as any client does. */
async function honest({ uri }: Attacked): Promise<void> {
  const { stdout } = await until('an honest client to get in', () =>
    promisify(execFile)(findProgram('nbdinfo')!, ['--size', uri], { timeout: patient(60_000) }),
  );
  assert.equal(stdout.trim(), `${FILE_BYTES}`);
}

const skip = requires('python3', 'nbdinfo', 'openssl');
/** What each makes the server hold at least: from then on it is at work. */
const ATTACKS = [
  { kind: 'flush', count: 1, leastBytes: 64 * KIB },
  { kind: 'flush', count: 40, leastBytes: 40 * 64 * KIB },
  { kind: 'read', count: 40, leastBytes: 40 * MIB },
  { kind: 'status', count: 40, leastBytes: 20 * MIB },
  { kind: 'drip', count: 14, leastBytes: 32 * MIB },
];
/** For so long each is looked at once it holds what it can, on any machine: server and peers take both processors. */
const ATTACK_MS = 500;

for (const tls of [false, true]) {
  const name = `${tls ? 'over TLS: ' : ''}whatever peers ask for and leave, the server holds no more than its budget, and serves`;
  test(name, { skip }, async (t) => {
    // Data and holes in turn: what a status has most of.
    const server = await serve(t, tls, FILE_BYTES / (128 * KIB));
    await honest(server);
    for (const { kind, count, leastBytes } of ATTACKS) {
      await server.process.atRest();
      const { stop } = await attack(t, server, kind, count);
      await until(
        `${count} peers (${kind}) are at work`,
        async () => {
          const memory = await server.process.look({ tls });
          return memory.heldBytesMax >= leastBytes && memory.connectionsMax >= count;
        },
        { state: () => server.process.tell() },
      );
      const untilMs = Date.now() + ATTACK_MS;
      for (let served = 0; Date.now() < untilMs || served < 3; served += 1) {
        await honest(server);
        await server.process.look({ tls });
      }
      t.diagnostic(`${count} ${kind}: ${server.process.tell()}`);
      stop();
    }
    await server.process.atRest();
  });
}

/** As many as an address may have in the handshake, and more. */
const CROWDS = [
  { kind: 'silent', tls: false, count: 150 },
  { kind: 'half-tls', tls: true, count: 300 },
  { kind: 'idle', tls: false, count: 128 },
  { kind: 'idle', tls: false, count: 300 },
  { kind: 'idle', tls: true, count: 150 },
];

/** Each waits its turn, beside peers that come as fast as they are turned out. */
const ROUNDS = 3;

for (const { kind, tls, count } of CROWDS) {
  const name = `${count} peers (${kind})${tls ? ' of a server with TLS' : ''} keep nobody out, and cut nobody off in its handshake`;
  test(name, { skip }, async (t) => {
    const server = await serve(t, tls, 1);
    await attack(t, server, kind, count);
    for (let round = 0; round < ROUNDS; round += 1) {
      const startedMs = Date.now();
      // Its first try: whoever goes on with its handshake is let through.
      const size = await mustEndWell(findProgram('nbdinfo')!, ['--size', server.uri]);
      assert.equal(size.trim(), `${FILE_BYTES}`);
      t.diagnostic(`got in after ${Date.now() - startedMs} ms`);
    }
  });
}

test('over TLS: the status of 64 TiB is told in the memory of one answer, also while others ask for it and take none', {
  skip: requires('python3', 'nbdinfo', 'openssl', '/dev/shm'),
}, async (t) => {
  // Few filesystems have files of that length.
  const dir = mkdtempSync('/dev/shm/gw-');
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const [file, lengthBytes, places] = [join(dir, 'disk'), 64 * 2 ** 40, 2 ** 10];
  writeDisk(file, lengthBytes, places);
  const server = await serveFile(t, true, file, lengthBytes);
  await server.process.atRest();
  await attack(t, server, 'status', 8);
  const words = ['--map', '--json', server.uri];
  const map = JSON.parse(await mustEndWell(findProgram('nbdinfo')!, words)) as {
    offset: number;
    length: number;
    type: number;
  }[];
  const last = map.at(-1)!;
  assert.equal(last.offset + last.length, lengthBytes);
  const data = map.filter(({ type }) => type === 0);
  assert.deepEqual(
    data.map(({ offset, length }) => [offset, length]),
    Array.from({ length: places }, (_, place) => [place * (lengthBytes / places), 4096]),
  );
  await server.process.look({ tls: true });
  t.diagnostic(server.process.tell());
});
