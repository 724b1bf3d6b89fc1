import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { TlsFiles } from '../../src/sys/tls-identity.ts';
import type { HostileTarget } from '../support/hostile-target-process.ts';
import { GRANT, INITIATOR_IQN, TARGET_IQN } from '../support/iscsi-pair.ts';
import { patient } from '../support/patience.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { TestAuthority } from '../support/test-authority.ts';

/*
 * Peers at the socket that know the protocol and not our code (test/fixtures/iscsi_peer.py), against a target in a process of its own: in the clear and
 * over TLS. What they must not reach: another session's bytes, more memory than the budget, and the place of one who holds the secret.
 */

const MIB = 2 ** 20;
const TARGET_PROGRAM = join(import.meta.dirname, '../support/hostile-target-process.ts');
const PEER_PROGRAM = join(import.meta.dirname, '../fixtures/iscsi_peer.py');
/** What docs/iscsi.md promises for all peers together, and the same again for a process that has not been asked for anything yet. */
const BUDGET_BYTES = (128 + 64 * 1.25) * MIB;
const WARMTH_BYTES = 64 * MIB;

class Target {
  readonly process: ChildProcess;
  readonly port: number;
  readonly tls: { cert: string; key: string; ca: string } | null;

  constructor(process: ChildProcess, port: number, tls: TlsFiles | null) {
    this.process = process;
    this.port = port;
    this.tls = tls === null ? null : { cert: tls.certFile, key: tls.keyFile, ca: tls.caFile };
  }

