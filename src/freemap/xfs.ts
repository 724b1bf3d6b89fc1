import { crc32c } from '@node-rs/crc32';
import { type GodwitError, isGodwitError } from '../base/errors.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { readBytes } from './device-bytes.ts';
import { noMap } from './errors.ts';
import { FreeMap } from './free-map.ts';
import { checkXfsLog } from './xfs-log.ts';

/**
 * The parts of XFS version 5 that say which blocks are free. Integers are big-endian, checksums (crc32c)
 * little-endian, over the sector or block with zeros in their place. Sources: "XFS Algorithms & Data
 * Structures" (xfs-docs), Linux fs/xfs/libxfs/xfs_format.h.
 *
 * Superblock, one sector at byte 0:
 *     0  4  magic "XFSB"            104  2  inode size           208  4  compatible features
 *     4  4  block size              120  1  block size, log2     212  4  read-only compatible features
 *     8  8  blocks                  124  1  AG blocks, log2 up   216  4  incompatible features
 *    32 16  uuid                    126  1  being made           220  4  features of the log
 *    48  8  first block of the log                               224  4  checksum
 *    84  4  blocks in an AG                                      248 16  uuid of the metadata (meta_uuid)
 *    88  4  AGs
 *    96  4  blocks of the log
 *   100  2  version in the low 4 bits
 *   102  2  sector size
 *
 * Free space header (AGF), the second sector of each AG:
 *     0  4  magic "XAGF"             8  4  number of the AG      28  4  levels of the tree by block
 *     4  4  version, 1              12  4  blocks of the AG      52  4  free blocks in the tree
 *                                   16  4  root of the tree by   64 16  uuid
 *                                          block                216  4  checksum
 *
 * Inode header (AGI), the third sector: checksum at 312.
 *
 * Block of the tree of free extents by block:
 *     0  4  magic "AB3B"            16  8  own address in units of 512 bytes
 *     4  2  level, 0 is a leaf      32 16  uuid
 *     6  2  records                 48  4  number of the AG
 *                                   52  4  checksum
 *    56     leaf: records of 4 bytes first block, 4 bytes blocks. Node: as many keys of 8 bytes as fit, then as many pointers of 4 bytes.
 *
 * Blocks on an AG's own free list (AGFL) are in no tree; they count as used.
 */
const MAGIC = 'XFSB';
const AGF_MAGIC = 'XAGF';
const TREE_MAGIC = 'AB3B';
const SUPERBLOCK_CHECKSUM_OFFSET = 224;
const AGF_CHECKSUM_OFFSET = 216;
const AGI_CHECKSUM_OFFSET = 312;
const TREE_CHECKSUM_OFFSET = 52;
const TREE_HEADER_BYTES = 56;
/** finobt, rmapbt, reflink, inobtcount. */
const RO_COMPAT_KNOWN = 0x1 | 0x2 | 0x4 | 0x8;
/** ftype, sparse inodes, meta_uuid, bigtime, needsrepair, nrext64, exchange-range, parent pointers. */
const INCOMPAT_KNOWN = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80;
const INCOMPAT_META_UUID = 0x4;
const INCOMPAT_NEEDSREPAIR = 0x10;
/**
 * Logged extended attributes: the log may hold something else than transactions of blocks, but a clean one
 * holds nothing.
 */
const LOG_INCOMPAT_KNOWN = 0x1;
/** Smallest AG that mkfs makes (XFS_AG_MIN_BYTES); bounds their number. */
const AG_BYTES_MIN = 16 * 2 ** 20;
const TREE_LEVELS_MAX = 9;

export type XfsLayout = {
  blockBytes: number;
  sectorBytes: number;
  blockCount: number;
  agBlocks: number;
  agCount: number;
  logOffsetBytes: number;
  logBytes: number;
  uuid: Buffer;
};

export async function isXfs(device: BlockDevice): Promise<boolean> {
  if (device.lengthBytes < AG_BYTES_MIN) return false;
  return (await readBytes(device, 0, 4)).toString('latin1') === MAGIC;
}

/**
 * Errors: `FREEMAP_NOT_CLEAN`, `FREEMAP_NOT_SUPPORTED`, `FREEMAP_BAD_CHECKSUM`, `FREEMAP_CORRUPT` and the
 * device's own.
 */
export async function readXfs(device: BlockDevice): Promise<FreeMap> {
  const layout = await readSuperblock(device);
  await checkXfsLog(device, layout.logOffsetBytes, layout.logBytes);
  const map = new FreeMap(device.lengthBytes);
  for (let ag = 0; ag < layout.agCount; ag++) await readAg(device, layout, ag, map);
  return map;
}

