import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { ApiEvent } from '../../src/contract/schemas.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { plainConfig } from '../support/plain-config.ts';
import { tool, VolumeLab } from '../support/volume-lab.ts';

/*
 * A full disk whose worker was told to let writes fail (--when-full error), and whose own log is there too.
 * What waits instead is in full-fleet.test.ts.
 */

const MIB = 2 ** 20;
const DISK_BYTES = 320 * MIB;
const FILLER_BYTES = 140 * MIB;

test('with --when-full error what is written anew to a full disk fails at once and is told of, and a worker whose log is there ends and starts again', {
  skip: fleetNeeds,
}, async (t) => {
  const lab = new VolumeLab();
  const disk = await lab.smallDisk(DISK_BYTES);
  const fleet = await Fleet.start(t, ['small'], {
    dataDir: { small: disk },
    flags: { small: ['--when-full', 'error'] },
    through: { small: ['sh', '-c', `exec "$@" >>${join(disk, 'worker.log')} 2>&1`, 'sh'] },
  });
  const listening = new AbortController();
  try {
    await writesFail(fleet, disk, listening.signal);
  } finally {
    listening.abort();
    for (const name of ['filler', 'rest']) rmSync(join(disk, name), { force: true });
    await fleet.close();
    await lab.close();
  }
});

async function writesFail(fleet: Fleet, disk: string, signal: AbortSignal): Promise<void> {
  const small = fleet.worker('small');
  const volume = await small.client.createVolume({
    ...{ name: 'data', lengthBytes: 256 * MIB, filesystem: 'ext4', encrypted: false },
  });
  const { id } = await small.client.createMachine({
    name: 'hog',
    start: true,
    config: plainConfig(volume.id, 'sleep', 'infinity'),
  });
  const write = (name: string, mebibytes: number) =>
    small.client.execInMachine(id, {
      command: ['dd', 'if=/dev/urandom', `of=/data/${name}`, 'bs=1M', `count=${mebibytes}`, 'conv=fsync'],
      timeoutMs: 600_000,
    });
  const told = (events: ApiEvent[], event: string) =>
    fleet.until(`${event} to be told`, () =>
      events.find(
        ({ code, subject, data }) => code === 'machine-volume' && subject === id && data.event === event,
      ),
    );
  assert.equal((await write('first', 4)).exitCode, 0);

  // 1. No pause: it fails, and everybody says so.
  const before = small.listen(signal);
  execFileSync('fallocate', ['-l', String(FILLER_BYTES), join(disk, 'filler')]);
  const failed = await write('big', 180);
  assert.notEqual(failed.exitCode, 0);
  // What comes first: its own write, or one of the journal of its filesystem, which is read-only from then on.
  assert.match(failed.stderr, /No space left on device|Input\/output error|Read-only file system/);
  assert.match((await told(before, 'no-room')).message, /^the disk is full: .* fails$/);
  assert.equal((await small.client.showMachine(id)).ioPaused?.waiting, 0);
  const list = await fleet.run('machine', 'list');
  assert.match(list.stdout, /^hog .* running \(no room \d/m);
  assert.match(list.stderr, /^1 machine finds no room on a full disk, hog on small for .*: godwit why hog$/m);
  const why = await fleet.run('why', 'hog');
  assert.equal(why.exitCode, 0, why.stderr);
  assert.match(why.stdout, /data disk of small is full .* hog writes anew waits for room, or fails/);

  // 2. What needs room there is refused, and a script knows why.
  execFileSync('sh', ['-c', `dd if=/dev/zero of=${join(disk, 'rest')} bs=1M status=none || true`]);
  const image = join(fleet.dir, 'image');
  writeFileSync(image, Buffer.alloc(16 * MIB, 7));
  for (const words of [
    ['volume', 'create', 'new', '--size', '32MiB', '--no-encryption', '--worker', 'small'],
    ['volume', 'import', 'new', image, '--filesystem', 'none', '--no-encryption', '--worker', 'small'],
    [
      'machine',
      'run',
      '--name',
      'new',
      '--volume',
      'new',
      '--size',
      '32MiB',
      '--worker',
      'small',
      '--',
      'true',
    ],
  ]) {
    const { exitCode, stderr } = await fleet.run(...words);
    assert.equal(exitCode, 3, `${words.join(' ')}: ${stderr}`);
    assert.match(stderr, /^error \w+_(NO_CAPACITY|NO_SPACE): /m, words.join(' '));
  }
  assert.deepEqual(
    (await small.client.listVolumes()).map(({ name }) => name),
    ['data'],
  );

  // 3. Its log takes nothing more, which holds up neither its end nor the next start.
  // The room that is kept for journals is opened, and taken too; last, what is left of the log's own block.
  await fleet.until('what is kept back to be opened', () => !existsSync(join(disk, 'kept-back')));
  for (const name of ['rest', 'worker.log']) {
    const to = `of=${join(disk, name)} bs=512 oflag=append conv=notrunc status=none`;
    await tool('sh', '-c', `dd if=/dev/zero ${to} 2>/dev/null || true`);
  }
  assert.equal(statfsSync(disk).bavail, 0);
  process.kill(small.pid, 'SIGTERM');
  await fleet.until('the worker to end', () => !small.isRunning);
  // Only what volumes may not take: they find no room yet.
  rmSync(join(disk, 'rest'));
  await small.start();
  assert.equal((await small.client.showMachine(id)).state, 'running');

  // 4. With room again it says so by itself, and takes what is written.
  assert.equal((await fleet.run('why', 'small')).exitCode, 0);
  rmSync(join(disk, 'filler'));
  // Its event may have been while the worker was away: what was freed for its start may be room for volumes.
  const room = async () => (await small.client.showMachine(id)).ioPaused === undefined;
  await fleet.until('room', room, { is: (found) => found });
  // Where the journal of its filesystem was what failed, that is read-only: the first write finds it out, and
  // a restart mends it.
  let last = await write('last', 4);
  if (last.exitCode !== 0) {
    assert.match(last.stderr, /Read-only file system/);
    const sick = await fleet.run('why', 'hog');
    assert.match(sick.stdout, /has become read-only[\s\S]*godwit machine restart hog/);
    const restarted = await fleet.run('machine', 'restart', 'hog');
    assert.equal(restarted.exitCode, 0, restarted.stderr);
    last = await write('last', 4);
  }
  assert.equal(last.exitCode, 0, last.stderr);
  const kept = await small.client.execInMachine(id, {
    command: ['stat', '-c', '%s', '/data/first'],
    timeoutMs: 60_000,
  });
  assert.equal(kept.stdout.trim(), String(4 * MIB), kept.stderr);
}
