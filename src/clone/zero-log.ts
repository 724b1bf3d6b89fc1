import { crc32c } from '@node-rs/crc32';
import { assert } from '../base/assert.ts';
import { GodwitError } from '../base/errors.ts';
import { BLOCK_BYTES, type BlockDevice } from '../block/block-device.ts';

/**
 * Sectors that the guest made zero in blocks that are still only at the source: a discard that begins or ends
 * inside of an absent block has its answer at once, and the block gets its zeros when it arrives. A sparse
 * file of sectors of 512 bytes, filled from front to back.
 *
 *   sector 0     0  8  magic "GWZEROS\0"          16  8  generation          32  .  volume id, UTF-8, zero padded
 *                8  4  format version, 1          24  8  length of the volume in bytes
 *               12  4  CRC32C of bytes 16 to 511
 *   sector n     32 records of 16 bytes
 *   record       0  6  block                       8  4  position of the record in the file, in records
 *                6  1  sectors, one bit each       12  4  CRC32C of bytes 0 to 11
 *                7  1  1
 *
 * All integers are little-endian. A sector is filled up by writing it again with more records; those that
 * were there stay byte for byte, so that what was durable is never in danger. After an opening a new sector
 * is begun. A record that is all zeros was never written. A record says nothing about a block that is local:
 * its bit is durable before anything rests on it, and never goes back.
 */
const MAGIC = Buffer.from('GWZEROS\0', 'latin1');
const FORMAT_VERSION = 1;
const SECTOR_BYTES = 512;
const RECORD_BYTES = 16;
const RECORDS_A_SECTOR = SECTOR_BYTES / RECORD_BYTES;
const VOLUME_ID_BYTES_MAX = SECTOR_BYTES - 32;
const USED = 1;
const READ_BYTES = 256 * 1024;
const EXTENTS_LIMIT = 256;
const ZEROS = Buffer.alloc(SECTOR_BYTES);
/** Two for each extent that a filesystem of small blocks frees: a million of them. Bounds the memory, too. */
const RECORDS_MAX = 2 ** 21;

/** Length of the file, whatever the volume's. Sparse. */
export const ZERO_LOG_BYTES = SECTOR_BYTES + RECORDS_MAX * RECORD_BYTES;
/** All sectors of a block. */
export const WHOLE_BLOCK = 0xff;

export type ZeroLogIdentity = { volumeId: string; generation: number; lengthBytes: number };

export class ZeroLog {
  readonly #device: BlockDevice;
  /** By block: the sectors that are zero whatever the source says. */
  readonly #masks: Map<number, number>;
  #nextSector: number;
  /** The sector that is being filled. */
  #open: { sector: number; bytes: Buffer; records: number } | null = null;
  #pending: { block: number; mask: number; done: () => void; failed: (error: unknown) => void }[] = [];
  #working: Promise<void> = Promise.resolve();
  #writing = false;
  #dirty = true;
  #flushing: Promise<void> | null = null;

  private constructor(device: BlockDevice, masks: Map<number, number>, nextSector: number) {
    this.#device = device;
    this.#masks = masks;
    this.#nextSector = nextSector;
  }

  /** Makes a file of zeros into an empty log, durably. */
  static async create(device: BlockDevice, identity: ZeroLogIdentity): Promise<void> {
    await device.write(0, encodeHeader(identity));
    await device.flush();
  }

  /**
   * Errors: `CLONE_ZEROS_FOREIGN` for a log of another clone, or a file that is none; `CLONE_ZEROS_CORRUPT`
   * for one with a damaged record.
   */
  static async open(device: BlockDevice, identity: ZeroLogIdentity): Promise<ZeroLog> {
    const header = Buffer.alloc(SECTOR_BYTES);
    await device.read(0, header);
    if (!header.equals(encodeHeader(identity))) throw foreignError(identity);
    const masks = new Map<number, number>();
    const lastSector = await readRecords(device, identity, (block, mask) => {
      masks.set(block, (masks.get(block) ?? 0) | mask);
    });
    return new ZeroLog(device, masks, lastSector + 1);
  }

  /** Blocks that have such sectors, or had before they came. */
  get blocks(): Iterable<number> {
    return this.#masks.keys();
  }

  maskOf(block: number): number {
    return this.#masks.get(block) ?? 0;
  }

  /** No room for another record. */
  get full(): boolean {
    return this.#nextSector * SECTOR_BYTES >= this.#device.lengthBytes || this.#masks.size >= RECORDS_MAX;
  }

