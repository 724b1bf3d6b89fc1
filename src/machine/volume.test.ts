import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { endShim, machineConfig, machineNeeds, runtimeFolder } from '../../test/support/machine.ts';
import { patient, until } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { systemRandom } from '../base/random.ts';
import { readMountTable } from '../host/mount-table.ts';
import { identifyProcess } from '../host/process-identity.ts';
import { jailRuntime } from '../jail/runtime.ts';
import { type FreeMapReport, isDataLocked, ownSpec, VolumeStore } from '../volume/index.ts';
import { localMachineHost } from './machine-host.ts';
import { MachineManager } from './manager.ts';
import { MachineStore } from './store.ts';

const SLEEP = 'while :; do sleep 0.05; done';
const skip = machineNeeds || requires('/dev/fuse', '/dev/loop-control', 'losetup', 'mkfs.ext4', 'mkfs.xfs');

/** Machines on real volumes: store, volume server, FUSE, loop device, filesystem. */
async function fixture(t: TestContext) {
  let manager: MachineManager | undefined;
  const dir = runtimeFolder(t, async () => {
    for (const { id } of manager?.records() ?? []) await endShim(manager!.runtimeDir(id));
    manager?.close();
  });
  const store = await VolumeStore.open(dir, {
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
  });
  manager = await MachineManager.open({
    store: await MachineStore.open(dir),
    volumes: {
      attachSpec: async (id) =>
        ownSpec(await store.get(id), { volumeDir: store.folder(id), access: 'writable' }),
      filesystem: async (id) => (await store.get(id)).filesystem,
      assignMachine: (id, machineId) => store.assignMachine(id, machineId),
    },
    runtimeRoot: join(dir, 'run'),
    hidden: [dir],
    host: localMachineHost({
      clock: systemClock,
      logger: silentLogger,
      runtimes: { process: jailRuntime },
    }),
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
  });
  const create = async (
    name: string,
    filesystem: 'ext4' | 'xfs' | 'none' = 'ext4',
    mib = 64,
    place: { mountPath?: string; nbd?: boolean } = { mountPath: '/data' },
  ) => {
    const volume = await store.create({ name, lengthBytes: mib * 1024 * 1024, filesystem });
    const user = place.nbd ? { user: 'nobody' } : {};
    const config = machineConfig(SLEEP, { volume: { volumeId: volume.id, ...place }, ...user });
    return { volume, machine: await manager.create({ name, config }) };
  };
  return { dir, store, manager, create };
}

function isLocked(store: VolumeStore, volumeId: string): boolean {
  return isDataLocked(join(store.folder(volumeId), 'data.raw'));
}

/** No mount, loop device or lock of the test's folder is left. */
function assertNothingHeld(dir: string): void {
  assert.deepEqual(
    readMountTable().filter(({ mountPoint }) => mountPoint.startsWith(`${dir}/`)),
    [],
  );
  for (const name of readdirSync('/sys/block').filter((device) => device.startsWith('loop'))) {
    let file = '';
    try {
      file = readFileSync(`/sys/block/${name}/loop/backing_file`, 'utf8');
    } catch {
      continue;
    }
    assert.ok(!file.startsWith(dir), `${name} is on ${file}`);
  }
}

for (const filesystem of ['ext4', 'xfs'] as const) {
  test(`what a machine writes to its ${filesystem} volume is there at the next start`, {
    skip,
  }, async (t) => {
    const { dir, store, manager, create } = await fixture(t);
    const { volume, machine } = await create('db', filesystem, filesystem === 'xfs' ? 320 : 64);
    await manager.start('db');
    const written = await manager.exec(
      'db',
      ['sh', '-c', 'mount | grep /data; echo precious > /data/x'],
      patient(20_000),
    );
    assert.match(written.stdout, new RegExp(`/dev/loop[0-9]+ on /data type ${filesystem}`));
    const { shim } = await manager.show('db');
    assert.equal(shim?.volume?.mounted, true);
    assert.ok(shim?.volume?.serverPid);
    assert.equal(JSON.stringify(shim).includes('chapSecret'), false);
    await manager.stop('db');
    assert.equal((await manager.show('db')).shim?.volume?.mounted, true, 'a stop leaves the volume attached');
    await manager.release('db');
    assertNothingHeld(dir);
    assert.equal(isLocked(store, volume.id), false);
    await manager.start('db');
    assert.equal((await manager.exec('db', ['cat', '/data/x'], patient(20_000))).stdout, 'precious\n');
    await manager.destroy('db', { force: true });
    assertNothingHeld(dir);
    assert.equal((await store.get(volume.id)).machineId, null);
    assert.equal(identifyProcess(shim!.volume!.serverPid!), null);
    assert.ok(machine.id);
  });
}

