import { createHash } from 'node:crypto';
import { link, open, readdir, readFile, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { type Clock, systemClock } from '../base/clock.ts';
import { systemErrorCode } from '../base/errors.ts';
import { FileDevice } from '../block/file-device.ts';
import type { BlockRun } from '../freemap/free-map.ts';
import { allocatedBytes } from '../freemap/run-extents.ts';
import { decodeSealedMap, type SealedMapIdentity } from '../freemap/sealed-map.ts';
import { replaceFile, replaceFileOfThisBoot, syncFolder, syncPath } from '../sys/durable-file.ts';
import { VOLUME_FILES } from './files.ts';

/** How often, and how far apart, a disk that refuses is asked to keep the map. */
const DURABLE_TRIES = 10;
const DURABLE_RETRY_MS = 500;

/**
 * `free.map` beside the data of a volume. Whoever writes it does not wait until it is durable, because a
 * machine is stopped; it is soon after, also when the disk refuses at first: when the move is proved, both
 * sides must still have the same (receipt/root.ts). It names its volume and generation under a checksum.
 * `lasting` resolves with whether it is durable.
 */
export async function writeFreeMap(
  volumeDir: string,
  bytes: Uint8Array,
  clock: Clock = systemClock,
): Promise<{ lasting: Promise<boolean> }> {
  const path = join(volumeDir, VOLUME_FILES.freeMap);
  await replaceFileOfThisBoot(path, bytes);
  return { lasting: makeDurable(path, bytes, clock) };
}

/**
 * Where a write-back failed, from the memory that the map was made in: of the file there may be nothing left
 * to sync. Never rejects.
 */
async function makeDurable(path: string, bytes: Uint8Array, clock: Clock): Promise<boolean> {
  for (let tries = 0; tries < DURABLE_TRIES; tries++) {
    if (tries > 0) await clock.sleep(DURABLE_RETRY_MS);
    try {
      if (!(await readFile(path)).equals(bytes)) return false; // another generation's by now
      if (tries > 0) await replaceFile(path, bytes);
      else await syncPath(path);
      await syncFolder(dirname(path));
      return true;
    } catch (error) {
      if (systemErrorCode(error) === 'ENOENT') return false; // removed meanwhile: with its volume, or for the next seal
    }
  }
  return false;
}

const FROZEN = /^free\.map\.g\d+$/;

function frozenPath(volumeDir: string, generation: number): string {
  return join(volumeDir, `${VOLUME_FILES.freeMap}.g${generation}`);
}

/**
 * From now on the map of this sealed generation is what `free.map` is, or none where there is none yet: a
 * server that was given up while it read the filesystem may write one later, when the target has been told
 * that there is none, and the proof needs the same on both sides. `free.map.g<generation>`, empty for none.
 * Idempotent; does not wait until it is durable.
 */
export async function freezeFreeMap(volumeDir: string, generation: number): Promise<void> {
  const path = frozenPath(volumeDir, generation);
  for (const name of await readdir(volumeDir))
    if (FROZEN.test(name) && join(volumeDir, name) !== path) await rm(join(volumeDir, name), { force: true });
  try {
    // The same inode: whoever writes another map renames a new one over the name.
    await link(join(volumeDir, VOLUME_FILES.freeMap), path);
  } catch (error) {
    if (systemErrorCode(error) === 'EEXIST') return;
    if (systemErrorCode(error) !== 'ENOENT') throw error;
    const none = await open(path, 'wx', 0o600).catch((again: unknown) => {
      if (systemErrorCode(again) === 'EEXIST') return null;
      throw again;
    });
    await none?.close();
  }
  void syncPath(path)
    .then(() => syncFolder(volumeDir))
    .catch(() => {});
}

/** What counts as the map of this generation: what was frozen, if it was. Null: there is none. */
export async function readSealedFreeMap(volumeDir: string, generation: number): Promise<Buffer | null> {
  try {
    const frozen = await readFile(frozenPath(volumeDir, generation));
    return frozen.length === 0 ? null : frozen;
  } catch (error) {
    if (systemErrorCode(error) !== 'ENOENT') throw error;
  }
  return readFreeMapFile(volumeDir);
}

/** As it came, or was written last. Null: there is none. */
export async function readFreeMapFile(volumeDir: string): Promise<Buffer | null> {
  try {
    return await readFile(join(volumeDir, VOLUME_FILES.freeMap));
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return null;
    throw error;
  }
}

/** SHA-256 of the map as it travelled, in hex. Null: there is none. */
export async function freeMapDigest(volumeDir: string): Promise<string | null> {
  const bytes = await readFreeMapFile(volumeDir);
  return bytes === null ? null : createHash('sha256').update(bytes).digest('hex');
}

export async function removeFreeMap(volumeDir: string): Promise<void> {
  await rm(join(volumeDir, VOLUME_FILES.freeMap), { force: true });
}

/**
 * The runs of the map of exactly this generation, null where there is none. Errors: those of
 * `decodeSealedMap`.
 */
export async function readFreeRuns(
  volumeDir: string,
  identity: SealedMapIdentity,
): Promise<BlockRun[] | null> {
  const bytes = await readSealedFreeMap(volumeDir, identity.generation);
  return bytes === null ? null : decodeSealedMap(bytes, identity);
}

/**
 * Bytes that the data file of a sealed volume holds in the blocks of its map: what the map spared the wire. 0
 * without a map.
 */
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