  /**
   * From the call on the sectors of `mask` (bit 0: the first 512 bytes) count as zero. When it resolves that
   * outlives the process; `flush` makes it durable. Rejects with what the disk says: then it may be forgotten
   * with the process. Not when the log is full.
   */
  add(block: number, mask: number): Promise<void> {
    assert(mask > 0 && mask <= WHOLE_BLOCK, 'a record names sectors of a block');
    assert(!this.full, 'who adds has looked whether there is room');
    this.#masks.set(block, this.maskOf(block) | mask);
    return new Promise((resolve, reject) => {
      this.#pending.push({ block, mask, done: resolve, failed: reject });
      if (this.#writing) return;
      this.#writing = true;
      this.#working = this.#writePending();
    });
  }

  /** Content of the source from block `first` on, with its zeros: itself where it has none, else a copy. */
  applied(first: number, content: Uint8Array): Uint8Array {
    if (this.#masks.size === 0) return content;
    let applied = content;
    for (let start = 0; start < content.length; start += BLOCK_BYTES) {
      const mask = this.maskOf(first + start / BLOCK_BYTES);
      if (mask === 0) continue;
      if (applied === content) applied = content.slice();
      zeroSectors(applied.subarray(start, start + BLOCK_BYTES), mask);
    }
    return applied;
  }

  /** All that was added before the call is durable. */
  async flush(): Promise<void> {
    while (this.#flushing !== null) await this.#flushing;
    if (!this.#dirty) return;
    this.#dirty = false;
    const flushed = this.#device.flush();
    this.#flushing = flushed
      .catch(() => {
        this.#dirty = true;
      })
      .then(() => {
        this.#flushing = null;
      });
    await flushed;
  }

  /** Does not flush. */
  async close(): Promise<void> {
    await this.#working;
    await this.#device.close();
  }

  /** Never rejects. */
  async #writePending(): Promise<void> {
    while (this.#pending.length > 0) {
      const batch = this.#pending.splice(0, RECORDS_A_SECTOR);
      try {
        await this.#write(batch);
        for (const { done } of batch) done();
      } catch (error) {
        this.#open = null;
        for (const { failed } of batch) failed(error);
      }
    }
    this.#writing = false;
  }

  async #write(records: readonly { block: number; mask: number }[]): Promise<void> {
    for (let done = 0; done < records.length; ) {
      this.#open ??= { sector: this.#nextSector++, bytes: Buffer.alloc(SECTOR_BYTES), records: 0 };
      const { bytes, sector } = this.#open;
      while (done < records.length && this.#open.records < RECORDS_A_SECTOR) {
        encodeRecord(bytes, sector, this.#open.records++, records[done++]!);
      }
      try {
        await this.#device.write(sector * SECTOR_BYTES, bytes);
      } finally {
        // Not before the write: a flush that began meanwhile did not cover it.
        this.#dirty = true;
      }
      if (this.#open.records === RECORDS_A_SECTOR) this.#open = null;
    }
  }
}

function zeroSectors(block: Uint8Array, mask: number): void {
  for (let sector = 0; sector * SECTOR_BYTES < block.length; sector++) {
    if ((mask >>> sector) & 1) block.fill(0, sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
  }
}

function encodeHeader(identity: ZeroLogIdentity): Buffer {
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

function encodeRecord(
  bytes: Buffer,
  sector: number,
  index: number,
  { block, mask }: { block: number; mask: number },
): void {
  const at = index * RECORD_BYTES;
  bytes.writeUIntLE(block, at, 6);
  bytes.writeUInt8(mask, at + 6);
  bytes.writeUInt8(USED, at + 7);
  bytes.writeUInt32LE(sector * RECORDS_A_SECTOR + index, at + 8);
  bytes.writeUInt32LE(crc32c(bytes.subarray(at, at + 12)), at + 12);
}

/** Calls `found` for every record; returns the last sector that is not zeros. */
async function readRecords(
  device: BlockDevice,
  identity: ZeroLogIdentity,
  found: (block: number, mask: number) => void,
): Promise<number> {
  const blockCount = Math.ceil(identity.lengthBytes / BLOCK_BYTES);
  const bytes = Buffer.alloc(Math.min(READ_BYTES, device.lengthBytes));
  let last = 0;
  for await (const { start, end } of dataOf(device)) {
    for (let at = start; at < end; at += bytes.length) {
      const part = bytes.subarray(0, Math.min(bytes.length, end - at));
      await device.read(at, part);
      for (let offset = 0; offset < part.length; offset += RECORD_BYTES) {
        if (part.compare(ZEROS, 0, RECORD_BYTES, offset, offset + RECORD_BYTES) === 0) continue;
        last = Math.floor((at + offset) / SECTOR_BYTES);
        const block = part.readUIntLE(offset, 6);
        const mask = part.readUInt8(offset + 6);
        const whole =
          part.readUInt32LE(offset + 12) === crc32c(part.subarray(offset, offset + 12)) &&
          part.readUInt32LE(offset + 8) === (at + offset) / RECORD_BYTES &&
          block < blockCount &&
          mask > 0;
        if (!whole) throw corruptError(identity, (at + offset) / RECORD_BYTES);
        found(block, mask);
      }
    }
  }
  return last;
}

/** Where the file may hold records, in order. */
async function* dataOf(device: BlockDevice): AsyncGenerator<{ start: number; end: number }> {
  if (!device.extents) {
    yield { start: SECTOR_BYTES, end: device.lengthBytes };
    return;
  }
  for (let offset = SECTOR_BYTES; offset < device.lengthBytes; ) {
    for (const extent of await device.extents(offset, device.lengthBytes - offset, EXTENTS_LIMIT)) {
      offset = extent.offsetBytes + extent.lengthBytes;
      if (extent.kind === 'data') yield { start: extent.offsetBytes, end: offset };
    }
  }
}

function foreignError(identity: ZeroLogIdentity): GodwitError {
  return new GodwitError(
    'CLONE_ZEROS_FOREIGN',
    'the log of zeroed sectors is not that of this clone, or its header is damaged',
    {
      values: { volumeId: identity.volumeId, generation: identity.generation },
      nextAction:
        'Look at the disk that holds the volume. Without zero.log, sectors that the guest discarded or zeroed in blocks that are still at the source would have their old content again.',
    },
  );
}

function corruptError(identity: ZeroLogIdentity, record: number): GodwitError {
  return new GodwitError('CLONE_ZEROS_CORRUPT', `record ${record} of the log of zeroed sectors is damaged`, {
    values: { volumeId: identity.volumeId, record },
    nextAction:
      'Look at the disk that holds the volume. Without the record, sectors that the guest discarded or zeroed in a block that is still at the source would have their old content again.',
  });
}
