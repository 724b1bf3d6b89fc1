import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, rmSync, statfsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { CreateMachineRequest, MachineView } from '../../src/api/schemas.ts';
import { diskReserveBytes, lastReserveBytes } from '../../src/volume/disk-room.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { tool, VolumeLab } from '../support/volume-lab.ts';

/** The data disk of a worker is full: nobody's filesystem breaks, everybody says why, and it can be emptied. */

const MIB = 2 ** 20;
const DISK_BYTES = 320 * MIB;
const FILLER_BYTES = 140 * MIB;
const HOG_BYTES = 180 * MIB;

/** What the hog writes, byte for byte, however often it begins anew. */
const HOG = `seq 1 100000000 | head -c ${HOG_BYTES}`;

function machineOf(volumeId: string, script: string): CreateMachineRequest['config'] {
  return {
    command: ['sh', '-c', script],
    env: {},
    volume: { volumeId, mountPath: '/data' },
    restart: { policy: 'always', retriesMax: 10 },
    stop: { signal: 'SIGKILL', timeoutMs: 1_000 },
    resources: {},
    network: 'host',
    metadata: {},
  };
}

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
  return worker.client.createMachine({ name, start: true, config: machineOf(volume.id, script) });
}

test('a disk that is full holds writes back, breaks no filesystem, is named, and is emptied', {
  skip: fleetNeeds,
}, async (t) => {
  const lab = new VolumeLab();
  const disk = await lab.smallDisk(DISK_BYTES);
  const fleet = await Fleet.start(t, ['small', 'other'], { dataDir: { small: disk } });
  try {
    await emptyFullDisk(fleet, disk);
  } finally {
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
  // The journals and logs of the worker go on meanwhile.
  assert.ok(freeBytes() >= diskReserveBytes(totalBytes) / 2, `${freeBytes()} bytes are free`);
  assert.match(await inMachine(small, 'quiet', 'grep " /data " /proc/mounts'), / rw,/);
  const fresh = await inMachine(
    small,
    'quiet',
    'dd if=/dev/urandom of=/data/fresh bs=1M count=4 2>/dev/null; sha256sum < /data/fresh',
  );

  // 2. Others take the rest: the room of the journal is opened, and what is asked for is done, or refused by name.
  await tool('sh', '-c', `dd if=/dev/zero of=${join(disk, 'rest')} bs=1M status=none || true`);
  await fleet.until('the room of the journal to be opened', () => !existsSync(join(disk, 'kept-back')));
  const drain = await fleet.run('drain', 'small', '--wait', '1s');
  assert.doesNotMatch(`${drain.stdout}${drain.stderr}`, /INTERNAL/);
  assert.equal(drain.exitCode, 3, drain.stderr);
  assert.equal((await fleet.run('runs', 'list')).exitCode, 0);
  rmSync(join(disk, 'rest'));

  // 3. The neighbour leaves through what is kept back for that, with all that it wrote; the hog has more than fits, and says so.
  await fleet.until('the neighbour to leave', async () =>
    (await other.client.listMachines()).some(({ id, state }) => id === quiet.id && state === 'running'),
  );
  assert.equal(await inMachine(other, 'quiet', 'sha256sum < /data/fresh'), fresh);
  assert.ok(freeBytes() >= lastReserveBytes(totalBytes) / 2, `${freeBytes()} bytes are free`);
  await says('small', /hog is waiting: .*does not fit into what is kept back/);
  assert.equal((await small.client.showMachine(hog.id)).state, 'running');

  // 4. There is room: it goes on by itself, and away.
  rmSync(join(disk, 'filler'));
  const { exitCode, stderr } = await fleet.run('drain', 'small', '--wait', '1h');
  assert.equal(exitCode, 0, stderr);
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
