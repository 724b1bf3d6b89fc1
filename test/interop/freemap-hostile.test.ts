import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32c } from '@node-rs/crc32';
import fc from 'fast-check';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import { type FreeMapFilesystem, readFreeMap } from '../../src/freemap/free-map-reader.ts';
import { FilesystemImage, unitsOf } from '../support/filesystem-image.ts';
import { requires } from '../support/requires.ts';
import { testSeed } from '../support/seed.ts';

/** Images that lie: every one ends in a map or a typed reason, after a bounded number of reads. */

const seed = testSeed();
const IMAGES = process.env.GODWIT_LONG === '1' ? 1_000_000 : 20_000;
const MIB = 2 ** 20;
const READS_MAX = 20_000;

type Patch = { offsetBytes: number; bytes: Uint8Array };

/** A real image with some bytes changed, that counts what is read of it. */
class PatchedDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes = 512;
  readonly writable = false;
  reads = 0;
  readonly #base: BlockDevice;
  readonly #patches: readonly Patch[];

  constructor(base: BlockDevice, patches: readonly Patch[]) {
    this.#base = base;
    this.#patches = patches;
    this.lengthBytes = base.lengthBytes;
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    this.reads++;
    await this.#base.read(offsetBytes, into);
    for (const patch of this.#patches) {
      const start = Math.max(patch.offsetBytes, offsetBytes);
      const end = Math.min(patch.offsetBytes + patch.bytes.length, offsetBytes + into.length);
      if (start >= end) continue;
      into.set(patch.bytes.subarray(start - patch.offsetBytes, end - patch.offsetBytes), start - offsetBytes);
    }
  }

  write = async () => assert.fail('a reader writes nothing');
  flush = async () => {};
  discard = this.write;
  writeZeroes = this.write;
  async close(): Promise<void> {}
}

/** The image in memory, and where in it there is something. */
async function load(image: FilesystemImage): Promise<{ base: MemoryDevice; places: Patch[] }> {
  const { path: file, lengthBytes } = image;
  const device = await FileDevice.open({ file, lengthBytes, blockBytes: 512, writable: false });
  const base = new MemoryDevice({ lengthBytes });
  const places: Patch[] = [];
  for (let offset = 0; offset < lengthBytes; ) {
    const [extent] = await device.extents(offset, lengthBytes - offset, 1);
    if (extent!.kind === 'data') {
      for (let at = extent!.offsetBytes; at < extent!.offsetBytes + extent!.lengthBytes; at += 512) {
        const bytes = new Uint8Array(512);
        await device.read(at, bytes);
        if (bytes.every((byte) => byte === 0)) continue;
        await base.write(at, bytes);
        places.push({ offsetBytes: at, bytes });
      }
    }
    offset = extent!.offsetBytes + extent!.lengthBytes;
  }
  await device.close();
  return { base, places };
}

/** Bytes of a place that are changed: anywhere, or one field set to a value that means trouble. */
const change = fc.record({
  place: fc.nat(),
  /** Most changes go to the first places: superblock, descriptors, roots. */
  early: fc.boolean(),
  offset: fc.nat({ max: 508 }),
  value: fc.oneof(
    fc.constantFrom(0, 1, 2, 0xff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0x01000000),
    fc.integer({ min: 0, max: 0xffffffff }),
  ),
  width: fc.constantFrom(1, 2, 4),
  bigEndian: fc.boolean(),
});

async function assertEnds(
  base: BlockDevice,
  patches: readonly Patch[],
  filesystem: FreeMapFilesystem,
): Promise<string> {
  const device = new PatchedDevice(base, patches);
  const result = await readFreeMap(device, filesystem); // any other error fails the property
  assert.ok(device.reads <= READS_MAX, `${device.reads} reads`);
  return result.kind === 'map' ? 'a map' : result.reason.code;
}

async function fuzz(
  t: { diagnostic(message: string): void },
  loaded: { base: MemoryDevice; places: Patch[] },
  filesystem: FreeMapFilesystem,
  images: number,
  mend: (bytes: Buffer, offsetBytes: number) => void,
): Promise<void> {
  const ends = new Map<string, number>();
  const { base, places } = loaded;
  await fc.assert(
    fc.asyncProperty(
      fc.array(change, { minLength: 1, maxLength: 4 }),
      fc.boolean(),
      async (changes, mended) => {
        const patched = new Map<number, Buffer>();
        for (const { place, early, offset, value, width, bigEndian } of changes) {
          const { offsetBytes, bytes } =
            places[place % (early ? Math.min(12, places.length) : places.length)]!;
          const copy = patched.get(offsetBytes) ?? Buffer.from(bytes);
          const low = width === 4 ? value : value % 2 ** (8 * width);
          if (bigEndian) copy.writeUIntBE(low, offset, width);
          else copy.writeUIntLE(low, offset, width);
          patched.set(offsetBytes, copy);
        }
        const patches = [...patched].map(([offsetBytes, bytes]) => {
          if (mended) mend(bytes, offsetBytes);
          return { offsetBytes, bytes };
        });
        const end = await assertEnds(base, patches, filesystem);
        ends.set(end, (ends.get(end) ?? 0) + 1);
      },
    ),
    { seed, numRuns: images },
  );
  t.diagnostic([...ends].map(([end, count]) => `${end}: ${count}`).join(', '));
  assert.ok(ends.size >= 3, 'the images end in different ways');
}

