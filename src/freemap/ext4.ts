import { assert } from '../base/assert.ts';
import { type GodwitError, isGodwitError } from '../base/errors.ts';
import { nextTurn, turnIsLong } from '../base/turn.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { readBytes } from './device-bytes.ts';
import { noMap } from './errors.ts';
import {
  baseMetadata,
  bitmapChecksum,
  descriptorBlock,
  descriptorsPerBlock,
  type Ext4Layout,
  type GroupDescriptor,
  groupEndBlock,
  groupFirstBlock,
  parseDescriptor,
  parseSuperblock,
  provesBitmaps,
} from './ext4-layout.ts';
import { FreeMap, lowestBit } from './free-map.ts';

/** Read at most this much at once; bounds the memory that a row of bitmaps takes. */
const CHUNK_BYTES = 2 ** 20;
/** Of the descriptor table: a thousand groups, whose bitmaps are 4 MiB. */
const TABLE_CHUNK_BYTES = 64 * 1024;
const READS_IN_FLIGHT_MAX = 8;

/** A block bitmap: bits of clusters, 1 for used, ones beyond the group's last cluster. */
type Bitmap = { words: Uint32Array; checksum: number };

type Group = { group: number; descriptor: GroupDescriptor };

/**
 * The free blocks of ext2, ext3 and ext4.
 *
 * `prime` keeps the block bitmaps of a filesystem that may be mounted, and the parsed descriptor blocks.
 * `read` believes a kept bitmap only where it has the checksum that the group's descriptor has *then*: what
 * it was when it was read does not matter. Without such checksums (no metadata_csum, or only 16 bits of it)
 * every bitmap is read.
 */
export class Ext4Reader {
  readonly #device: BlockDevice;
  #bitmaps = new Map<number, Bitmap>();
  #seed: number | null = null;
  #groupClusters = 0;
  /** Blocks of the descriptor table by index, with what they were parsed to. */
  #tables = new Map<number, { bytes: Buffer; descriptors: GroupDescriptor[] }>();
  /** Bitmaps that `read` had to fetch, for the bench and the tests. */
  bitmapsRead = 0;

  constructor(device: BlockDevice) {
    this.#device = device;
  }

