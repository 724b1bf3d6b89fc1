import { endianness } from 'node:os';
import { crc32c } from '@node-rs/crc32';
import { assert } from '../base/assert.ts';
import { GodwitError } from '../base/errors.ts';
import { nextTurn, turnIsLong } from '../base/turn.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { blockCountOf } from './validity-map.ts';

/**
 * The durable side of a clone: which blocks are local for certain, whatever happens to the host.
 *
 *   byte 0       header, 512 bytes
 *   byte 4096    the same header again
 *   byte 8192    bitmap sectors of 512 bytes, one for each 4032 blocks (15.75 MiB of the volume)
 *   then, at a multiple of 4096, summary sectors of 512 bytes, one for each 4032 bitmap sectors (62 GiB of the volume): a bit says that all blocks of its
 *                bitmap sector are local, whatever that sector has. So holes and what is whole cost a bit for 15.75 MiB.
 *
 * Header (little-endian):
 *     0  8  magic "GWCLONE\0"
 *     8  4  format version: 2; 1 is without summary sectors
 *    12  4  bytes in a block, 4096
 *    16  8  length of the volume in bytes
 *    24  8  generation of the volume
 *    32  2  length of the volume id in bytes, 1 to 256
 *    34  .  volume id, UTF-8; zeros up to 508
 *   508  4  CRC32C of bytes 0 to 507
 *
 * Bitmap or summary sector (little-endian):
 *     0  4  CRC32C of bytes 4 to 511, begun with the header's CRC: a sector of another clone does not pass
 *     4  4  index of the sector; of a summary sector 2^31 more
 *     8  504 bits, block (or bitmap sector) 0 of the sector in the lowest bit of the first byte
 *
 * A disk writes a sector of 512 bytes whole or not at all, and bits only go from 0 to 1. So a write of
 * several sectors that is torn leaves each of them old or new, and old only means that a block is fetched
 * again. The kernel does not keep that promise for a page that is changed while it is on its way to the disk:
 * half of a sector may be old then. So pages of 4096 bytes are written whole, each once between two flushes.
 * A sector that is all zeros was never written (a written one has a bit and an index under its CRC): it has
 * no bits, which makes the metadata of a fresh clone of any size an empty sparse file. Every other sector
 * with a wrong CRC is corruption, and never taken for "no bits": that would bring old content back from the
 * source over newer writes.
 */
const METADATA_SECTOR_BYTES = 512;
const HEADER_COPY_OFFSETS = [0, 4096] as const;
const BITMAP_OFFSET_BYTES = 8192;
const FORMAT_VERSION = 2;
const VERSION_WITHOUT_SUMMARY = 1;
const SUMMARY_INDEX = 2 ** 31;
const MAGIC = 'GWCLONE\0';
const VOLUME_ID_BYTES_MAX = 256;
/** Words of 32 bits of bitmap in one sector. */
export const SECTOR_WORDS = 126;
/** Blocks that one bitmap sector covers. */
export const SECTOR_BLOCKS = SECTOR_WORDS * 32;
/** Sectors of a page of 4096 bytes. Bitmap and summary begin with one and end with one. */
const PAGE_SECTORS = 8;
/** Read and written at most at once: whole pages. */
const CHUNK_SECTORS = 2048;
const EXTENTS_LIMIT = 256;
const ALL_ONES = 0xffffffff;

assert(endianness() === 'LE', 'bitmap words are used in place, which needs a little-endian machine');

/** What the metadata belongs to. */
export type CloneIdentity = { volumeId: string; generation: number; lengthBytes: number };

/** Bitmap sectors of a volume of `lengthBytes`. */
export function metadataSectorCount(lengthBytes: number): number {
  return Math.ceil(blockCountOf(lengthBytes) / SECTOR_BLOCKS);
}

/**
 * Length of the metadata of a volume of `lengthBytes`, in bytes: a multiple of 4096. 1 TiB needs 32.5 MiB.
 */
export function metadataLengthBytes(lengthBytes: number): number {
  return summaryOffsetBytes(lengthBytes) + roundUp(summarySectorCount(lengthBytes) * METADATA_SECTOR_BYTES);
}

