import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import test, { type TestContext } from 'node:test';
import { connect } from 'node:tls';
import type { Plan } from '../../src/contract/schemas.ts';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import type { MigrateOutOutput } from '../../src/migration/migrate-out.ts';
import type { TlsFiles } from '../../src/sys/tls-identity.ts';
import { workerPaths } from '../../src/worker/paths.ts';
import { Fleet, type FleetWorker, fleetNeeds, tlsFlags } from '../support/fleet.ts';
import { capturePackets } from '../support/packet-capture.ts';
import { patient } from '../support/patience.ts';
import { reserveAddress } from '../support/ports.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { TestAuthority } from '../support/test-authority.ts';
import { WriterCollector } from '../support/writer-collector.ts';

/** Moves between real workers with and without certificates. */

const skip = fleetNeeds || requires('openssl');

function authority(t: TestContext, name: string): TestAuthority {
  return new TestAuthority(join(scratchDir(t), name));
}

/** The name in the certificate that answers there; the client's own does not matter for that. */
function certificateAt(host: string, port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port, rejectUnauthorized: false }, () => {
      resolve(String(socket.getPeerCertificate().subject.CN));
      socket.destroy();
    });
    socket.once('error', reject);
  });
}

/**
 * The secret of the move's grant, as the source's journal has it: no answer of the API does. Ends the control
 * process, which has the journal locked.
 */
async function secretOf(source: FleetWorker, runId: string): Promise<string> {
  await source.kill();
  const journal = new DatabaseSync(workerPaths(source.dataDir).journal);
  try {
    const tables = journal.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").all();
    for (const { name } of tables) {
      const rows = journal.prepare(`SELECT * FROM "${name}"`).all();
      const ours = JSON.stringify(rows.filter((row) => Object.values(row).includes(runId)));
      const secret = /\\"chapSecret\\":\\"([^"\\]+)\\"/.exec(ours)?.[1];
      if (secret !== undefined) return secret;
    }
    throw new Error('the journal has no secret of this move');
  } finally {
    journal.close();
  }
}

/**
 * Moves a machine from a to b, on an address of their own, and answers with the secret of the move and all
 * that went over the wire meanwhile.
 */
async function movedUnderWatch(t: TestContext, host: string, certificates: Record<string, TlsFiles>) {
  const collector = await WriterCollector.open(t);
  // So slow that it can be looked at while it arrives.
  const flags = { b: ['--hydration-rate', '1MiB'] };
  const fleet = await Fleet.start(t, ['a', 'b'], { host, tls: certificates, flags });
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const machine = await fleet.writerMachine(a, collector, { name: 'writer' });
  const history = collector.history('writer');
  await history.more(20);
  // Put together in the machine, so that it is only in the blocks.
  const known = [
    'sh',
    '-c',
    'yes "$(printf "%s-of-the-%s" plaintext volume)" | head -c 1000000 > /data/known; sync /data/known',
  ];
  const written = await a.client.execInMachine(machine.id, { command: known, timeoutMs: patient(60_000) });
  assert.equal(written.exitCode, 0, written.stderr);

  const capture = await capturePackets(t, host);
  const run = await a.client.moveMachine(machine.id, { target: 'b' });
  const { source } = await fleet.until('the export', async () => {
    const { output } = await a.client.showRun(run.id);
    return (output as MigrateOutOutput).source ? (output as MigrateOutOutput) : null;
  });
  const isSecure = certificates.a !== undefined;
  assert.equal(source?.tls === true, isSecure);
  if (isSecure) assert.equal(await certificateAt(host, source!.port), 'a');
  const { transport } = await fleet.until('the volume to arrive', async () => {
    const volume = await b.client.showVolume('writer-data').catch(() => null);
    return volume?.hydration ?? null;
  });
  const ended = await fleet.ended(a, b, run.id);
  assert.equal(ended.state, 'done', JSON.stringify(ended.error));
  await history.more(5);
  const packets = await capture.stop();
  const plan = await fleet.run('--json', 'drain', 'b', '--dry-run');
  const { warnings } = JSON.parse(plan.stdout) as Plan;
  const secret = await secretOf(a, run.id);
  assert.ok(secret.length >= 12, secret);
  history.assertSound();
  return { packets, secret, transport, warnings };
}

const PLAINTEXT = 'plaintext-of-the-volume';
const TOKEN = 'a-token-of-a-test-fleet';
const skipWatched = skip || requires('tcpdump');

