import assert from 'node:assert/strict';
import type { RunView } from '../../src/journal/run.ts';
import { type CloneBinding, cloneMetadataBytes, REGION_BYTES } from '../../src/kernel/clone-binding.ts';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import type { WriterHistory } from '../../test/support/writer-collector.ts';
import type { Guest } from '../guest.ts';
import { patient } from '../kind.ts';
import { Lab } from '../lab.ts';
import type { LabWorker } from '../lab-worker.ts';
import { mustRun } from '../member.ts';
import { DATA_DIR, prepareGuest } from '../prepare.ts';
import { assertNothingLeft, patienceMs, tellStates, until, workerPair, writerOn } from './move.ts';
import { crashAt } from './trouble.ts';

const MIB = 2 ** 20;
const BALLAST_MIB = 32;
const DMSETUP = '/usr/sbin/dmsetup';
const FILL = `${DATA_DIR}/fill`;
/** On the disk, to be there after a reboot. */
const STALE = `${DATA_DIR}/stale`;
const RIGHT = `${DATA_DIR}/right`;
/** Whose the stale metadata is. */
const ANOTHER = 'v_another';
/** In the volume's folder; neither is believed without the other. */
const METADATA = ['clone.dm', 'clone.dm.json'] as const;

type World = {
  lab: Lab;
  source: LabWorker;
  target: LabWorker;
  machineId: string;
  volumeId: string;
  history: WriterHistory;
  say: (line: string) => void;
};

/**
 * Targets that cannot do it. Held to: the move ends undone with a code and a next action, nothing of it is
 * left at the target, and the machine was not stopped for it. Then what comes to light only when the machine
 * is there: nothing is lost, nothing wrong is believed, and it goes on when the trouble is over.
 */
export async function refusals(say: (line: string) => void): Promise<void> {
  const lab = await Lab.start({
    guests: ['source', 'target'].map((name) => ({ name, diskBytes: [2 ** 31] })),
  });
  const cleanups: (() => unknown)[] = [];
  try {
    const [source, target] = await workerPair(lab);
    await Promise.all([source.start(), target.start(crashAt('reserve', 'after'))]);
    const ids = await writerOn(source, {}, cleanups);
    const world = { lab, source, target, ...ids, say };
    try {
      await undone(world);
      await staleMetadata(world);
    } catch (error) {
      await tellStates([source, target]);
      throw error;
    }
  } finally {
    for (const cleanup of cleanups) await cleanup();
    await lab.close();
  }
}

/** What is found out while the machine still runs at the source. */
async function undone(world: World): Promise<void> {
  const { lab, target, volumeId, say } = world;
  const guest = lab.guest('target');

  await refused(world, 'its disk fills up once the move is promised', 'MIGRATION_REFUSED', async () => {
    await until('the death of the worker', async () => !(await target.isRunning()));
    await fill(guest, 6 * MIB);
    await target.start();
    return () => mustRun(guest, ['rm', FILL]);
  });
  await fill(guest, 100 * MIB);
  await refused(world, 'its disk is full', /disk: needs \d+ MiB, has 0 MiB/);
  await mustRun(guest, ['rm', FILL]);

  await mustRun(guest, ['kill', '-9', (await guest.readFile('/run/iscsid.pid')).trim()]);
  await refused(world, 'iscsid does not run', /iscsid: does not run/);
  await mustRun(guest, ['iscsid']);

  const folder = `/usr/lib/modules/${await mustRun(guest, ['uname', '-r'])}`;
  const module = `${folder}/kernel/drivers/md/dm-clone.ko`;
  await mustRun(guest, ['rmmod', 'dm-clone']);
  await mustRun(guest, ['mount', '--bind', '/dev/null', module]);
  await refused(world, 'the module of dm-clone cannot be loaded', 'HOST_MAPPER_NO_TARGET');
  await mustRun(guest, ['umount', module]);
  await mustRun(guest, ['modprobe', 'dm-clone']);

  const name = `godwit-${volumeId}`;
  await mustRun(guest, ['dmsetup', 'create', name], { input: '0 8 error\n' });
  const { pid } = await guest.spawn(['sh', '-c', `exec 3<>/dev/mapper/${name}; exec sleep 600`], {
    logPath: '/tmp/holder.log',
  });
  await refused(
    world,
    'a device name is taken',
    'HOST_MAPPER_BUSY',
    async () => () => guest.kill(pid, 'SIGKILL'),
  );

  await wrapDmsetup(guest, 'targets', 's/^clone .*/clone            v2.0.0/');
  await refused(world, 'a dm-clone of another version', 'HOST_UNKNOWN_OUTPUT');
  await mustRun(guest, ['umount', DMSETUP]);

  await mustRun(guest, ['rmmod', 'dm-clone']);
  await mustRun(guest, ['mount', '-t', 'tmpfs', 'none', folder]);
  await refused(world, 'its kernel has no dm-clone', /kernel plane: dm_clone: this kernel has no dm_clone/);
  await target.kill();
  await assert.rejects(target.start(), /WORKER_NO_KERNEL_PLANE/);
  say('its kernel has no dm-clone: WORKER_NO_KERNEL_PLANE when its worker starts');
  await mustRun(guest, ['umount', folder]);
  await target.start(crashAt('volume'));
}