  static async start(
    t: TestContext,
    transport: string,
    options: Partial<HostileTarget> = {},
  ): Promise<Target> {
    let client: TlsFiles | null = null;
    const all: HostileTarget = { lengthBytes: 64 * MIB, ...options };
    if (transport === 'TLS') {
      const authority = new TestAuthority(join(scratchDir(t), 'ca'));
      all.tls = authority.issue('server');
      client = authority.issue('client');
    }
    const child = spawn(process.execPath, [TARGET_PROGRAM, JSON.stringify(all)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.after(() => child.kill('SIGKILL'));
    const [line] = (await once(createInterface(child.stdout!), 'line')) as [string];
    return new Target(child, Number(line), client);
  }

  get alive(): boolean {
    return this.process.exitCode === null && this.process.signalCode === null;
  }

  /** Bytes of memory that the process has now. */
  get residentBytes(): number {
    if (!this.alive) return Number.POSITIVE_INFINITY;
    const status = readFileSync(`/proc/${this.process.pid}/status`, 'utf8');
    return Number(/^VmRSS:\s*(\d+)/m.exec(status)?.[1]) * 1024;
  }
}

/** Runs a program of the peer; `ready` is when it says so, `found` is what it printed at its end. */
function peer(
  t: TestContext,
  target: Target,
  program: string,
  options: object,
): { ready: Promise<void>; found: Promise<Record<string, unknown>> } {
  const words = {
    port: target.port,
    target: TARGET_IQN,
    initiator: INITIATOR_IQN,
    user: GRANT.chap!.user,
    secret: GRANT.chap!.secret,
    ...(target.tls === null ? {} : { tls: target.tls }),
    ...options,
  };
  const child = spawn('python3', [PEER_PROGRAM, program, JSON.stringify(words)], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.after(() => child.kill('SIGKILL'));
  let complaint = '';
  child.stderr.on('data', (bytes) => {
    complaint += bytes;
  });
  const ready = Promise.withResolvers<void>();
  const found = Promise.withResolvers<Record<string, unknown>>();
  createInterface(child.stdout).on('line', (line) => {
    if (line === 'ready') ready.resolve();
    else found.resolve(JSON.parse(line));
  });
  child.once('close', () => {
    const error = new Error(`${program} ended without a word: ${complaint.slice(-2000)}`);
    ready.reject(error);
    found.reject(error);
  });
  for (const { promise } of [ready, found]) promise.catch(() => {});
  return { ready: ready.promise, found: found.promise };
}

/** The most memory that the target had until `end`. */
async function peakBytes(target: Target, end: Promise<unknown>): Promise<number> {
  let over = false;
  void end
    .finally(() => {
      over = true;
    })
    .catch(() => {});
  let peak = 0;
  while (!over && target.alive) {
    peak = Math.max(peak, target.residentBytes);
    await sleep(20);
  }
  assert.ok(target.alive, 'the target is alive');
  return peak;
}

const mib = (bytes: number): string => `${Math.round(bytes / MIB)} MiB`;

for (const transport of ['the clear', 'TLS']) {
  const skip = requires('python3', ...(transport === 'TLS' ? ['openssl'] : []));

  for (const how of ['reset', 'preempt', 'reinstate']) {
    test(`over ${transport}: bytes of a write that ${how} aborted are in nobody else’s`, {
      skip,
    }, async (t) => {
      const target = await Target.start(t, transport);
      const { wrongBytes } = await peer(t, target, 'half_data_out', { how, rounds: 3 }).found;
      assert.equal(wrongBytes, 0);
    });
  }

  const greedy: [string, object][] = [
    ['endless_login', { peers: 8, seconds: 6 }],
    ['pings', { peers: 16, seconds: 6 }],
    ['inquiries', { peers: 16, seconds: 6 }],
    ['unfinished_writes', { peers: 48, seconds: 6 }],
  ];
  for (const [program, options] of greedy) {
    test(`over ${transport}: ${program} costs no more memory than the budget, and others are served`, {
      skip,
    }, async (t) => {
      const target = await Target.start(t, transport, { lengthBytes: 160 * MIB });
      // What a process needs to serve anybody at all is not on the peers' account.
      await peer(t, target, 'logs_in', { seconds: patient(10) }).found;
      const before = target.residentBytes;
      const attack = peer(t, target, program, options).found;
      const peak = await peakBytes(target, attack);
      await attack;
      t.diagnostic(`${mib(before)}, at most ${mib(peak)}`);
      assert.ok(peak - before < BUDGET_BYTES + WARMTH_BYTES, `${mib(before)} grew to ${mib(peak)}`);
      const { waitedMs } = await peer(t, target, 'logs_in', { seconds: patient(10) }).found;
      assert.notEqual(waitedMs, -1);
    });
  }

  const crowds: [string, string, object][] = [
    ['70 silent connections, made anew as they are closed', 'idle', { peers: 70 }],
    ...(transport === 'TLS'
      ? ([['128 half handshakes, made anew as they are closed', 'idle', { peers: 128, hello: true }]] as [
          string,
          string,
          object,
        ][])
      : []),
    ['30 wrong guesses', 'guesses', { peers: 30 }],
  ];
  for (const [name, program, options] of crowds) {
    test(`over ${transport}: ${name}: who holds the secret gets in`, { skip }, async (t) => {
      const target = await Target.start(t, transport);
      const crowd = peer(t, target, program, { ...options, seconds: patient(60) });
      await crowd.ready;
      const waits: number[] = [];
      for (let round = 0; round < 5; round += 1) {
        const { waitedMs } = await peer(t, target, 'logs_in', { seconds: patient(10) }).found;
        assert.notEqual(waitedMs, -1);
        waits.push(Number(waitedMs));
      }
      t.diagnostic(`in after ${waits.join(', ')} ms`);
    });
  }

  test(`over ${transport}: a challenge that comes back is not answered, nor one of who does not know the secret`, {
    skip,
  }, async (t) => {
    const target = await Target.start(t, transport);
    const found = await peer(t, target, 'reflected_challenge', {}).found;
    assert.deepEqual(found, { reflected: '0x201', unknown: '0x201' });
  });

  test(`over ${transport}: a wrong digest in the middle of a Data-Out: nothing is written, nothing acknowledged`, {
    skip,
  }, async (t) => {
    const target = await Target.start(t, transport);
    const found = await peer(t, target, 'bad_digest', {}).found;
    assert.deepEqual(found, { answered: 'closed', changed: false });
  });

  for (const [count, bytes] of [
    [17, MIB],
    [128, 4096],
  ] as const) {
    test(`over ${transport}: a device that hangs is not the peer’s fault: ${count} reads of ${bytes} bytes`, {
      skip,
    }, async (t) => {
      const target = await Target.start(t, transport, {
        latencyMs: 4_000,
        limits: { nopIntervalMs: 400, nopTimeoutMs: 2_000 },
        book: { stallTimeoutMs: 1_000, pressureTimeoutMs: 500 },
      });
      const { answered } = await peer(t, target, 'many_reads', { count, bytes }).found;
      assert.equal(answered, count);
    });
  }
}
