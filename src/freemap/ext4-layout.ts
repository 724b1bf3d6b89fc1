import { crc32c } from '@node-rs/crc32';
import { noMap } from './errors.ts';

/**
 * The parts of ext2, ext3 and ext4 that say which blocks are free. All integers are little-endian. Sources:
 * Linux Documentation/filesystems/ext4 (super.rst, group_descr.rst, bitmaps.rst, blockgroup.rst,
 * checksums.rst), fs/ext4/ext4.h, fs/ext4/balloc.c (ext4_num_base_meta_clusters, ext4_init_block_bitmap),
 * fs/ext4/super.c (ext4_check_descriptors, descriptor_loc), and e2fsprogs lib/ext2fs/closefs.c
 * (ext2fs_super_and_bgd_loc2).
 *
 * Superblock, 1024 bytes at byte 1024 of the volume:
 *   0x004  4  blocks, low               0x0CE  2  reserved blocks for the descriptor table to grow into
 *   0x014  4  first data block          0x0E8  4  first orphan inode
 *   0x018  4  block size, log2 - 10     0x0FE  2  descriptor size (64bit)
 *   0x01C  4  cluster size, log2 - 10   0x104  4  first meta block group
 *   0x020  4  blocks in a group         0x150  4  blocks, high
 *   0x024  4  clusters in a group       0x175  1  checksum type; 1 is crc32c
 *   0x028  4  inodes in a group         0x24C  8  the two groups with backups (sparse_super2)
 *   0x038  2  magic, 0xEF53             0x270  4  checksum seed (csum_seed)
 *   0x03A  2  state: 1 clean, 2 errors  0x3FC  4  crc32c of bytes 0 to 0x3FB (metadata_csum)
 *   0x04C  4  revision
 *   0x058  2  inode size
 *   0x05C 12  features: compatible, incompatible, read-only compatible
 *   0x068 16  uuid
 *
 * Group descriptor, 32 bytes, or `descriptor size`:
 *   0x00 4  block bitmap, low           0x18 2  block bitmap checksum, low
 *   0x04 4  inode bitmap, low           0x1E 2  checksum of the descriptor
 *   0x08 4  inode table, low            0x20 4  block bitmap, high
 *   0x0C 2  free clusters, low          0x24 4  inode bitmap, high
 *   0x12 2  flags: 2 BLOCK_UNINIT       0x28 4  inode table, high
 *                                       0x2C 2  free clusters, high
 *                                       0x38 2  block bitmap checksum, high
 *
 * Block bitmap: one bit a cluster (a block, without bigalloc), 1 for used, cluster 0 of the group in the
 * lowest bit of byte 0.
 */
export const SUPERBLOCK_OFFSET_BYTES = 1024;
export const SUPERBLOCK_BYTES = 1024;
const MAGIC = 0xef53;
const STATE_CLEAN = 1;
const STATE_ERRORS = 2;
const STATE_ORPHANS = 4;
const CHECKSUM_CRC32C = 1;

const COMPAT_SPARSE_SUPER2 = 0x200;
const INCOMPAT_RECOVER = 0x4;
const INCOMPAT_META_BG = 0x10;
const INCOMPAT_64BIT = 0x80;
const INCOMPAT_CSUM_SEED = 0x2000;
/**
 * filetype, recover, meta_bg, extent, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data,
 * encrypt, casefold.
 */
const INCOMPAT_KNOWN =
  0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000;
const RO_COMPAT_SPARSE_SUPER = 0x1;
const RO_COMPAT_GDT_CSUM = 0x10;
const RO_COMPAT_BIGALLOC = 0x200;
const RO_COMPAT_METADATA_CSUM = 0x400;
const RO_COMPAT_ORPHAN_PRESENT = 0x10000;
/**
 * sparse_super, large_file, huge_file, uninit_bg, dir_nlink, extra_isize, quota, bigalloc, metadata_csum,
 * read-only, project, verity, orphans.
 */