/** Where the summary is, which goes on to the end; also the length of what an older version made. */
export function summaryOffsetBytes(lengthBytes: number): number {
  return roundUp(BITMAP_OFFSET_BYTES + metadataSectorCount(lengthBytes) * METADATA_SECTOR_BYTES);
}

function summarySectorCount(lengthBytes: number): number {
  return Math.ceil(metadataSectorCount(lengthBytes) / SECTOR_BLOCKS);
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / BLOCK_BYTES) * BLOCK_BYTES;
}

type Sector = { index: number; bits: Uint32Array };

export class CloneMetadata {
  readonly identity: CloneIdentity;
  readonly sectorCount: number;
  readonly #device: BlockDevice;
  readonly #checksumSeed: number;
  /** The bits of the summary sectors, one after the other; null where there are none. */
  readonly #summary: Uint32Array | null;
  /** The sectors of a write, used again by the next. */
  readonly #image: Uint8Array;

  private constructor(device: BlockDevice, identity: CloneIdentity, header: Uint8Array, summarized: boolean) {
    this.#device = device;
    const checksumSeed = headerChecksum(header);
    const summarySectors = summarySectorCount(identity.lengthBytes);
    this.#summary = summarized ? new Uint32Array(summarySectors * SECTOR_WORDS) : null;
    this.identity = identity;
    this.sectorCount = metadataSectorCount(identity.lengthBytes);
    const pagesSectors = Math.ceil(this.sectorCount / PAGE_SECTORS) * PAGE_SECTORS;
    this.#image = new Uint8Array(Math.min(CHUNK_SECTORS, pagesSectors) * METADATA_SECTOR_BYTES);
    this.#checksumSeed = checksumSeed;
  }

  /**
   * Makes fresh metadata without any bit, durably. Whatever was on the device is gone, in an order in which a
   * crash leaves either no header or a valid one over an empty bitmap. Errors: `CLONE_METADATA_SHORT` and the
   * device's own.
   */
  static async create(device: BlockDevice, identity: CloneIdentity): Promise<CloneMetadata> {
    checkDevice(device, metadataLengthBytes(identity.lengthBytes));
    const header = encodeHeader(identity);
    await device.writeZeroes(0, BITMAP_OFFSET_BYTES);
    await device.flush();
    await device.discard(BITMAP_OFFSET_BYTES, device.lengthBytes - BITMAP_OFFSET_BYTES);
    await device.flush();
    for (const offsetBytes of HEADER_COPY_OFFSETS) await device.write(offsetBytes, header);
    await device.flush();
    return new CloneMetadata(device, identity, header, true);
  }

  /**
   * Opens the metadata of exactly this clone. One damaged header copy is repaired from the other. Errors:
   * `CLONE_METADATA_BLANK`, `CLONE_METADATA_CORRUPT`, `CLONE_METADATA_SHORT`, `CLONE_METADATA_VERSION`,
   * `CLONE_WRONG_VOLUME`, `CLONE_WRONG_GENERATION`, `CLONE_WRONG_LENGTH` and the device's own.
   */
  static async open(device: BlockDevice, identity: CloneIdentity): Promise<CloneMetadata> {
    checkDevice(device, BITMAP_OFFSET_BYTES);
    const copies: Uint8Array[] = [];
    for (const offsetBytes of HEADER_COPY_OFFSETS) {
      const copy = new Uint8Array(METADATA_SECTOR_BYTES);
      await device.read(offsetBytes, copy);
      copies.push(copy);
    }
    const { header, damaged } = chooseHeader(copies);
    const found = decodeHeader(header);
    checkIdentity(found, identity);
    const summarized = found.version !== VERSION_WITHOUT_SUMMARY;
    checkDevice(device, (summarized ? metadataLengthBytes : summaryOffsetBytes)(identity.lengthBytes));
    if (damaged !== null && device.writable) {
      await device.write(HEADER_COPY_OFFSETS[damaged]!, header);
      await device.flush();
    }
    const metadata = new CloneMetadata(device, identity, header, summarized);
    await metadata.#loadSummary();
    return metadata;
  }

