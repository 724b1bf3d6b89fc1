import assert from 'node:assert/strict';
import { join } from 'node:path';
import test, { type TestContext } from 'node:test';
import { connect } from 'node:tls';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import type { MigrateOutOutput } from '../../src/migration/migrate-out.ts';
import type { TlsFiles } from '../../src/sys/tls-identity.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { TestAuthority } from '../support/test-authority.ts';
import { WriterCollector } from '../support/writer-collector.ts';

/** Moves between real workers with and without certificates. */

const skip = fleetNeeds || requires('openssl');

function flagsOf({ certFile, keyFile, caFile }: TlsFiles): string[] {
  return ['--tls-cert', certFile, '--tls-key', keyFile, '--tls-ca', caFile];
}

function authority(t: TestContext, name: string): TestAuthority {
  return new TestAuthority(join(scratchDir(t), name));
}

/** The name in the certificate that answers there; the client's own does not matter for that. */
function certificateAt(port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: '127.0.0.1', port, rejectUnauthorized: false }, () => {
      resolve(String(socket.getPeerCertificate().subject.CN));
      socket.destroy();
    });
    socket.once('error', reject);
  });
}

test('two workers with certificates: the blocks go over TLS, and volume show and why say so', {
  skip,
}, async (t) => {
  const fleetAuthority = authority(t, 'fleet');
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, ['a', 'b'], {
    flags: { a: flagsOf(fleetAuthority.issue('a')), b: flagsOf(fleetAuthority.issue('b')) },
  });
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const machine = await fleet.writerMachine(a, collector, { name: 'writer' });
  const history = collector.history('writer');
  await history.more(20);

  const run = await a.client.moveMachine(machine.id, { target: 'b' });
  const { source } = await fleet.until('the export', async () => {
    const { output } = await a.client.showRun(run.id);
    return (output as MigrateOutOutput).source ? (output as MigrateOutOutput) : null;
  });
  assert.equal(source?.tls, true);
  assert.equal(await certificateAt(source.port), 'a');
  const ended = await fleet.ended(a, b, run.id);
  assert.equal(ended.state, 'done', JSON.stringify(ended.error));
  await history.more(5);
  const shown = await fleet.run('volume', 'show', 'writer-data', '--json');
  assert.equal(JSON.parse(shown.stdout).hydration?.transport, 'tls', shown.stdout);
  const inWords = await fleet.run('volume', 'show', 'writer-data');
  assert.match(inWords.stdout, /over the wire .*\(TLS\)/);
  history.assertSound();
});

test('another authority: refused before the machine is stopped; no certificate: in the clear, as before', {
  skip,
}, async (t) => {
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, ['a', 'b', 'c'], {
    flags: {
      a: flagsOf(authority(t, 'fleet').issue('a')),
      b: flagsOf(authority(t, 'strangers').issue('b')),
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