const RO_COMPAT_KNOWN =
  0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x8000 | 0x10000;

const FLAG_BLOCK_UNINIT = 0x2;
const DESCRIPTOR_BYTES = 32;
const DESCRIPTOR_64_BYTES = 64;
/** mke2fs makes no smaller ones. */
const GROUP_BLOCKS_MIN = 256;
/** 32 TiB with blocks of 4 KiB. What is beyond would take seconds to read. */
const GROUPS_MAX = 2 ** 18;

export type Ext4Layout = {
  blockBytes: number;
  blockCount: number;
  firstDataBlock: number;
  /** Blocks in a cluster; 1 without bigalloc. */
  clusterBlocks: number;
  groupBlocks: number;
  groupClusters: number;
  groupCount: number;
  inodeTableBlocks: number;
  descriptorBytes: number;
  /** Blocks of the group descriptor table. */
  tableBlocks: number;
  reservedTableBlocks: number;
  /** Descriptor blocks from this one on lie in their own meta block group; `tableBlocks` without meta_bg. */
  firstMetaGroup: number;
  metaGroups: boolean;
  /** Which groups have a copy of the superblock. */
  superblocks: { kind: 'all' } | { kind: 'sparse' } | { kind: 'two'; groups: readonly [number, number] };
  checksums: { kind: 'none' } | { kind: 'crc16'; seed: number } | { kind: 'crc32c'; seed: number };
  /** Needs recovery, errors, orphans: why it is not clean; null when it is. */
  unclean: string | null;
};

export type GroupDescriptor = {
  blockBitmap: number;
  inodeBitmap: number;
  inodeTable: number;
  freeClusters: number;
  /** No block of the group was ever allocated and its bitmap was never written: only metadata is used. */
  uninitialised: boolean;
  bitmapChecksum: number;
};

export function isExt4(superblock: Buffer): boolean {
  return superblock.readUInt16LE(0x38) === MAGIC;
}

/**
 * Errors: `FREEMAP_NOT_SUPPORTED`, `FREEMAP_BAD_CHECKSUM`, `FREEMAP_CORRUPT`. Not being clean is a value,
 * because a mounted one is not.
 */
