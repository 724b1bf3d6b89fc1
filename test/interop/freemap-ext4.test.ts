import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { truncateSync } from 'node:fs';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import type { FreeMap } from '../../src/freemap/free-map.ts';
import { type FreeMapResult, readFreeMap } from '../../src/freemap/free-map-reader.ts';
import { FilesystemImage, freeUnits, growTree, tool, unitsOf } from '../support/filesystem-image.ts';
import { requires } from '../support/requires.ts';
import { testSeed } from '../support/seed.ts';
import { mayLack } from '../support/skips.ts';

const seed = testSeed();
const MIB = 2 ** 20;
const skip = requires('root', '/dev/loop-control', 'mkfs.ext4', 'dumpe2fs', 'e2fsck');

async function read(path: string, lengthBytes: number): Promise<FreeMapResult> {
  const device = await FileDevice.open({ file: path, lengthBytes, blockBytes: 512, writable: false });
  try {
    return await readFreeMap(device, 'ext4');
  } finally {
    await device.close();
  }
}

async function mapOf(image: FilesystemImage): Promise<FreeMap> {
  const result = await read(image.path, image.lengthBytes);
  assert.equal(result.kind, 'map', result.kind === 'none' ? result.reason.message : '');
  return (result as { map: FreeMap }).map;
}

