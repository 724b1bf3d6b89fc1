import { crc32c } from '@node-rs/crc32';
import { assert } from '../base/assert.ts';
import { GodwitError } from '../base/errors.ts';
import { Serial } from '../base/serial.ts';
import { BLOCK_BYTES, type BlockDevice, type Extent } from '../block/block-device.ts';
import { type RangeDigest, REGION_BYTES } from '../receipt/range.ts';
import { SHA256_BYTES } from '../sys/sha256.ts';
import { blockCountOf } from './validity-map.ts';

/**
 * What came over the wire into a clone, and its digest as it arrived: one record for each fetch (two where it
 * crosses a region border), in the order of arrival. A sparse file of sectors of 512 bytes, which a disk
 * writes whole or not at all.
 *
 *   sector 0     0  8  magic "GWFETCH\0"          16  8  generation          32  .  volume id, UTF-8, zero padded
 *                8  4  format version, 1          24  8  length of the volume in bytes
 *               12  4  CRC32C of bytes 16 to 511
 *   sector n     0  4  CRC32C of bytes 4 to 511   12  20 zero
 *                4  4  n                          32  .  12 records of 40 bytes
 *                8  4  records in use
 *   record       0  6  first block                8  32  SHA-256 of the content
 *                6  2  blocks; 0: the record does not count any more (its range was fetched again)
 *
 * All integers are little-endian. A sector is filled up by writing it again, which must not tear the records
 * that are durable in it: a page is changed only when the last write of it has been written back, so that
 * what is on its way to the disk is never half of one and half of the other. After a crash a new sector is
 * begun; one that is torn was never durable, and no validity bit rests on it.
 */
const MAGIC = Buffer.from('GWFETCH\0', 'latin1');
const FORMAT_VERSION = 1;
const SECTOR_BYTES = 512;
const SECTOR_HEADER_BYTES = 32;
const RECORD_BYTES = 40;
const RECORDS_A_SECTOR = 12;
const VOLUME_ID_BYTES_MAX = SECTOR_BYTES - SECTOR_HEADER_BYTES;
/** Sectors that one look at the log reads at most. */
const READ_SECTORS_MAX = 2048;
const EXTENTS_LIMIT = 256;
const REGION_BLOCKS = REGION_BYTES / BLOCK_BYTES;
/** Beside room for every block twice: for small volumes. */
const SPARE_SECTORS = 256;
const ZEROS = Buffer.alloc(SECTOR_BYTES);

export type FetchLogIdentity = { volumeId: string; generation: number; lengthBytes: number };

/**
 * SHA-256 of content as it crossed the wire. The default digests what it is given; a clone that stores other
 * bytes than it fetched puts its own in.
 */
export type FetchDigest = (offsetBytes: number, bytes: Uint8Array) => Promise<Uint8Array>;

export type FetchRecord = RangeDigest & {
  /** Names the record, for as long as the log is there. */
  position: number;
};

/**
 * Length of the log of a clone of `lengthBytes`: room for every block to come in a fetch of its own, twice.
 * Sparse.
 */
export function fetchLogLengthBytes(lengthBytes: number): number {
  const sectors = Math.ceil((2 * blockCountOf(lengthBytes)) / RECORDS_A_SECTOR);
  return (1 + sectors + SPARE_SECTORS) * SECTOR_BYTES;
}

export class FetchLog {
  readonly identity: FetchLogIdentity;
  readonly #device: BlockDevice;
  readonly digest: FetchDigest;
  /** The next sector that is begun. */
  #nextSector: number;
  /** The sector that is being filled, and how many records it has. */
  #open: { sector: number; bytes: Buffer; records: number } | null = null;
  #pending: { range: RangeDigest; done: () => void; failed: (error: unknown) => void }[] = [];
  readonly #work = new Serial();
  #writing = false;
  #dirty = true;
  /**
   * Sectors that were written since the last flush that succeeded, as they are now: where one fails, they are
   * written again before the next.
   */
  readonly #unflushed = new Map<number, Buffer>();
  #mustRewrite = false;
  #flushing: Promise<void> | null = null;