/** The metadata of another clone is not believed, before the move hands over nor after a reboot. */
async function staleMetadata(world: World): Promise<void> {
  const { lab, source, target, machineId, volumeId, history, say } = world;
  const guest = lab.guest('target');
  const folder = `${DATA_DIR}/volumes/${volumeId}`;
  const put = (from: string, to: string) =>
    mustRun(guest, ['cp', '--remove-destination', ...METADATA.map((name) => `${from}/${name}`), to]);
  await makeStale(guest, (await source.client.showVolume(volumeId)).lengthBytes);
  await source.client.execInMachine(machineId, {
    command: [
      'sh',
      '-c',
      `cd /data && dd if=/dev/urandom of=ballast bs=1M count=${BALLAST_MIB} status=none && sha256sum ballast > sums && sync`,
    ],
    timeoutMs: patient(120_000),
  });

  // The target's worker dies when the volume is there.
  await lab.shape(lab.guest('source'), { rateMbit: 40 });
  const { id } = await source.client.moveMachine(machineId, { target: target.name });
  await until('the death of the worker', async () => !(await target.isRunning()));
  await put(STALE, folder);
  await target.start();
  await source.client.nudgeRun(id);
  await history.incarnation(1, patienceMs());
  await until('the copy', async () => (await target.client.showRun(targetRunId(id))).step === 'hydrate');
  say('metadata of another clone in a volume that arrives: made anew');

  await guest.kill9();
  await lab.shape(lab.guest('source'), {});
  await guest.boot();
  await prepareGuest(guest);
  await mustRun(guest, ['mkdir', RIGHT]);
  await put(folder, RIGHT);
  await put(STALE, folder);
  const before = history.incarnations.length;
  await target.start();
  await until('the reason', async () => {
    const { conditions } = await target.client.why(machineId);
    return conditions.some(({ message }) => message.includes(`is of ${ANOTHER}`));
  });
  await mustRun(guest, ['grep', '-q', 'PLANE_METADATA_WRONG', target.logPath]);
  assert.deepEqual(await mustRun(guest, ['dmsetup', 'ls']), 'No devices found');
  assert.equal(history.incarnations.length, before, 'it wrote over blocks that are not known');
  await put(RIGHT, folder);
  await target.client.startMachine(machineId);
  await history.incarnation(before, patienceMs());
  for (const [worker, run] of [
    [target, targetRunId(id)],
    [source, id],
  ] as const)
    await worker.client.nudgeRun(run);
  const run = await ended(source, id);
  assert.equal(run.state, 'done', JSON.stringify(run));
  const { exitCode, stdout, stderr } = await target.client.execInMachine(machineId, {
    command: ['sh', '-c', 'cd /data && sha256sum --quiet -c sums'],
    timeoutMs: patient(120_000),
  });
  assert.equal(exitCode, 0, stdout + stderr);
  await history.more(3, patienceMs());
  history.assertSound();
  say('metadata of another clone after a reboot: PLANE_METADATA_WRONG, and on with the right one');
}