/** The free blocks that dumpe2fs prints, group by group. */
function dumpe2fs(image: FilesystemImage): Uint8Array {
  const { stdout, status } = spawnSync('dumpe2fs', [image.path], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` },
  });
  assert.equal(status, 0);
  const field = (name: string) => Number(new RegExp(`^${name}: +(\\d+)$`, 'm').exec(stdout)?.[1]);
  const blockBytes = field('Block size');
  // With bigalloc the last block of a run is the first one of its last cluster.
  const more = stdout.includes('\nCluster size:') ? field('Cluster size') / blockBytes - 1 : 0;
  const lastBlock = field('Block count') - 1;
  const runs = [...stdout.matchAll(/^ {2}Free blocks: (.*)$/gm)].flatMap(([, list]) =>
    list!
      .split(', ')
      .filter((part) => part !== '')
      .map((part) => {
        const [first, last = first] = part.split('-').map(Number);
        return [first!, Math.min(lastBlock, last! + more)] as const;
      }),
  );
  return freeUnits(runs, blockBytes, image.lengthBytes);
}

function assertSame(map: FreeMap, expected: Uint8Array, name: string): void {
  const found = unitsOf(map);
  if (Buffer.compare(found, expected) === 0) return;
  const differing = found.findIndex((free, unit) => free !== expected[unit]);
  assert.fail(
    `${name}: block ${differing} is ${found[differing] ? 'free' : 'used'}, dumpe2fs says otherwise`,
  );
}

const MATRIX: Record<string, { mkfs: string[]; mib?: number; blocks?: number }> = {
  'the default of mkfs.ext4': { mkfs: ['mkfs.ext4'] },
  ext2: { mkfs: ['mkfs.ext2'] },
  ext3: { mkfs: ['mkfs.ext3'] },
  'revision 0': { mkfs: ['mkfs.ext2', '-r', '0', '-b', '4096'] },
  '1 KiB blocks': { mkfs: ['mkfs.ext4', '-b', '1024'] },
  '2 KiB blocks': { mkfs: ['mkfs.ext4', '-b', '2048'] },
  '1 KiB blocks, ext2': { mkfs: ['mkfs.ext2', '-b', '1024'] },
  '1 KiB blocks, groups of 256 blocks': {
    mkfs: ['mkfs.ext4', '-b', '1024', '-g', '256', '-O', '^resize_inode', '-N', '4096'],
    mib: 32,
  },
  'crc16 of group descriptors': { mkfs: ['mkfs.ext4', '-O', '^metadata_csum,uninit_bg'] },
  'crc16, wide descriptors': { mkfs: ['mkfs.ext4', '-O', '^metadata_csum,uninit_bg,64bit'] },
  'no checksums': { mkfs: ['mkfs.ext4', '-O', '^metadata_csum,^uninit_bg'] },
  'narrow descriptors': { mkfs: ['mkfs.ext4', '-O', '^64bit,metadata_csum'] },
  'a seed of its own': { mkfs: ['mkfs.ext4', '-O', 'metadata_csum,metadata_csum_seed'] },
  'no flex_bg': { mkfs: ['mkfs.ext4', '-O', '^flex_bg'], mib: 512 },
  'flex groups of 4': { mkfs: ['mkfs.ext4', '-G', '4', '-g', '8192'], mib: 512 },
  meta_bg: { mkfs: ['mkfs.ext4', '-O', 'meta_bg,^resize_inode', '-g', '1024'], mib: 512 },
  'meta_bg, 1 KiB blocks': { mkfs: ['mkfs.ext4', '-O', 'meta_bg,^resize_inode', '-b', '1024', '-g', '1024'] },
  'meta_bg, no flex_bg': {
    mkfs: ['mkfs.ext4', '-O', 'meta_bg,^resize_inode,^flex_bg', '-g', '2048'],
    mib: 512,
  },
  'superblock in every group': { mkfs: ['mkfs.ext4', '-O', '^sparse_super,^resize_inode', '-g', '2048'] },
  sparse_super2: { mkfs: ['mkfs.ext4', '-O', 'sparse_super2,^resize_inode', '-g', '2048'] },
  'bigalloc, 64 KiB': { mkfs: ['mkfs.ext4', '-O', 'bigalloc', '-C', '65536'], mib: 512 },
  'bigalloc, 16 KiB, groups of many': { mkfs: ['mkfs.ext4', '-O', 'bigalloc', '-C', '16384', '-g', '8192'] },
  'bigalloc, 1 KiB blocks': { mkfs: ['mkfs.ext4', '-O', 'bigalloc', '-b', '1024', '-C', '8192'] },
  'no journal': { mkfs: ['mkfs.ext4', '-O', '^has_journal'] },
  'every newer feature': { mkfs: ['mkfs.ext4', '-O', 'large_dir,inline_data,ea_inode,encrypt,verity'] },
  'quota and project': { mkfs: ['mkfs.ext4', '-O', 'quota,project'] },
  'orphan file': { mkfs: ['mkfs.ext4', '-O', 'orphan_file'] },
  'multiple mount protection': { mkfs: ['mkfs.ext4', '-O', 'mmp'] },
  'casefold and 64 KiB blocks': { mkfs: ['mkfs.ext4', '-O', 'casefold', '-b', '65536'] },
  'inodes of 1 KiB': { mkfs: ['mkfs.ext4', '-I', '1024'] },
  'packed metadata': { mkfs: ['mkfs.ext4', '-E', 'packed_meta_blocks=1'], mib: 512 },
  'blocks that are not in use behind it': { mkfs: ['mkfs.ext4'], blocks: 20_000 },
};

for (const [name, { mkfs, mib = 160, blocks }] of Object.entries(MATRIX)) {
  test(`ext4, ${name}: the map is what dumpe2fs says, fresh and with files`, {
    skip,
  }, async (t) => {
    // An odd size: the last group is short.
    const lengthBytes = mib * MIB + 5 * 4096;
    const [program, ...argv] = mkfs as [string, ...string[]];
    const image = await FilesystemImage.make(t, lengthBytes, [program, '-q', '-F', ...argv]);
    if (blocks !== undefined) {
      await tool('resize2fs', ['-f', image.path, String(blocks)]);
      truncateSync(image.path, lengthBytes);
    }
    assertSame(await mapOf(image), dumpe2fs(image), 'fresh');
    const lack = mayLack('mount of the filesystem', await image.mountable());
    if (lack) return t.skip(lack);
    await image.mounted((dir) => growTree(dir, seededRandom(seed), 8 * MIB));
    assertSame(await mapOf(image), dumpe2fs(image), 'with files');
  });
}
