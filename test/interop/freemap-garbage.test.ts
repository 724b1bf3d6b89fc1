import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import type { FreeMap } from '../../src/freemap/free-map.ts';
import { type FreeMapFilesystem, FreeMapReader, readFreeMap } from '../../src/freemap/free-map-reader.ts';
import {
  digestTree,
  FilesystemImage,
  freeUnits,
  growTree,
  tool,
  unitsOf,
} from '../support/filesystem-image.ts';
import { requires } from '../support/requires.ts';
import { testSeed } from '../support/seed.ts';
import { mayLack } from '../support/skips.ts';

/** Fills all blocks of the map with garbage: a filesystem that used one of them would notice. */

const seed = testSeed();
const MIB = 2 ** 20;
const ext4Needs = requires('root', '/dev/loop-control', 'mkfs.ext4', 'e2fsck');
const xfsNeeds = requires('root', '/dev/loop-control', 'mkfs.xfs', 'xfs_repair', 'xfs_db');

async function withDevice<T>(image: FilesystemImage, work: (device: FileDevice) => Promise<T>): Promise<T> {
  const { path: file, lengthBytes } = image;
  const device = await FileDevice.open({ file, lengthBytes, blockBytes: 512, writable: false });
  try {
    return await work(device);
  } finally {
    await device.close();
  }
}

async function mapOf(image: FilesystemImage, filesystem: FreeMapFilesystem): Promise<FreeMap> {
  const result = await withDevice(image, (device) => readFreeMap(device, filesystem));
  assert.equal(result.kind, 'map', result.kind === 'none' ? result.reason.message : '');
  return (result as { map: FreeMap }).map;
}

/** Grows a tree twice, with garbage in all free blocks each time. */
async function checkGarbage(
  image: FilesystemImage,
  filesystem: FreeMapFilesystem,
  check: () => Promise<unknown>,
  lastBudgetBytes: number,
) {
  const random = seededRandom(seed);
  for (const [round, budgetBytes] of [12 * MIB, lastBudgetBytes].entries()) {
    const written = await image.mounted((dir) => {
      growTree(dir, random, budgetBytes);
      return digestTree(dir);
    });
    assert.ok(written.size > 0);
    image.overwriteFree(await mapOf(image, filesystem), 0xa5 + round);
    await check();
    assert.deepEqual(await image.mounted(digestTree), written);
  }
}

for (const [name, argv] of Object.entries({
  'the default': [],
  '1 KiB blocks': ['-b', '1024'],
  'no checksums, no journal': ['-O', '^metadata_csum,^has_journal'],
  bigalloc: ['-O', 'bigalloc', '-C', '32768'],
})) {
  test(`ext4, ${name}: with garbage in every block of the map e2fsck is content and all files are whole, up to a full disk`, {
    skip: ext4Needs,
  }, async (t) => {
    const image = await FilesystemImage.make(t, 48 * MIB, ['mkfs.ext4', '-q', '-F', ...argv]);
    await checkGarbage(image, 'ext4', () => tool('e2fsck', ['-f', '-n', image.path]), 2 ** 40);
  });
}

for (const [name, argv] of Object.entries({
  'the default': [],
  '1 KiB blocks': ['-b', 'size=1024'],
  'reverse mapping and reflinks': ['-m', 'rmapbt=1,reflink=1'],
})) {
  test(`xfs, ${name}: the map is what xfs_db says, and with garbage in it xfs_repair is content and all files are whole`, {
    skip: xfsNeeds,
  }, async (t) => {
    const image = await FilesystemImage.make(t, 320 * MIB, ['mkfs.xfs', '-q', '-f', ...argv]);
    await assertXfsDbAgrees(image);
    const lack = mayLack('mount of the filesystem', await image.mountable());
    if (lack) return t.skip(lack);
    await checkGarbage(image, 'xfs', () => tool('xfs_repair', ['-n', image.path]), 24 * MIB);
    await assertXfsDbAgrees(image);
    await assertMountedIsUnclean(image);
  });
}

async function assertMountedIsUnclean(image: FilesystemImage): Promise<void> {
  await image.mounted(async (dir) => {
    growTree(dir, seededRandom(seed + 1), MIB);
    await tool('sync', ['-f', dir]);
    const result = await withDevice(image, (device) => readFreeMap(device, 'xfs'));
    assert.equal(result.kind === 'none' && result.reason.code, 'FREEMAP_NOT_CLEAN');
  });
}

/**
 * Free extents of all AGs; those blocks that are on an AG's own free list are in there as well, and not in
 * the map.
 */
async function assertXfsDbAgrees(image: FilesystemImage): Promise<void> {
  const super0 = await tool('xfs_db', ['-r', '-c', 'sb 0', '-c', 'p blocksize agblocks agcount', image.path]);
  const field = (key: string) => Number(new RegExp(`^${key} = (\\d+)$`, 'm').exec(super0)![1]);
  const [blockBytes, agBlocks, agCount] = [field('blocksize'), field('agblocks'), field('agcount')];
  const extents = await tool('xfs_db', ['-r', '-c', 'freesp -d', image.path]);
  const runs = [...extents.matchAll(/^ +(\d+) +(\d+) +(\d+) *$/gm)].map(([, ag, first, blocks]) => {
    const start = Number(ag) * agBlocks + Number(first);
    return [start, start + Number(blocks) - 1] as const;
  });
  const theirs = freeUnits(runs, blockBytes, image.lengthBytes);
  const ours = unitsOf(await mapOf(image, 'xfs'));
  let missing = 0;
  for (const [unit, free] of ours.entries()) {
    assert.ok(free === 0 || theirs[unit] === 1, `block ${unit} is in use`);
    if (free === 0 && theirs[unit] === 1) missing++;
  }
  assert.ok(missing <= agCount * 16, `${missing} free blocks are not in the map`);
}

test('ext4: what was read while it was mounted changes nothing but the time', {
  skip: ext4Needs,
}, async (t) => {
  const random = seededRandom(seed);
  const argv = ['-q', '-F', '-g', '1024', '-E', 'lazy_itable_init=0'];
  const image = await FilesystemImage.make(t, 256 * MIB, ['mkfs.ext4', ...argv]);
  await image.mounted((dir) => growTree(dir, random, 100 * MIB));
  await withDevice(image, async (device) => {
    const reader = new FreeMapReader(device, 'ext4');
    for (let round = 0; round < 4; round++) {
      await image.mounted(async (dir) => {
        growTree(dir, random, 4 * MIB);
        await tool('sync', ['-f', dir]);
        await reader.prime();
        growTree(dir, random, MIB);
        const mounted = await reader.finish();
        assert.equal(mounted.kind === 'none' && mounted.reason.code, 'FREEMAP_NOT_CLEAN');
      });
      const primed = await reader.finish();
      const whole = new FreeMapReader(device, 'ext4');
      const fresh = await whole.finish();
      for (const found of [primed, fresh])
        assert.equal(found.kind, 'map', found.kind === 'none' ? found.reason.message : '');
      assert.ok(primed.kind === 'map' && fresh.kind === 'map');
      assert.deepEqual([...primed.map.runs()], [...fresh.map.runs()]);
      t.diagnostic(`${reader.bitmapsRead} of ${whole.bitmapsRead} bitmaps were read again`);
      assert.ok(reader.bitmapsRead < whole.bitmapsRead);
    }
  });
});
