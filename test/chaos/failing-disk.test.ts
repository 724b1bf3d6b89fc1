import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import test from 'node:test';
import type { VolumeServerStatus } from '../../src/opening/status.ts';
import {
  BACKING_DISK_NEEDS,
  failingXfs,
  goneAndBack,
  type RefusingDisk,
  slowDisk,
  thinDisk,
} from '../support/backing-disk.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { startNbdClient } from '../support/nbd-pair.ts';
import { NotYet, until } from '../support/patience.ts';
import { assertSameContent, moveRawVolume, Running } from '../support/raw-clone.ts';
import { requires } from '../support/requires.ts';
import { killServer, LAB_NEEDS, tool, VolumeLab } from '../support/volume-lab.ts';

/**
 * The data disk of the target fails, really: a filesystem of the kernel on a disk whose store runs out of
 * room, and one that is taken away and mounted again in the same boot. Whatever it lost, the guest never
 * reads zeros or old bytes for it.
 */
const MIB = 2 ** 20;
const LENGTH_BYTES = 24 * MIB;
const skip = requires(...LAB_NEEDS, ...BACKING_DISK_NEEDS, 'xfs_io', 'mkfs.xfs');

test('an ext4 on a disk without room, then it is taken away and mounted again', { skip }, async (t) => {
  const lab = new VolumeLab(t);
  await refusesAndGoes(lab, await thinDisk(lab, 'target', 96 * MIB, 80 * MIB), /full|no space/i);
});

test('an XFS on a disk that errors, then it is taken away and mounted again', { skip }, async (t) => {
  const lab = new VolumeLab(t);
  await refusesAndGoes(lab, await failingXfs(lab, 'target'), /EIO|input\/output/i);
});

async function refusesAndGoes(lab: VolumeLab, disk: RefusingDisk, named: RegExp): Promise<void> {
  const { move, expectedPath } = await moveRawVolume(lab, {
    lengthBytes: LENGTH_BYTES,
    content: { offsetBytes: 0, lengthBytes: LENGTH_BYTES },
    paused: true,
  });
  const { target } = move;
  const dataPath = join(move.targetStore.folder(move.id), 'data.raw');
  /** MiB of the volume, as the guest has them, are as they have to be. */
  const reads = async (firstMib: number, endMib: number) => {
    const part = [`skip=${firstMib}`, `count=${endMib - firstMib}`, 'bs=1M', 'status=none'];
    const [seen, expected] = [join(lab.dir, 'seen'), join(lab.dir, 'part')];
    await tool('dd', `if=${target.loop}`, `of=${seen}`, 'iflag=direct', ...part);
    await tool('dd', `if=${expectedPath}`, `of=${expected}`, ...part);
    await tool('cmp', seen, expected);
  };
  /** What of the data file is in memory only is written back, or lost, and then read from the disk again. */
  const dropPages = async () => {
    await tool('sync', dataPath).catch(() => {});
    await tool('dd', `if=${dataPath}`, 'iflag=nocache', 'count=0', 'status=none');
  };
  const present = async () => (await target.hydration()).blocksPresent;

  // Fetched blocks that cannot be stored: fetched again, in this process and in the next.
  await reads(0, 2);
  await disk.refuse();
  await reads(4, 12);
  await target.until('the disk to be named', ({ lastError }) => named.test(lastError ?? ''));
  await dropPages();
  await reads(4, 12);
  await target.killServer();
  await reads(4, 14);
  disk.takeAgain();
  await tool('dd', 'if=/dev/null', `of=${target.loop}`, 'conv=fsync,notrunc', 'status=none');
  await dropPages();
  await reads(0, 14);
  assert.equal((await target.status()).dataLoss, undefined);

  // Stored, and not durable when the filesystem goes: fetched again.
  const remounted = async () => {
    const { restarts } = target.server.state;
    await goneAndBack(disk, async () => {
      process.kill(target.server.state.serverPid!, 'SIGKILL');
    });
    await until('the next volume server', () => {
      const { state } = target.server;
      return (state.restarts > restarts && state.ready) || new NotYet(state);
    });
  };
  const before = await present();
  await reads(14, 18);
  await until('what came to be kept', present, { is: (blocks) => blocks >= before + 1024 });
  await remounted();
  await reads(0, 18);

  // Written by the guest where nothing was, answered, and not flushed: an error, not what the source has
  // there.
  const own = join(lab.dir, 'own');
  await tool('dd', 'if=/dev/urandom', `of=${own}`, 'bs=64k', 'count=1', 'status=none');
  const write = ['bs=64k', `seek=${20 * 16}`, 'status=none'];
  await tool('dd', `if=${own}`, `of=${target.loop}`, 'oflag=direct', 'conv=notrunc', ...write);
  await remounted();
  assert.match((await target.status()).dataLoss!.reason, /mounted again/);
  for (const mib of [1, 20, 22]) await assert.rejects(reads(mib, mib + 1), /Input\/output error/, `${mib}`);
  await until('it to be told', () => target.events.some(([event]) => event === 'data-lost'), {
    is: (told) => told,
  });

  // An operator decides to go on.
  const { atMs } = (await target.status()).dataLoss!;
  await until('it to be written down', () => existsSync(join(dirname(dataPath), 'data-loss.json')), {
    is: (there) => there,
  });
  await move.targetStore.acceptDataLoss(move.id, atMs);
  await target.killServer();
  assert.equal((await target.status()).dataLoss, undefined);
  await tool('dd', `if=${own}`, `of=${target.loop}`, 'oflag=direct', 'conv=notrunc,fsync', ...write);
  await tool('dd', `if=${own}`, `of=${expectedPath}`, 'conv=notrunc', ...write);
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await target.until('whole', ({ state }) => state === 'complete');
  await assertSameContent(target.loop, expectedPath);
}