test('the machine does not notice that its volume server is killed', { skip }, async (t) => {
  const { manager, create } = await fixture(t);
  const { machine } = await create('db');
  await manager.start('db');
  const script =
    'until [ -e /data/enough ]; do dd if=/dev/urandom of=/data/f bs=64k count=8 conv=fsync status=none && cp /data/f /data/g && sync -f /data && cmp /data/f /data/g && echo >> /tmp/rounds || exit 1; done; echo ok';
  const roundsDone = async () => {
    const { stdout } = await manager.exec(
      'db',
      ['sh', '-c', 'wc -l < /tmp/rounds || echo 0'],
      patient(60_000),
    );
    return { rounds: Number(stdout) };
  };
  const working = manager.exec('db', ['sh', '-c', script], patient(60_000));
  const client = (await manager.client(machine.id))!;
  const pids = new Set<number>();
  for (let kill = 0; kill < 3; kill++) {
    const { rounds } = await roundsDone();
    await until('the machine to write', roundsDone, { is: (now) => now.rounds > rounds });
    const pid = (await client.call('status', {})).volume?.serverPid;
    assert.ok(pid && !pids.has(pid));
    process.kill(pid, 'SIGKILL');
    pids.add(pid);
    await until('the next volume server', async () => (await client.call('status', {})).volume, {
      is: ({ serverPid }) => serverPid !== null && serverPid !== pid,
    });
  }
  await manager.exec('db', ['touch', '/data/enough'], patient(60_000));
  assert.deepEqual(await working, { exitCode: 0, stdout: 'ok\n', stderr: '', timedOut: false });
  assert.equal((await client.call('status', {})).volume?.serverRestarts, 3);
});

test('the steps of a move, one by one: sync, stop, unmount, seal, close', { skip }, async (t) => {
  const { dir, store, manager, create } = await fixture(t);
  const { volume, machine } = await create('db');
  await manager.start('db');
  const client = (await manager.client(machine.id))!;
  await manager.exec('db', ['sh', '-c', 'echo 1 > /data/x'], patient(20_000));
  await client.call('fs.sync', {});
  await assert.rejects(client.call('volume.close', {}), (error) =>
    isGodwitError(error, 'MACHINE_FS_MOUNTED'),
  );
  await client.call('workload.stop', {});
  await client.call('fs.unmount', {});
  await client.call('fs.unmount', {});
  await client.volume('seal', {});
  assert.equal(isLocked(store, volume.id), false, 'sealed: the lock is free for others');
  await client.call('volume.close', {});
  await client.call('volume.close', {});
  assert.equal((await client.call('status', {})).volume, null);
  assertNothingHeld(dir);
});

test('a target opens in standby, and mounts once it is activated', { skip }, async (t) => {
  const { store, manager, create } = await fixture(t);
  const { volume, machine } = await create('db');
  const client = await manager.ensureShim(machine.id);
  const spec = ownSpec(await store.get(volume.id), {
    volumeDir: store.folder(volume.id),
    access: 'standby',
  });
  const { loopDevice } = await client.open(spec);
  assert.match(loopDevice ?? '', /^\/dev\/loop\d+$/);
  assert.deepEqual(await client.open(spec), { loopDevice, exportPort: null });
  await assert.rejects(client.open({ ...spec, generation: 9 }), (error) =>
    isGodwitError(error, 'MACHINE_VOLUME_OPEN'),
  );
  const subject = { machineId: machine.id, name: 'db', config: machine.config };
  await client.call('workload.prepare', subject);
  assert.equal((await client.call('status', {})).volume?.mounted, false);
  await client.volume('activate', { access: 'writable' });
  await client.call('fs.mount', { filesystem: 'ext4' });
  await client.call('fs.mount', { filesystem: 'ext4' });
  await client.call('workload.start', subject);
  assert.equal(
    (await manager.exec('db', ['sh', '-c', 'echo y > /data/y && cat /data/y'], patient(20_000))).stdout,
    'y\n',
  );
});

test('a volume that cannot be opened says why, and leaves nothing', { skip }, async (t) => {
  const { dir, store, manager, create } = await fixture(t);
  const { volume, machine } = await create('db');
  const client = await manager.ensureShim(machine.id);
  const spec = ownSpec(await store.get(volume.id), {
    volumeDir: store.folder(volume.id),
    access: 'writable',
  });
  await assert.rejects(client.open({ ...spec, generation: 7 }), (error) => {
    assert.ok(isGodwitError(error));
    assert.notEqual(error.code, 'INTERNAL');
    return true;
  });
  assertNothingHeld(dir);
  await client.open(spec);
});

test('a killed shim with a volume in use: all of it is ended, and the machine starts again', {
  skip,
}, async (t) => {
  const { dir, manager, create } = await fixture(t);
  const { machine } = await create('db');
  await manager.start('db');
  await manager.exec(
    'db',
    ['sh', '-c', 'echo synced > /data/x; sync -f /data; echo dirty > /data/y'],
    patient(20_000),
  );
  const { shim } = await manager.show('db');
  process.kill(shim!.shimPid, 'SIGKILL');
  await until('the shim to be gone', async () => (await manager.client(machine.id)) === null);
  await manager.shutdownShim(machine.id);
  assertNothingHeld(dir);
  assert.equal(identifyProcess(shim!.volume!.serverPid!), null);
  assert.equal(identifyProcess(shim!.workload!.pid!), null);
  await manager.start('db');
  assert.equal((await manager.exec('db', ['cat', '/data/x'], patient(20_000))).stdout, 'synced\n');
});

