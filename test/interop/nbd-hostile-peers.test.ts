import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { SERVER_LIMITS } from '../../src/nbd/limits.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { TestAuthority } from '../support/test-authority.ts';

/*
 * Peers that know the protocol and not our code (test/support/hostile-nbd-peer.py), against a server in a process of its own, in the clear and over TLS, and what an honest client,
 * libnbd, gets meanwhile.
 */

const MIB = 2 ** 20;
const FILE_BYTES = 1024 * MIB;
/** Buffers that are kept for later (32 MiB), and what V8 has not collected yet. */
const ALLOWANCE_BYTES = 96 * MIB;

type Attacked = {
  pid: number;
  place: string;
  /** Of the client's files, for the hostile and for nbdinfo. */
  clientFiles: string[];
  uri: string;
  residentBytes: () => number;
};

function residentBytesOf(pid: number): number {
  const [, kib] = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))!;
  return Number(kib) * 1024;
}

async function firstLine(child: ChildProcess): Promise<string> {
  const lines = createInterface(child.stdout!);
  const [line] = (await Promise.race([
    once(lines, 'line'),
    once(child, 'exit').then(([code]) => Promise.reject(new Error(`it ended with ${code}`))),
  ])) as [string];
  return line;
}

async function serve(t: TestContext, tls: boolean): Promise<Attacked> {
  const dir = scratchDir(t);
  const file = join(dir, 'disk');
  const fd = openSync(file, 'w');
  ftruncateSync(fd, FILE_BYTES);
  // Data and holes in turn: what a status has most of.
  for (let at = 0; at < FILE_BYTES; at += 128 * 1024) writeSync(fd, Buffer.alloc(4096, 7), 0, 4096, at);
  closeSync(fd);
  const script = fileURLToPath(new URL('../support/nbd-server-process.ts', import.meta.url));
  const args = [script, '--file', file, '--bytes', `${FILE_BYTES}`];
  const authority = tls ? new TestAuthority(scratchDir(t)) : null;
  let clientFiles: string[] = [];
  if (authority !== null) {
    const server = authority.issue('server');
    const client = authority.issue('client');
    clientFiles = [client.certFile, client.keyFile, authority.caFile];
    args.push('--tls', server.certFile, '--tls', server.keyFile, '--tls', authority.caFile);
  }
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  const { port } = JSON.parse(await firstLine(child)) as { port: number };
  const pid = child.pid!;
  const uri =
    authority === null
      ? `nbd://127.0.0.1:${port}/`
      : `nbds://127.0.0.1:${port}/?tls-certificates=${authority.dir}`;
  return { pid, place: `${port}`, clientFiles, uri, residentBytes: () => residentBytesOf(pid) };
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

/** libnbd gets in, and says what is there. Tries again, as any client does, until `tries` are over. */
async function honest({ uri }: Attacked, tries = 20): Promise<void> {
  for (let left = tries; ; left -= 1) {
    try {
      const { stdout } = await promisify(execFile)(findProgram('nbdinfo')!, ['--size', uri], {
        timeout: 60_000,
      });
      assert.equal(stdout.trim(), `${FILE_BYTES}`);
      return;
    } catch (error) {
      if (left === 1) throw error;
      await sleep(50);
    }
  }
}

/** The most that the server holds while `forMs` go by, and somebody honest is served. */
async function mostWhileServing(server: Attacked, forMs: number): Promise<number> {
  const untilMs = Date.now() + forMs;
  let most = 0;
  let served = 0;
  while (Date.now() < untilMs || served < 3) {
    most = Math.max(most, server.residentBytes());
    await honest(server);
    served += 1;
    most = Math.max(most, server.residentBytes());
    await sleep(50);
  }
  return most;
}

const skip = requires('python3', 'nbdinfo', 'openssl');
const BUDGETS = [
  // One connection holds what one may hold.
  { kind: 'flush', count: 1, budgetBytes: SERVER_LIMITS.connectionBytesMax },
  { kind: 'flush', count: 60, budgetBytes: budgetOf(60) },
  { kind: 'read', count: 90, budgetBytes: budgetOf(90) },
  { kind: 'status', count: 60, budgetBytes: budgetOf(60) },
  { kind: 'drip', count: 14, budgetBytes: budgetOf(14) },
];

/** What docs/nbd.md promises for so many connections. */
function budgetOf(connections: number): number {
  return SERVER_LIMITS.serverBytesMax + connections * SERVER_LIMITS.connectionBytesReserved;
}

for (const tls of [false, true]) {
  for (const { kind, count, budgetBytes } of BUDGETS) {
    const name = `${count} peers (${kind})${tls ? ' over TLS' : ''} make the server hold no more than its budget`;
    test(name, { skip }, async (t) => {
      const server = await serve(t, tls);
      await honest(server);
      const beforeBytes = server.residentBytes();
      await attack(t, server, kind, count);
      const grownBytes = (await mostWhileServing(server, 8_000)) - beforeBytes;
      t.diagnostic(`grew by ${Math.round(grownBytes / MIB)} MiB`);
      const mostBytes = budgetBytes + ALLOWANCE_BYTES;
      assert.ok(grownBytes <= mostBytes, `${grownBytes / MIB} MiB and not ${mostBytes / MIB} MiB`);
    });
  }
}

for (const { kind, tls } of [
  { kind: 'silent', tls: false },
  { kind: 'silent', tls: true },
  { kind: 'half-tls', tls: true },
  { kind: 'idle', tls: false },
]) {
  test(`150 peers (${kind})${tls ? ' of a server with TLS' : ''} keep nobody out`, { skip }, async (t) => {
    const server = await serve(t, tls);
    const peers = { ...server, clientFiles: kind === 'idle' ? server.clientFiles : [] };
    await attack(t, peers, kind, 150);
    for (let round = 0; round < 5; round += 1) {
      const startedMs = Date.now();
      await honest(server, 40);
      t.diagnostic(`got in after ${Date.now() - startedMs} ms`);
    }
  });
}
