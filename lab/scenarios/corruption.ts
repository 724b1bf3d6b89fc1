import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import type { MigrateOutOutput } from '../../src/migration/migrate-out.ts';
import { verifyReceipt } from '../../src/receipt/envelope.ts';
import { patient } from '../kind.ts';
import { Lab } from '../lab.ts';
import { mustRun } from '../member.ts';
import { DATA_DIR } from '../prepare.ts';
import { isGuest, patienceMs, until, workerPair } from './move.ts';

const PROGRAM = fileURLToPath(new URL('../corrupt-program.ts', import.meta.url));
const MIB = 2 ** 20;
const VOLUME_BYTES = 256 * MIB;
const FILE_MIB = 24;
const MARK = 'every block of this file holds this line';
/** More than a machine that does nothing writes: its mount and its journal. */
const BLOCKS = 1024;
const CODE = 'MIGRATION_CONTENT_UNEXPLAINED';

/**
 * Blocks on the target's disk change behind dm-clone's back, where no guest writes. Held to: the proof of the
 * move finds it and names the place, the source is not released and says why, and there is no receipt.
 */
export async function corruption(say: (line: string) => void): Promise<void> {
  const lab = await Lab.start({
    guests: ['source', 'target'].map((name) => ({ name, diskBytes: [2 ** 31] })),
  });
  try {
    const [source, target] = await workerPair(lab);
    await Promise.all([source.start(), target.start()]);
    const volume = await source.client.createVolume({
      ...{ name: 'idle-data', lengthBytes: VOLUME_BYTES, filesystem: 'ext4', encrypted: false },
    });
    const machine = await source.client.createMachine({
      name: 'idle',
      start: true,
      config: {
        command: ['sh', '-c', 'exec sleep 100000'],
        env: {},
        volume: { volumeId: volume.id, mountPath: '/data' },
        restart: { policy: 'always', retriesMax: 10 },
        stop: { signal: 'SIGTERM', timeoutMs: 1_000 },
        resources: {},
        network: 'host',
        metadata: {},
      },
    });
    const written = await source.client.execInMachine(machine.id, {
      command: ['sh', '-c', `yes '${MARK}' | head -c ${FILE_MIB * MIB} > /data/marked; sync`],
      timeoutMs: patient(120_000),
    });
    assert.equal(written.exitCode, 0, written.stderr);
    say(`a machine that does nothing, with ${FILE_MIB} MiB on its volume`);

    // Slow enough that blocks are still on their way when the first of them are changed.
    assert.ok(isGuest(source.member));
    await lab.shape(source.member, { rateMbit: 40 });
    const { id: runId } = await source.client.moveMachine(machine.id, { target: target.name });
    await until('the volume at the target', async () => (await target.client.showMachine(machine.id)).state);
    const changed = await mustRun(
      target.member,
      [
        ...[process.execPath, '--disable-warning=ExperimentalWarning', PROGRAM],
        ...[`${DATA_DIR}/volumes/${volume.id}/data.raw`, String(VOLUME_BYTES), MARK, String(BLOCKS)],
      ],
      { timeoutMs: 2 * patienceMs() },
    );
    const [first, last] = changed.split(' ').map(Number) as [number, number];
    say(`${BLOCKS} blocks are changed behind dm-clone, from byte ${first} to ${last}`);

    const disputed = await until(
      'the proof of the move',
      async () => {
        const run = await source.client.showRun(runId);
        if (run.endedAtMs !== null) throw new Error(`the move ended ${run.state}`);
        return (run.output as MigrateOutOutput).disputed ?? null;
      },
      2 * patienceMs(),
    );
    assert.equal(disputed.code, CODE, JSON.stringify(disputed));
    const { offsetBytes, changedBytes } = disputed.values;
    assert.ok(Number(offsetBytes) >= first && Number(offsetBytes) <= last, disputed.message);
    assert.ok(Number(changedBytes) >= BLOCKS * 4096, `changed ${changedBytes}`);
    say(disputed.message);

    const why = JSON.stringify(await source.client.why(runId));
    assert.match(why, /are not what source sealed/);
    assert.match(why, /an operator/);
    const kept = await source.client.showVolume(volume.id);
    assert.equal(kept.state, 'sealed', 'nothing is released');
    for (const worker of [source, target]) {
      const receipt = await worker.client.showReceipt(runId).catch(() => null);
      assert.equal(receipt && verifyReceipt(receipt), null, `${worker.name} has a receipt`);
    }
    say('the source is not released, says why, and nobody has signed');
  } finally {
    await lab.close();
  }
}
