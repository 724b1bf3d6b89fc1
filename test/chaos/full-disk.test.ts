import assert from 'node:assert/strict';
import { readdirSync, rmSync, statfsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { leisurely, until } from '../support/patience.ts';
import { assertSameContent, moveRawVolume, Running } from '../support/raw-clone.ts';
import { requires } from '../support/requires.ts';
import {
  digestFiles,
  LAB_NEEDS,
  type Move,
  moveVolume,
  tool,
  VolumeLab,
  writeFiles,
} from '../support/volume-lab.ts';

const MIB = 2 ** 20;
const SMALL_DISK_BYTES = 96 * MIB;
const skip = requires(...LAB_NEEDS);

/** What a copy that runs meanwhile may just have given back of what the disk refused. */
const IN_FLIGHT_BYTES = 2 * MIB;

/** Takes all the room that a folder's filesystem has; gives it back when it is called again. */
async function fill(dir: string, givenBackBytesMax = 0): Promise<() => void> {
  const ballast = join(dir, 'ballast');
  for (const [path, bytes] of [
    [ballast, '64k'],
    [`${ballast}.end`, '512'],
  ]) {
    await tool('sh', '-c', `dd if=/dev/zero of=${path} bs=${bytes} status=none || true`);
  }
  await tool('sync', '-f', dir);
  const { bavail, bsize } = statfsSync(dir);
  assert.ok(bavail * bsize <= givenBackBytesMax, `the disk is full: ${bavail * bsize} bytes are free`);
  return () => {
    rmSync(ballast);
    rmSync(`${ballast}.end`);
  };
}

const noSpace = (error: unknown) => (error as { code?: string }).code === 'VOLUME_NO_SPACE';

test('a disk that is full before the move: each step says so by name, changes nothing, and goes when there is room', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  lab.whenFull = 'error';
  const small = await lab.smallDisk(SMALL_DISK_BYTES);
  const sourceStore = await lab.store('source');
  const targetStore = await lab.store('small-disk');
  const made = await sourceStore.create({ name: 'data', lengthBytes: 256 * MIB, filesystem: 'ext4' });
  let written = new Map<string, string>();
  await lab.withDataMounted(sourceStore, made.id, async (dir) => {
    written = writeFiles(dir, 'source', 16, MIB);
  });
  const source = await lab.export(sourceStore, made.id, 'standby');

  let makeRoom = await fill(small);
  const folders = readdirSync(targetStore.directory);
  await assert.rejects(targetStore.createIncoming({ ...made, generation: 2 }), noSpace);
  assert.deepEqual(readdirSync(targetStore.directory), folders, 'nothing of it stays');
  await assert.rejects(
    targetStore.create({ name: 'other', lengthBytes: 64 * MIB, filesystem: 'ext4' }),
    noSpace,
  );
  assert.deepEqual(readdirSync(targetStore.directory), folders);
  makeRoom();
  const incoming = await targetStore.createIncoming({ ...made, generation: 2 });

  makeRoom = await fill(small);
  const target = await lab.attach(targetStore, incoming, { access: 'standby', source: source.source });
  await sourceStore.apply(made.id, { kind: 'seal', generation: 1 });
  await source.server.call('activate', { access: 'readonly' });
  await assert.rejects(targetStore.apply(made.id, { kind: 'activate', generation: 2 }), noSpace);
  assert.deepEqual(await targetStore.get(made.id), incoming, 'the record is what it was');
  await assert.rejects(target.server.call('activate', { access: 'writable' }), { code: 'VOLUME_FENCED' });
  makeRoom();
  await targetStore.apply(made.id, { kind: 'activate', generation: 2 });
  await target.server.call('activate', { access: 'writable' });
  await target.until('hydrated', (hydration) => hydration.state === 'complete');
  await target.server.call('finish');
  assert.deepEqual(await digestFiles(await target.mount()), written);
});

test('nothing fits from the first block on: reads come from the source, writes get ENOSPC, all follows when there is room', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  lab.whenFull = 'error';
  const small = await lab.smallDisk(SMALL_DISK_BYTES);
  const { move, expectedPath } = await moveRawVolume(lab, {
    lengthBytes: 128 * MIB,
    content: { offsetBytes: 0, lengthBytes: 48 * MIB },
    paused: true,
    targetDir: 'small-disk',
  });
  const { target } = move;
  const makeRoom = await fill(small);
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await untilNoRoom(move);
  const first = await target.hydration();
  await tool('cmp', target.loop, expectedPath);
  const second = await target.hydration();
  assert.equal(second.state, 'running');
  assert.ok(second.exposedBytes > 40 * MIB, 'next to nothing could be stored');
  assert.ok(second.blocksPresent - first.blocksPresent < (8 * MIB) / 4096);
  const write = tool(
    'dd',
    'if=/dev/urandom',
    `of=${target.loop}`,
    'bs=64k',
    'seek=1600',
    'count=64',
    'oflag=direct',
  );
  await assert.rejects(write, /No space left on device/);
  await target.killServer();
  await untilNoRoom(move);
  await tool('cmp', '--bytes', String(48 * MIB), target.loop, expectedPath);

  makeRoom();
  const payload = join(lab.dir, 'payload');
  await tool('dd', 'if=/dev/urandom', `of=${payload}`, 'bs=1M', 'count=4', 'status=none');
  for (const to of [target.loop, expectedPath]) {
    await tool('dd', `if=${payload}`, `of=${to}`, 'bs=1M', 'seek=100', 'conv=notrunc,fsync', 'status=none');
  }
  const whole = await target.until('hydrated', (hydration) => hydration.state === 'complete');
  assert.equal(whole.lastError, null);
  await target.server.call('finish');
  await assertSameContent(target.loop, expectedPath);
});

