import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import test from 'node:test';
import { workerPaths } from '../../src/worker/paths.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { requires } from '../support/requires.ts';

/** A machine's filesystem is frozen, or has met an error: it is named, to whom it concerns, at once. */

const VOLUME = ['--size', '32MiB', '--no-encryption'];
/** Writes without an end, and hears no signal. */
const DEAF = 'trap "" TERM; while :; do date >>/data/beats; sleep 0.1; done';
/** Writes nothing, and ends when somebody says so. */
const QUIET = 'trap "echo asked" TERM; echo up; while [ ! -e /tmp/end ]; do sleep 0.1; done';

const placeOf = ({ dataDir }: FleetWorker, id: string) => join(workerPaths(dataDir).runtimeRoot, id, 'fs');
const freeze = (place: string) => execFileSync('fsfreeze', ['--freeze', place]);
const thaw = (place: string) => spawnSync('fsfreeze', ['--unfreeze', place]);

test('a filesystem that is frozen is named before the stop, when what was killed waits for it, and when it was let go of', {
  skip: fleetNeeds || requires('fsfreeze'),
}, async (t) => {
  const frozen = new Set<string>();
  // Before the hooks of the fleet, which could end nothing of it.
  t.after(() => {
    for (const place of frozen) thaw(place);
  });
  const fleet = await Fleet.start(t, ['a', 'b', 'c']);
  const a = fleet.worker('a');
  const run = ['machine', 'run', '--worker', 'a', '--name'];
  await fleet.godwit(
    0,
    ...[...run, 'deaf', '--volume', 'deaf', ...VOLUME, '--stop-timeout', '5s', '--', 'sh', '-c', DEAF],
  );
  await fleet.godwit(
    0,
    ...[...run, 'quiet', '--volume', 'quiet', ...VOLUME, '--stop-timeout', '1h', '--', 'sh', '-c', QUIET],
  );
  const idOf = async (name: string) => (await a.client.showMachine(name)).id;
  const [deaf, quiet] = [await idOf('deaf'), await idOf('quiet')];
  for (const id of [deaf, quiet]) frozen.add(placeOf(a, id));

  // 1. Before the stop.
  freeze(placeOf(a, deaf));
  const startedAtMs = (await a.client.showMachine(deaf)).startedAtMs;
  assert.match(await fleet.godwit(3, 'move', 'deaf'), /is frozen/);
  assert.equal((await a.client.showMachine(deaf)).startedAtMs, startedAtMs, 'it was not stopped');
  thaw(placeOf(a, deaf));

  // 2. While it has its time: it is killed then, and its processes cannot end.
  const stepOf = async (id: string) => (await a.client.showRun(id)).step;
  const moving = await a.client.moveMachine(deaf, { target: 'b' });
  await fleet.until('the stop', async () => (await stepOf(moving.id)) === 'stop');
  freeze(placeOf(a, deaf));
  const why = await fleet.until('why to name the freeze', async () => {
    const { stdout } = await fleet.run('why', 'deaf');
    return /was killed, and does not end: the filesystem at .* is frozen/.test(stdout) && stdout;
  });
  assert.match(why, /who can clear it: whoever froze it[\s\S]*fsfreeze --unfreeze/);
  const told = await fleet.until(
    'the run to say so',
    async () => (await a.client.showRun(moving.id)).reason,
    {
      is: (reason) => /deaf was killed, and does not end: .* is frozen/.test(reason?.message ?? ''),
    },
  );
  thaw(/--unfreeze (\S+)\.$/.exec(told!.nextAction)![1]!);
  assert.equal((await fleet.ended(a, fleet.worker('b'), moving.id)).state, 'done');

  // 3. Stopped, and nothing of it left: it cannot be let go of, and runs again at once.
  const second = await a.client.moveMachine(quiet, { target: 'b' });
  await fleet.until('the stop', async () => (await stepOf(second.id)) === 'stop');
  freeze(placeOf(a, quiet));
  await a.client.execInMachine(quiet, { command: ['touch', '/tmp/end'], timeoutMs: 60_000 });
  const ended = await a.ended(second.id);
  assert.equal(ended.state, 'undone', ended.error?.message);
  assert.match(ended.error?.nextAction ?? '', /it is frozen/);
  await fleet.until('it to run again', async () => (await a.client.showMachine(quiet)).state === 'running');
  thaw(/--unfreeze (\S+)\.$/.exec(ended.error!.nextAction)![1]!);
  await fleet.godwit(0, 'machine', 'exec', 'quiet', '--', 'sh', '-c', 'echo x >/data/x; sync /data/x');
  await fleet.godwit(0, 'machine', 'destroy', 'quiet', 'deaf', '--force', '--volume');
});

test('a filesystem that the kernel has made read-only is said, keeps no move in doubt, and is mounted anew by a restart', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b', 'c']);
  const a = fleet.worker('a');
  const loop = 'while :; do date >>/data/beats; sleep 0.1; done';
  await fleet.godwit(
    0,
    ...['machine', 'run', '--worker', 'a', '--name', 'm', '--volume', 'm', ...VOLUME],
    ...['--', 'sh', '-c', loop],
  );
  const { id } = await a.client.showMachine('m');
  const device = basename(a.shims().find((shim) => shim.id === id)!.state.loopDevice!);
  execFileSync('mount', ['-o', 'remount,errors=remount-ro', placeOf(a, id)]);
  assert.ok(readdirSync('/sys/fs/ext4').includes(device));
  writeFileSync(`/sys/fs/ext4/${device}/trigger_fs_error`, '1');
  const options = () =>
    readFileSync('/proc/mounts', 'utf8')
      .split('\n')
      .find((line) => line.includes(`${placeOf(a, id)} `));
  assert.match(options() ?? '', /[ ,](emergency_)?ro[ ,]/);

  const why = await fleet.godwit(0, 'why', 'm');
  assert.match(why, /^ {2}- the filesystem of its volume has become read-only/m);
  const moved = await fleet.godwit(3, 'move', 'm', '--to', 'b');
  assert.match(moved, /undone: the filesystem of its volume has become read-only/);
  const [run] = await fleet.moves(a, id);
  assert.deepEqual(
    run?.steps.filter(({ attempts }) => attempts > 1),
    [],
    'trying again does not help',
  );

  const restart = /`godwit (machine restart \S+)`/.exec(why)![1]!;
  await fleet.godwit(0, ...restart.split(' '));
  await fleet.godwit(0, 'machine', 'exec', 'm', '--', 'sh', '-c', 'echo x >/data/x; sync /data/x');
  assert.match(await fleet.godwit(0, 'why', 'm'), /waits for nothing/);
  await fleet.godwit(0, 'move', 'm', '--to', 'b');
});
