import { GodwitError, isGodwitError } from '../base/errors.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { type Luks2Header, readHeader } from './header-store.ts';

/**
 * Bytes from the start of the device to the end of the key slots: what a backup holds and what a restore
 * overwrites.
 */
export function headerAreaBytes(header: Luks2Header): number {
  return 2 * header.binary.headerBytes + header.metadata.slotsAreaBytes;
}

/**
 * Both headers and all key slots as they are on the device, in the form of `cryptsetup luksHeaderBackup`.
 * With an old passphrase it opens the volume for ever, also after that passphrase was removed: keep it as a
 * key. Up to 136 MiB.
 */
export async function backupHeader(device: BlockDevice): Promise<Buffer> {
  const header = await readHeader(device);
  const bytes = Buffer.alloc(Math.min(headerAreaBytes(header), device.lengthBytes));
  await device.read(0, bytes);
  return bytes;
}

/**
 * Puts a backup in place. Where a sound header is there, the backup must be of the same volume and geometry
 * (`CRYPT_HEADER_MISMATCH`); with `overwrite` it need not. Key slots are durable before the headers. A crash
 * in between leaves a volume that may not open: do it again, the backup is still there.
 */
export async function restoreHeader(
  device: BlockDevice,
  backup: Uint8Array,
  options: { overwrite?: boolean } = {},
): Promise<Luks2Header> {
  const source = new MemoryDevice({ lengthBytes: backup.length, content: backup, writable: false });
  const header = await readHeader(source);
  const areaBytes = headerAreaBytes(header);
  if (backup.length < areaBytes || device.lengthBytes < areaBytes)
    throw mismatchError('the backup or the device is shorter than the header', header, null);
  if (options.overwrite !== true) await checkSameVolume(device, header);
  const headersBytes = 2 * header.binary.headerBytes;
  await device.write(headersBytes, backup.subarray(headersBytes, areaBytes));
  await device.flush();
  for (const offsetBytes of [0, header.binary.headerBytes]) {
    await device.write(offsetBytes, backup.subarray(offsetBytes, offsetBytes + header.binary.headerBytes));
    await device.flush();
  }
  return readHeader(device);
}

async function checkSameVolume(device: BlockDevice, wanted: Luks2Header): Promise<void> {
  let found: Luks2Header;
  try {
    found = await readHeader(device);
  } catch (error) {
    if (isGodwitError(error, 'CRYPT_NOT_LUKS2') || isGodwitError(error, 'CRYPT_HEADER_CORRUPT')) return;
    throw error;
  }
  const [a, b] = [found.metadata.segment, wanted.metadata.segment];
  const same =
    found.binary.uuid === wanted.binary.uuid &&
    found.binary.headerBytes === wanted.binary.headerBytes &&
    a.offsetBytes === b.offsetBytes &&
    a.sectorBytes === b.sectorBytes;
  if (!same) throw mismatchError('the backup is of another volume or geometry', wanted, found);
}

function mismatchError(problem: string, wanted: Luks2Header, found: Luks2Header | null): GodwitError {
  return new GodwitError('CRYPT_HEADER_MISMATCH', problem, {
    values: { backupUuid: wanted.binary.uuid, deviceUuid: found?.binary.uuid ?? null },
    retry: 'never',
    nextAction: 'Look for the backup of this very volume.',
  });
}