  private constructor(
    device: BlockDevice,
    identity: FetchLogIdentity,
    digest: FetchDigest,
    nextSector: number,
  ) {
    this.#device = device;
    this.identity = identity;
    this.digest = digest;
    this.#nextSector = nextSector;
  }

  /** Makes a file of zeros into an empty log, durably. */
  static async create(device: BlockDevice, identity: FetchLogIdentity): Promise<void> {
    await device.write(0, encodeHeader(identity));
    await device.flush();
  }

  /** Errors: `CLONE_LOG_FOREIGN` for a log of another clone, or a file that is none. */
  static async open(device: BlockDevice, identity: FetchLogIdentity, digest: FetchDigest): Promise<FetchLog> {
    const header = Buffer.alloc(SECTOR_BYTES);
    await device.read(0, header);
    if (!header.equals(encodeHeader(identity))) {
      throw new GodwitError(
        'CLONE_LOG_FOREIGN',
        'the fetch log is not that of this clone, or its header is damaged',
        {
          values: { volumeId: identity.volumeId, generation: identity.generation },
          nextAction:
            'Move the file fetch.log away to go on without it: the receipt of the move then covers what comes from now on.',
        },
      );
    }
    return new FetchLog(device, identity, digest, (await lastUsedSector(device)) + 1);
  }

  /**
   * Digests content that arrived and puts it down. When it resolves the record outlives the process; `flush`
   * makes it durable.
   */
  async record(firstBlock: number, bytes: Uint8Array): Promise<void> {
    const parts: Promise<void>[] = [];
    for (let done = 0; done < bytes.length; ) {
      const first = firstBlock + done / BLOCK_BYTES;
      const blocksLeft = REGION_BLOCKS - (first % REGION_BLOCKS);
      const part = bytes.subarray(done, done + blocksLeft * BLOCK_BYTES);
      parts.push(
        this.digest(first * BLOCK_BYTES, part).then((digest) =>
          this.append({ first, blocks: Math.ceil(part.length / BLOCK_BYTES), digest }),
        ),
      );
      done += part.length;
    }
    // All of them, also when one failed: the buffer is used again afterwards.
    const results = await Promise.allSettled(parts);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  append(range: RangeDigest): Promise<void> {
    assert(range.blocks >= 1 && range.blocks <= REGION_BLOCKS, 'a record is of one region');
    return new Promise((resolve, reject) => {
      this.#pending.push({ range, done: resolve, failed: reject });
      if (this.#writing) return;
      this.#writing = true;
      void this.#work.run(() => this.#writePending());
    });
  }

  /** All that was appended before the call is durable. */
  async flush(): Promise<void> {
    while (this.#flushing !== null) await this.#flushing;
    if (!this.#dirty) return;
    this.#dirty = false;
    const flushed = this.#flushOnce();
    const settled = flushed
      .catch(() => {
        this.#dirty = true;
        this.#mustRewrite = true;
      })
      .then(() => {
        this.#flushing = null;
      });
    this.#flushing = settled;
    await flushed;
  }

  async #flushOnce(): Promise<void> {
    if (this.#mustRewrite) {
      await this.#work.run(async () => {
        for (const [sector, bytes] of this.#unflushed) await this.#put(sector, bytes);
        this.#mustRewrite = false;
      });
      this.#dirty = false;
    }
    const covered = new Map(this.#unflushed);
    await this.#device.flush();
    for (const [sector, bytes] of covered)
      if (this.#unflushed.get(sector) === bytes) this.#unflushed.delete(sector);
  }

  /** The record does not count any more. */
  retire(position: number): Promise<void> {
    return this.#work.run(async () => {
      const sector = Math.floor(position / RECORDS_A_SECTOR);
      const index = position % RECORDS_A_SECTOR;
      const open = this.#open?.sector === sector ? this.#open.bytes : null;
      const bytes = open ?? Buffer.alloc(SECTOR_BYTES);
      if (open === null) await this.#device.read(sector * SECTOR_BYTES, bytes);
      assert(decodeSector(bytes, sector) !== null, 'a record that was read is there');
      bytes.writeUInt16LE(0, SECTOR_HEADER_BYTES + index * RECORD_BYTES + 6);
      seal(bytes, sector, bytes.readUInt32LE(8));
      await this.#put(sector, bytes);
    });
  }

  /**
   * Records from `cursor` (0, or the `next` of an answer) on, at most `limit` and a few more, in order; those
   * that were retired and damaged sectors are left out. `next` goes on behind them; `ended` says that nothing
   * was there when this was answered.
   */
  async read(
    cursor: number,
    limit: number,
  ): Promise<{ records: FetchRecord[]; next: number; ended: boolean }> {
    // What is appended from now on begins a new sector, behind this end.
    await this.#work.run(async () => {
      this.#open = null;
    });
    const end = this.#nextSector;
    let sector = Math.max(1, Math.floor(cursor));
    const records: FetchRecord[] = [];
    while (sector < end && records.length < limit) {
      const sectors = Math.min(
        READ_SECTORS_MAX,
        end - sector,
        Math.ceil((limit - records.length) / RECORDS_A_SECTOR),
      );
      const bytes = Buffer.alloc(sectors * SECTOR_BYTES);
      await this.#device.read(sector * SECTOR_BYTES, bytes);
      for (let index = 0; index < sectors; index++, sector++) {
        const found = decodeSector(bytes.subarray(index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES), sector);
        for (const record of found ?? []) if (record.blocks > 0) records.push(record);
      }
    }
    return { records, next: sector, ended: sector >= end };
  }