const URI = 'nbd+unix:///disk?socket=/run/godwit/disk.sock';
const qemuIo = (...commands: string[]) => [
  'qemu-io',
  ...['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), URI],
];

test('a machine has its volume as a socket, for reading and writing, and nothing mounted', {
  skip: skip || requires('qemu-io', 'nbdinfo'),
}, async (t) => {
  const { dir, store, manager, create } = await fixture(t);
  const { volume, machine } = await create('vm', 'none', 64, { nbd: true });
  await manager.start('vm');
  const run = async (...command: string[]) => {
    const { exitCode, stdout, stderr } = await manager.exec('vm', command, patient(20_000));
    assert.equal(exitCode, 0, stdout + stderr);
    return stdout;
  };
  const nobody = await run('id', '-u');
  assert.equal(await run('stat', '-c', '%a %u %F', '/run/godwit/disk.sock'), `600 ${nobody.trim()} socket\n`);
  const [info] = JSON.parse(await run('nbdinfo', '--json', URI)).exports;
  assert.deepEqual([info['export-size'], info.is_read_only], [volume.lengthBytes, false]);
  assert.equal(info.description, `${volume.id}.1`);
  await run(...qemuIo('write -P 7 0 1M', 'flush'));
  const { shim } = await manager.show('vm');
  assert.deepEqual([shim?.volume?.loopDevice, shim?.volume?.mounted], [null, false]);
  await manager.stop('vm');
  assert.equal(isLocked(store, volume.id), true, 'a stop leaves the volume attached');
  await manager.release('vm');
  assert.equal(isLocked(store, volume.id), false);
  assertNothingHeld(dir);

  await manager.start('vm');
  await run(...qemuIo('read -P 7 0 1M', 'write -P 8 0 1M'));
  const running = (await manager.show('vm')).shim!;
  process.kill(running.shimPid, 'SIGKILL');
  await until('the shim to be gone', async () => (await manager.client(machine.id)) === null);
  await manager.shutdownShim(machine.id);
  for (const pid of [running.volume!.serverPid!, running.workload!.pid!])
    assert.equal(identifyProcess(pid), null);
  assert.equal(isLocked(store, volume.id), false);
  await manager.start('vm');
  await run(...qemuIo('read -P 8 0 1M'));
});

test('what a guest uses of its disk is not read from a filesystem that may have been there before', {
  skip: skip || requires('qemu-io'),
}, async (t) => {
  const { store, manager, create } = await fixture(t);
  const { volume, machine } = await create('vm', 'ext4', 64, { nbd: true });
  await manager.start('vm');
  // As a partition table and the start of a partition would, it leaves the old filesystem as it is.
  const written = await manager.exec('vm', qemuIo('write -P 7 0 512', 'write -P 7 48M 1M'), patient(20_000));
  assert.equal(written.exitCode, 0, written.stderr);
  const client = (await manager.client(machine.id))!;
  await client.call('workload.stop', {});
  await store.apply(volume.id, { kind: 'seal', generation: 1 });
  await client.volume('seal', {});
  const report = await client.volume('free-map', { filesystem: 'ext4' });
  const { unusedBytes, reason } = report as FreeMapReport;
  assert.deepEqual([unusedBytes, reason?.code], [0, 'VOLUME_DISK_OF_GUEST']);
  assert.equal(existsSync(join(store.folder(volume.id), 'free.map')), false);
});

test('beside its mounted filesystem a machine has its volume as a socket for reading', {
  skip: skip || requires('qemu-io', 'nbdinfo', 'nbdcopy'),
}, async (t) => {
  const { dir, manager, create } = await fixture(t);
  await create('db', 'ext4', 64, { mountPath: '/data', nbd: true });
  await manager.start('db');
  const [info] = JSON.parse(
    (await manager.exec('db', ['nbdinfo', '--json', URI], patient(20_000))).stdout,
  ).exports;
  assert.equal(info.is_read_only, true);
  assert.notEqual((await manager.exec('db', qemuIo('write -P 7 0 1M'), patient(20_000))).exitCode, 0);
  // The kernel writes the mount's time and counts to the superblock at once, at byte 1024.
  const magic = await manager.exec(
    'db',
    ['sh', '-c', `nbdcopy ${URI} - | od -An -tx2 -j1080 -N2`],
    patient(20_000),
  );
  assert.equal(magic.stdout.trim(), 'ef53', magic.stderr);
  await manager.destroy('db', { force: true });
  assertNothingHeld(dir);
});
