import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import test from 'node:test';
import { workerPaths } from '../../src/worker/paths.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { withMountsOf } from '../support/mount-copy.ts';
import { patient } from '../support/patience.ts';

/** Somebody else on the host has the machine's filesystem. */

/** Hears its stop signal, and ends when it finds the file. */
const COUNTS = `trap 'echo asked' TERM; echo up; while [ ! -e /data/end ]; do date +%s >>/data/beats; sleep 0.1; done; rm /data/end`;

test('a filesystem that is held is found before the stop; one that is taken in between is gone back from, and the machine runs on it', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b', 'c']);
  const source = fleet.worker('a');
  const made = await fleet.run(
    ...[
      'machine',
      'run',
      '--name',
      'm',
      '--worker',
      'a',
      '--volume',
      'm',
      '--size',
      '32MiB',
      '--no-encryption',
    ],
    ...['--stop-timeout', '1h', '--', 'sh', '-c', COUNTS],
  );
  assert.equal(made.exitCode, 0, made.stderr);
  const { id, startedAtMs } = await source.client.showMachine('m');
  const fs = join(workerPaths(source.dataDir).runtimeRoot, id, 'fs');
  const occupants: ChildProcess[] = [];
  const release = async () => {
    for (const occupant of occupants.splice(0)) {
      const exited = new Promise((resolve) => occupant.once('exit', resolve));
      if (occupant.kill('SIGKILL')) await exited;
    }
  };
  try {
    for (const [program, ...args] of [
      ['sh', '-c', `exec 9<${fs}/beats; exec sleep 1000`],
      [...withMountsOf(fs), 'sleep', '1000'],
    ]) {
      occupants.push(spawn(program!, args, { stdio: 'ignore' }));
      await fleet.until('the occupant', async () => {
        const moved = await fleet.run('move', 'm');
        assert.equal(moved.exitCode, 3, moved.stderr);
        return moved.stdout.includes(`sleep (pid ${occupants[0]!.pid}, `) && moved.stdout;
      });
      const machine = await source.client.showMachine('m');
      assert.deepEqual([machine.state, machine.startedAtMs], ['running', startedAtMs], 'it was not stopped');
      await release();
    }

    const { id: runId } = await source.client.moveMachine(id, { target: 'b' });
    await fleet.until('the stop', async () => /asked/.test((await fleet.run('machine', 'logs', 'm')).stdout));
    occupants.push(spawn('sh', ['-c', `exec 9<${fs}/beats; exec sleep 1000`], { stdio: 'ignore' }));
    await fleet.until('the occupant', async () => (await source.client.why(id)).conditions.length > 0);
    await source.client.execInMachine(id, { command: ['touch', '/data/end'], timeoutMs: patient(60_000) });
    const end = await source.ended(runId);
    assert.equal(end.state, 'undone');
    assert.equal(end.error?.code, 'MACHINE_FS_HELD');
    assert.match(end.error?.message ?? '', new RegExp(`pid ${occupants[0]!.pid}`));
    await fleet.until('the machine to run again', async () => {
      const machine = await source.client.showMachine('m');
      return machine.state === 'running' && machine.startedAtMs !== startedAtMs;
    });
    assert.equal(occupants[0]!.exitCode, null, 'it is still held');
    assert.equal(source.volumeRecord((await source.client.showMachine(id)).volumeId!)?.generation, 1);
  } finally {
    await release();
  }
  const last = await source.client.moveMachine(id, { target: 'b' });
  await fleet.until('the stop', async () =>
    /asked[\s\S]*asked/.test((await fleet.run('machine', 'logs', 'm')).stdout),
  );
  await source.client.execInMachine(id, { command: ['touch', '/data/end'], timeoutMs: patient(60_000) });
  assert.equal((await fleet.ended(source, fleet.worker('b'), last.id)).state, 'done');
  // It would take its hour to end.
  const destroyed = await fleet.run('machine', 'destroy', 'm', '--force');
  assert.equal(destroyed.exitCode, 0, destroyed.stderr);
});