/**
 * What is wrong with the first header of an AG that does not fit its checksum, as the disk has it now; null:
 * nothing was seen. The kernel reads them at the mount, and shuts the filesystem down there. The superblock
 * is not looked at, since whoever has it mounted writes it anew, nor do lengths count, which a filesystem
 * that grows has on the disk one after the other. Rejects as `readXfs`.
 */
export async function damageOfXfs(device: BlockDevice): Promise<GodwitError | null> {
  const { agCount, agBlocks, blockBytes, sectorBytes } = await readSuperblock(device);
  for (let ag = 0; ag < agCount; ag++) {
    const headers = await readBytes(device, ag * agBlocks * blockBytes + sectorBytes, 2 * sectorBytes);
    try {
      const what = `header of allocation group ${ag}`;
      checkChecksum(headers.subarray(0, sectorBytes), AGF_CHECKSUM_OFFSET, `the free space ${what}`);
      checkChecksum(headers.subarray(sectorBytes), AGI_CHECKSUM_OFFSET, `the inode ${what}`);
    } catch (error) {
      if (isGodwitError(error, 'FREEMAP_BAD_CHECKSUM')) return error;
      throw error;
    }
  }
  return null;
}

async function readSuperblock(device: BlockDevice): Promise<XfsLayout> {
  const sectorBytes = (await readBytes(device, 0, 512)).readUInt16BE(102);
  if (!isPowerOfTwo(sectorBytes, 512, 32768)) throw corrupt('sector size', sectorBytes);
  const sector = await readBytes(device, 0, sectorBytes);
  const version = sector.readUInt16BE(100) & 0xf;
  if (version !== 5) throw unsupported(`version ${version}`);
  checkChecksum(sector, SUPERBLOCK_CHECKSUM_OFFSET, 'the superblock');
  const incompatible = sector.readUInt32BE(216);
  const readOnly = sector.readUInt32BE(212);
  const logFeatures = sector.readUInt32BE(220);
  const unknown = ((incompatible & ~INCOMPAT_KNOWN) | (readOnly & ~RO_COMPAT_KNOWN)) >>> 0;
  if (unknown !== 0 || (logFeatures & ~LOG_INCOMPAT_KNOWN) !== 0) {
    throw unsupported(
      `features 0x${incompatible.toString(16)}/0x${readOnly.toString(16)}/0x${logFeatures.toString(16)}`,
    );
  }
  if (incompatible & INCOMPAT_NEEDSREPAIR || sector[126] !== 0) {
    throw noMap('FREEMAP_NOT_CLEAN', 'the XFS of this volume needs a repair');
  }
  const blockBytes = sector.readUInt32BE(4);
  if (!isPowerOfTwo(blockBytes, 512, 65536)) throw corrupt('block size', blockBytes);
  const blockCount = Number(sector.readBigUInt64BE(8));
  if (blockCount * blockBytes > device.lengthBytes) throw corrupt('block count', blockCount);
  const agBlocks = sector.readUInt32BE(84);
  const agCount = sector.readUInt32BE(88);
  const fits = (agCount - 1) * agBlocks < blockCount && blockCount <= agCount * agBlocks;
  if (!fits || agBlocks * blockBytes < AG_BYTES_MIN) throw corrupt('allocation group count', agCount);
  const logStart = sector.readBigUInt64BE(48);
  const logBlocks = sector.readUInt32BE(96);
  if (logStart === 0n) throw unsupported('an external log');
  const agShift = BigInt(sector[124]!);
  if (agShift > 31n || 2 ** Number(agShift) < agBlocks)
    throw corrupt('allocation group shift', Number(agShift));
  const logBlock = Number(logStart >> agShift) * agBlocks + Number(logStart & ((1n << agShift) - 1n));
  if (logBlocks === 0 || logBlock + logBlocks > blockCount) throw corrupt('log', logBlock);
  return {
    blockBytes,
    sectorBytes,
    blockCount,
    agBlocks,
    agCount,
    logOffsetBytes: logBlock * blockBytes,
    logBytes: logBlocks * blockBytes,
    uuid: incompatible & INCOMPAT_META_UUID ? sector.subarray(248, 264) : sector.subarray(32, 48),
  };
}

async function readAg(device: BlockDevice, layout: XfsLayout, ag: number, map: FreeMap): Promise<void> {
  const { blockBytes, sectorBytes, agBlocks, blockCount } = layout;
  const agf = await readBytes(device, ag * agBlocks * blockBytes + sectorBytes, sectorBytes);
  const what = `the free space header of allocation group ${ag}`;
  const length = Math.min(agBlocks, blockCount - ag * agBlocks);
  const named = agf.toString('latin1', 0, 4) === AGF_MAGIC && agf.readUInt32BE(4) === 1;
  if (!named || agf.readUInt32BE(8) !== ag || agf.readUInt32BE(12) !== length) throw mismatch(what);
  if (!agf.subarray(64, 80).equals(layout.uuid)) throw mismatch(what);
  checkChecksum(agf, AGF_CHECKSUM_OFFSET, what);
  const levels = agf.readUInt32BE(28);
  if (levels < 1 || levels > TREE_LEVELS_MAX) throw mismatch(what);
  const walk = new TreeWalk(device, layout, ag, length, map);
  await walk.visit(agf.readUInt32BE(16), levels - 1);
  if (walk.freeBlocks !== agf.readUInt32BE(52)) {
    throw mismatch(`${what}: its count of free blocks and the tree`);
  }
}

