import { open, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { systemErrorCode } from '../base/errors.ts';
import { FileDevice } from '../block/file-device.ts';
import type { BlockRun } from '../freemap/free-map.ts';
import { allocatedBytes } from '../freemap/run-extents.ts';
import { decodeSealedMap, type SealedMapIdentity } from '../freemap/sealed-map.ts';
import { VOLUME_FILES } from './files.ts';

/**
 * `free.map` beside the data of a volume. Whoever writes it does not wait until it is durable, because a machine is stopped; it is soon after: when the move is proved, both
 * sides must still have the same (receipt/root.ts). It names its volume and generation under a checksum.
 */
export async function writeFreeMap(volumeDir: string, bytes: Uint8Array): Promise<void> {
  const path = join(volumeDir, VOLUME_FILES.freeMap);
  await writeFile(`${path}.new`, bytes);
  await rename(`${path}.new`, path);
  void makeDurable([path, volumeDir]).catch(() => {});
}

async function makeDurable(paths: readonly string[]): Promise<void> {
  for (const path of paths) {
    const file = await open(path, 'r');
    try {
      await file.sync();
    } finally {
      await file.close();
    }
  }
}

/** Null: there is none. */
export async function readFreeMapFile(volumeDir: string): Promise<Buffer | null> {
  try {
    return await readFile(join(volumeDir, VOLUME_FILES.freeMap));
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return null;
    throw error;
  }
}

export async function removeFreeMap(volumeDir: string): Promise<void> {
  await rm(join(volumeDir, VOLUME_FILES.freeMap), { force: true });
}

/** The runs of the map of exactly this generation, null where there is none. Errors: those of `decodeSealedMap`. */
export async function readFreeRuns(
  volumeDir: string,
  identity: SealedMapIdentity,
): Promise<BlockRun[] | null> {
  const bytes = await readFreeMapFile(volumeDir);
  return bytes === null ? null : decodeSealedMap(bytes, identity);
}

/** Bytes that the data file of a sealed volume holds in the blocks of its map: what the map spared the wire. 0 without a map. */
export async function bytesAvoided(volumeDir: string, identity: SealedMapIdentity): Promise<number> {
  const runs = await readFreeRuns(volumeDir, identity);
  if (runs === null) return 0;
  const device = await FileDevice.open({
    file: join(volumeDir, VOLUME_FILES.data),
    lengthBytes: identity.lengthBytes,
    blockBytes: 512,
    writable: false,
  });
  try {
    return await allocatedBytes(device, runs);
  } finally {
    await device.close();
  }
}
