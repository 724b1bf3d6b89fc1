import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import { MIGRATE_OUT } from '../../src/migration/migrate-out.ts';
import { patient } from '../kind.ts';
import { Lab } from '../lab.ts';
import type { LabWorker } from '../lab-worker.ts';
import {
  assertNothingLeft,
  isGuest,
  type MoveInProgress,
  tellStates,
  until,
  workerPair,
  writerOn,
} from './move.ts';
import { crashAt } from './trouble.ts';

/** Slow enough that blocks are missing when the source goes. */
const SLOW = { rateMbit: 40 };
const AWAY_MS = 20_000;

/** A move that was asked for; the source has not gone yet. */
type Moving = Omit<MoveInProgress, 'say'> & { volumeId: string };

/**
 * The source goes in the middle of a copy and never comes back. Held to: the machine gets no error; the
 * target says what it waits for and for whom; and an operator who gives the machine up gets rid of it, with
 * nothing left in the kernel, though reads wait for the source.
 */
export function sourceGone(say: (line: string) => void): Promise<void> {
  return moving({ slow: true }, async ({ source, target, machineId, volumeId, runId, history }) => {
    await until(
      'the machine to run at the target',
      async () => history.incarnations.length > 1 && history.incarnations.at(-1)!.acks > 0,
    );
    await die(source);
    say('the source is gone for good');

    // A reader that cannot be answered, as many as the guest likes.
    const reader = target.client
      .execInMachine(machineId, {
        command: ['sh', '-c', 'cat /data/file > /dev/null'],
        timeoutMs: patient(600_000),
      })
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
  });
}

/**
 * The source goes for good when all blocks have come and nothing is proved. Held to: the target says what it
 * waits for; an operator who does without the receipt gets a volume that is whole, under a machine that
 * writes all the time, with neither clone nor session left.
 */
export function sourceGoneUnproven(say: (line: string) => void): Promise<void> {
  const environment = crashAt('serve', 'after', MIGRATE_OUT);
  return moving({ environment }, async ({ source, target, machineId, volumeId, runId, history }) => {
    const inside = targetRunId(runId);
    await until('the death of the worker', async () => !(await source.isRunning()));
    await die(source);
    const run = await until('the target to wait', async () => {
      const now = await target.client.showRun(inside);
      return now.step === 'prove' && now.reason !== null ? now : null;
    });
    say(`the source is gone for good; the run says: ${run.reason?.message}`);
    assert.match(run.reason?.nextAction ?? '', /unproven --yes/);

    await target.cli('runs', 'force', inside, 'unproven', '--yes');
    const end = await until('the end of the run', async () => {
      const now = await target.client.showRun(inside);
      return now.endedAtMs === null ? null : now;
    });
    assert.equal(end.state, 'done', JSON.stringify(end));
    assert.equal((await target.client.showVolume(volumeId)).state, 'ready');
    await history.more(10, patient(60_000));
    const tables = await target.member.run(['dmsetup', 'table']);
    assert.equal(tables.exitCode, 0, tables.stderr);
    assert.doesNotMatch(tables.stdout, / clone /);
    const sessions = await target.member.run(['iscsiadm', '-m', 'session']);
    assert.equal(sessions.exitCode, 21, sessions.stdout);
    assert.equal(history.incarnations.length, 2, 'the machine was started again');
    history.assertSound();
    say('the volume is whole without a receipt, and its machine writes');

    await target.client.stopMachine(machineId);
    await target.client.destroyMachine(machineId, { force: true });
    await assertNothingLeft(target, 'kernel', { machineId, volumeId });
    say('nothing is left of it');
  });
}

/** A writing machine with a file, on its way from one guest to another. */
async function moving(
  options: { slow?: boolean; environment?: Record<string, string> },
  then: (move: Moving) => Promise<void>,
): Promise<void> {
  const lab = await Lab.start({
    guests: ['source', 'target'].map((name) => ({ name, diskBytes: [2 ** 32] })),
  });
  const cleanups: (() => unknown)[] = [];
  const workers: LabWorker[] = [];
  try {
    const [source, target] = await workerPair(lab);
    workers.push(source, target);
    await Promise.all([source.start(options.environment), target.start()]);
    const { machineId, volumeId, history } = await writerOn(source, {}, cleanups);
    await source.client.execInMachine(machineId, {
      command: ['sh', '-c', 'dd if=/dev/urandom of=/data/file bs=1M count=48 status=none; sync'],
      timeoutMs: patient(120_000),
    });
    if (options.slow)
      for (const { member } of [source, target]) if (isGuest(member)) await lab.shape(member, SLOW);
    const { id: runId } = await source.client.moveMachine(machineId, { target: target.name });
    await then({ lab, source, target, machineId, volumeId, runId, history });
  } catch (error) {
    await tellStates(workers.filter(({ member }) => member.name === 'target'));
    throw error;
  } finally {
    for (const cleanup of cleanups) await cleanup();
    await lab.close();
  }
}

async function die({ member }: LabWorker): Promise<void> {
  assert.ok(isGuest(member));
  await member.kill9();
}