const EXT4 = {
  'all checksums': [],
  'no checksums': ['-O', '^metadata_csum,^uninit_bg'],
  'meta_bg and bigalloc': ['-O', 'bigalloc,meta_bg,^resize_inode,^metadata_csum', '-C', '4096'],
};
for (const [name, argv] of Object.entries(EXT4)) {
  test(`hostile ext4, ${name}: a map or a typed reason, in bounded time`, {
    skip: requires('mkfs.ext4'),
  }, async (t) => {
    const image = await FilesystemImage.make(t, 8 * MIB, [
      ...['mkfs.ext4', '-q', '-F', '-b', '1024', '-g', '1024', '-N', '256', '-O', '^has_journal'],
      ...argv,
    ]);
    await fuzz(t, await load(image), 'ext4', IMAGES * 0.3, (bytes, offsetBytes) => {
      // Without its features nothing is checked any more.
      if (offsetBytes === 1024 && name === 'all checksums') bytes.writeUInt32LE(0, 0x64);
    });
  });
}

test('hostile xfs: a map or a typed reason, in bounded time', {
  skip: requires('mkfs.xfs'),
}, async (t) => {
  const image = await FilesystemImage.make(t, 320 * MIB, [
    'mkfs.xfs',
    '-q',
    '-f',
    '-s',
    'size=512',
    '-b',
    'size=1024',
  ]);
  const loaded = await load(image);
  // Sectors whose checksum can be made right again: superblock and AG headers.
  await fuzz(t, loaded, 'xfs', IMAGES * 0.1, (bytes) => {
    const at = { XFSB: 224, XAGF: 216 }[bytes.toString('latin1', 0, 4)];
    if (at === undefined) return;
    bytes.writeUInt32LE(0, at);
    bytes.writeUInt32LE(crc32c(bytes), at);
  });
});

test('a flipped bit in any checksummed structure of an ext4 never makes a used block free', {
  skip: requires('mkfs.ext4'),
}, async (t) => {
  const image = await FilesystemImage.make(t, 8 * MIB, [
    'mkfs.ext4',
    '-q',
    '-F',
    '-b',
    '1024',
    '-g',
    '1024',
    '-N',
    '256',
  ]);
  const { base, places } = await load(image);
  const whole = await readFreeMap(base, 'ext4');
  assert.ok(whole.kind === 'map');
  const free = unitsOf(whole.map);
  let maps = 0;
  await fc.assert(
    fc.asyncProperty(fc.nat(), fc.nat({ max: 4095 }), async (place, bit) => {
      const { offsetBytes, bytes } = places[place % places.length]!;
      const copy = Buffer.from(bytes);
      copy[bit >>> 3]! ^= 1 << (bit & 7);
      const result = await readFreeMap(new PatchedDevice(base, [{ offsetBytes, bytes: copy }]), 'ext4');
      if (result.kind === 'none') return;
      maps++;
      for (const [unit, isFree] of unitsOf(result.map).entries())
        assert.ok(isFree <= free[unit]!, `block ${unit}`);
    }),
    { seed, numRuns: IMAGES / 10 },
  );
  assert.ok(maps > 0);
});

test('a tree without an end: a node that leads to itself', {
  skip: requires('mkfs.xfs'),
}, async (t) => {
  const image = await FilesystemImage.make(t, 320 * MIB, ['mkfs.xfs', '-q', '-f']);
  const { base } = await load(image);
  const sector = Buffer.alloc(512);
  await base.read(512, sector);
  const root = sector.readUInt32BE(16);
  const tree = Buffer.alloc(4096);
  await base.read(root * 4096, tree);
  // Nine levels of nodes, all of them this one block: it has a level of its own, so the second visit is
  // refused.
  sector.writeUInt32BE(9, 28);
  sector.writeUInt32LE(0, 216);
  sector.writeUInt32LE(crc32c(sector), 216);
  tree.writeUInt16BE(8, 4);
  tree.writeUInt16BE(336, 6);
  for (let index = 0; index < 336; index++) tree.writeUInt32BE(root, 56 + 336 * 8 + index * 4);
  tree.writeUInt32LE(0, 52);
  tree.writeUInt32LE(crc32c(tree), 52);
  const patches = [
    { offsetBytes: 512, bytes: sector },
    { offsetBytes: root * 4096, bytes: tree },
  ];
  assert.equal(await assertEnds(base, patches, 'xfs'), 'FREEMAP_CORRUPT');
});
