import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readFileSync, readSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { isGodwitError } from '../../src/base/errors.ts';
import type { NbdClient, NbdClientOptions } from '../../src/nbd/index.ts';
import { startNbdClient } from '../support/nbd-pair.ts';
import { STRIPED_BYTES, StripedWriters } from '../support/nbd-stripes.ts';
import { leisurely, NotWorthWaiting, NotYet, until } from '../support/patience.ts';
import { moveRawVolume, Running } from '../support/raw-clone.ts';
import { requires } from '../support/requires.ts';
import { testSeed } from '../support/seed.ts';
import { type Attachment, LAB_NEEDS, tool, VolumeLab } from '../support/volume-lab.ts';

/**
 * Volumes whose guest comes through NBD, and volumes that are looked at through NBD beside their guest: what
 * holds for FUSE holds for them. The volume server is killed, the volume sealed, and its blocks come from a
 * source, under load.
 */
const MIB = 2 ** 20;
const SEED = testSeed();
const LONG = process.env.GODWIT_LONG === '1';

const skip = requires('root');

/** A volume of zeros whose guest comes through NBD. */
async function attached(lab: VolumeLab, lengthBytes: number): Promise<Attachment> {
  const store = await lab.store('own');
  const record = await store.create({ name: 'disk', lengthBytes, filesystem: 'none' });
  return lab.attach(store, record, { access: 'writable', nbd: 'guest' });
}

function connect(
  t: TestContext,
  { socket }: Attachment,
  options: Partial<NbdClientOptions> = {},
): Promise<NbdClient> {
  return startNbdClient(t, { path: socket }, options);
}

/** What the client makes of EPERM. */
const isRefused = (error: unknown) => isGodwitError(error, 'BLOCK_READ_ONLY');

test('kill -9 of the volume server of a clone that hydrates, under a guest that writes: every call ends well, every byte is right', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  const { move, expectedPath } = await moveRawVolume(lab, {
    lengthBytes: 128 * MIB,
    content: { offsetBytes: 0, lengthBytes: 96 * MIB },
    paused: true,
    nbd: 'guest',
  });
  const { target } = move;
  const client = await connect(t, target, { connections: 4 });
  const { ctimeNs } = statSync(target.socket, { bigint: true });
  const file = openSync(expectedPath, 'r+');
  t.after(() => closeSync(file));
  const content = Buffer.alloc(STRIPED_BYTES);
  readSync(file, content, 0, content.length, 0);
  // Paused: all that the guest does is on blocks that are not here. Then slowly enough that each kill meets
  // the copy.
  const writers = new StripedWriters(client, SEED, content);
  await writers.progress(200);
  const kills = LONG ? 30 : 3;
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: leisurely(4 * MIB) });
  for (let kill = 0; kill < kills; kill++) {
    await writers.progress(150);
    await target.killServer();
  }
  assert.ok((await target.hydration()).exposedBytes > 0, 'the copy was under way until the end of the kills');
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await target.until('hydrated', (hydration) => hydration.state === 'complete');
  await target.server.call('finish');
  await writers.progress(200);
  await writers.finish();
  const now = statSync(target.socket, { bigint: true });
  assert.notEqual(now.ctimeNs, ctimeNs, 'the socket came back by itself');
  assert.equal(statSync(target.socket).mode & 0o777, 0o600);
  assert.ok(client.statistics.replayed > 0, 'requests were under way when it died');
  const { guest } = await target.status();
  assert.ok(guest.writes > 0 && guest.reads > 0);

  writeSync(file, writers.expected, 0, writers.expected.length, 0);
  const all = Buffer.alloc(128 * MIB);
  await client.read(0, all);
  assert.ok(all.equals(readFileSync(expectedPath)), 'the whole disk');
});