test('the disk fills up under a filesystem in mid-hydration: what was synced stays, and the rest follows', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  lab.whenFull = 'error';
  const small = await lab.smallDisk(SMALL_DISK_BYTES);
  let written = new Map<string, string>();
  const move = await moveVolume(lab, {
    lengthBytes: 512 * MIB,
    targetDir: 'small-disk',
    paused: true,
    fill: async (dir) => {
      written = writeFiles(dir, 'source', 40, MIB);
    },
  });
  const { target } = move;
  let dir = await target.mount();
  const scratch = lab.scratch();
  const synced = writeFiles(scratch, 'synced', 4, MIB);
  await tool('sh', '-c', `cp ${scratch}/synced-* ${dir} && sync -f ${dir}`);
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: leisurely(16 * MIB) });
  await target.until('some of it', (hydration) => hydration.wireBytes > 8 * MIB);
  const makeRoom = await fill(small, IN_FLIGHT_BYTES);
  await untilNoRoom(move);
  const stuck = await target.hydration();
  assert.ok(stuck.exposedBytes > 0);
  await tool('dd', 'if=/dev/urandom', `of=${join(scratch, 'late')}`, 'bs=1M', 'count=16', 'status=none');
  const late = tool('sh', '-c', `dd if=${join(scratch, 'late')} of=${join(dir, 'late')} bs=1M conv=fsync`);
  await assert.rejects(late, /No space left on device|Input\/output error|Read-only file system/);

  makeRoom();
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  const whole = await target.until('hydrated', (hydration) => hydration.state === 'complete');
  assert.equal(whole.lastError, null);
  assert.equal(whole.blocksFetchedTwice, 0);
  assert.equal(target.server.state.restarts, 0);
  await target.server.call('finish');
  await target.unmount();
  // Replays the journal, and repairs what a write that was refused may have left: never what was synced
  // before.
  await tool('sh', '-c', `e2fsck -f -y ${target.loop} || test $? -le 2`);
  dir = await target.mount();
  const found = await digestFiles(dir);
  found.delete('late');
  assert.deepEqual(found, new Map([...written, ...synced]));
});

test('no memory is left for the live map: a write that needs some waits, by name, and all else goes on, also in the next server', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  await lab.smallMaps(128 * 1024);
  const { move, expectedPath } = await moveRawVolume(lab, {
    lengthBytes: 512 * MIB,
    content: { offsetBytes: 120 * MIB, lengthBytes: 16 * MIB },
    paused: true,
  });
  const { target, targetStore, source, id } = move;
  const payload = join(lab.dir, 'payload');
  await tool('dd', 'if=/dev/urandom', `of=${payload}`, 'bs=1M', 'count=1', 'status=none');
  const write = (to: string, mib: number) =>
    ['bs=1M', 'conv=notrunc', 'status=none', `if=${payload}`, `of=${to}`, `seek=${mib}`] as const;
  const writes = async (mib: number) => {
    await tool('dd', 'oflag=direct', ...write(target.loop, mib));
    await tool('dd', ...write(expectedPath, mib));
  };
  const same = (mib: number, count: number) =>
    tool('cmp', `--ignore-initial=${mib * MIB}`, `--bytes=${count * MIB}`, target.loop, expectedPath);
  // A page of each map, for the first 128 MiB.
  await writes(1);
  const makeRoom = await fill(lab.validityDir, 4096);

  const late = new Running(lab, 'dd', 'oflag=direct', ...write(target.loop, 300));
  const named = async () => (await target.status()).noRoom?.map?.startsWith(lab.validityDir) ?? false;
  await until('the map to be named', named, { is: (isNamed) => isNamed });
  await until('it to be told', () => target.events.some(([event]) => event === 'no-room'), {
    is: (isTold) => isTold,
  });
  // Across the border of two pages of the map, of which one has memory.
  await same(120, 16);
  await writes(2);
  await writes(127);
  await same(120, 16);
  await target.killServer();
  await until('the map to be named', named, { is: (isNamed) => isNamed });
  await same(120, 16);
  await same(0, 3);
  const { state } = target.server;
  assert.ok(state.ready && state.restarts === 1, 'it does not die of it');
  const record = await targetStore.get(id);
  const other = await targetStore.createIncoming({ ...record, id: 'v_other' });
  await assert.rejects(
    lab.attach(targetStore, other, { access: 'standby', source: source.source, paused: true }),
    noSpace,
  );
  assert.equal(late.over, false);

  makeRoom();
  await late.ended;
  await tool('dd', ...write(expectedPath, 300));
  await until('all to be well', async () => (await target.status()).noRoom === undefined, {
    is: (isWell) => isWell,
  });
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await target.until('whole', (hydration) => hydration.state === 'complete');
  await assertSameContent(target.loop, expectedPath);
});

async function untilNoRoom({ target }: Move): Promise<void> {
  await target.until('no room', (hydration) => hydration.lastError?.includes('VOLUME_NO_SPACE') ?? false);
}
