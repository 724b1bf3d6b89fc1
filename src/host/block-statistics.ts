import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { SECTOR_BYTES } from './mapper-table.ts';
import { unknownOutputError } from './tools.ts';

/** Since the device was made. */
export type BlockStatistics = {
  reads: number;
  readBytes: number;
  /** Sum over all reads of the time from their arrival to their end. */
  readTimeMs: number;
  writes: number;
  writeBytes: number;
  /** 0 before Linux 4.18, as are flushes before 5.5. */
  discards: number;
  discardBytes: number;
  flushes: number;
  inFlight: number;
};

/** Of a block device, by the kernel's own name (`sda`, `dm-3`). Rejects with Node's error when it is gone. */
export async function blockStatistics(kernelName: string, root = '/sys/block'): Promise<BlockStatistics> {
  return parseBlockStatistics(await readFile(`${root}/${kernelName}/stat`, 'utf8'));
}

/**
 * Documentation/block/stat.rst: 11 numbers, 15 since Linux 4.18, 17 since 5.5. Throws `HOST_UNKNOWN_OUTPUT`.
 */
export function parseBlockStatistics(text: string): BlockStatistics {
  const words = text.trim().split(/\s+/);
  if (words.length < 11 || !words.every((word) => /^\d+$/.test(word)))
    throw unknownOutputError('the kernel', 'the statistics of a block device', text);
  const number = (index: number) => Number(words[index] ?? 0);
  return {
    reads: number(0),
    readBytes: number(2) * SECTOR_BYTES,
    readTimeMs: number(3),
    writes: number(4),
    writeBytes: number(6) * SECTOR_BYTES,
    discards: number(11),
    discardBytes: number(13) * SECTOR_BYTES,
    flushes: number(15),
    inFlight: number(8),
  };
}

/** `sda` of `/dev/sda`. Nodes of device-mapper are resolved by the caller. */
export function kernelNameOf(device: string): string {
  return basename(device);
}
