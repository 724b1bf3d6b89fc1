import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { Fleet, fleetNeeds, killProcess } from '../support/fleet.ts';
import { memoryController } from '../support/memory.ts';
import { withMountsOf } from '../support/mount-copy.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';

/*
 * Hosts that cannot have a machine: one without control groups for its limit, which is found out before
 * anything is stopped or made; and one that looks best and fails, which is not asked four times. What goes
 * past them is odd and sound: two filesystems of one uuid, and a LUKS2 header with a slot of somebody else.
 */

const needs =
  fleetNeeds ||
  requires('chattr', 'cryptsetup', 'mkfs.xfs', 'unshare') ||
  (memoryController() === null && 'this host limits no memory');

/** The host of a worker, without control groups; it mounts its own. */
const WITHOUT_CGROUPS = [
  ...withMountsOf('/no test'),
  ...['sh', '-c', 'umount --recursive --lazy /sys/fs/cgroup && exec "$@"', 'sh'],
] as const;

test('a host that lacks what a machine asks for says so before, one that fails is left for another, and odd volumes go past both', {
  skip: needs,
}, async (t) => {
  // Before the hooks that take folders away, in the order in which they are set.
  let immutable: string | null = null;
  t.after(() => immutable !== null && spawnSync('chattr', ['-i', immutable]));
  const dir = scratchDir(t);
  const key = join(dir, 'key');
  writeFileSync(key, '#!/bin/sh\nprintf "the key of %s" "$GODWIT_VOLUME_ID"\n');
  chmodSync(key, 0o755);
  const unwritable = join(dir, 'best');
  mkdirSync(unwritable, { mode: 0o700 });
  const keys = ['--key-exec', key];
  const fleet = await Fleet.start(t, ['a', 'bare', 'best', 'third'], {
    flags: {
      a: keys,
      bare: [...keys, '--memory', '4GiB'],
      best: [...keys, '--memory', '8GiB'],
      // With what it has already, less room than the other.
      third: [...keys, '--memory', '400MiB'],
    },
    dataDir: { best: unwritable },
    through: { bare: WITHOUT_CGROUPS },
  });
  const [a, bare, third] = [fleet.worker('a'), fleet.worker('bare'), fleet.worker('third')];
  const { godwit } = fleet;
  const limited = ['--memory', '64MiB'];
  const run = (name: string, worker: string, volume: string[], ...rest: string[]) =>
    [
      ...['machine', 'run', '--worker', worker, '--name', name, '--volume', ...volume],
      ...(worker === 'third' ? ['--memory', '260MiB'] : limited),
      ...['--', ...(rest.length > 0 ? rest : ['sleep', 'infinity'])],
    ] as const;

  // 1. What cannot be made leaves nothing.
  const refused = await fleet.run(...run('x', 'bare', ['x', '--size', '32MiB']));
  assert.equal(refused.exitCode, 3, 'as a move that nobody takes for that reason');
  assert.match(refused.stderr, /MACHINE_CGROUP_MISSING/);
  assert.doesNotMatch(refused.stderr, /could not be destroyed/);
  assert.deepEqual([await bare.client.listMachines(), await bare.client.listVolumes()], [[], []]);
  assert.deepEqual(bare.shims(), []);

  // 2. What could not run there does not go there, and is not stopped to find that out.
  await godwit(0, ...run('locked', 'a', ['locked', '--size', '32MiB']));
  const lacks = /bare memory: it has no cgroup controller/;
  assert.match(await godwit(3, 'drain', 'a', '--to', 'bare', '--dry-run'), lacks);
  const before = await a.client.showMachine('locked');
  assert.match(await godwit(3, 'move', 'locked', '--to', 'bare'), lacks);
  assert.equal((await a.client.showMachine('locked')).startedAtMs, before.startedAtMs);

  // 3. A slot with a hash that is not done here keeps nobody from opening the volume by the other one.
  const { volumeId } = before;
  const [first, extra] = ['first', 'extra'].map((name) => join(dir, name));
  writeFileSync(first!, `the key of ${volumeId}`, { mode: 0o600 });
  writeFileSync(extra!, 'another', { mode: 0o600 });
  execFileSync('cryptsetup', [
    ...['luksAddKey', '--batch-mode', '--key-file', first!, '--pbkdf', 'pbkdf2'],
    ...['--pbkdf-force-iterations', '1000', '--hash', 'sha3-256'],
    ...[join(a.dataDir, 'volumes', volumeId!, 'header.luks2'), extra!],
  ]);

  // 4. Two filesystems of one uuid, one on each side.
  const image = join(dir, 'golden.xfs');
  writeFileSync(image, '');
  truncateSync(image, 320 * 2 ** 20);
  execFileSync('mkfs.xfs', ['-q', image]);
  for (const [name, worker] of [
    ['here', 'a'],
    ['there', 'third'],
  ] as const) {
    await godwit(0, 'volume', 'import', `gold-${name}`, image, '--no-encryption', '--worker', worker);
    const script = `echo ${name} >/data/who; sync; exec sleep infinity`;
    await godwit(0, ...run(name, worker, [`gold-${name}`], 'sh', '-c', script));
  }

  // 5. The best target refuses each of them once.
  immutable = join(unwritable, 'volumes');
  execFileSync('chattr', ['+i', immutable]);
  assert.match(await godwit(0, 'drain', 'a', '--dry-run'), / best /);
  const drained = await godwit(0, 'drain', 'a', '--wait', '10m');
  let failures = 0;
  for (const name of ['locked', 'here']) {
    assert.match(drained, new RegExp(`^${name}: moved to third`, 'm'));
    const { id } = await third.client.showMachine(name);
    const moves = (await fleet.moves(a, id)).map(({ state, output }) => [state, output.target]);
    assert.deepEqual(moves[0], ['done', 'third'], JSON.stringify(moves));
    const failed = moves.filter(([, target]) => target === 'best');
    assert.ok(failed.length <= 1, JSON.stringify(moves));
    failures += failed.length;
  }
  assert.ok(failures > 0, 'it was the best one');
  for (const name of ['here', 'there'])
    assert.equal((await godwit(0, 'machine', 'exec', name, '--', 'cat', '/data/who')).trim(), name);
  // All anew: the header, with its slot, came along.
  killProcess(third.shims().find(({ id }) => id === before.id)!.state.shim);
  await third.kill();
  await third.start();
  await fleet.until('it to be opened again', async () => {
    const { state } = await third.client.showMachine('locked');
    return state === 'running';
  });
});