  /** Does not flush. */
  async close(): Promise<void> {
    await this.#work.idle();
    await this.#device.close();
  }

  async #writePending(): Promise<void> {
    while (this.#pending.length > 0) {
      const batch = this.#pending.splice(0, RECORDS_A_SECTOR * 8);
      try {
        await this.#write(batch.map(({ range }) => range));
        for (const { done } of batch) done();
      } catch (error) {
        // What of it is on the disk may be a record twice or of content that is fetched again: both are true.
        this.#open = null;
        for (const { failed } of batch) failed(error);
      }
    }
    this.#writing = false;
  }

  /** The sectors of a batch follow each other, and are written as one. */
  async #write(ranges: readonly RangeDigest[]): Promise<void> {
    const sectors: Buffer[] = [];
    let first = 0;
    for (let done = 0; done < ranges.length; ) {
      this.#open ??= this.#begin();
      const { bytes, sector } = this.#open;
      if (sectors.length === 0) first = sector;
      const count = Math.min(ranges.length - done, RECORDS_A_SECTOR - this.#open.records);
      for (let index = 0; index < count; index++) {
        const { first: firstBlock, blocks, digest } = ranges[done + index]!;
        const at = SECTOR_HEADER_BYTES + (this.#open.records + index) * RECORD_BYTES;
        bytes.writeUIntLE(firstBlock, at, 6);
        bytes.writeUInt16LE(blocks, at + 6);
        bytes.set(digest, at + 8);
      }
      this.#open.records += count;
      done += count;
      seal(bytes, sector, this.#open.records);
      sectors.push(bytes);
      if (this.#open.records === RECORDS_A_SECTOR) this.#open = null;
    }
    await this.#put(first, Buffer.concat(sectors));
  }

  /**
   * Whole sectors from `sector` on. Written back when it resolves: nothing of their pages is on its way to
   * the disk when they are changed the next time.
   */
  async #put(sector: number, bytes: Buffer): Promise<void> {
    const offsetBytes = sector * SECTOR_BYTES;
    for (let at = 0; at < bytes.length; at += SECTOR_BYTES)
      this.#unflushed.set(sector + at / SECTOR_BYTES, Buffer.from(bytes.subarray(at, at + SECTOR_BYTES)));
    try {
      await this.#device.write(offsetBytes, bytes);
      await this.#device.writeBack?.([{ offsetBytes, lengthBytes: bytes.length }]);
    } finally {
      // Not before the write: a flush that began meanwhile did not cover it. Also when it failed: some of it
      // may be there.
      this.#dirty = true;
    }
  }

  #begin(): { sector: number; bytes: Buffer; records: number } {
    const sector = this.#nextSector;
    if ((sector + 1) * SECTOR_BYTES > this.#device.lengthBytes) {
      throw new GodwitError('CLONE_LOG_FULL', 'the fetch log of this clone is full', {
        values: { sectors: sector },
        nextAction:
          'Every block came more than twice: see what restarts the volume server. The move can be undone by force from the sealed source.',
      });
    }
    this.#nextSector++;
    return { sector, bytes: Buffer.alloc(SECTOR_BYTES), records: 0 };
  }
}