  /**
   * Calls `full` with the runs of sectors [first, end) that are known to be all ones (by default that is a
   * visit to each of them), then `visit` with every other sector that was ever written, in order; `words`
   * (126 of them) is valid during the call only. Reads only what the device has data for, 1 MiB at a time.
   * Error: `CLONE_METADATA_CORRUPT` with the sector.
   */
  async load(
    visit: (sector: number, words: Uint32Array) => void,
    full: (first: number, end: number) => void = (first, end) => this.#visitEach(first, end, visit),
  ): Promise<void> {
    await this.#visitFull(full);
    const endBytes = BITMAP_OFFSET_BYTES + this.sectorCount * METADATA_SECTOR_BYTES;
    const chunk = new Uint8Array(Math.min(CHUNK_SECTORS, this.sectorCount) * METADATA_SECTOR_BYTES);
    for (let offsetBytes = BITMAP_OFFSET_BYTES; offsetBytes < endBytes; ) {
      const extents = this.#device.extents
        ? await this.#device.extents(offsetBytes, endBytes - offsetBytes, EXTENTS_LIMIT)
        : [{ offsetBytes, lengthBytes: endBytes - offsetBytes, kind: 'data' as const }];
      assert(extents.length > 0, 'a device says what a range holds');
      for (const extent of extents) {
        const extentEnd = extent.offsetBytes + extent.lengthBytes;
        if (extent.kind === 'data') await this.#loadRange(extent.offsetBytes, extentEnd, chunk, visit);
        offsetBytes = extentEnd;
      }
    }
  }