export function parseSuperblock(superblock: Buffer, volumeBytes: number): Ext4Layout {
  const u16 = (offset: number) => superblock.readUInt16LE(offset);
  const u32 = (offset: number) => superblock.readUInt32LE(offset);
  const revision = u32(0x4c);
  if (revision > 1) throw unsupported(`revision ${revision}`);
  const compatible = revision === 0 ? 0 : u32(0x5c);
  const incompatible = revision === 0 ? 0 : u32(0x60);
  const readOnlyCompatible = revision === 0 ? 0 : u32(0x64);
  // An unknown read-only feature may change what a bitmap means: bigalloc is one of that kind.
  const unknown = (incompatible & ~INCOMPAT_KNOWN) >>> 0;
  if (unknown !== 0) throw unsupported(`incompatible features 0x${unknown.toString(16)}`);
  const unknownReadOnly = (readOnlyCompatible & ~RO_COMPAT_KNOWN) >>> 0;
  if (unknownReadOnly !== 0) throw unsupported(`read-only features 0x${unknownReadOnly.toString(16)}`);

  let checksums: Ext4Layout['checksums'] = { kind: 'none' };
  const uuid = superblock.subarray(0x68, 0x78);
  if (readOnlyCompatible & RO_COMPAT_METADATA_CSUM) {
    if (superblock[0x175] !== CHECKSUM_CRC32C) throw unsupported(`checksums of type ${superblock[0x175]}`);
    if (crc32cRaw(superblock.subarray(0, 0x3fc), 0xffffffff) !== u32(0x3fc)) {
      throw noMap('FREEMAP_BAD_CHECKSUM', 'the checksum of the superblock does not fit');
    }
    checksums = {
      kind: 'crc32c',
      seed: incompatible & INCOMPAT_CSUM_SEED ? u32(0x270) : crc32cRaw(uuid, 0xffffffff),
    };
  } else if (readOnlyCompatible & RO_COMPAT_GDT_CSUM) {
    checksums = { kind: 'crc16', seed: crc16(uuid, 0xffff) };
  }

  const logBlock = u32(0x18);
  const logCluster = u32(0x1c);
  if (logBlock > 6) throw corrupt('block size', logBlock);
  const blockBytes = 1024 << logBlock;
  const bigalloc = (readOnlyCompatible & RO_COMPAT_BIGALLOC) !== 0;
  if (bigalloc && (logCluster < logBlock || logCluster > 20)) throw corrupt('cluster size', logCluster);
  const clusterBlocks = bigalloc ? 2 ** (logCluster - logBlock) : 1;
  const wide = (incompatible & INCOMPAT_64BIT) !== 0;
  const blockCount = (wide ? u32(0x150) * 2 ** 32 : 0) + u32(0x04);
  if (blockCount * blockBytes > volumeBytes) throw corrupt('block count', blockCount);

  const firstDataBlock = u32(0x14);
  if (firstDataBlock !== (blockBytes === 1024 && !bigalloc ? 1 : 0)) {
    throw corrupt('first data block', firstDataBlock);
  }
  const groupBlocks = u32(0x20);
  const groupClusters = bigalloc ? u32(0x24) : groupBlocks;
  const clustersFit = groupClusters % 8 === 0 && groupClusters <= blockBytes * 8;
  if (!clustersFit || groupBlocks !== groupClusters * clusterBlocks || groupBlocks < GROUP_BLOCKS_MIN) {
    throw corrupt('blocks in a group', groupBlocks);
  }
  const groupCount = Math.ceil((blockCount - firstDataBlock) / groupBlocks);
  if (groupCount < 1) throw corrupt('block count', blockCount);
  if (groupCount > GROUPS_MAX) throw unsupported(`${groupCount} block groups`);

  const inodeBytes = revision === 0 ? 128 : u16(0x58);
  const groupInodes = u32(0x28);
  if (inodeBytes < 128 || inodeBytes > blockBytes || (inodeBytes & (inodeBytes - 1)) !== 0) {
    throw corrupt('inode size', inodeBytes);
  }
  const inodeTableBlocks = Math.ceil((groupInodes * inodeBytes) / blockBytes);
  const inodesFit = groupInodes > 0 && groupInodes <= blockBytes * 8;
  // Also bounds the work: no more metadata is marked than there are blocks.
  if (!inodesFit || inodeTableBlocks * groupCount > blockCount)
    throw corrupt('inodes in a group', groupInodes);

  const descriptorBytes = wide ? DESCRIPTOR_64_BYTES : DESCRIPTOR_BYTES;
  // The format allows larger ones; nothing makes them.
  if (wide && u16(0xfe) !== DESCRIPTOR_64_BYTES) throw unsupported(`descriptors of ${u16(0xfe)} bytes`);
  const tableBlocks = Math.ceil((groupCount * descriptorBytes) / blockBytes);
  const metaGroups = (incompatible & INCOMPAT_META_BG) !== 0;
  const reservedTableBlocks = revision === 0 ? 0 : u16(0xce);
  if (reservedTableBlocks > blockBytes / 4) throw corrupt('reserved descriptor blocks', reservedTableBlocks);

  const state = u16(0x3a);
  let unclean: string | null = null;
  if (incompatible & INCOMPAT_RECOVER) unclean = 'its journal needs recovery';
  else if (state & STATE_ERRORS) unclean = 'it has errors';
  else if (!(state & STATE_CLEAN)) unclean = 'it was not unmounted';
  else if (state & STATE_ORPHANS || readOnlyCompatible & RO_COMPAT_ORPHAN_PRESENT || u32(0xe8) !== 0) {
    unclean = 'it has orphans that are not cleaned up';
  }

  let superblocks: Ext4Layout['superblocks'] = { kind: 'all' };
  if (compatible & COMPAT_SPARSE_SUPER2) superblocks = { kind: 'two', groups: [u32(0x24c), u32(0x250)] };
  else if (readOnlyCompatible & RO_COMPAT_SPARSE_SUPER) superblocks = { kind: 'sparse' };

  return {
    blockBytes,
    blockCount,
    firstDataBlock,
    clusterBlocks,
    groupBlocks,
    groupClusters,
    groupCount,
    inodeTableBlocks,
    descriptorBytes,
    tableBlocks,
    reservedTableBlocks,
    firstMetaGroup: metaGroups ? Math.min(u32(0x104), tableBlocks) : tableBlocks,
    metaGroups,
    superblocks,
    checksums,
    unclean,
  };
}