test('two workers with certificates: API and blocks are under TLS, and nothing can be read on the wire', {
  skip: skipWatched,
}, async (t) => {
  const fleetAuthority = authority(t, 'fleet');
  const host = await reserveAddress(t);
  const issue = (name: string) => fleetAuthority.issue(name, { addresses: `IP:${host}` });
  const { packets, secret, transport, warnings } = await movedUnderWatch(t, host, {
    a: issue('a'),
    b: issue('b'),
  });
  assert.ok(packets.length > 1_000_000, 'the blocks were seen');
  for (const word of [secret, PLAINTEXT, TOKEN, 'writer-data', 'HTTP/1.1']) {
    assert.equal(packets.includes(word), false, word);
  }
  assert.equal(transport, 'tls');
  assert.deepEqual(warnings, []);
});

test('the control: without certificates the same watch sees the secret and the volume', {
  skip: skipWatched,
}, async (t) => {
  const { packets, secret } = await movedUnderWatch(t, await reserveAddress(t), {});
  for (const word of [secret, PLAINTEXT, TOKEN, 'writer-data', 'HTTP/1.1']) {
    assert.equal(packets.includes(word), true, word);
  }
});

test('a target with another authority or an expired certificate is refused before anything is told, and another one taken', {
  skip,
}, async (t) => {
  const [ours, theirs] = [authority(t, 'fleet'), authority(t, 'strangers')];
  const collector = await WriterCollector.open(t);
  const tls = {
    ...{ a: ours.issue('a'), b: ours.issue('b') },
    ...{ expired: ours.issue('expired'), stranger: theirs.issue('stranger') },
  };
  // Encrypted, so that the target asks the source too, for the header.
  const keyFile = join(scratchDir(t), 'key');
  writeFileSync(keyFile, 'k', { mode: 0o600 });
  const keys = ['--key-file', keyFile];
  const fleet = await Fleet.start(t, Object.keys(tls), { tls, flags: { a: keys, b: keys } });
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  // In the place of the good files, while the worker runs: the next connection has them.
  ours.issue('expired', { expired: true });
  const machine = await fleet.writerMachine(a, collector, { name: 'writer' });
  const before = await a.client.showMachine(machine.id);
  for (const [target, reason] of [
    ['stranger', /no TLS connection .*self-signed certificate/],
    ['expired', /no TLS connection .*certificate has expired/],
  ] as const) {
    const run = await a.client.moveMachine(machine.id, { target });
    const { state, error } = await a.ended(run.id);
    assert.deepEqual([state, error?.code], ['undone', 'MIGRATION_NO_CAPACITY']);
    assert.match(error?.message ?? '', reason);
  }
  const after = await a.client.showMachine(machine.id);
  assert.deepEqual([after.pid, after.state], [before.pid, 'running'], 'the machine was not stopped');

  const run = await a.client.moveMachine(machine.id, { target: 'b' });
  const ended = await fleet.ended(a, b, run.id);
  assert.equal(ended.state, 'done', JSON.stringify(ended.error));
  const [volume] = await b.client.listVolumes();
  assert.equal(volume?.encrypted, true);
  const history = collector.history('writer');
  await history.more(3);
  history.assertSound();
});

test('while a fleet gets its certificates: blocks of another authority are refused before the machine is stopped, and without certificates they go in the clear', {
  skip,
}, async (t) => {
  const collector = await WriterCollector.open(t);
  const optional = (files: TlsFiles) => [...tlsFlags(files), '--tls-optional'];
  const fleet = await Fleet.start(t, ['a', 'b', 'c'], {
    flags: {
      a: optional(authority(t, 'fleet').issue('a')),
      b: optional(authority(t, 'strangers').issue('b')),
    },
  });
  const [a, b, c] = [fleet.worker('a'), fleet.worker('b'), fleet.worker('c')];
  const machine = await fleet.writerMachine(a, collector, { name: 'writer' });
  const history = collector.history('writer');
  const before = await a.client.showMachine(machine.id);

  const refused = await a.client.moveMachine(machine.id, { target: 'b' });
  const undone = await a.ended(refused.id);
  assert.equal(undone.state, 'undone');
  assert.equal(undone.error?.code, 'MIGRATION_TARGET_FORGOT');
  assert.match(undone.error?.message ?? '', /No TLS connection/);
  assert.equal((undone.output as MigrateOutOutput).stopStartedAtMs, undefined);
  assert.equal((await b.ended(targetRunId(refused.id))).error?.code, 'ISCSI_TLS_REFUSED');
  const after = await a.client.showMachine(machine.id);
  assert.equal(after.pid, before.pid, 'the machine was not stopped');
  assert.equal(after.state, 'running');
  await history.more(3);

  const plain = await a.client.moveMachine(machine.id, { target: 'c' });
  const ended = await fleet.ended(a, c, plain.id);
  assert.equal(ended.state, 'done', JSON.stringify(ended.error));
  assert.equal((ended.output as MigrateOutOutput).source?.tls, undefined);
  await history.more(3);
  history.assertSound();
});
