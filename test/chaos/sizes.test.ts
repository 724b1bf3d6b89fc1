import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'node:test';
import { isGodwitError } from '../../src/base/errors.ts';
import type { FetchedPage, ProofFigures, UnfetchedPage } from '../../src/receipt/proof.ts';
import { patient } from '../support/patience.ts';
import { Running } from '../support/raw-clone.ts';
import { requires } from '../support/requires.ts';
import { LAB_NEEDS, moveVolume, tool, VolumeLab } from '../support/volume-lab.ts';

const MIB = 2 ** 20;
const TIB = 2 ** 40;
const LENGTH = 64 * TIB;
const skip = requires(...LAB_NEEDS, 'mkfs.xfs', 'fio');

/**
 * Where the source has data: at both ends, and across 8 TiB (2^31 blocks), 16 TiB (2^32 blocks) and places
 * beyond.
 */
const PLACE_BYTES = 8 * MIB;
const PLACES = [0, 8 * TIB - 4 * MIB, 16 * TIB - 4 * MIB, 40 * TIB, 63 * TIB, LENGTH - PLACE_BYTES];

test('a file that is too long for the filesystem is refused by name before anything is made', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  await lab.smallDisk(64 * MIB);
  const store = await lab.store('small-disk/volumes');
  assert.ok(store.holdsFileOf(TIB));
  assert.ok(!store.holdsFileOf(LENGTH));
  await assert.rejects(store.create({ name: 'data', lengthBytes: LENGTH, filesystem: 'none' }), (error) =>
    isGodwitError(error, 'VOLUME_BAD_LENGTH'),
  );
  assert.deepEqual((await store.list()).volumes, []);
});

test('64 TiB: moved, written around 16 and 63 TiB under fio --verify while it hydrates and its server is killed, and proved', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  for (const name of ['source', 'target']) await lab.xfsDisk(name, 4 * 2 ** 30);
  const content = new Map(PLACES.map((offset) => [offset, randomBytes(PLACE_BYTES)]));
  const { target, targetStore, id } = await moveVolume(lab, {
    lengthBytes: LENGTH,
    paused: true,
    write: async (path) => {
      const file = await open(path, 'r+');
      for (const [offset, bytes] of content) await file.write(bytes, 0, bytes.length, offset);
      await file.close();
    },
  });
  assert.ok(targetStore.holdsFileOf(LENGTH));

  const device = await open(target.loop, 'r+');
  lab.onClose(() => device.close());
  const read = async (offset: number, lengthBytes: number) => {
    const bytes = Buffer.alloc(lengthBytes);
    await device.read(bytes, 0, lengthBytes, offset);
    return bytes;
  };
  /** Puts the bytes where both the device and the expectation have them. */
  const write = async (offset: number, bytes: Buffer) => {
    await device.write(bytes, 0, bytes.length, offset);
    for (const [place, expected] of content)
      if (offset >= place && offset < place + PLACE_BYTES) bytes.copy(expected, offset - place);
  };
  // A block, and the one that has the same number in 32 bits: one is written, the other is still at the
  // source.
  await write(16 * TIB + 5 * 4096, randomBytes(4096));
  await write(8 * TIB + 9 * 4096, randomBytes(4096));
  await device.sync();
  assert.deepEqual(await read(5 * 4096, 4096), content.get(0)!.subarray(5 * 4096, 6 * 4096));
  assert.deepEqual(await read(9 * 4096, 4096), content.get(0)!.subarray(9 * 4096, 10 * 4096));

  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: MIB });
  const fio = new Running(
    lab,
    'fio',
    ...[
      '--ioengine=libaio',
      '--direct=1',
      '--rw=randwrite',
      '--bs=4k',
      '--iodepth=8',
      `--filename=${target.loop}`,
    ],
    ...['--verify=crc32c', '--verify_state_save=0', '--do_verify=1', '--verify_fatal=1', '--rate=512k'],
    // Half of it on what the source has, half on its holes.
    ...['--size=2m', '--name=at16', `--offset=${16 * TIB + 3 * MIB}`],
    ...['--size=2m', '--name=at63', `--offset=${63 * TIB + 7 * MIB}`],
  );
  for (let kill = 0; kill < 3; kill++) {
    const before = (await target.hydration()).blocksPresent;
    await target.until('something more is here', ({ blocksPresent }) => blocksPresent > before);
    await target.killServer();
    const { state, blocksTotal } = await target.hydration();
    assert.notEqual(state, 'complete', 'it is killed in the middle');
    assert.equal(blocksTotal, LENGTH / 4096);
  }
  await fio.ended;
  assert.match(fio.stdout, /err= 0/);
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await target.until('hydrated', ({ state }) => state === 'complete');

  // What fio wrote it has checked itself.
  const untouched = [
    ...PLACES.filter((place) => ![16 * TIB - 4 * MIB, 63 * TIB].includes(place)).map((place) => [
      place,
      8 * MIB,
    ]),
    [16 * TIB - 4 * MIB, 7 * MIB],
    [63 * TIB, 7 * MIB],
  ] as [number, number][];
  const check = async () => {
    for (const [offset, lengthBytes] of untouched) {
      const place = PLACES.findLast((each) => each <= offset)!;
      const expected = content.get(place)!.subarray(offset - place, offset - place + lengthBytes);
      assert.ok((await read(offset, lengthBytes)).equals(expected), `bytes from ${offset} on`);
    }
    for (const hole of [4 * TIB, 16 * TIB + 64 * MIB, 50 * TIB]) {
      assert.ok(
        (await read(hole, MIB)).every((byte) => byte === 0),
        `bytes from ${hole} on`,
      );
    }
  };
  await tool('blockdev', '--flushbufs', target.loop);
  await check();

  let compared = 0;
  for (let cursor = 0, ended = false; !ended; ) {
    const page = (await target.server.call('fetched', { cursor })) as FetchedPage;
    for (const { stored } of page.ranges) assert.notEqual(stored, 'differs');
    compared += page.ranges.length;
    ({ next: cursor, ended } = page);
  }
  const unfetched = (await target.server.call('unfetched', { cursor: 0 })) as UnfetchedPage;
  assert.ok(unfetched.ranges.reduce((sum, { blocks }) => sum + blocks, 0) * 4096 > LENGTH - 100 * MIB);
  const figures = (await target.server.call('figures', { freeMapDigest: null })) as ProofFigures;
  assert.equal(figures.ranges, compared);
  assert.ok(figures.fetchedBytes > 30 * MIB && figures.fetchedBytes <= PLACES.length * PLACE_BYTES);

  const metadata = join(targetStore.folder(id), 'clone.meta');
  const taken = Number(await tool('stat', '-c', '%b', metadata)) * 512;
  assert.ok(taken < 8 * MIB, `the metadata of a volume that is nearly all holes takes ${taken} bytes`);
  await target.server.call('finish', {}, patient(60_000));
  await tool('blockdev', '--flushbufs', target.loop);
  await check();
});
