import assert from 'node:assert/strict';
import test from 'node:test';
import { Fleet, fleetNeeds } from '../support/fleet.ts';

/** Machines that end, and machines that never come up. */

test('a first start that fails is told at once with its last words; its owner can stop it wherever it is', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b', 'c']);
  const disk = ['--size', '32MiB', '--no-encryption'];
  const at = ['machine', 'run', '--worker', 'a'];
  const failed = await fleet.run(
    ...at,
    '--name',
    'nope',
    '--volume',
    'nope',
    ...disk,
    '--',
    '/no/such/program',
  );
  assert.equal(failed.exitCode, 6, failed.stderr);
  assert.match(
    failed.stderr,
    /CLI_MACHINE_NOT_HEALTHY[\s\S]*\/no\/such\/program[\s\S]*machine destroy nope --force --volume/,
  );

  // It never could run, and could not there either: that is not found out past the point of no return.
  const nowhere = await fleet.run('move', 'nope', '--to', 'b');
  assert.equal(nowhere.exitCode, 3, nowhere.stderr);
  assert.match(nowhere.stdout, /b has no program \/no\/such\/program/);
  assert.equal((await fleet.run('machine', 'destroy', 'nope', '--force', '--volume')).exitCode, 0);

  const looping = ['--name', 'loops', '--volume', 'loops', ...disk, '--detach', '--', 'sh', '-c', 'exit 1'];
  assert.equal((await fleet.run(...at, ...looping)).exitCode, 0);
  const { id } = await fleet.worker('a').client.showMachine('loops');
  const moving = await fleet.worker('a').client.moveMachine(id, { target: 'b' });
  await fleet.until('its arrival', async () => {
    const view = await fleet.worker('b').client.showMachine(id);
    return (
      ['activated', 'booted', 'healthy', 'hydrated', 'proven'].includes(view.move?.phase ?? '') ||
      view.move === null
    );
  });
  const stopped = await fleet.run('machine', 'stop', 'loops');
  assert.equal(stopped.exitCode, 0, stopped.stderr);
  assert.equal((await fleet.ended(fleet.worker('a'), fleet.worker('b'), moving.id)).state, 'done');
  assert.equal((await fleet.worker('b').client.showMachine(id)).state, 'stopped');
  const destroyed = await fleet.run('machine', 'destroy', 'loops', '--force', '--volume');
  assert.equal(destroyed.exitCode, 0, destroyed.stderr);
});

test('a machine that has done what it was to do is not failed, and moves as one that has ended', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b', 'c']);
  const once = await fleet.run(
    ...[
      'machine',
      'run',
      '--worker',
      'a',
      '--name',
      'once',
      '--restart',
      'no',
      '--volume',
      'once',
      '--size',
      '32MiB',
    ],
    ...['--no-encryption', '--', 'sh', '-c', 'echo ran >>/data/runs'],
  );
  assert.equal(once.exitCode, 0, once.stderr);
  const { id, state } = await fleet.worker('a').client.showMachine('once');
  assert.equal(state, 'stopped');
  const moved = await fleet.run('move', 'once', '--to', 'b');
  assert.equal(moved.exitCode, 0, moved.stderr);
  const there = await fleet.worker('b').client.showMachine(id);
  assert.deepEqual([there.state, there.startedAtMs], ['stopped', null], 'it was not run again');
});
