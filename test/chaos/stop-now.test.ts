import assert from 'node:assert/strict';
import test from 'node:test';
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