  /**
   * Writes whole sectors: `words` holds 126 words for each of `sectors`, which are in ascending order and
   * have at least one bit each. One that is all ones is a bit of the summary. Durable after `flush`. One
   * write at a time, and none after it before the flush has ended, well or not.
   */
  async write(sectors: readonly number[], words: Uint32Array): Promise<void> {
    assert(words.length === sectors.length * SECTOR_WORDS, 'every sector has its words');
    const mixed: Sector[] = [];
    const summaries = new Set<number>();
    for (const [position, sector] of sectors.entries()) {
      const bits = words.subarray(position * SECTOR_WORDS, (position + 1) * SECTOR_WORDS);
      if (this.#summary === null || !this.#isFull(sector, bits)) mixed.push({ index: sector, bits });
      // Also where it is set already: the write that should have made it durable may have failed.
      else summaries.add(this.#setInSummary(sector));
      if (turnIsLong()) await nextTurn();
    }
    await this.#put(BITMAP_OFFSET_BYTES, 0, mixed);
    const summarySectors = [...summaries].map((index) => ({ index, bits: this.#summaryBits(index) }));
    await this.#put(summaryOffsetBytes(this.identity.lengthBytes), SUMMARY_INDEX, summarySectors);
  }

  /**
   * What is durable of one sector, or on its way there; null: it was never written. Error:
   * `CLONE_METADATA_CORRUPT`.
   */
  async readSector(sector: number): Promise<Uint32Array | null> {
    if (this.#inSummary(sector)) return new Uint32Array(SECTOR_WORDS).fill(ALL_ONES);
    const image = new Uint8Array(METADATA_SECTOR_BYTES);
    await this.#device.read(BITMAP_OFFSET_BYTES + sector * METADATA_SECTOR_BYTES, image);
    return this.#decode(sector, image);
  }

  /** Writes sectors, ascending, of which number 0 is at `offsetBytes`: their pages. */
  async #put(offsetBytes: number, indexBase: number, sectors: readonly Sector[]): Promise<void> {
    for (let start = 0; start < sectors.length; ) {
      const limit = pageOf(sectors[start]!) + CHUNK_SECTORS / PAGE_SECTORS;
      let end = start + 1;
      while (end < sectors.length && pageOf(sectors[end]!) < limit) {
        if (pageOf(sectors[end]!) - pageOf(sectors[end - 1]!) > 1) break;
        end++;
      }
      await this.#putPages(offsetBytes, indexBase, sectors.slice(start, end));
      start = end;
    }
  }

  /**
   * In one write the pages of `sectors`, which are adjacent; the other sectors of these pages stay as they
   * are.
   */
  async #putPages(offsetBytes: number, indexBase: number, sectors: readonly Sector[]): Promise<void> {
    const first = pageOf(sectors[0]!) * PAGE_SECTORS;
    const end = (pageOf(sectors.at(-1)!) + 1) * PAGE_SECTORS;
    const image = this.#image.subarray(0, (end - first) * METADATA_SECTOR_BYTES);
    const atBytes = offsetBytes + first * METADATA_SECTOR_BYTES;
    if (sectors.length < end - first) await this.#device.read(atBytes, image);
    for (const { index, bits } of sectors) {
      this.#encodeSector(indexBase + index, bits, image.subarray((index - first) * METADATA_SECTOR_BYTES));
      if (turnIsLong()) await nextTurn();
    }
    await this.#device.write(atBytes, image);
  }

  #isFull(sector: number, bits: Uint32Array): boolean {
    const used = blockCountOf(this.identity.lengthBytes) - sector * SECTOR_BLOCKS;
    if (used >= SECTOR_BLOCKS) return bits.every((word) => word === ALL_ONES);
    const whole = Math.floor(used / 32);
    return (
      bits.every((word, index) => index >= whole || word === ALL_ONES) &&
      (used % 32 === 0 || bits[whole] === 2 ** (used % 32) - 1)
    );
  }

  /** Returns which summary sector that is in. */
  #setInSummary(sector: number): number {
    const index = Math.floor(sector / SECTOR_BLOCKS);
    const bit = sector - index * SECTOR_BLOCKS;
    this.#summaryBits(index)[bit >>> 5]! |= 1 << (bit & 31);
    return index;
  }

  #summaryBits(index: number): Uint32Array {
    return this.#summary!.subarray(index * SECTOR_WORDS, (index + 1) * SECTOR_WORDS);
  }

  #inSummary(sector: number): boolean {
    if (this.#summary === null) return false;
    const index = Math.floor(sector / SECTOR_BLOCKS);
    const bit = sector - index * SECTOR_BLOCKS;
    return ((this.#summary[index * SECTOR_WORDS + (bit >>> 5)]! >>> (bit & 31)) & 1) === 1;
  }

  async #loadSummary(): Promise<void> {
    if (this.#summary === null) return;
    const count = summarySectorCount(this.identity.lengthBytes);
    const at = summaryOffsetBytes(this.identity.lengthBytes);
    const image = new Uint8Array(Math.min(count, CHUNK_SECTORS) * METADATA_SECTOR_BYTES);
    for (let first = 0; first < count; first += CHUNK_SECTORS) {
      const sectors = Math.min(CHUNK_SECTORS, count - first);
      const part = image.subarray(0, sectors * METADATA_SECTOR_BYTES);
      await this.#device.read(at + first * METADATA_SECTOR_BYTES, part);
      for (let index = first; index < first + sectors; index++) {
        const bits = this.#decode(
          SUMMARY_INDEX + index,
          part.subarray((index - first) * METADATA_SECTOR_BYTES),
        );
        if (bits === null) continue;
        checkTail(SUMMARY_INDEX + index, bits, this.sectorCount - index * SECTOR_BLOCKS);
        this.#summaryBits(index).set(bits);
      }
    }
  }

  #visitEach(first: number, end: number, visit: (sector: number, words: Uint32Array) => void): void {
    for (let sector = first; sector < end; sector++) {
      const words = new Uint32Array(SECTOR_WORDS);
      const used = Math.min(SECTOR_BLOCKS, blockCountOf(this.identity.lengthBytes) - sector * SECTOR_BLOCKS);
      words.fill(ALL_ONES, 0, Math.floor(used / 32));
      if (used % 32 !== 0) words[Math.floor(used / 32)] = 2 ** (used % 32) - 1;
      visit(sector, words);
    }
  }

  async #visitFull(full: (first: number, end: number) => void): Promise<void> {
    if (this.#summary === null) return;
    let first = -1;
    for (let sector = 0; sector < this.sectorCount; sector++) {
      const isFull = this.#inSummary(sector);
      if (isFull && first === -1) first = sector;
      else if (!isFull && first !== -1) {
        full(first, sector);
        first = -1;
      }
      if (sector % 256 === 0 && turnIsLong()) await nextTurn();
    }
    if (first !== -1) full(first, this.sectorCount);
  }

  flush(): Promise<void> {
    return this.#device.flush();
  }

  close(): Promise<void> {
    return this.#device.close();
  }

  async #loadRange(
    fromBytes: number,
    toBytes: number,
    chunk: Uint8Array,
    visit: (sector: number, words: Uint32Array) => void,
  ): Promise<void> {
    // A filesystem's extents are multiples of 512 bytes in practice; rounding keeps a stranger one harmless.
    const start = Math.floor((fromBytes - BITMAP_OFFSET_BYTES) / METADATA_SECTOR_BYTES);
    const end = Math.ceil((toBytes - BITMAP_OFFSET_BYTES) / METADATA_SECTOR_BYTES);
    for (let sector = start; sector < end; ) {
      const count = Math.min(CHUNK_SECTORS, end - sector);
      const image = chunk.subarray(0, count * METADATA_SECTOR_BYTES);
      await this.#device.read(BITMAP_OFFSET_BYTES + sector * METADATA_SECTOR_BYTES, image);
      for (let index = 0; index < count; index++) {
        if (sector + index >= this.sectorCount || this.#inSummary(sector + index)) continue;
        const words = this.#decode(sector + index, image.subarray(index * METADATA_SECTOR_BYTES));
        if (words === null) continue;
        checkTail(
          sector + index,
          words,
          blockCountOf(this.identity.lengthBytes) - (sector + index) * SECTOR_BLOCKS,
        );
        visit(sector + index, words);
      }
      sector += count;
    }
  }

  #encodeSector(sector: number, bits: Uint32Array, into: Uint8Array): void {
    const words = new Uint32Array(into.buffer, into.byteOffset, SECTOR_WORDS + 2);
    words[1] = sector;
    words.set(bits, 2);
    words[0] = crc32c(into.subarray(4, METADATA_SECTOR_BYTES), this.#checksumSeed);
  }

  /** null: never written. */
  #decode(index: number, from: Uint8Array): Uint32Array | null {
    const words = new Uint32Array(from.buffer, from.byteOffset, SECTOR_WORDS + 2);
    if (words.every((word) => word === 0)) return null;
    const checksum = crc32c(from.subarray(4, METADATA_SECTOR_BYTES), this.#checksumSeed);
    if (words[0] !== checksum) throw corruptError(index, 'its checksum is wrong');
    if (words[1] !== index) throw corruptError(index, `it is sector ${words[1]}, written to the wrong place`);
    return words.subarray(2);
  }
}

/** Bits beyond the last block would make the count of local blocks wrong. */
function checkTail(index: number, bits: Uint32Array, used: number): void {
  for (let bit = Math.max(0, used); bit < SECTOR_BLOCKS; bit++) {
    if (((bits[bit >>> 5]! >>> (bit & 31)) & 1) === 1)
      throw corruptError(index, 'it has bits beyond the end of the volume');
  }
}

function pageOf({ index }: Sector): number {
  return Math.floor(index / PAGE_SECTORS);
}

function encodeHeader(identity: CloneIdentity): Uint8Array {
  const id = new TextEncoder().encode(identity.volumeId);
  assert(id.length >= 1 && id.length <= VOLUME_ID_BYTES_MAX, 'a volume id has 1 to 256 bytes');
  assert(Number.isSafeInteger(identity.generation) && identity.generation >= 1, 'a generation is 1 or more');
  const header = new Uint8Array(METADATA_SECTOR_BYTES);
  const view = new DataView(header.buffer);
  new TextEncoder().encodeInto(MAGIC, header);
  view.setUint32(8, FORMAT_VERSION, true);
  view.setUint32(12, BLOCK_BYTES, true);
  view.setBigUint64(16, BigInt(identity.lengthBytes), true);
  view.setBigUint64(24, BigInt(identity.generation), true);
  view.setUint16(32, id.length, true);
  header.set(id, 34);
  view.setUint32(508, crc32c(header.subarray(0, 508)), true);
  return header;
}

/** Takes a header whose CRC is right. */
function decodeHeader(header: Uint8Array): CloneIdentity & { version: number; blockBytes: number } {
  const view = new DataView(header.buffer, header.byteOffset, header.length);
  const idLength = Math.min(view.getUint16(32, true), VOLUME_ID_BYTES_MAX);
  return {
    version: view.getUint32(8, true),
    blockBytes: view.getUint32(12, true),
    lengthBytes: Number(view.getBigUint64(16, true)),
    generation: Number(view.getBigUint64(24, true)),
    volumeId: new TextDecoder().decode(header.subarray(34, 34 + idLength)),
  };
}

function headerChecksum(header: Uint8Array): number {
  return new DataView(header.buffer, header.byteOffset).getUint32(508, true);
}

function headerIsSound(header: Uint8Array): boolean {
  const magic = new TextEncoder().encode(MAGIC);
  if (!magic.every((byte, index) => header[index] === byte)) return false;
  return headerChecksum(header) === crc32c(header.subarray(0, 508));
}

/** The header to believe, and which copy (if any) has to be written again. */
function chooseHeader(copies: readonly Uint8Array[]): { header: Uint8Array; damaged: number | null } {
  const [first, second] = copies as [Uint8Array, Uint8Array];
  const sound = [headerIsSound(first), headerIsSound(second)];
  if (sound[0] && sound[1]) {
    if (first.some((byte, index) => byte !== second[index])) {
      throw headerError('its two copies are both sound and differ');
    }
    return { header: first, damaged: null };
  }
  if (sound[0]) return { header: first, damaged: 1 };
  if (sound[1]) return { header: second, damaged: 0 };
  if (first.every((byte) => byte === 0) && second.every((byte) => byte === 0)) {
    throw new GodwitError('CLONE_METADATA_BLANK', 'the clone metadata was never completely made', {
      nextAction:
        'Prepare the move again: a clone is used only after its header is durable, so nothing is lost.',
    });
  }
  throw headerError('both of its copies are damaged');
}

function checkIdentity(found: ReturnType<typeof decodeHeader>, expected: CloneIdentity): void {
  const known = found.version === FORMAT_VERSION || found.version === VERSION_WITHOUT_SUMMARY;
  if (!known || found.blockBytes !== BLOCK_BYTES) {
    throw new GodwitError(
      'CLONE_METADATA_VERSION',
      `clone metadata of version ${found.version} is unknown here`,
      {
        values: { version: found.version, blockBytes: found.blockBytes, supportedVersion: FORMAT_VERSION },
        nextAction: 'Open the volume with the godwit version that made it, or a newer one.',
      },
    );
  }
  const differences = [
    ['CLONE_WRONG_VOLUME', 'volume id', found.volumeId, expected.volumeId],
    ['CLONE_WRONG_GENERATION', 'generation', found.generation, expected.generation],
    ['CLONE_WRONG_LENGTH', 'length in bytes', found.lengthBytes, expected.lengthBytes],
  ] as const;
  for (const [code, what, foundValue, expectedValue] of differences) {
    if (foundValue === expectedValue) continue;
    throw new GodwitError(
      code,
      `the clone metadata has the ${what} ${foundValue}, expected ${expectedValue}`,
      {
        values: { found: foundValue, expected: expectedValue },
        nextAction: 'The metadata belongs to another clone; look at the volume record for the right file.',
      },
    );
  }
}

function checkDevice(device: BlockDevice, neededBytes: number): void {
  assert(device.blockBytes === METADATA_SECTOR_BYTES, 'metadata is addressed by sectors of 512 bytes');
  if (device.lengthBytes >= neededBytes) return;
  throw new GodwitError(
    'CLONE_METADATA_SHORT',
    `the clone metadata has ${device.lengthBytes} bytes and needs ${neededBytes}`,
    {
      values: { lengthBytes: device.lengthBytes, neededBytes },
      nextAction: 'The file was cut short; restore it. Without it nobody knows which blocks are local.',
    },
  );
}

function corruptError(index: number, why: string): GodwitError {
  const summary = index >= SUMMARY_INDEX;
  const sector = summary ? index - SUMMARY_INDEX : index;
  const blocks = summary ? SECTOR_BLOCKS * SECTOR_BLOCKS : SECTOR_BLOCKS;
  return new GodwitError(
    'CLONE_METADATA_CORRUPT',
    `${summary ? 'summary sector' : 'sector'} ${sector} of the clone metadata is damaged: ${why}`,
    {
      values: { sector, summary, firstBlock: sector * blocks, blocks },
      nextAction:
        'Do not start the machine: blocks of this range may be newer than the source. Check the disk, then restore the metadata file.',
    },
  );
}

function headerError(why: string): GodwitError {
  return new GodwitError('CLONE_METADATA_CORRUPT', `the header of the clone metadata is damaged: ${why}`, {
    values: { sector: 'header' },
    nextAction: 'Do not start the machine. Check the disk, then restore the metadata file.',
  });
}
