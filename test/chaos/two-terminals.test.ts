import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { Fleet, fleetNeeds } from '../support/fleet.ts';

/*
 * Commands as people type them: twice at the same time, for what is not there, and with a worker that is down.
 * What is read is so, and the exit code is the one of docs/cli.md.
 */

type Run = Awaited<ReturnType<Fleet['run']>>;

/** The same words in two terminals at once; by exit code. */
async function twice(fleet: Fleet, ...words: string[]): Promise<Run[]> {
  const both = await Promise.all([fleet.run(...words), fleet.run(...words)]);
  return both.sort((left, right) => left.exitCode! - right.exitCode!);
}

function codes(runs: Run[], expected: number[]): void {
  assert.deepEqual(
    runs.map(({ exitCode }) => exitCode),
    expected,
    runs.map(({ stderr }) => stderr).join('\n---\n'),
  );
}

const VOLUME = ['--size', '16MiB', '--no-encryption'];

test('what two ask for at once is done once, and both read what is so', { skip: fleetNeeds }, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b']);
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];

  codes(await twice(fleet, 'volume', 'create', 'disk', '--worker', 'a', ...VOLUME), [0, 6]);
  const places = ['one', 'two'].map((name) => `unix:${join(fleet.dir, `${name}.sock`)}`);
  const served = await Promise.all(
    places.map((place) => fleet.run('volume', 'serve', 'disk', '--nbd', place, '--detach')),
  );
  const winner = served.findIndex(({ exitCode }) => exitCode === 0);
  codes(
    [...served].sort((left, right) => left.exitCode! - right.exitCode!),
    [0, 6],
  );
  assert.match(served[1 - winner]!.stderr, /WORKER_VOLUME_SERVED/);
  const location = (await a.client.showVolume('disk')).served?.location ?? '';
  assert.ok(location.includes(places[winner]!.slice('unix:'.length)), `${location} ${winner}`);
  codes(await twice(fleet, 'volume', 'serve', 'disk', '--stop'), [0, 0]);

  const moved = await twice(fleet, 'volume', 'move', 'disk', '--to', 'b');
  codes(moved, [0, 0]);
  for (const { stderr } of moved) assert.match(stderr, /disk is on b/);
  assert.deepEqual((await b.client.listMachines()).length + (await a.client.listMachines()).length, 0);
  assert.equal((await b.client.showVolume('disk')).machineId, null);

  const words = [
    '--name',
    'm',
    '--worker',
    'a',
    '--volume',
    'data:/data',
    ...VOLUME,
    '--',
    'sleep',
    '100000',
  ];
  codes(await twice(fleet, 'machine', 'run', ...words), [0, 6]);
  assert.deepEqual(
    (await a.client.listVolumes()).flatMap(({ name, state }) => (state === 'retained' ? [] : [name])),
    ['data'],
  );
  codes(await twice(fleet, 'machine', 'start', 'm'), [0, 0]);
  codes(await twice(fleet, 'machine', 'stop', 'm'), [0, 0]);
  codes(await twice(fleet, 'machine', 'restart', 'm'), [0, 0]);
  codes(await twice(fleet, 'drain', 'a'), [0, 0]);
  codes(await twice(fleet, 'undrain', 'a'), [0, 0]);
  const back = await twice(fleet, 'move', 'm', '--to', 'a');
  codes(back, [0, 6]);
  assert.match(back[1]!.stderr, /JOURNAL_RESOURCE_BUSY|WORKER_MOVE_TO_ITSELF|MIGRATION_NOT_MOVABLE/);
  const gone = await twice(fleet, 'machine', 'destroy', 'm', '--force', '--volume');
  assert.equal(gone[0]!.exitCode, 0, gone[0]!.stderr);
  assert.ok([0, 5].includes(gone[1]!.exitCode!), gone[1]!.stderr);
  for (const worker of [a, b]) assert.deepEqual(await worker.client.listMachines(), []);
  // What went may be with the one who is away.
  assert.equal((await fleet.run('why', 'm')).exitCode, 0);
  await b.kill();
  assert.equal((await fleet.run('why', 'm')).exitCode, 4);
});

/** What is asked for where there is nothing of that name. */
const NOBODY: readonly (readonly string[])[] = [
  ...['show', 'start', 'stop', 'restart', 'destroy', 'logs'].map((verb) => ['machine', verb, 'nobody']),
  ['machine', 'exec', 'nobody', '--', 'true'],
  ['machine', 'exec', '-i', 'nobody', '--', 'true'],
  ...['show', 'destroy', 'move', 'accept-loss'].map((verb) => ['volume', verb, 'nobody']),
  ['volume', 'serve', 'nobody', '--stop'],
  ['volume', 'recover', 'nobody', '--as', 'somebody'],
  ['machine', 'run', '--name', 'x', '--volume', 'nobody', '--', 'true'],
  ...['show', 'cancel', 'nudge'].map((verb) => ['runs', verb, 'nobody']),
  ['runs', 'force', 'nobody', 'undo', '--yes'],
  ...['move', 'why', 'receipt', 'drain', 'undrain'].map((verb) => [verb, 'nobody']),
];

test('names that nothing has are not found, and a worker that is down is not answered for', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b']);
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const made = await fleet.run('machine', 'run', '--name', 'm', '--worker', 'a', '--', 'sleep', '100000');
  assert.equal(made.exitCode, 0, made.stderr);
  for (const words of NOBODY) {
    const { exitCode, stderr } = await fleet.run(...words);
    assert.equal(exitCode, 5, `${words.join(' ')}: ${stderr}`);
    assert.match(stderr, /^error [A-Z]+_[A-Z_]+: .*\n {2}next: ./, words.join(' '));
  }
  const toNobody = [
    await fleet.run('move', 'm', '--to', 'nobody'),
    await fleet.run('drain', 'a', '--to', 'nobody'),
  ];
  for (const { exitCode, stderr } of toNobody) assert.equal(exitCode, 5, stderr);

  await b.kill();
  for (const words of [
    ...NOBODY,
    ['machine', 'list'],
    ['volume', 'list'],
    ['runs', 'list'],
    ['top', '--once'],
    ['why', 'b'],
    ['drain', 'b'],
    ['undrain', 'b'],
  ]) {
    const isWorker = words[0] === 'drain' || words[0] === 'undrain';
    const { exitCode, stderr } = await fleet.run(...words);
    assert.equal(exitCode, isWorker && words[1] === 'nobody' ? 5 : 4, `${words.join(' ')}: ${stderr}`);
    assert.doesNotMatch(stderr, /INTERNAL/, words.join(' '));
  }
  const why = await fleet.run('why', 'm');
  assert.deepEqual([why.exitCode, /b does not answer/.test(why.stderr)], [0, true], why.stderr);
  const moved = await fleet.run('move', 'm', '--to', 'b');
  assert.equal(moved.exitCode, 3, moved.stderr);
  assert.equal((await a.client.showMachine('m')).state, 'running');
  const drained = await fleet.run('drain', 'a', '--wait', '2s');
  assert.equal(drained.exitCode, 3, drained.stderr);
  assert.match(drained.stderr, /m: .*b/);
});