  /**
   * Rejects with what `read` does; what it kept until then is of use. Resolves with what is wrong with the
   * first descriptor that does not fit its checksum, as the disk has it now; null: nothing was seen.
   */
  async prime(superblock: Buffer): Promise<GodwitError | null> {
    const layout = parseSuperblock(superblock, this.#device.lengthBytes);
    if (!provesBitmaps(layout)) return null;
    this.#forgetUnless(layout);
    let damage: GodwitError | null = null;
    const leaveOut = (error: GodwitError) => {
      if (error.code === 'FREEMAP_BAD_CHECKSUM') damage ??= error;
    };
    for await (const groups of this.#descriptors(layout, leaveOut)) {
      const wanted = groups.filter(({ descriptor }) => !descriptor.uninitialised);
      for (const { group, bitmap } of await this.#readBitmaps(layout, wanted))
        this.#bitmaps.set(group, bitmap);
    }
    return damage;
  }

  /**
   * Errors: `FREEMAP_NOT_CLEAN`, `FREEMAP_NOT_SUPPORTED`, `FREEMAP_BAD_CHECKSUM`, `FREEMAP_CORRUPT` and the
   * device's own. A group whose bitmap does not fit its checksum or its count of free clusters counts as
   * used.
   */
  async read(superblock: Buffer): Promise<FreeMap> {
    const layout = parseSuperblock(superblock, this.#device.lengthBytes);
    if (layout.unclean !== null) {
      throw noMap('FREEMAP_NOT_CLEAN', `the ext4 of this volume is not clean: ${layout.unclean}`);
    }
    this.#forgetUnless(layout);
    this.bitmapsRead = 0;
    const map = new FreeMap(this.#device.lengthBytes);
    const free = new FreeRuns(layout, map);
    /**
     * Of each group its two bitmaps and its inode table: with flex_bg they lie in other groups, before or
     * after it.
     */
    const metadata = new Float64Array(layout.groupCount * 3);
    for await (const groups of this.#descriptors(layout, null)) {
      const bitmaps = await this.#bitmapsOf(layout, groups);
      for (const { group, descriptor } of groups) {
        metadata.set([descriptor.blockBitmap, descriptor.inodeBitmap, descriptor.inodeTable], group * 3);
        const bitmap = bitmaps.get(group);
        if (descriptor.uninitialised) free.addAll(group);
        else if (bitmap && isSound(layout, descriptor, group, bitmap)) free.add(group, bitmap.words);
        if (turnIsLong()) await nextTurn();
      }
    }
    free.end();
    // Also where the bitmaps have it: those that were never written have not, and no bitmap is worth more
    // than this rule.
    markUsed(layout, map, 0, layout.firstDataBlock);
    for (let group = 0; group < layout.groupCount; group++) {
      const base = baseMetadata(layout, group);
      markUsed(layout, map, base.first, base.end);
      const [blockBitmap, inodeBitmap, inodeTable] = metadata.subarray(group * 3, group * 3 + 3);
      markUsed(layout, map, blockBitmap!, blockBitmap! + 1);
      markUsed(layout, map, inodeBitmap!, inodeBitmap! + 1);
      markUsed(layout, map, inodeTable!, inodeTable! + layout.inodeTableBlocks);
      if (turnIsLong()) await nextTurn();
    }
    return map;
  }

  /**
   * What was kept belongs to a filesystem of this seed and group size: under another seed a checksum proves
   * nothing.
   */
  #forgetUnless(layout: Ext4Layout): void {
    const seed = layout.checksums.kind === 'crc32c' ? layout.checksums.seed : null;
    if (seed !== this.#seed || layout.groupClusters !== this.#groupClusters) {
      this.#bitmaps.clear();
      this.#tables.clear();
    }
    this.#seed = seed;
    this.#groupClusters = layout.groupClusters;
  }

  /**
   * All groups in order, a chunk of the descriptor table at a time. `leaveOut` is told of the blocks that do
   * not parse, and goes on without them; null: throws.
   */
  async *#descriptors(
    layout: Ext4Layout,
    leaveOut: ((error: GodwitError) => void) | null,
  ): AsyncGenerator<Group[]> {
    const chunkBlocks = Math.max(1, TABLE_CHUNK_BYTES / layout.blockBytes);
    const perBlock = descriptorsPerBlock(layout);
    for (let index = 0; index < layout.tableBlocks; ) {
      // Contiguous up to the first meta block group; from there on each block lies in a group of its own.
      const contiguous = index < layout.firstMetaGroup ? layout.firstMetaGroup : index + 1;
      const end = Math.min(contiguous, index + chunkBlocks, layout.tableBlocks);
      const offsetBytes = descriptorBlock(layout, index) * layout.blockBytes;
      const bytes = await readBytes(this.#device, offsetBytes, (end - index) * layout.blockBytes);
      const groups: Group[] = [];
      for (let block = index; block < end; block++) {
        const start = (block - index) * layout.blockBytes;
        const table = bytes.subarray(start, start + layout.blockBytes);
        try {
          for (const [place, descriptor] of this.#parseTable(layout, block, table).entries()) {
            groups.push({ group: block * perBlock + place, descriptor });
          }
        } catch (error) {
          if (leaveOut === null || !isGodwitError(error)) throw error;
          leaveOut(error);
        }
      }
      yield groups;
      index = end;
    }
  }

  #parseTable(layout: Ext4Layout, block: number, bytes: Buffer): GroupDescriptor[] {
    const perBlock = descriptorsPerBlock(layout);
    const groups = Math.min(perBlock, layout.groupCount - block * perBlock);
    const known = this.#tables.get(block);
    // Checked before, under the same seed: the same bytes need no second look. A filesystem that has grown
    // has more descriptors in it.
    if (known?.bytes.equals(bytes) && known.descriptors.length === groups) return known.descriptors;
    const descriptors: GroupDescriptor[] = [];
    for (let place = 0; place < groups; place++) {
      const start = place * layout.descriptorBytes;
      descriptors.push(
        parseDescriptor(
          layout,
          block * perBlock + place,
          bytes.subarray(start, start + layout.descriptorBytes),
        ),
      );
    }
    if (provesBitmaps(layout)) this.#tables.set(block, { bytes: Buffer.from(bytes), descriptors });
    return descriptors;
  }

  async #bitmapsOf(layout: Ext4Layout, groups: readonly Group[]): Promise<Map<number, Bitmap>> {
    const bitmaps = new Map<number, Bitmap>();
    const missing: Group[] = [];
    for (const one of groups) {
      if (one.descriptor.uninitialised) continue;
      const kept = this.#bitmaps.get(one.group);
      if (kept?.checksum === one.descriptor.bitmapChecksum) bitmaps.set(one.group, kept);
      else missing.push(one);
    }
    this.bitmapsRead += missing.length;
    for (const { group, bitmap } of await this.#readBitmaps(layout, missing)) bitmaps.set(group, bitmap);
    return bitmaps;
  }

  /** Bitmaps that lie behind one another, as those of a flex group do, are one read. */
  async #readBitmaps(
    layout: Ext4Layout,
    groups: readonly Group[],
  ): Promise<{ group: number; bitmap: Bitmap }[]> {
    const sorted = groups.toSorted(
      (left, right) => left.descriptor.blockBitmap - right.descriptor.blockBitmap,
    );
    const rows: Group[][] = [];
    for (const one of sorted) {
      const row = rows.at(-1);
      const last = row?.at(-1)?.descriptor.blockBitmap;
      const fits = row !== undefined && row.length < CHUNK_BYTES / layout.blockBytes;
      if (fits && one.descriptor.blockBitmap === last! + 1) row.push(one);
      else rows.push([one]);
    }
    const bitmaps: { group: number; bitmap: Bitmap }[] = [];
    for (let start = 0; start < rows.length; start += READS_IN_FLIGHT_MAX) {
      const some = rows.slice(start, start + READS_IN_FLIGHT_MAX);
      for (const read of await Promise.all(some.map((row) => this.#readRow(layout, row))))
        bitmaps.push(...read);
    }
    return bitmaps;
  }

  async #readRow(layout: Ext4Layout, row: readonly Group[]): Promise<{ group: number; bitmap: Bitmap }[]> {
    const offsetBytes = row[0]!.descriptor.blockBitmap * layout.blockBytes;
    const bytes = await readBytes(this.#device, offsetBytes, row.length * layout.blockBytes);
    const bitmapBytes = layout.groupClusters / 8;
    return row.map(({ group }, index) => {
      const start = index * layout.blockBytes;
      const bitmap = bytes.subarray(start, start + bitmapBytes);
      const words = new Uint32Array(Math.ceil(bitmapBytes / 4)).fill(0xffffffff);
      new Uint8Array(words.buffer).set(bitmap);
      const { checksums } = layout;
      const checksum = checksums.kind === 'crc32c' ? bitmapChecksum(layout, checksums.seed, bitmap) : 0;
      return { group, bitmap: { words, checksum } };
    });
  }
}

/**
 * The checksum where there is one, and the count of free clusters, as the kernel does before it allocates
 * (ext4_mb_generate_buddy).
 */
function isSound(layout: Ext4Layout, descriptor: GroupDescriptor, group: number, bitmap: Bitmap): boolean {
  if (layout.checksums.kind === 'crc32c' && bitmap.checksum !== descriptor.bitmapChecksum) return false;
  let free = 0;
  forEachZeroRun(bitmap.words, clustersOf(layout, group), (first, end) => {
    free += end - first;
  });
  return free === descriptor.freeClusters;
}

function clustersOf(layout: Ext4Layout, group: number): number {
  const blocks = groupEndBlock(layout, group) - groupFirstBlock(layout, group);
  return Math.ceil(blocks / layout.clusterBlocks);
}

/**
 * Collects free runs in ascending order, and joins them over the borders of groups, which need not be those
 * of 4 KiB blocks.
 */
class FreeRuns {
  readonly #layout: Ext4Layout;
  readonly #map: FreeMap;
  #first = 0;
  #end = 0;

  constructor(layout: Ext4Layout, map: FreeMap) {
    this.#layout = layout;
    this.#map = map;
  }

  /** A group of which nothing was ever allocated. */
  addAll(group: number): void {
    this.#join(groupFirstBlock(this.#layout, group), groupEndBlock(this.#layout, group));
  }

  add(group: number, words: Uint32Array): void {
    const base = groupFirstBlock(this.#layout, group);
    const limit = groupEndBlock(this.#layout, group);
    const { clusterBlocks } = this.#layout;
    forEachZeroRun(words, clustersOf(this.#layout, group), (first, end) => {
      this.#join(base + first * clusterBlocks, Math.min(limit, base + end * clusterBlocks));
    });
  }

  end(): void {
    const { blockBytes } = this.#layout;
    const first = Math.ceil((this.#first * blockBytes) / BLOCK_BYTES);
    const end = Math.floor((this.#end * blockBytes) / BLOCK_BYTES);
    if (first < end) this.#map.markFree(first, end);
  }

  #join(first: number, end: number): void {
    assert(first >= this.#end, 'free runs come in order');
    if (first !== this.#end) {
      this.end();
      this.#first = first;
    }
    this.#end = end;
  }
}

/** Takes blocks of the filesystem out of the map, with the clusters that they are in. */
function markUsed(layout: Ext4Layout, map: FreeMap, firstBlock: number, endBlock: number): void {
  if (firstBlock >= endBlock) return;
  const { blockBytes, clusterBlocks } = layout;
  const first = Math.floor(firstBlock / clusterBlocks) * clusterBlocks;
  const end = Math.ceil(endBlock / clusterBlocks) * clusterBlocks;
  const unitEnd = Math.min(map.blockCount, Math.ceil((end * blockBytes) / BLOCK_BYTES));
  map.markUsed(Math.floor((first * blockBytes) / BLOCK_BYTES), unitEnd);
}

/** Runs of zero bits among the first `bits` of `words`, in order. */
function forEachZeroRun(words: Uint32Array, bits: number, visit: (first: number, end: number) => void): void {
  const find = (from: number, skip: number): number => {
    if (from >= bits) return bits;
    let word = from >>> 5;
    let differing = (words[word]! ^ skip) & (0xffffffff << (from & 31));
    while (differing === 0) {
      word++;
      if (word === words.length) return bits;
      differing = words[word]! ^ skip;
    }
    return Math.min(bits, word * 32 + lowestBit(differing));
  };
  for (let first = find(0, 0xffffffff); first < bits; ) {
    const end = find(first, 0);
    visit(first, end);
    first = find(end, 0xffffffff);
  }
}