test('a disk that loses what a guest wrote, and refuses the word of it too: the next server knows', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  const disk = await failingXfs(lab, 'source');
  const store = await lab.store('source');
  const made = await store.create({ name: 'data', lengthBytes: LENGTH_BYTES, filesystem: 'none' });
  const { loop, ...volume } = await lab.attach(store, made, { access: 'writable' });
  const write = ['if=/dev/urandom', `of=${loop}`, 'bs=64k', 'count=1', 'oflag=direct', 'conv=notrunc'];
  await tool('dd', ...write, 'status=none');
  await tool('dd', 'if=/dev/null', `of=${loop}`, 'conv=fsync,notrunc', 'status=none');
  await disk.refuse();
  await tool('dd', ...write, 'status=none');
  await assert.rejects(tool('dd', 'if=/dev/null', `of=${loop}`, 'conv=fsync,notrunc', 'status=none'));
  await killServer(volume.server);
  // The old bytes are there, or the new ones in memory: neither may be told.
  await assert.rejects(
    tool('dd', `if=${loop}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct'),
    /Input\/output/,
  );
  disk.takeAgain();
  const path = join(store.folder(made.id), 'data-loss.json');
  await until('it to be written down', () => existsSync(path), { is: (there) => there });

  // A source whose server is gone is not sealed over a loss, nor before its data is on the disk.
  await volume.server.stop();
  await assert.rejects(store.makeDataDurable(made.id), { code: 'VOLUME_DATA_LOST' });
  await store.acceptDataLoss(made.id, JSON.parse(readFileSync(path, 'utf8')).atMs);
  const data = `of=${join(store.folder(made.id), 'data.raw')}`;
  await tool('dd', 'if=/dev/urandom', data, 'bs=64k', 'count=1', 'conv=notrunc', 'status=none');
  await disk.refuse({ synced: false });
  await assert.rejects(store.makeDataDurable(made.id), /EIO/);
  disk.takeAgain();
  await store.makeDataDurable(made.id);
});

test('a disk that loses what a client of a served volume wrote: every client of every later server is told, and so is an operator', {
  skip: skip || fleetNeeds,
}, async (t) => {
  const lab = new VolumeLab();
  const disk = await failingXfs(lab, 'alpha');
  const flags = { alpha: ['--disk', '200MiB'] };
  const fleet = await Fleet.start(t, ['alpha'], { dataDir: { alpha: disk.dir }, flags });
  // Its disk goes when nothing of it is left there.
  t.after(() => lab.close());
  const alpha = fleet.worker('alpha');
  const api = alpha.client;
  const made = { name: 'disk', lengthBytes: LENGTH_BYTES, filesystem: 'none', encrypted: false } as const;
  const volume = await api.createVolume(made);
  const path = join(lab.dir, 'disk.sock');
  const request = { protocol: 'nbd', listen: `unix:${path}`, writable: true } as const;
  await api.serveVolume(volume.id, request);
  const client = await startNbdClient(t, { path });
  const other = await startNbdClient(t, { path });
  await client.write(0, Buffer.alloc(65_536, 1));
  await client.flush();
  await disk.refuse();
  await client.write(0, Buffer.alloc(65_536, 2));
  await assert.rejects(client.flush(), /EIO/);
  await assert.rejects(other.flush(), /EIO/);
  disk.takeAgain();
  await assert.rejects(client.flush(), /EIO/);
  const why = async () => (await fleet.run('why', 'disk')).stdout;
  await until('why to tell it', why, { is: (said) => said.includes('the disk of this host lost') });

  // Neither the old bytes nor the new ones, which may be in memory yet.
  const { state } = alpha.shims()[0]!;
  process.kill(state.volumeServer!.pid, 'SIGKILL');
  await assert.rejects(other.read(0, Buffer.alloc(4096)), /EIO/);
  await assert.rejects(other.flush(), /EIO/);
  await api.stopServing(volume.id);
  await assert.rejects(api.serveVolume(volume.id, request), { code: 'VOLUME_DATA_LOST' });
  assert.equal((await fleet.run('volume', 'accept-loss', 'disk', '--yes')).exitCode, 0);
  await api.serveVolume(volume.id, request);
  await client.write(0, Buffer.alloc(65_536, 3));
  await client.flush();
});

test('a disk that hangs: what is here and what comes is read, it is named, and all follows when it goes on', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  const lengthBytes = 112 * MIB;
  const disk = await slowDisk(lab, 'target', 384 * MIB, { bytesPerSecond: 200 * MIB, latencyMs: 1 });
  const content = { offsetBytes: 0, lengthBytes };
  const { move, expectedPath } = await moveRawVolume(lab, { lengthBytes, content, paused: true });
  const { target } = move;
  const same = (mib: number, count: number) =>
    tool('cmp', `--ignore-initial=${mib * MIB}`, `--bytes=${count * MIB}`, target.loop, expectedPath);
  const own = join(lab.dir, 'own');
  await tool('dd', 'if=/dev/urandom', `of=${own}`, 'bs=1M', 'count=1', 'status=none');
  for (const to of [target.loop, expectedPath])
    await tool('dd', `if=${own}`, `of=${to}`, 'bs=1M', 'conv=notrunc,fsync', 'status=none');
  disk.hang();
  await same(0, 8);
  await target.until('the disk to be named', ({ lastError }) => /taken none for/.test(lastError ?? ''));
  // More than is held on its way to the disk: that waits for it, and nothing else does.
  const cold = ['bs=1M', 'skip=16', 'count=96', 'iflag=direct', 'status=none'];
  const beyond = new Running(lab, 'dd', `if=${target.loop}`, 'of=/dev/null', ...cold);
  await target.until('all that is held', ({ wireBytes }) => wireBytes > 56 * MIB);
  await tool('dd', `if=${target.loop}`, 'of=/dev/null', 'bs=1M', 'count=1', 'iflag=direct', 'status=none');
  assert.equal(beyond.over, false);
  assert.ok((await target.hydration()).wireBytes <= 66 * MIB);
  disk.goOn();
  await beyond.ended;
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  const { lastError, blocksFetchedTwice } = await target.until('whole', ({ state }) => state === 'complete');
  assert.deepEqual([lastError, blocksFetchedTwice], [null, 0]);
  await assertSameContent(target.loop, expectedPath);
});

test('the filesystem of a whole volume is taken away under its guest and mounted again: an error, and no old bytes', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  const disk = await failingXfs(lab, 'source');
  const store = await lab.store('source');
  const made = await store.create({ name: 'data', lengthBytes: LENGTH_BYTES, filesystem: 'none' });
  const { loop, ...volume } = await lab.attach(store, made, { access: 'writable' });
  const write = ['if=/dev/urandom', `of=${loop}`, 'bs=64k', 'count=1', 'oflag=direct', 'conv=notrunc'];
  await tool('dd', ...write, 'status=none');
  await tool('dd', 'if=/dev/null', `of=${loop}`, 'conv=fsync,notrunc', 'status=none');
  const read = () => tool('dd', `if=${loop}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct');
  await killServer(volume.server);
  await read();
  await tool('dd', ...write, 'status=none');
  const { restarts } = volume.server.state;
  await goneAndBack(disk, async () => {
    process.kill(volume.server.state.serverPid!, 'SIGKILL');
  });
  await until('the next volume server', () => {
    const { state } = volume.server;
    return (state.restarts > restarts && state.ready) || new NotYet(state);
  });
  await assert.rejects(read(), /Input\/output error/);
  const { dataLoss } = (await volume.server.call('status')) as VolumeServerStatus;
  assert.match(dataLoss!.reason, /mounted again/);
});