export function groupFirstBlock(layout: Ext4Layout, group: number): number {
  return layout.firstDataBlock + group * layout.groupBlocks;
}

/** End of the group's blocks; the last group may be short. */
export function groupEndBlock(layout: Ext4Layout, group: number): number {
  return Math.min(layout.blockCount, groupFirstBlock(layout, group) + layout.groupBlocks);
}

function hasSuperblock(layout: Ext4Layout, group: number): boolean {
  if (group === 0) return true;
  const { superblocks } = layout;
  if (superblocks.kind === 'all') return true;
  if (superblocks.kind === 'two') return superblocks.groups.includes(group);
  return group === 1 || isPowerOf(group, 3) || isPowerOf(group, 5) || isPowerOf(group, 7);
}

/** Where block `index` of the group descriptor table is. */
export function descriptorBlock(layout: Ext4Layout, index: number): number {
  const superblock = layout.blockBytes === 1024 ? 1 : 0;
  if (index < layout.firstMetaGroup) return superblock + 1 + index;
  const group = index * descriptorsPerBlock(layout);
  return baseBlock(layout, group) + (hasSuperblock(layout, group) ? 1 : 0);
}

/**
 * The superblock copy and descriptor blocks at the start of a group, as [first, end); empty where it has
 * none.
 */
export function baseMetadata(layout: Ext4Layout, group: number): { first: number; end: number } {
  const superblock = hasSuperblock(layout, group);
  const perBlock = descriptorsPerBlock(layout);
  const metaGroup = Math.floor(group / perBlock);
  let blocks = superblock ? 1 : 0;
  if (!layout.metaGroups || metaGroup < layout.firstMetaGroup) {
    if (superblock) blocks += layout.firstMetaGroup + layout.reservedTableBlocks;
  } else {
    const place = group % perBlock;
    if (place === 0 || place === 1 || place === perBlock - 1) blocks += 1;
  }
  const first = baseBlock(layout, group);
  return { first, end: Math.min(layout.blockCount, first + blocks) };
}

/**
 * Blocks of 1 KiB with groups that begin at block 0 (bigalloc): the superblock of group 0 is block 1, for
 * block 0 is the boot block.
 */
function baseBlock(layout: Ext4Layout, group: number): number {
  const first = groupFirstBlock(layout, group);
  return first === 0 && layout.blockBytes === 1024 ? 1 : first;
}

export function descriptorsPerBlock(layout: Ext4Layout): number {
  return layout.blockBytes / layout.descriptorBytes;
}

