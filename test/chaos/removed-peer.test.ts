import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { Fleet, fleetNeeds } from '../support/fleet.ts';

/** A worker is taken out of the fleet, of its file and of the others' peers, while machines move to it. */

const VOLUME = ['--size', '32MiB', '--no-encryption'];
/** Ends for a stop signal once it was told that it may. */
const DEAF = 'trap "echo asked; [ ! -e /data/mild ] || exit 0" TERM; while :; do sleep 0.1; done';

test('a peer that is removed locks no machine whose move to it is undone, by a cancel or by an override', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b', 'c']);
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const { godwit } = fleet;
  const make = async (name: string, ...rest: string[]) => {
    const run = ['machine', 'run', '--name', name, '--worker', 'a', '--volume', name, ...VOLUME];
    await godwit(0, ...run, ...rest);
    return (await a.client.showMachine(name)).id;
  };
  const deaf = await make('deaf', '--stop-timeout', '1h', '--', 'sh', '-c', DEAF);
  const doubt = await make('doubt', '--', 'sleep', 'infinity');

  // 1. One is being undone, and its target has still to be asked to forget; one is in doubt.
  const { id: undone } = await a.client.moveMachine(deaf, { target: 'b' });
  const asked = async () => /^asked$/m.test((await fleet.run('machine', 'logs', 'deaf')).stdout);
  await fleet.until('the stop signal', asked);
  await b.kill();
  await b.start({ crashAt: 'migrate-in:activate:before-done-append' });
  const { id: doubtful } = await a.client.moveMachine(doubt, { target: 'b' });
  await b.crashed();
  await a.kill();
  await a.start({ crashAt: 'migrate-out:prepare:before-undo-append' });
  await a.client.cancelRun(undone);
  await a.crashed();

  // 2. The target is taken out of the fleet, for good.
  const file = join(fleet.dir, 'fleet.json');
  const { workers, ...rest } = JSON.parse(readFileSync(file, 'utf8')) as { workers: { name: string }[] };
  writeFileSync(file, JSON.stringify({ ...rest, workers: workers.filter(({ name }) => name !== 'b') }));
  await a.start({ without: 'b' });
  assert.equal((await a.ended(undone)).state, 'undone');

  // 3. What was undone is its owner's again: to stop, to start, to move elsewhere.
  const free = async () => {
    const { state, move } = await a.client.showMachine('deaf');
    return state === 'running' && move === null;
  };
  await fleet.until('it to run', free);
  await godwit(0, 'machine', 'exec', 'deaf', '--', 'touch', '/data/mild');
  await godwit(0, 'machine', 'stop', 'deaf');
  await godwit(0, 'machine', 'start', 'deaf');
  await godwit(0, 'move', 'deaf', '--to', 'c');

  // 4. What is in doubt says who is missing, and goes back on the statement that the target is lost.
  const why = await fleet.until('why to name the peer', async () => {
    const { stdout } = await fleet.run('why', 'doubt');
    return /worker b is no longer among the peers of this worker/.test(stdout) && stdout;
  });
  assert.match(why, /--peer b=URL/);
  const unasked = await godwit(6, 'runs', 'force', doubtful, 'undo', '--yes');
  assert.match(unasked, /MIGRATION_TARGET_UNASKED[\s\S]*it is not among the peers of this worker/);
  const told = /`godwit (runs force [^`]*)`/.exec(unasked)![1]!;
  await godwit(0, ...told.split(' '));
  assert.equal((await a.ended(doubtful)).state, 'undone');
  await fleet.until('it to run', async () => (await a.client.showMachine('doubt')).state === 'running');
  await godwit(0, 'move', 'doubt', '--to', 'c');
});
