import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { TlsFiles } from '../../src/sys/tls-identity.ts';
import { AttackedProcess, SMALL_BOOK } from '../support/attacked-process.ts';
import type { HostileTarget } from '../support/hostile-target-process.ts';
import { GRANT, INITIATOR_IQN, TARGET_IQN } from '../support/iscsi-pair.ts';
import { type Attack, iscsiPeer } from '../support/iscsi-peer.ts';
import { patient, until } from '../support/patience.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { TestAuthority } from '../support/test-authority.ts';
import type { Memory } from '../support/watched-book.ts';

/*
 * Peers at the socket that know the protocol and not our code (test/fixtures/iscsi_peer.py), against a target
 * in a process of its own: in the clear and over TLS. What they must not reach: another session's bytes, more
 * memory than the budget, and the place of one who holds the secret. One target for all of them: what one
 * kind of peer left behind would be found by the next.
 */

const MIB = 2 ** 20;
const TARGET_PROGRAM = join(import.meta.dirname, '../support/hostile-target-process.ts');

class Target {
  readonly process: AttackedProcess;
  readonly tls: TlsFiles | null;

  private constructor(process: AttackedProcess, tls: TlsFiles | null) {
    this.process = process;
    this.tls = tls;
  }

  static async start(t: TestContext, transport: string, options: HostileTarget): Promise<Target> {
    let client: TlsFiles | null = null;
    const all = { ...options };
    if (transport === 'TLS') {
      const authority = new TestAuthority(join(scratchDir(t), 'ca'));
      all.tls = authority.issue('server');
      client = authority.issue('client');
    }
    const args = [TARGET_PROGRAM, JSON.stringify(all)];
    return new Target(await AttackedProcess.start(args, options.book ?? {}, (stop) => t.after(stop)), client);
  }

  get port(): number {
    return Number(this.process.greeting);
  }

  look(): Promise<Memory> {
    return this.process.look({ tls: this.tls !== null });
  }
}

function peer(t: TestContext, { port, tls }: Target, program: string, options: object): Attack {
  const target = { port, targetIqn: TARGET_IQN, initiatorIqn: INITIATOR_IQN, chap: GRANT.chap!, tls };
  return iscsiPeer(t, target, program, options);
}

/** Who holds the secret logs in and reads a block, so many times: the waits in milliseconds. */
async function served(t: TestContext, target: Target, rounds = 1): Promise<number[]> {
  const found = await peer(t, target, 'logs_in', { rounds, seconds: patient(10) }).found;
  const { waitsMs, vain } = found;
  assert.ok(!(waitsMs as number[]).includes(-1), 'who holds the secret gets in');
  assert.equal(vain, 0, 'and is not cut off in its login');
  return waitsMs as number[];
}

/**
 * What each makes the target hold at least, from when on it is at work; of some the limits of the protocol
 * come before the memory.
 */
const GREEDY = [
  { program: 'endless_login', peers: 8, leastBytes: 0 },
  { program: 'pings', peers: 16, leastBytes: 2 * MIB },
  { program: 'inquiries', peers: 16, leastBytes: 0 },
  { program: 'verifies', peers: 16, leastBytes: 0 },
  { program: 'unfinished_writes', peers: 40, leastBytes: 16 * MIB },
];
/** For so long each is looked at once it holds what it can, on any machine: target and peers take both processors. */
const ATTACK_MS = 500;

const CROWDS: { name: string; program: string; options: object; onlyTls?: boolean }[] = [
  { name: '70 silent connections, made anew as they are closed', program: 'idle', options: { peers: 70 } },
  { name: '300 silent connections, made anew as they are closed', program: 'idle', options: { peers: 300 } },
  ...[128, 300].map((peers) => ({
    name: `${peers} half handshakes, made anew as they are closed`,
    program: 'idle',
    options: { peers, hello: true },
    onlyTls: true,
  })),
  { name: '30 wrong guesses', program: 'guesses', options: { peers: 30 } },
];

