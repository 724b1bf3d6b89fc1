import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { TlsFiles } from '../../src/sys/tls-identity.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { iscsiPeer } from '../support/iscsi-peer.ts';
import { until } from '../support/patience.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { testSeed } from '../support/seed.ts';
import { TestAuthority } from '../support/test-authority.ts';

/*
 * A volume that is served over iSCSI, and an initiator (test/fixtures/iscsi_peer.py) that changes it by every
 * command that there is for it, while its connections and the volume server are killed. What was not answered
 * it sends again, as initiators do. Nothing that was acknowledged is lost, and no old change lands on a new one.
 */

const MIB = 2 ** 20;
const LENGTH_BYTES = 16 * MIB;
const KILLS = 4;

for (const transport of ['the clear', 'TLS']) {
  const skip = fleetNeeds || requires('python3', ...(transport === 'TLS' ? ['openssl'] : []));
  test(`over ${transport}: changes outlive the deaths of the volume server and of connections, each once and in order`, {
    skip,
  }, async (t: TestContext) => {
    let tls: TlsFiles | null = null;
    let files: Record<string, TlsFiles> | undefined;
    if (transport === 'TLS') {
      const authority = new TestAuthority(join(scratchDir(t), 'ca'));
      files = { alpha: authority.issue('alpha') };
      tls = authority.issue('client');
    }
    const fleet = await Fleet.start(t, ['alpha'], files === undefined ? {} : { tls: files });
    const alpha = fleet.worker('alpha');
    await alpha.client.createVolume({
      ...{ name: 'disk', lengthBytes: LENGTH_BYTES, filesystem: 'none', encrypted: false },
    });
    const told = await alpha.client.serveVolume('disk', {
      ...{ protocol: 'iscsi', listen: '127.0.0.1:0', writable: true, ...(tls !== null && { tls: true }) },
    });
    const dir = scratchDir(t);
    const [stop, progress] = [join(dir, 'stop'), join(dir, 'progress')];
    const [, port, targetIqn] = /:(\d+)\/([^/]+)\//.exec(told.location)!;
    const peer = iscsiPeer(
      t,
      {
        port: Number(port),
        targetIqn: targetIqn!,
        initiatorIqn: 'iqn.2026-01.com.example:writer',
        chap: told.chap!,
        tls,
      },
      'changes_through_kills',
      { seed: testSeed(), stop, progress },
    );
    await peer.ready;
    const rounds = (): number => (existsSync(progress) ? Number(readFileSync(progress, 'utf8')) : 0);
    const pidNow = (): number | undefined => alpha.shims()[0]?.state.volumeServer?.pid;
    for (let kill = 0; kill < KILLS; kill += 1) {
      const pid = pidNow()!;
      process.kill(pid, 'SIGKILL');
      await until('another volume server', () => {
        const now = pidNow();
        return now !== undefined && now !== pid;
      });
      const before = rounds();
      await until('it to go on', () => rounds() >= before + 3);
    }
    writeFileSync(stop, '');
    const found = await peer.found;
    assert.deepEqual(found.wrong, []);
    t.diagnostic(JSON.stringify(found));
    await alpha.client.stopServing('disk');
  });
}