const NEEDS_QEMU = skip || requires('qemu-img', 'qemu-io');
test('QEMU with reconnect-delay writes on while the volume server is killed', {
  skip: NEEDS_QEMU,
}, async (t) => {
  const lab = new VolumeLab(t);
  const lengthBytes = 32 * MIB;
  const volume = await attached(lab, lengthBytes);
  const disk = `driver=nbd,server.type=unix,server.path=${volume.socket},reconnect-delay=60`;
  const bench = new Running(
    lab,
    'qemu-img',
    ...['bench', '--image-opts', disk, '-w', '--pattern=90', '-s', '4096', '-S', '4096', '-d', '16'],
    ...['-c', String(LONG ? 100_000 : 20_000), '--flush-interval=1024'],
  );
  // QEMU tries to connect again after a second, after two more, after four more…
  for (let kill = 0; kill < (LONG ? 5 : 2); kill++) {
    await until('3,000 writes', async () => {
      if (bench.over) throw new NotWorthWaiting('it is not at work when the server is to be killed');
      const { guest } = await volume.status();
      return guest.writes >= 3_000 || new NotYet(guest);
    });
    await volume.killServer();
  }
  await bench.ended;
  // The requests go round the disk more than once.
  const script = `read -P 90 0 ${lengthBytes}`;
  const said = await tool('qemu-io', '--image-opts', disk, '-r', '-c', script);
  assert.doesNotMatch(said, /failed/i);
  assert.match(said, /read 33554432\/33554432/);
});

type MapEntry = { offset: number; length: number; type: number; description: string };

const NEEDS_NBDINFO = skip || requires('nbdinfo');
test('godwit:hydration tells what is here: paused, running, whole', { skip: NEEDS_NBDINFO }, async (t) => {
  const lab = new VolumeLab(t);
  const { move } = await moveRawVolume(lab, {
    lengthBytes: 64 * MIB,
    content: { offsetBytes: 0, lengthBytes: 32 * MIB },
    paused: true,
    nbd: 'guest',
  });
  const { target } = move;
  const uri = `nbd+unix:///disk?socket=${target.socket}`;
  const map = async (): Promise<MapEntry[]> =>
    JSON.parse(await tool('nbdinfo', '--map=godwit:hydration', '--json', uri));
  const extents = async () => (await map()).map(({ offset, length, type }) => [offset, length, type]);
  const remoteBytes = async () =>
    (await map()).reduce((sum, { length, type }) => sum + (type === 1 ? length : 0), 0);

  assert.deepEqual(await extents(), [[0, 64 * MIB, 1]], 'nothing is here');
  // A read of a miss brings the 64 KiB around it; a write takes its own blocks only, and no byte crosses the
  // wire.
  const client = await connect(t, target);
  await client.read(MIB, Buffer.alloc(4096));
  await client.write(8 * MIB, randomBytes(8192));
  await client.discard(16 * MIB, 4096);
  assert.deepEqual(await extents(), [
    [0, MIB, 1],
    [MIB, 65536, 0],
    [MIB + 65536, 7 * MIB - 65536, 1],
    [8 * MIB, 8192, 0],
    [8 * MIB + 8192, 8 * MIB - 8192, 1],
    [16 * MIB, 4096, 0],
    [16 * MIB + 4096, 48 * MIB - 4096, 1],
  ]);
  const { exposedBytes } = await target.hydration();
  assert.equal(await remoteBytes(), exposedBytes);
  // The next server says the same.
  await target.killServer();
  assert.equal(await remoteBytes(), exposedBytes);

  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: leisurely(2 * MIB) });
  await target.until('some of it', (hydration) => hydration.exposedBytes < exposedBytes - 16 * MIB);
  const before = await target.hydration();
  const between = await remoteBytes();
  const after = await target.hydration();
  assert.ok(between <= before.exposedBytes && between >= after.exposedBytes, `${between} bytes`);
  assert.ok(between > 0 && between < exposedBytes, 'the holes are here, and not all of the rest');

  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await target.until('hydrated', (hydration) => hydration.state === 'complete');
  assert.deepEqual(await extents(), [[0, 64 * MIB, 0]]);
  await target.server.call('finish');
  assert.deepEqual(await extents(), [[0, 64 * MIB, 0]], 'and when the clone layer is gone');
});

