import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, rmSync, statfsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { seededRandom } from '../../src/base/random.ts';
import type { MachineView } from '../../src/contract/schemas.ts';
import { isAlive } from '../../src/host/process-identity.ts';
import { dirtyBoundOf } from '../../src/host/write-back.ts';
import { NbdClient } from '../../src/nbd/index.ts';
import { diskReserveBytes, keptBytes, lastReserveBytes } from '../../src/volume/disk-room.ts';
import { Fleet, type FleetWorker, fleetNeeds, killProcess } from '../support/fleet.ts';
import { plainConfig } from '../support/plain-config.ts';
import { requires } from '../support/requires.ts';
import { tool, VolumeLab } from '../support/volume-lab.ts';

/**
 * The data disk of a worker is full: nobody's filesystem breaks, everybody says why, and it can be emptied.
 */

const MIB = 2 ** 20;
const DISK_BYTES = 320 * MIB;
const FILLER_BYTES = 140 * MIB;
const HOG_BYTES = 180 * MIB;

/** What the hog writes, byte for byte, however often it begins anew. */
const HOG = `seq 1 100000000 | head -c ${HOG_BYTES}`;

async function machine(
  worker: FleetWorker,
  name: string,
  lengthBytes: number,
  script: string,
): Promise<MachineView> {
  const volume = await worker.client.createVolume({
    name: `${name}-data`,
    lengthBytes,
    filesystem: 'ext4',
    encrypted: false,
  });
  return worker.client.createMachine({
    name,
    start: true,
    config: plainConfig(volume.id, 'sh', '-c', script),
  });
}

test('a disk that is full holds writes back, breaks no filesystem, is named, and is emptied', {
  skip: fleetNeeds || requires('fsfreeze'),
}, async (t) => {
  const lab = new VolumeLab();
  const disk = await lab.smallDisk(DISK_BYTES);
  const fleet = await Fleet.start(t, ['small', 'other'], { dataDir: { small: disk } });
  try {
    await emptyFullDisk(fleet, disk);
  } finally {
    spawnSync('fsfreeze', ['--unfreeze', disk]);
    // What waits for room could not be unmounted.
    for (const name of ['filler', 'rest']) rmSync(join(disk, name), { force: true });
    await fleet.close();
    await lab.close();
  }
});

