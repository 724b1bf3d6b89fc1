import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import { Lab } from '../lab.ts';
import type { LabWorker } from '../lab-worker.ts';
import { assertNothingLeft, isGuest, tellStates, until, workerPair, writerOn } from './move.ts';

/** Slow enough that blocks are missing when the source goes. */
const SLOW = { rateMbit: 40 };
const AWAY_MS = 20_000;

/**
 * The source goes in the middle of a copy and never comes back. Held to: the machine gets no error; the target says what
 * it waits for and for whom; and an operator who gives the machine up gets rid of it, with nothing left in the kernel, though reads wait for the source.
 */
export async function sourceGone(say: (line: string) => void): Promise<void> {
  const lab = await Lab.start({
    guests: ['source', 'target'].map((name) => ({ name, diskBytes: [2 ** 32] })),
  });
  const cleanups: (() => unknown)[] = [];
  const workers: LabWorker[] = [];
  try {
    const [source, target] = await workerPair(lab);
    workers.push(source, target);
    await Promise.all([source.start(), target.start()]);
    const { machineId, volumeId, history } = await writerOn(source, {}, cleanups);
    await source.client.execInMachine(machineId, {
      command: ['sh', '-c', 'dd if=/dev/urandom of=/data/file bs=1M count=48 status=none; sync'],
      timeoutMs: 120_000,
    });
    for (const { member } of [source, target]) if (isGuest(member)) await lab.shape(member, SLOW);
    const { id: runId } = await source.client.moveMachine(machineId, { target: target.name });
    await until(
      'the machine to run at the target',
      async () => history.incarnations.length > 1 && history.incarnations.at(-1)!.acks > 0,
    );
    assert.ok(isGuest(source.member));
    await source.member.kill9();
    say('the source is gone for good');

    // A reader that cannot be answered, as many as the guest likes.
    const reader = target.client
      .execInMachine(machineId, { command: ['sh', '-c', 'cat /data/file > /dev/null'], timeoutMs: 600_000 })
      .then(
        (reply) => `exit code ${reply.exitCode}`,
        () => 'ended with the machine',
      );
    await sleep(AWAY_MS);
    // It writes on as long as what it needs of its filesystem is here; then it waits as well.
    assert.equal(history.incarnations.length, 2, 'the machine was started again');
    history.assertSound();
    const inside = targetRunId(runId);
    const run = await target.client.showRun(inside);
    assert.match(run.reason?.message ?? '', /source does not answer/);
    const { hydration } = await target.client.showMachine(machineId);
    assert.ok(hydration !== null, 'blocks are missing');
    say(`the machine gets no error; the run says: ${run.reason?.message}`);

    await target.cli('runs', 'force', inside, 'forget', '--yes');
    await target.client.destroyMachine(machineId, { force: true });
    say(`the machine is given up; its reader: ${await reader}`);
    await assertNothingLeft(target, 'kernel', { machineId, volumeId });
    await target.client.destroyVolume(volumeId, { force: true });
    const left = await target.client.listVolumes();
    assert.deepEqual(left, []);
    say('nothing is left of it');
  } catch (error) {
    await tellStates(workers.filter(({ member }) => member.name === 'target'));
    throw error;
  } finally {
    for (const cleanup of cleanups) await cleanup();
    await lab.close();
  }
}