test('a seal ends the writes of a guest that stays connected; what it had written is there', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  const volume = await attached(lab, 16 * MIB);
  const client = await connect(t, volume);
  const block = randomBytes(4096);
  await client.write(0, block);
  await volume.server.call('seal');
  const later = Buffer.alloc(4096, 1);
  for (const refused of [client.write(0, later), client.discard(0, 4096), client.writeZeroes(0, 4096)])
    await assert.rejects(refused, isRefused);
  const back = Buffer.alloc(4096);
  await client.read(0, back);
  assert.ok(back.equals(block));
  // Whoever comes now is told at once.
  const reader = await connect(t, volume);
  assert.deepEqual([client.writable, reader.writable], [true, false]);
  await reader.read(0, back);
  assert.ok(back.equals(block));
});

test('a client that waits for a lost source does not hold up the end of its server', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  const { move } = await moveRawVolume(lab, {
    lengthBytes: 16 * MIB,
    content: { offsetBytes: 0, lengthBytes: 8 * MIB },
    paused: true,
    nbd: 'guest',
  });
  const { target, source } = move;
  const client = await connect(t, target);
  await source.server.stop();
  const block = randomBytes(4096);
  await client.write(0, block);
  const lost = client.read(4096, Buffer.alloc(4096));
  lost.catch(() => {});
  // A write passes, and the read is on its way when that has its answer.
  await client.write(8192, block);
  await target.server.stop();
  const log = readFileSync(join(lab.dir, 'attach.log'), 'utf8');
  assert.match(log, /the volume server ended/, 'in good order, without being killed');
});

const NEEDS_LAB = requires(...LAB_NEEDS);
test('beside a mounted filesystem the socket shows what the guest writes, and takes no write', {
  skip: NEEDS_LAB,
}, async (t) => {
  const lab = new VolumeLab(t);
  const { move } = await moveRawVolume(lab, {
    lengthBytes: 64 * MIB,
    content: { offsetBytes: 0, lengthBytes: 32 * MIB },
    paused: true,
    nbd: 'observer',
  });
  const { target } = move;
  const observer = await connect(t, target);
  assert.equal(observer.writable, false);
  const write = async (seek: number, bytes: Buffer) => {
    const path = join(lab.dir, 'piece');
    const file = openSync(path, 'w');
    writeSync(file, bytes);
    closeSync(file);
    await tool(
      'dd',
      `if=${path}`,
      `of=${target.loop}`,
      'bs=4k',
      `seek=${seek}`,
      'oflag=direct',
      'conv=notrunc',
    );
  };
  const seen = async (block: number, lengthBytes: number) => {
    const bytes = Buffer.alloc(lengthBytes);
    await observer.read(block * 4096, bytes);
    return bytes;
  };
  // The first one marks the blocks on the main thread; the second goes past the clone, on the hot thread.
  for (let round = 0; round < 2; round++) {
    const bytes = randomBytes(16 * 4096);
    await write(100, bytes);
    assert.ok((await seen(100, bytes.length)).equals(bytes), `round ${round}`);
  }
  // What the observer reads of the source is here for the guest too.
  const fetched = await seen(2000, 4096);
  const { wireBytes } = await target.hydration();
  const guests = await tool(
    'dd',
    `if=${target.loop}`,
    'bs=4k',
    'skip=2000',
    'count=1',
    'iflag=direct',
    `of=${join(lab.dir, 'guest')}`,
  );
  assert.equal(guests, '');
  assert.ok(readFileSync(join(lab.dir, 'guest')).equals(fetched));
  assert.equal((await target.hydration()).wireBytes, wireBytes);

  await target.killServer();
  const bytes = randomBytes(4096);
  await write(100, bytes);
  assert.ok((await seen(100, 4096)).equals(bytes), 'after a kill');
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await target.until('hydrated', (hydration) => hydration.state === 'complete');
  await target.server.call('finish');
  await write(101, bytes);
  assert.ok((await seen(101, 4096)).equals(bytes), 'after the clone layer is gone');
  assert.ok((await seen(2000, 4096)).equals(fetched));
  await target.server.call('seal');
  assert.ok((await seen(101, 4096)).equals(bytes), 'after the seal');
});