/** Metadata as dm-clone writes it, of a clone of the same length in which much is local. */
async function makeStale(guest: Guest, lengthBytes: number): Promise<void> {
  const metadataBytes = cloneMetadataBytes(lengthBytes);
  const script = `
    set -e
    mkdir ${STALE}
    cd ${STALE}
    truncate -s ${metadataBytes} clone.dm
    truncate -s ${lengthBytes} data source
    metadata=$(losetup --find --show clone.dm) data=$(losetup --find --show data) source=$(losetup --find --show source)
    echo "0 ${lengthBytes / 512} clone $metadata $data $source ${REGION_BYTES / 512} 1 no_hydration" | dmsetup create stale
    dd if=/dev/zero of=/dev/mapper/stale bs=1M count=64 oflag=direct conv=fsync status=none
    dmsetup remove stale
    losetup --detach $metadata $data $source
    rm data source`;
  await mustRun(guest, ['sh', '-c', script]);
  const binding: CloneBinding = {
    formatVersion: 1,
    volumeId: ANOTHER,
    generation: 2,
    lengthBytes,
    regionBytes: REGION_BYTES,
    metadataBytes,
    freeMapTaken: true,
    whole: false,
  };
  await guest.writeFile(`${STALE}/clone.dm.json`, JSON.stringify(binding));
  await mustRun(guest, ['sync', '-f', STALE]);
}

/**
 * A move that ends undone. `expected`: the code of the error of the target's own run, or what it says in its
 * answer when it does not even begin one. `arrange` makes the trouble once the move is asked for, and
 * resolves with what ends it.
 */
async function refused(
  { source, target, machineId, volumeId, history, say }: World,
  what: string,
  expected: string | RegExp,
  arrange?: () => Promise<() => Promise<unknown>>,
): Promise<void> {
  const { id } = await source.client.moveMachine(machineId, { target: target.name });
  const repair = await arrange?.();
  await source.client.nudgeRun(id);
  const run = await ended(source, id);
  assert.equal(run.state, 'undone', what);
  assert.match(run.error?.nextAction ?? '', /\w/);
  if (typeof expected === 'string') {
    const inside = await until(
      'the reason',
      async () => (await target.client.showRun(targetRunId(id))).error,
    );
    assert.equal(inside.code, expected);
    assert.equal(run.error?.code, 'MIGRATION_TARGET_FORGOT');
    assert.ok(run.error.message.includes(inside.message), run.error.message);
    assert.equal(run.error.nextAction, inside.nextAction);
  } else {
    assert.equal(run.error?.code, 'MIGRATION_NO_CAPACITY');
    assert.match(run.error.message, expected);
  }
  await repair?.();
  if (typeof expected === 'string') {
    await target.client.nudgeRun(targetRunId(id));
    assert.equal((await ended(target, targetRunId(id))).state, 'undone');
  }
  await assertNothingLeft(target, 'kernel', { machineId, volumeId });
  assert.deepEqual([...(await target.client.listMachines()), ...(await target.client.listVolumes())], []);
  await history.more(3, patienceMs());
  history.assertSound();
  assert.equal(history.incarnations.length, 1, 'the machine was stopped for it');
  say(`${what}: ${typeof expected === 'string' ? expected : run.error.code}, and the machine runs on`);
}

/** Root may use what the filesystem keeps back for it; what it keeps back for itself is given up. */
async function fill(guest: Guest, leftBytes: number): Promise<void> {
  await guest.writeFile('/sys/fs/ext4/ubda/reserved_clusters', '0');
  const [blocks, blockBytes] = (await mustRun(guest, ['stat', '-f', '-c', '%f %S', DATA_DIR])).split(' ');
  const bytes = Number(blocks) * Number(blockBytes) - leftBytes;
  await mustRun(guest, ['fallocate', '-l', String(bytes), FILL]);
}

/** What dmsetup says to one command goes through sed. */
async function wrapDmsetup(guest: Guest, command: string, edit: string): Promise<void> {
  const real = '/root/dmsetup.real';
  await mustRun(guest, ['cp', '-n', DMSETUP, real]);
  await guest.writeFile(
    '/root/dmsetup.wrapper',
    `#!/bin/sh\nif [ "$1" = ${command} ]; then ${real} "$@" | sed '${edit}'; else exec ${real} "$@"; fi\n`,
    0o755,
  );
  await mustRun(guest, ['mount', '--bind', '/root/dmsetup.wrapper', DMSETUP]);
}

async function ended(worker: LabWorker, runId: string): Promise<RunView> {
  return until(`the end of ${runId} on ${worker.name}`, async () => {
    const run = await worker.client.showRun(runId);
    return run.endedAtMs === null ? null : run;
  });
}
