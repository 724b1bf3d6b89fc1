import type { BlockDevice } from '../block/block-device.ts';
import { readBytes } from './device-bytes.ts';
import { noMap } from './errors.ts';

/**
 * Whether an XFS was unmounted: the last record in its log says so. Sources: Linux fs/xfs/xfs_log_recover.c
 * (xlog_find_head, xlog_check_unmount_rec), fs/xfs/libxfs/xfs_log_format.h. Integers are big-endian.
 *
 * The log is a ring of sectors of 512 bytes. The first 4 bytes of each are the cycle, the number of the round
 * in which it was written (in a record header: the next 4). So the cycles are c up to the head and c - 1 from
 * there on.
 *
 * Record header:
 *     0  4  magic 0xFEEDBABE          40  4  operations in the record
 *     4  4  cycle                    320  4  size of the log buffers: a header takes a sector for each 32 KiB of it (version 2)
 *     8  4  version
 *    12  4  bytes of the record behind the header
 * Operation, the first one right behind the header:
 *     4  4  length       9  1  flags: 0x20 is an unmount
 */
const SECTOR_BYTES = 512;
const HEADER_MAGIC = 0xfeedbabe;
const HEADER_CYCLE_BYTES = 32 * 1024;
const UNMOUNT_FLAG = 0x20;
/**
 * What can be on its way to the log at once: 8 buffers of 256 KiB. So far around the head, a crash may have
 * left holes.
 */
const IN_FLIGHT_SECTORS = (8 * 256 * 1024) / SECTOR_BYTES;

/**
 * Throws `FREEMAP_NOT_CLEAN` unless the log ends with an unmount, in a ring without holes. Reads 5 MiB at
 * most.
 */
export async function checkXfsLog(device: BlockDevice, offsetBytes: number, logBytes: number): Promise<void> {
  const sectors = logBytes / SECTOR_BYTES;
  const read = (sector: number, count: number) =>
    readBytes(device, offsetBytes + sector * SECTOR_BYTES, count * SECTOR_BYTES);
  const cycleOf = async (sector: number) => cycleIn(await read(sector, 1), 0);

  // The first sector of the older round; 0 where the ring has just been filled.
  const newest = await cycleOf(0);
  let head = 0;
  if ((await cycleOf(sectors - 1)) !== newest) {
    let low = 0;
    let high = sectors - 1;
    while (high - low > 1) {
      const middle = Math.floor((low + high) / 2);
      if ((await cycleOf(middle)) === newest) low = middle;
      else high = middle;
    }
    head = high;
  }

  const around = Math.min(IN_FLIGHT_SECTORS, sectors);
  const before = Math.min(around, head === 0 ? sectors : head);
  const beforeStart = (head === 0 ? sectors : head) - before;
  const tail = await read(beforeStart, before);
  const after = head === 0 ? 0 : Math.min(around, sectors - head);
  const next = await read(head, after);
  for (let sector = 0; sector < before; sector++) {
    if (cycleIn(tail, sector) !== newest) throw unclean('its log has holes');
  }
  for (let sector = 0; sector < after; sector++) {
    if (cycleIn(next, sector) !== newest - 1) throw unclean('its log has holes');
  }

  let header = before - 1;
  while (header >= 0 && tail.readUInt32BE(header * SECTOR_BYTES) !== HEADER_MAGIC) header--;
  if (header < 0) throw unclean('the end of its log is not understood');
  const record = tail.subarray(header * SECTOR_BYTES);
  const headerSectors =
    record.readUInt32BE(8) & 2 ? Math.max(1, Math.ceil(record.readUInt32BE(320) / HEADER_CYCLE_BYTES)) : 1;
  const recordSectors = headerSectors + Math.ceil(record.readUInt32BE(12) / SECTOR_BYTES);
  if (recordSectors !== before - header || headerSectors >= recordSectors) {
    throw unclean('the end of its log is not understood');
  }
  const flags = record[headerSectors * SECTOR_BYTES + 9]!;
  if (record.readUInt32BE(40) !== 1 || (flags & UNMOUNT_FLAG) === 0) throw unclean('it was not unmounted');
}

function cycleIn(bytes: Buffer, sector: number): number {
  const first = bytes.readUInt32BE(sector * SECTOR_BYTES);
  return first === HEADER_MAGIC ? bytes.readUInt32BE(sector * SECTOR_BYTES + 4) : first;
}

function unclean(why: string) {
  return noMap('FREEMAP_NOT_CLEAN', `the XFS of this volume is not clean: ${why}`);
}