function encodeHeader(identity: FetchLogIdentity): Buffer {
  const id = Buffer.from(identity.volumeId, 'utf8');
  assert(id.length >= 1 && id.length <= VOLUME_ID_BYTES_MAX, 'a volume id fits the header');
  const bytes = Buffer.alloc(SECTOR_BYTES);
  MAGIC.copy(bytes, 0);
  bytes.writeUInt32LE(FORMAT_VERSION, 8);
  bytes.writeBigUInt64LE(BigInt(identity.generation), 16);
  bytes.writeBigUInt64LE(BigInt(identity.lengthBytes), 24);
  id.copy(bytes, 32);
  bytes.writeUInt32LE(crc32c(bytes.subarray(16)), 12);
  return bytes;
}

function seal(bytes: Buffer, sector: number, records: number): void {
  bytes.writeUInt32LE(sector, 4);
  bytes.writeUInt32LE(records, 8);
  bytes.writeUInt32LE(crc32c(bytes.subarray(4)), 0);
}

/** Retired records among them, with no blocks. Null: the sector was never written whole. */
function decodeSector(bytes: Buffer, sector: number): FetchRecord[] | null {
  if (bytes.readUInt32LE(4) !== sector) return null;
  const count = bytes.readUInt32LE(8);
  if (count > RECORDS_A_SECTOR || bytes.readUInt32LE(0) !== crc32c(bytes.subarray(4))) return null;
  return Array.from({ length: count }, (_, index) => {
    const at = SECTOR_HEADER_BYTES + index * RECORD_BYTES;
    return {
      position: sector * RECORDS_A_SECTOR + index,
      first: bytes.readUIntLE(at, 6),
      blocks: bytes.readUInt16LE(at + 6),
      digest: new Uint8Array(bytes.subarray(at + 8, at + 8 + SHA256_BYTES)),
    };
  });
}

/**
 * The last sector that is not zeros, whole or torn. Looks from the end: what was written earlier does not
 * matter, however much it is.
 */
async function lastUsedSector(device: BlockDevice): Promise<number> {
  const data = await dataExtents(device);
  const longestBytes = data.reduce((most, { lengthBytes }) => Math.max(most, lengthBytes), 0);
  const bytes = Buffer.alloc(Math.min(READ_SECTORS_MAX * SECTOR_BYTES, longestBytes));
  for (const { offsetBytes, lengthBytes } of data.toReversed()) {
    for (let end = offsetBytes + lengthBytes; end > offsetBytes; ) {
      const start = Math.max(offsetBytes, end - bytes.length);
      const part = bytes.subarray(0, end - start);
      await device.read(start, part);
      for (let at = part.length - SECTOR_BYTES; at >= 0; at -= SECTOR_BYTES)
        if (part.compare(ZEROS, 0, SECTOR_BYTES, at, at + SECTOR_BYTES) !== 0)
          return (start + at) / SECTOR_BYTES;
      end = start;
    }
  }
  return 0;
}

async function dataExtents(device: BlockDevice): Promise<Pick<Extent, 'offsetBytes' | 'lengthBytes'>[]> {
  if (!device.extents) return [{ offsetBytes: 0, lengthBytes: device.lengthBytes }];
  const data: Extent[] = [];
  for (let offset = 0; offset < device.lengthBytes; ) {
    for (const extent of await device.extents(offset, device.lengthBytes - offset, EXTENTS_LIMIT)) {
      offset = extent.offsetBytes + extent.lengthBytes;
      if (extent.kind === 'data') data.push(extent);
    }
  }
  return data;
}