async function emptyFullDisk(fleet: Fleet, disk: string): Promise<void> {
  const [small, other] = [fleet.worker('small'), fleet.worker('other')];
  const freeBytes = () => {
    const { bavail, bsize } = statfsSync(disk);
    return bavail * bsize;
  };
  const totalBytes = statfsSync(disk).blocks * statfsSync(disk).bsize;
  const says = async (ref: string, pattern: RegExp) =>
    fleet.until(`why ${ref} to say ${pattern}`, async () => (await fleet.run('why', ref)).stdout, {
      is: (stdout) => pattern.test(stdout),
    });
  const inMachine = async (worker: FleetWorker, name: string, script: string) => {
    const reply = await worker.client.execInMachine(name, {
      command: ['sh', '-c', script],
      timeoutMs: 60_000,
    });
    assert.equal(reply.exitCode, 0, `${script}: ${reply.stderr}`);
    return reply.stdout.trim();
  };

  const quiet = await machine(
    small,
    'quiet',
    64 * MIB,
    'while :; do date +%s >> /data/log; sync /data/log; sleep 0.2; done',
  );
  // 0. It hangs: the first who asks is told, and with which command that ends.
  execFileSync('fsfreeze', ['--freeze', disk]);
  const hangs = (await fleet.run('why', 'quiet')).stdout;
  assert.match(hangs, /^ {2}- the data disk of small does not answer: .* \(for \d/m);
  assert.match((await fleet.run('why', 'small')).stdout, /data disk of small does not answer/);
  execFileSync('sh', ['-c', /next: .*(fsfreeze --unfreeze .*"). /.exec(hangs)![1]!]);
  await fleet.until('why to be done with it', async () => (await fleet.run('why', 'quiet')).stdout, {
    is: (stdout) => !/does not answer/.test(stdout),
  });
  // While there is room: later it waits as the hog does, for as long as nothing may be written to its
  // journal.
  const fresh = await inMachine(
    small,
    'quiet',
    'dd if=/dev/urandom of=/data/fresh bs=1M count=4 2>/dev/null; sha256sum < /data/fresh',
  );
  execFileSync('fallocate', ['-l', String(FILLER_BYTES), join(disk, 'filler')]);
  const hog = await machine(
    small,
    'hog',
    512 * MIB,
    `${HOG} > /data/big && sync /data/big && touch /data/done; sleep infinity`,
  );

  // 1. It stops before what is kept back, and says so; the neighbour's filesystem is as it was.
  const waits = /data disk of small is full .* waits for room/;
  assert.match(await says('hog', waits), /godwit drain small/);
  assert.match(await says('small', waits), /hog/);
  const list = await fleet.run('machine', 'list');
  assert.match(list.stdout, /^hog .* running \(I\/O paused \d/m);
  // The neighbour writes a little, and may find none either.
  assert.match(
    list.stderr,
    /(1 machine finds|2 machines find) no room on a full disk, (hog|quiet) on small for .*: godwit why (hog|quiet)/,
  );
  const top = await fleet.run('top', '--once');
  assert.match(top.stdout, /hog .*I\/O paused/);
  const paused = (await small.client.showMachine(hog.id)).ioPaused!;
  assert.ok(paused.waiting > 0 && paused.sinceMs <= Date.now(), JSON.stringify(paused));
  // What it may have in its page cache is bounded: the kernel has the word of the worker.
  const boundBytes = keptBytes(totalBytes, 'running') - keptBytes(totalBytes, 'stopped');
  await fleet.until('the bound of the hog', async () => {
    const shim = small.shims().find(({ id }) => id === hog.id)!;
    const bound = dirtyBoundOf(shim.state.loopDevice!);
    return bound !== null && Math.abs(bound - boundBytes) < boundBytes / 4;
  });
  // The journals and logs of the worker go on meanwhile.
  assert.ok(freeBytes() >= diskReserveBytes(totalBytes) / 2, `${freeBytes()} bytes are free`);
  assert.match(await inMachine(small, 'quiet', 'grep " /data " /proc/mounts'), / rw,/);
  // 2. Others take the rest: the room of the journal is opened, and what is asked for is done, or refused by
  // name.
  await tool('sh', '-c', `dd if=/dev/zero of=${join(disk, 'rest')} bs=1M status=none || true`);
  await fleet.until('the room of the journal to be opened', () => !existsSync(join(disk, 'kept-back')));
  const drain = await fleet.run('drain', 'small', '--wait', '1s');
  assert.doesNotMatch(`${drain.stdout}${drain.stderr}`, /INTERNAL/);
  assert.equal(drain.exitCode, 3, drain.stderr);
  assert.equal((await fleet.run('runs', 'list')).exitCode, 0);
  rmSync(join(disk, 'rest'));
  await fleet.run('undrain', 'small');
  await usedUp(fleet, disk, hog.id);
  await small.client.drain({ target: null });

  // 3. Both leave through what is kept back for that: the neighbour with all that it wrote, and the hog with
  // what it may have in its page cache.
  await fleet.until('the neighbour to leave', async () =>
    (await other.client.listMachines()).some(({ id, state }) => id === quiet.id && state === 'running'),
  );
  assert.equal(await inMachine(other, 'quiet', 'sha256sum < /data/fresh'), fresh);
  assert.ok(freeBytes() >= lastReserveBytes(totalBytes) / 2, `${freeBytes()} bytes are free`);
  const { exitCode, stderr } = await fleet.run('drain', 'small', '--wait', '1h');
  assert.equal(exitCode, 0, stderr);
  assert.ok(existsSync(join(disk, 'filler')), 'nobody has made room for that');

  // 4. There it begins anew, and comes to its end.
  await fleet.until('the hog to be done', async () => {
    const reply = await other.client.execInMachine('hog', {
      command: ['ls', '/data/done'],
      timeoutMs: 60_000,
    });
    return reply.exitCode === 0;
  });
  const expected = createHash('sha256')
    .update(execFileSync('sh', ['-c', HOG], { maxBuffer: 2 * HOG_BYTES }))
    .digest('hex');
  assert.equal((await inMachine(other, 'hog', 'sha256sum < /data/big')).split(' ')[0], expected);
}

/** The room that a machine needs to end is not there any more: then it is not stopped, and says so. */
async function usedUp(fleet: Fleet, disk: string, id: string): Promise<void> {
  const { client } = fleet.worker('small');
  const isStill = async () => (await client.showMachine(id)).move === null;
  await fleet.until('what the drain began to be over', isStill);
  const { startedAtMs } = await fleet.until('the hog to run', async () => {
    const view = await client.showMachine(id);
    return view.state === 'running' && view.ioPaused ? view : null;
  });
  const { blocks, bavail, bsize } = statfsSync(disk);
  const leftBytes = lastReserveBytes(blocks * bsize) + MIB;
  execFileSync('fallocate', ['-l', String(bavail * bsize - leftBytes), join(disk, 'rest')]);
  const move = await fleet.run('move', 'hog');
  const said = `${move.stdout}${move.stderr}`;
  assert.equal(move.exitCode, 3, said);
  assert.match(said, /does not fit into what is kept back/);
  assert.equal((await client.showMachine(id)).startedAtMs, startedAtMs, 'it was not stopped for that');
  rmSync(join(disk, 'rest'));
}

test('a client of a volume that is served waits for room as a machine does, is named, and goes on when there is some', {
  skip: fleetNeeds,
}, async (t) => {
  const lab = new VolumeLab();
  const disk = await lab.smallDisk(DISK_BYTES);
  const run = join(disk, 'run');
  mkdirSync(run);
  await tool('mount', '-t', 'tmpfs', '-o', `size=${2 * MIB}`, 'tmpfs', run);
  lab.onClose(() => tool('umount', run));
  const fleet = await Fleet.start(t, ['small'], { dataDir: { small: disk } });
  try {
    await serveOnFullDisk(fleet, disk);
  } finally {
    // What waits for room could not be unmounted.
    for (const name of ['filler', 'rest', 'run/filler']) rmSync(join(disk, name), { force: true });
    await fleet.close().catch((error: Error) => assert.equal(error.message, `left behind: ${run}`));
    await lab.close();
  }
});

async function serveOnFullDisk(fleet: Fleet, disk: string): Promise<void> {
  const { client } = fleet.worker('small');
  const volume = await client.createVolume({
    name: 'disk',
    lengthBytes: 256 * MIB,
    filesystem: 'none',
    encrypted: false,
  });
  execFileSync('fallocate', ['-l', String(FILLER_BYTES), join(disk, 'filler')]);
  const path = join(fleet.dir, 'disk.sock');
  await client.serveVolume(volume.id, { protocol: 'nbd', listen: `unix:${path}`, writable: true });
  const clock = systemClock;
  const nbd = await NbdClient.connect({
    ...{ address: { path }, exportName: 'disk', readOnly: false },
    ...{ clock, random: seededRandom(1), logger: silentLogger },
  });
  try {
    const payload = Buffer.alloc(MIB, 7);
    let written = 0;
    const writing = (async () => {
      for (; written < 200; written++) await nbd.write(written * MIB, payload);
      await nbd.flush();
    })();
    writing.catch(() => {});
    const why = (ref: string) =>
      fleet.until(`why ${ref} to say what it waits for`, async () => (await fleet.run('why', ref)).stdout, {
        is: (stdout) => /what disk writes anew waits for room/.test(stdout),
      });
    await why('disk');
    await why('small');
    assert.ok(written < 200);
    const { bavail, bsize, blocks } = statfsSync(disk);
    assert.ok(bavail * bsize >= diskReserveBytes(blocks * bsize) / 2, `${bavail * bsize} bytes are free`);
    rmSync(join(disk, 'filler'));
    await writing;
    const last = Buffer.alloc(MIB);
    await nbd.read(199 * MIB, last);
    assert.deepEqual(last, payload);
    await noRoomForShims(fleet, join(disk, 'run'));
    await nbd.read(0, last);
    assert.deepEqual(last, payload);
  } finally {
    await nbd.close();
    await client.stopServing(volume.id);
  }
}

/** The folder of the shims is full: what runs goes on, and nothing begins without a word of it. */
async function noRoomForShims(fleet: Fleet, run: string): Promise<void> {
  const worker = fleet.worker('small');
  const serving = () => worker.shims()[0]!.state;
  const before = serving().volumeServer!;
  execFileSync('fallocate', [
    '-l',
    String(statfsSync(run).bavail * statfsSync(run).bsize),
    join(run, 'filler'),
  ]);
  killProcess(before);
  const refused = await fleet.run('machine', 'run', '--name', 'm', '--', 'sleep', '100000');
  assert.deepEqual(
    [refused.exitCode, /MACHINE_RUNTIME_NO_SPACE: .* is full/.test(refused.stderr)],
    [3, true],
    refused.stderr,
  );
  assert.deepEqual(await worker.client.listMachines(), []);
  const why = await fleet.run('why', 'small');
  assert.match(why.stdout, /there is no room in .*\/run for the files of shims/);
  assert.deepEqual(serving().volumeServer, before, 'nobody could write down the next one');
  rmSync(join(run, 'filler'));
  await fleet.until('the shim to write down its volume server', () => isAlive(serving().volumeServer!));
}
