import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import type { MachineRecord } from '../../src/machine/store.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';

/** What an operator says at once is done at once, whatever a machine takes its time for. */

const DEAF = 'trap "echo asked" TERM; echo up; while :; do sleep 0.1; done';

test('a cancel and a forced destruction do not wait for the hour that a machine has to stop', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b', 'c']);
  const { client } = fleet.worker('a');
  const made = await fleet.run(
    ...[
      'machine',
      'run',
      '--name',
      'deaf',
      '--worker',
      'a',
      '--volume',
      'deaf',
      '--size',
      '32MiB',
      '--no-encryption',
    ],
    ...['--stop-timeout', '1h', '--', 'sh', '-c', DEAF],
  );
  assert.equal(made.exitCode, 0, made.stderr);
  const refused = await fleet.run('machine', 'run', '--name', 'x', '--stop-signal', 'SIGNOPE', '--', 'true');
  assert.equal(refused.exitCode, 2, refused.stderr);
  assert.match(refused.stderr, /MACHINE_BAD_SIGNAL/);

  const moving = await fleet.run('move', 'deaf', '--detach');
  const run = (await fleet.moves(fleet.worker('a'), (await client.showMachine('deaf')).id))[0]!;
  assert.match(moving.stdout, new RegExp(run.id));
  const asked = async (times: number) => {
    const { stdout } = await fleet.run('machine', 'logs', 'deaf');
    return (stdout.match(/^asked$/gm)?.length ?? 0) >= times;
  };
  await fleet.until('the stop signal', () => asked(1));
  const why = await fleet.until('why', async () => {
    const said = await fleet.run('why', 'deaf');
    return said.stdout.includes('is stopping') ? said.stdout : null;
  });
  assert.match(why, new RegExp(`it has 3600 s from SIGTERM on[\\s\\S]*godwit runs cancel ${run.id}`));
  const cancelled = await fleet.run('runs', 'cancel', run.id);
  assert.equal(cancelled.exitCode, 0, cancelled.stderr);
  assert.equal(
    (await fleet.ended(fleet.worker('a'), fleet.worker(String(run.output.target ?? 'b')), run.id)).state,
    'undone',
  );
  await fleet.until(
    'the machine to run again',
    async () => (await client.showMachine('deaf')).state === 'running',
  );

  const { machineId } = run.input as { machineId: string };
  const stopping = client.stopMachine(machineId, { timeoutMs: 3_600_000 }).catch(() => {});
  await fleet.until('the second signal', () => asked(2));
  assert.match(
    (await fleet.run('why', 'deaf')).stdout,
    /asked to stop \(SIGTERM\)[\s\S]*godwit machine destroy deaf --force/,
  );
  const destroyed = await fleet.run('machine', 'destroy', 'deaf', '--force', '--volume');
  assert.equal(destroyed.exitCode, 0, destroyed.stderr);
  await stopping;
  assert.deepEqual(fleet.worker('a').shims(), []);
});

test('a machine whose stop signal does not exist, as an earlier version wrote it down, is ended at its deadline by all that end machines', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b']);
  const a = fleet.worker('a');
  const { godwit } = fleet;
  const stateOf = async (name: string) => (await a.client.showMachine(name)).state;
  const names = ['stopped', 'moved', 'destroyed', 'left'];
  for (const name of names) {
    const run = ['machine', 'run', '--name', name, '--worker', 'a', '--stop-timeout', '1s', '--detach'];
    await godwit(0, ...run, '--', 'sh', '-c', DEAF);
  }
  const ids = (await a.client.listMachines()).map(({ id }) => id);
  await a.powerOff();
  for (const id of ids) {
    const path = join(a.dataDir, 'machines', `${id}.json`);
    const record = JSON.parse(readFileSync(path, 'utf8')) as MachineRecord;
    record.config.stop.signal = 'SIGNOPE';
    writeFileSync(path, JSON.stringify(record));
  }
  await a.start();
  for (const name of names) await fleet.until(name, async () => (await stateOf(name)) === 'running');

  await godwit(0, 'machine', 'stop', 'stopped');
  assert.equal(await stateOf('stopped'), 'stopped');
  assert.match(await godwit(0, 'machine', 'logs', 'stopped'), /killed, since it did not end within 1000 ms/);
  await godwit(0, 'move', 'moved', '--to', 'b');
  await godwit(0, 'machine', 'destroy', 'destroyed', '--force');

  // With the workers of its own that a fleet on one machine has.
  for (const worker of fleet.workers) await worker.kill();
  assert.match(await godwit(0, 'dev', 'down', '--data', fleet.dir), /Destroyed 3 machines and 0 volumes/);
  for (const worker of fleet.workers) assert.deepEqual(worker.shims(), []);
});