/** Errors: `FREEMAP_BAD_CHECKSUM`, `FREEMAP_CORRUPT`. */
export function parseDescriptor(layout: Ext4Layout, group: number, bytes: Buffer): GroupDescriptor {
  checkDescriptor(layout, group, bytes);
  const wide = layout.descriptorBytes >= DESCRIPTOR_64_BYTES;
  const block = (low: number, high: number) =>
    (wide ? bytes.readUInt32LE(high) * 2 ** 32 : 0) + bytes.readUInt32LE(low);
  const descriptor: GroupDescriptor = {
    blockBitmap: block(0x00, 0x20),
    inodeBitmap: block(0x04, 0x24),
    inodeTable: block(0x08, 0x28),
    freeClusters: bytes.readUInt16LE(0x0c) + (wide ? bytes.readUInt16LE(0x2c) * 2 ** 16 : 0),
    // The kernel believes the flag only under a checksum.
    uninitialised: layout.checksums.kind !== 'none' && (bytes.readUInt16LE(0x12) & FLAG_BLOCK_UNINIT) !== 0,
    bitmapChecksum: bytes.readUInt16LE(0x18) + (wide ? bytes.readUInt16LE(0x38) * 2 ** 16 : 0),
  };
  const inside = (first: number, blocks: number) =>
    first >= layout.firstDataBlock && first + blocks <= layout.blockCount;
  if (
    !inside(descriptor.blockBitmap, 1) ||
    !inside(descriptor.inodeBitmap, 1) ||
    !inside(descriptor.inodeTable, layout.inodeTableBlocks)
  ) {
    throw noMap('FREEMAP_CORRUPT', `group ${group} has its metadata outside of the filesystem`, { group });
  }
  return descriptor;
}

function checkDescriptor(layout: Ext4Layout, group: number, bytes: Buffer): void {
  const { checksums } = layout;
  if (checksums.kind === 'none') return;
  const number = Buffer.alloc(4);
  number.writeUInt32LE(group);
  let sum: number;
  if (checksums.kind === 'crc32c') {
    // The checksum's own two bytes count as zeros.
    const copy = Buffer.from(bytes);
    copy.writeUInt16LE(0, 0x1e);
    sum = crc32cRaw(copy, crc32cRaw(number, checksums.seed)) & 0xffff;
  } else {
    // Here they are left out.
    sum = crc16(bytes.subarray(0, 0x1e), crc16(number, checksums.seed));
    if (bytes.length > 0x20) sum = crc16(bytes.subarray(0x20), sum);
  }
  if (sum !== bytes.readUInt16LE(0x1e)) {
    throw noMap('FREEMAP_BAD_CHECKSUM', `the checksum of group ${group}'s descriptor does not fit`, {
      group,
    });
  }
}

/** The crc32c of a block bitmap as its descriptor has it (metadata_csum). */
export function bitmapChecksum(layout: Ext4Layout, seed: number, bitmap: Uint8Array): number {
  const sum = crc32cRaw(bitmap, seed);
  return layout.descriptorBytes >= DESCRIPTOR_64_BYTES ? sum : sum & 0xffff;
}

/**
 * True where the checksum in a descriptor identifies its bitmap: all 32 bits of it. Of a narrow descriptor's
 * 16 bits another bitmap has the same too often.
 */
export function provesBitmaps(layout: Ext4Layout): boolean {
  return layout.checksums.kind === 'crc32c' && layout.descriptorBytes >= DESCRIPTOR_64_BYTES;
}

/** crc32c as the kernel counts it: without the inversions at the start and at the end. */
function crc32cRaw(bytes: Uint8Array, seed: number): number {
  return ~crc32c(bytes, ~seed >>> 0) >>> 0;
}

const CRC16_TABLE = Uint16Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xa001 : value >>> 1;
  return value;
});

/** CRC-16 of Linux lib/crc16.c (polynomial 0x8005, reflected). */
function crc16(bytes: Uint8Array, seed: number): number {
  let sum = seed;
  for (const byte of bytes) sum = (sum >>> 8) ^ CRC16_TABLE[(sum ^ byte) & 0xff]!;
  return sum;
}

function isPowerOf(value: number, base: number): boolean {
  let power = base;
  while (power < value) power *= base;
  return power === value;
}

function unsupported(what: string) {
  return noMap('FREEMAP_NOT_SUPPORTED', `an ext4 with ${what} is not understood`, { what });
}

function corrupt(field: string, value: number) {
  return noMap('FREEMAP_CORRUPT', `the superblock has an impossible ${field}: ${value}`, { field, value });
}
