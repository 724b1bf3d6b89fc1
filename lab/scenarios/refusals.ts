import assert from 'node:assert/strict';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import { WriterCollector } from '../../test/support/writer-collector.ts';
import { Lab } from '../lab.ts';
import { mustRun } from '../member.ts';
import { PATIENCE_MS, until, workerOn, writerMachine } from './move.ts';

const MOVE_TIMEOUT_MS = 200_000;

/**
 * Targets that cannot do it. Held to: the move ends undone, its reason is the error with its code and a next action, and the machine was not stopped for it.
 */
export async function refusals(say: (line: string) => void): Promise<void> {
  const lab = await Lab.start({
    guests: ['source', 'target'].map((name) => ({ name, diskBytes: [2 ** 31] })),
  });
  const cleanups: (() => unknown)[] = [];
  try {
    const options = {};
    const [source, target] = await Promise.all([
      workerOn(lab, 'source', 'target', 'kernel', options),
      workerOn(lab, 'target', 'source', 'kernel', options),
    ]);
    await Promise.all([source.start(), target.start()]);
    const collector = await WriterCollector.open(
      { after: (work) => void cleanups.push(work as () => unknown) },
      '0.0.0.0',
    );
    const { machineId, volumeId } = await writerMachine(source, collector.port, options);
    const history = collector.history('writer');
    await history.more(5, PATIENCE_MS);
    const guest = target.member;

    const refused = async (what: string, code: string) => {
      const { id } = await source.client.moveMachine(machineId, { target: target.name });
      const run = await until(
        `the end of the move (${what})`,
        async () => {
          const now = await source.client.showRun(id);
          return now.endedAtMs === null ? null : now;
        },
        MOVE_TIMEOUT_MS,
      );
      assert.equal(run.state, 'undone');
      const inside = targetRunId(id);
      await until(
        'the end of the run at the target',
        async () => (await target.client.showRun(inside)).endedAtMs !== null,
      );
      const told = JSON.stringify(run) + (await mustRun(guest, ['cat', target.logPath]));
      assert.match(told, new RegExp(code));
      await history.more(3, PATIENCE_MS);
      history.assertSound();
      assert.equal(history.incarnations.length, 1, 'the machine was stopped for it');
      say(`${what}: ${code}, and the machine runs on`);
    };

    const pid = (await guest.readFile('/run/iscsid.pid')).trim();
    await mustRun(guest, ['kill', '-9', pid]);
    await refused('iscsid does not run', 'HOST_ISCSI_NO_DAEMON');
    await mustRun(guest, ['iscsid']);

    const name = `godwit-${volumeId}`;
    await mustRun(guest, ['dmsetup', 'create', name], { input: '0 8 error\n' });
    const holder = await guest.spawn(['sh', '-c', `exec 3<>/dev/mapper/${name}; exec sleep 600`], {
      logPath: '/tmp/holder.log',
    });
    await refused('a device name is taken', 'HOST_MAPPER_BUSY');
    await guest.kill(holder.pid, 'SIGKILL');
  } finally {
    for (const cleanup of cleanups) await cleanup();
    await lab.close();
  }
}