for (const transport of ['the clear', 'TLS']) {
  const skip = requires('python3', ...(transport === 'TLS' ? ['openssl'] : []));

  test(`over ${transport}: hostile peers get nobody’s bytes, no memory and nobody’s place`, {
    skip,
  }, async (t) => {
    const target = await Target.start(t, transport, { lengthBytes: 160 * MIB, book: SMALL_BOOK });
    const part = (name: string, work: (t: TestContext) => Promise<void>): Promise<void> =>
      t.test(name, async (t) => {
        await work(t);
        // Nothing is held of who is gone.
        await target.process.atRest();
      });
    await served(t, target);
    await target.process.atRest();

    for (const how of ['reset', 'preempt', 'reinstate']) {
      await part(`bytes of a write that ${how} aborted are in nobody else’s`, async (t) => {
        const { wrongBytes } = await peer(t, target, 'half_data_out', { how, rounds: 2 }).found;
        assert.equal(wrongBytes, 0);
      });
    }

    for (const { program, peers, leastBytes } of GREEDY) {
      await part(`${program} costs no more memory than the budget, and others are served`, async (t) => {
        const attack = peer(t, target, program, { peers, seconds: 3_600 });
        attack.found.catch(() => {});
        await until(
          `${program}: ${peers} peers are at work`,
          async () => {
            const { heldBytesMax, connectionsMax } = await target.look();
            return heldBytesMax >= leastBytes && connectionsMax >= peers;
          },
          { state: () => target.process.tell() },
        );
        const untilMs = Date.now() + ATTACK_MS;
        for (let times = 0; Date.now() < untilMs || times < 2; times += 1) {
          await served(t, target, 2);
          await target.look();
        }
        t.diagnostic(target.process.tell());
        attack.stop();
      });
    }

    for (const { name, program, options, onlyTls = false } of CROWDS) {
      if (onlyTls && transport !== 'TLS') continue;
      await part(`${name}: who holds the secret gets in`, async (t) => {
        const crowd = peer(t, target, program, { ...options, seconds: 3_600 });
        await crowd.ready;
        t.diagnostic(`in after ${(await served(t, target, 3)).join(', ')} ms`);
        crowd.stop();
      });
    }

    await part(
      'a challenge that comes back is not answered, nor one of who does not know the secret',
      async (t) => {
        const found = await peer(t, target, 'reflected_challenge', {}).found;
        assert.deepEqual(found, { reflected: '0x201', unknown: '0x201' });
      },
    );

    await part(
      'a wrong digest in the middle of a Data-Out: nothing is written, nothing acknowledged',
      async (t) => {
        const found = await peer(t, target, 'bad_digest', {}).found;
        assert.deepEqual(found, { answered: 'closed', changed: false });
      },
    );
  });
}

for (const transport of ['the clear', 'TLS']) {
  const skip = requires('python3', ...(transport === 'TLS' ? ['openssl'] : []));
  test(`over ${transport}: a device that hangs is not the peer’s fault, however many of its reads wait`, {
    skip,
  }, async (t) => {
    // Three times the time after which a debtor is dropped.
    const stallTimeoutMs = Math.min(3_000, patient(1_000));
    const target = await Target.start(t, transport, {
      lengthBytes: 64 * MIB,
      latencyMs: 3 * stallTimeoutMs,
      limits: { nopIntervalMs: patient(400), nopTimeoutMs: patient(2_000) },
      book: { stallTimeoutMs, pressureTimeoutMs: stallTimeoutMs / 2 },
    });
    const answered = [
      [17, MIB],
      [128, 4096],
    ].map(async ([count, bytes]) => {
      const found = await peer(t, target, 'many_reads', { count, bytes }).found;
      assert.equal(found.answered, count);
    });
    await Promise.all(answered);
  });
}

const CHANGES = [
  ...['write', 'write_fua', 'big_write', 'or_write', 'compare_and_write'],
  ...['write_same', 'write_same_unmap', 'unmap'],
];

for (const transport of ['the clear', 'TLS']) {
  const skip = requires('python3', ...(transport === 'TLS' ? ['openssl'] : []));
  test(`over ${transport}: who replaces a session whose change hangs gets in and reads, and what it writes stays`, {
    skip,
  }, async (t) => {
    const target = await Target.start(t, transport, { lengthBytes: 16 * MIB, hangs: true });
    const { wrong } = await peer(t, target, 'changes_after_a_hang', { kinds: CHANGES }).found;
    assert.deepEqual(wrong, []);
    await target.process.atRest();
  });
}