/**
 * One AG's tree of free extents from left to right. It ends on any tree: every leaf must lie behind the one
 * before it, so that none is visited twice, and every node leads down one level.
 */
class TreeWalk {
  freeBlocks = 0;
  readonly #device: BlockDevice;
  readonly #layout: XfsLayout;
  readonly #ag: number;
  readonly #lengthBlocks: number;
  readonly #map: FreeMap;
  /** First block that the next record may begin at: behind the last one, with a used block in between. */
  #nextBlock = 0;

  constructor(device: BlockDevice, layout: XfsLayout, ag: number, lengthBlocks: number, map: FreeMap) {
    this.#device = device;
    this.#layout = layout;
    this.#ag = ag;
    this.#lengthBlocks = lengthBlocks;
    this.#map = map;
  }

  async visit(block: number, level: number, isRoot = true): Promise<void> {
    const { blockBytes, agBlocks, uuid } = this.#layout;
    const what = `a block of the free space tree of allocation group ${this.#ag}`;
    if (block >= this.#lengthBlocks) throw mismatch(what);
    const offsetBytes = (this.#ag * agBlocks + block) * blockBytes;
    const bytes = await readBytes(this.#device, offsetBytes, blockBytes);
    const named =
      bytes.toString('latin1', 0, 4) === TREE_MAGIC &&
      bytes.readUInt16BE(4) === level &&
      bytes.readBigUInt64BE(16) === BigInt(offsetBytes) / 512n &&
      bytes.readUInt32BE(48) === this.#ag &&
      bytes.subarray(32, 48).equals(uuid);
    if (!named) throw mismatch(what);
    checkChecksum(bytes, TREE_CHECKSUM_OFFSET, what);
    const records = bytes.readUInt16BE(6);
    const recordsMax = Math.floor((blockBytes - TREE_HEADER_BYTES) / (level === 0 ? 8 : 12));
    if (records > recordsMax || (records === 0 && !(isRoot && level === 0))) throw mismatch(what);
    if (level === 0) {
      for (let index = 0; index < records; index++) {
        const record = TREE_HEADER_BYTES + index * 8;
        this.#addFree(bytes.readUInt32BE(record), bytes.readUInt32BE(record + 4), what);
      }
      return;
    }
    const pointers = TREE_HEADER_BYTES + recordsMax * 8;
    for (let index = 0; index < records; index++) {
      await this.visit(bytes.readUInt32BE(pointers + index * 4), level - 1, false);
    }
  }

  #addFree(first: number, blocks: number, what: string): void {
    const end = first + blocks;
    if (blocks === 0 || first < this.#nextBlock || end > this.#lengthBlocks) throw mismatch(what);
    this.#nextBlock = end + 1;
    this.freeBlocks += blocks;
    const { agBlocks, blockBytes } = this.#layout;
    const base = this.#ag * agBlocks;
    const firstUnit = Math.ceil(((base + first) * blockBytes) / BLOCK_BYTES);
    const endUnit = Math.floor(((base + end) * blockBytes) / BLOCK_BYTES);
    if (firstUnit < endUnit) this.#map.markFree(firstUnit, endUnit);
  }
}

function checkChecksum(bytes: Buffer, offset: number, what: string): void {
  const copy = Buffer.from(bytes);
  copy.writeUInt32LE(0, offset);
  if (crc32c(copy) !== bytes.readUInt32LE(offset)) {
    throw noMap('FREEMAP_BAD_CHECKSUM', `the checksum of ${what} does not fit`);
  }
}

function isPowerOfTwo(value: number, minimum: number, maximum: number): boolean {
  return value >= minimum && value <= maximum && (value & (value - 1)) === 0;
}

function unsupported(what: string) {
  return noMap('FREEMAP_NOT_SUPPORTED', `an XFS with ${what} is not understood`, { what });
}

function corrupt(field: string, value: number) {
  return noMap('FREEMAP_CORRUPT', `the superblock has an impossible ${field}: ${value}`, { field, value });
}

function mismatch(what: string) {
  return noMap('FREEMAP_CORRUPT', `${what} does not fit the filesystem`);
}
