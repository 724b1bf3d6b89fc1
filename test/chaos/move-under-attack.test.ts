import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { CLIENT_LIMITS } from '../../src/base/client-account.ts';
import { TARGET_LIMITS } from '../../src/iscsi/limits.ts';
import type { MigrateOutOutput } from '../../src/migration/migrate-out.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { type Attack, iscsiPeer, type PeerTarget } from '../support/iscsi-peer.ts';
import { leisurely, patient } from '../support/patience.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { TestAuthority } from '../support/test-authority.ts';
import { WriterCollector } from '../support/writer-collector.ts';

/*
 * A machine that writes and verifies moves while the export of its source is attacked by peers that do not
 * hold the secret, from before the target's login to the end.
 */

const KIB = 1024;
const MIB = 2 ** 20;
/**
 * What docs/iscsi.md promises of the memory of a process that exports: the book, each session's own, logins,
 * and what is kept, uncollected or in OpenSSL.
 */
const LOGIN_BYTES = 200 * KIB;
const ASIDE_BYTES = (32 + 64) * MIB;
const TLS_BYTES = 256 * KIB;
const BUDGET_BYTES =
  CLIENT_LIMITS.sharedBytesMax +
  TARGET_LIMITS.connectionsMax * CLIENT_LIMITS.connectionBytesReserved +
  TARGET_LIMITS.halfOpenMax * (LOGIN_BYTES + TLS_BYTES) +
  ASIDE_BYTES;

/** 0: it has ended. */
function residentBytesOf(pid: number): number {
  const [, kib] = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? [];
  return Number(kib ?? 0) * KIB;
}

for (const transport of ['the clear', 'TLS'])
  test(
    `a machine moves over ${transport} while its export is attacked: nothing is lost, and the export's memory is bounded`,
    {
      skip: fleetNeeds || requires('python3', 'openssl'),
    },
    (t) => movesUnderAttack(t, transport),
  );

async function movesUnderAttack(t: TestContext, transport: string): Promise<void> {
  const authority = new TestAuthority(join(scratchDir(t), 'fleet'));
  const collector = await WriterCollector.open(t);
  const isSecure = transport === 'TLS';
  const certificates = isSecure ? { tls: { a: authority.issue('a'), b: authority.issue('b') } } : {};
  const fleet = await Fleet.start(t, ['a', 'b'], {
    ...certificates,
    // So that the attack is still on when the copy is.
    flags: { b: ['--hydration-rate', `${leisurely(8 * MIB)}`] },
  });
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const machine = await fleet.writerMachine(a, collector, { name: 'writer', lengthBytes: 96 * MIB });
  const history = collector.history('writer');
  await history.more(20);
  const filled = await a.client.execInMachine(machine.id, {
    command: ['sh', '-c', 'head -c 32000000 /dev/urandom > /data/bulk; sync /data/bulk'],
    timeoutMs: patient(60_000),
  });
  assert.equal(filled.exitCode, 0, filled.stderr);

  const run = await a.client.moveMachine(machine.id, { target: 'b' });
  const { source } = await fleet.until('the export', async () => {
    const output = (await a.client.showRun(run.id)).output as MigrateOutOutput;
    return output.source ? output : null;
  });
  const { state } = (await fleet.until('its process', () => a.exports()[0]))!;
  const pid = state.volumeServer!.pid;
  const beforeBytes = residentBytesOf(pid);
  // With TLS one that the authority of the fleet has signed; without the secret in both cases.
  const target: PeerTarget = {
    port: source!.port,
    targetIqn: source!.targetIqn,
    initiatorIqn: source!.initiatorIqn,
    chap: { user: source!.chapUser, secret: 'not the secret at all' },
    tls: isSecure ? authority.issue('stranger') : null,
  };
  const attack = (program: string, options: object): Attack =>
    iscsiPeer(t, target, program, { seconds: 3_600, ...options });
  const crowds = [
    attack('idle', { peers: 150 }),
    ...(isSecure ? [attack('idle', { peers: 150, hello: true })] : []),
    attack('guesses', { peers: 30 }),
  ];
  attack('endless_login', { peers: 16 });
  await Promise.all(crowds.map(({ ready }) => ready));

  let grownBytes = 0;
  let looks = 0;
  const look = () => {
    try {
      const residentBytes = residentBytesOf(pid);
      if (residentBytes === 0) return;
      looks += 1;
      grownBytes = Math.max(grownBytes, residentBytes - beforeBytes);
    } catch {
      // The export is closed: the move has ended.
    }
  };
  await fleet.until('the end of the move', async () => {
    look();
    return (await a.client.showRun(run.id)).endedAtMs !== null;
  });
  const ended = await fleet.ended(a, b, run.id);
  assert.equal(ended.state, 'done', JSON.stringify(ended.error));
  assert.equal((ended.output as MigrateOutOutput).source?.tls === true, isSecure);
  await history.more(5);
  history.assertSound();
  const copied = await b.client.execInMachine(machine.id, {
    command: ['sh', '-c', 'cat /data/bulk | wc -c'],
    timeoutMs: patient(60_000),
  });
  assert.equal(copied.stdout.trim(), '32000000');
  t.diagnostic(`the export grew by ${Math.round(grownBytes / MIB)} MiB in ${looks} looks`);
  assert.ok(looks > 0 && grownBytes <= BUDGET_BYTES, `the export grew by ${grownBytes} bytes`);
}
