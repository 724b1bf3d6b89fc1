import { type Static, Type } from 'typebox';

/*
 * What a kernel must know to mount a filesystem, from its superblock; nothing of it is secret, or says what
 * is in it.
 *
 * ext4, little-endian, 1024 bytes into the device (layout in freemap/ext4-layout.ts):
 *   0x018 4 block size, log2 - 10     0x038 2 magic 0xEF53     0x05C 4 compatible features
 *   0x01C 4 cluster size, log2 - 10   0x058 2 inode size       0x060 4 incompatible, 0x064 4 read-only compatible
 *
 * XFS, big-endian, at its beginning (fs/xfs/libxfs/xfs_format.h, struct xfs_dsb):
 *   0   4 magic "XFSB"    100 2 version and its flags    212 4 read-only compatible features
 *   4   4 block size      102 2 sector size              216 4 incompatible features
 *                         104 2 inode size
 */
const Word = Type.Integer({ minimum: 0, maximum: 0xffff_ffff });
const Bytes = Type.Integer({ minimum: 0, maximum: 2 ** 31 });

export const MountNeeds = Type.Union([
  Type.Object({
    filesystem: Type.Literal('ext4'),
    blockBytes: Bytes,
    clusterBytes: Bytes,
    inodeBytes: Bytes,
    compatible: Word,
    incompatible: Word,
    readonlyCompatible: Word,
  }),
  Type.Object({
    filesystem: Type.Literal('xfs'),
    blockBytes: Bytes,
    sectorBytes: Bytes,
    inodeBytes: Bytes,
    version: Type.Integer({ minimum: 0, maximum: 15 }),
    incompatible: Word,
    readonlyCompatible: Word,
  }),
]);
export type MountNeeds = Static<typeof MountNeeds>;

/** Of the device, for `mountNeeds`. */
export const SUPERBLOCK_READ_BYTES = 4096;

const EXT4_OFFSET_BYTES = 1024;
const EXT4_MAGIC = 0xef53;
/** 64 KiB. */
const EXT4_BLOCK_LOG_MAX = 6;
const EXT4_CLUSTER_LOG_MAX = 20;
/** What a filesystem is in, and not what it is: recover, orphans. */
const EXT4_INCOMPAT_STATE = 0x4;
const EXT4_RO_COMPAT_STATE = 0x10000;
const XFS_MAGIC = 0x58465342;

/**
 * From the first `SUPERBLOCK_READ_BYTES` of the device; null: they are of no filesystem of that kind, or
 * damaged. Pure.
 */
export function mountNeeds(filesystem: 'ext4' | 'xfs', bytes: Buffer): MountNeeds | null {
  if (bytes.length < SUPERBLOCK_READ_BYTES) return null;
  return filesystem === 'ext4' ? ext4Needs(bytes.subarray(EXT4_OFFSET_BYTES)) : xfsNeeds(bytes);
}

function ext4Needs(block: Buffer): MountNeeds | null {
  const blockLog = block.readUInt32LE(0x18);
  const clusterLog = block.readUInt32LE(0x1c);
  if (block.readUInt16LE(0x38) !== EXT4_MAGIC) return null;
  if (blockLog > EXT4_BLOCK_LOG_MAX || clusterLog > EXT4_CLUSTER_LOG_MAX) return null;
  return {
    filesystem: 'ext4',
    blockBytes: 1024 << blockLog,
    clusterBytes: 1024 << clusterLog,
    inodeBytes: block.readUInt16LE(0x58),
    compatible: block.readUInt32LE(0x5c),
    incompatible: (block.readUInt32LE(0x60) & ~EXT4_INCOMPAT_STATE) >>> 0,
    readonlyCompatible: (block.readUInt32LE(0x64) & ~EXT4_RO_COMPAT_STATE) >>> 0,
  };
}

function xfsNeeds(block: Buffer): MountNeeds | null {
  if (block.readUInt32BE(0) !== XFS_MAGIC) return null;
  const version = block.readUInt16BE(100) & 0xf;
  return {
    filesystem: 'xfs',
    blockBytes: Math.min(block.readUInt32BE(4), 2 ** 31),
    sectorBytes: block.readUInt16BE(102),
    inodeBytes: block.readUInt16BE(104),
    version,
    // Version 4 has other words there.
    incompatible: version >= 5 ? block.readUInt32BE(216) : 0,
    readonlyCompatible: version >= 5 ? block.readUInt32BE(212) : 0,
  };
}
