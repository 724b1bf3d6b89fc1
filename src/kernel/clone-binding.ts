import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { GodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import { FileDevice } from '../block/file-device.ts';
import type { BlockStatistics } from '../host/block-statistics.ts';
import { replaceFile } from '../sys/durable-file.ts';
import { allocate } from '../sys/fallocate.ts';
import { reserve } from '../volume/reserve.ts';
import { storageError } from '../volume/storage-error.ts';
import { KERNEL_FILES } from './names.ts';

/**
 * dm-clone's metadata does not say what it is the metadata of: a stale file would make it serve old bytes as
 * new ones. So a file beside it says so, and neither is believed without the other.
 */
export type CloneBinding = {
  formatVersion: 1;
  volumeId: string;
  generation: number;
  lengthBytes: number;
  regionBytes: number;
  metadataBytes: number;
  /**
   * The free map of the handoff has been used, or there was none: later, what was free at the seal may be in
   * use.
   */
  freeMapTaken: boolean;
  /** And all of it was used, not the longest runs only. */
  freeMapWhole?: boolean;
  /** Every block is local, durably, and the clone is taken down: the metadata is not needed any more. */
  whole: boolean;
  /** What the guest has written, for the receipt. Left out by versions that did not count. */
  guestWrites?: CountedWrites;
};

/** What ends with a device of the guest. */
export type WriteCounts = Pick<BlockStatistics, 'writes' | 'writeBytes' | 'discards' | 'discardBytes'>;

export type CountedWrites = {
  /** Of all devices that are gone; null: one went without being asked (a power cut). */
  past: WriteCounts | null;
  /** There is a device that is not in `past`, or was. */
  counting: boolean;
};

export type CloneIdentity = Pick<CloneBinding, 'volumeId' | 'generation' | 'lengthBytes'>;

/** The unit of validity of the userspace plane too: a write of a block does not copy. */
export const REGION_BYTES = 4096;

const METADATA_FLOOR_BYTES = 8 * 2 ** 20;

/**
 * Length of dm-clone's metadata: a bit a region in blocks of 4 KiB (persistent-data's bitset), the blocks
 * above them, and as much again, because a commit writes changed blocks elsewhere.
 */
export function cloneMetadataBytes(lengthBytes: number): number {
  const bitmapBytes = Math.ceil(lengthBytes / REGION_BYTES / 8);
  const needed = METADATA_FLOOR_BYTES + 3 * bitmapBytes;
  return Math.ceil(needed / 2 ** 20) * 2 ** 20;
}

/**
 * Blank metadata with its space reserved, and the binding. A blank file says that nothing is here yet, so it
 * may only be made before anything was written to the volume; what lies there of another volume is replaced.
 * Idempotent. Rejects `VOLUME_NO_SPACE`.
 */
export async function createCloneMetadata(volumeDir: string, identity: CloneIdentity): Promise<CloneBinding> {
  const present = await readCloneBinding(volumeDir);
  if (present !== null && isOf(present, identity)) return present;
  const metadataBytes = cloneMetadataBytes(identity.lengthBytes);
  const path = join(volumeDir, KERNEL_FILES.cloneMetadata);
  try {
    await createBlank(path, metadataBytes);
  } catch (error) {
    // The part that there was room for: the journal wants some too, to say so.
    await rm(path, { force: true });
    throw storageError(error, volumeDir);
  }
  const binding: CloneBinding = {
    formatVersion: 1,
    ...identity,
    regionBytes: REGION_BYTES,
    metadataBytes,
    freeMapTaken: false,
    whole: false,
  };
  await writeCloneBinding(volumeDir, binding);
  return binding;
}

async function createBlank(path: string, lengthBytes: number): Promise<void> {
  await rm(path, { force: true });
  const file = await FileDevice.create(path, { lengthBytes });
  try {
    // A commit that meets a full disk would make the clone read-only.
    await reserve(file, 0, lengthBytes, allocate);
  } finally {
    await file.close();
  }
}

/** Null: this volume is no clone of the kernel plane. Rejects `PLANE_METADATA_CORRUPT`. */
export async function readCloneBinding(volumeDir: string): Promise<CloneBinding | null> {
  const path = join(volumeDir, KERNEL_FILES.cloneBinding);
  try {
    const value = JSON.parse(await readFile(path, 'utf8')) as CloneBinding;
    const numbers = [value.generation, value.lengthBytes, value.regionBytes, value.metadataBytes];
    if (value.formatVersion !== 1) throw new Error(`format version ${value.formatVersion}`);
    const flags = [value.whole, value.freeMapTaken];
    if (typeof value.volumeId !== 'string' || !flags.every((flag) => typeof flag === 'boolean'))
      throw new Error('fields are missing');
    if (!numbers.every((number) => Number.isSafeInteger(number) && number > 0))
      throw new Error('numbers are wrong');
    return value;
  } catch (cause) {
    if (systemErrorCode(cause) === 'ENOENT') return null;
    throw new GodwitError('PLANE_METADATA_CORRUPT', `${path} cannot be read: ${messageOf(cause)}`, {
      values: { path },
      retry: 'never',
      nextAction:
        'Restore the file; without it nobody knows which blocks of the volume are newer than the source.',
      cause,
    });
  }
}

/**
 * Rejects `PLANE_METADATA_MISSING`, `PLANE_METADATA_WRONG`: in both cases which blocks are local is not
 * known, and nothing is served.
 */
export async function requireCloneBinding(volumeDir: string, identity: CloneIdentity): Promise<CloneBinding> {
  const binding = await readCloneBinding(volumeDir);
  if (binding === null) {
    throw new GodwitError(
      'PLANE_METADATA_MISSING',
      `the metadata of the clone ${identity.volumeId} is missing`,
      {
        values: { volumeId: identity.volumeId, generation: identity.generation },
        retry: 'never',
        nextAction:
          'Do not start the machine: without it, what was written here is not known. Restore the file, or go back to the source.',
      },
    );
  }
  if (!isOf(binding, identity)) {
    throw new GodwitError(
      'PLANE_METADATA_WRONG',
      `the clone metadata beside volume ${identity.volumeId} is of ${binding.volumeId} at generation ${binding.generation}`,
      {
        values: {
          volumeId: identity.volumeId,
          generation: identity.generation,
          foundVolumeId: binding.volumeId,
          foundGeneration: binding.generation,
        },
        retry: 'never',
        nextAction: 'Look for the right file; nothing was changed.',
      },
    );
  }
  return binding;
}

/** Durable when it resolves. */
export function writeCloneBinding(volumeDir: string, binding: CloneBinding): Promise<void> {
  return replaceFile(join(volumeDir, KERNEL_FILES.cloneBinding), `${JSON.stringify(binding, null, 2)}\n`);
}

/** Before the guest's device is there. Pure. */
export function beginCounting(binding: CloneBinding): CountedWrites {
  const before = binding.guestWrites;
  if (before !== undefined) return { past: before.counting ? null : before.past, counting: true };
  // A version before this one may have opened the volume.
  return { past: binding.freeMapTaken ? null : addCounts(null, null), counting: true };
}

/** After the guest's device is gone. Nothing happens where none was counted. */
export async function endCounting(volumeDir: string, counts: WriteCounts | null): Promise<void> {
  const binding = await readCloneBinding(volumeDir);
  if (!binding?.guestWrites?.counting) return;
  const { past } = binding.guestWrites;
  const guestWrites = { past: past && addCounts(past, counts), counting: false };
  await writeCloneBinding(volumeDir, { ...binding, guestWrites });
}

/** Pure. */
export function addCounts(one: WriteCounts | null, other: WriteCounts | null): WriteCounts {
  return {
    writes: (one?.writes ?? 0) + (other?.writes ?? 0),
    writeBytes: (one?.writeBytes ?? 0) + (other?.writeBytes ?? 0),
    discards: (one?.discards ?? 0) + (other?.discards ?? 0),
    discardBytes: (one?.discardBytes ?? 0) + (other?.discardBytes ?? 0),
  };
}

export async function removeCloneMetadata(volumeDir: string): Promise<void> {
  for (const name of [KERNEL_FILES.cloneMetadata, KERNEL_FILES.cloneBinding])
    await rm(join(volumeDir, name), { force: true });
}

function isOf(binding: CloneBinding, identity: CloneIdentity): boolean {
  return (
    binding.volumeId === identity.volumeId &&
    binding.generation === identity.generation &&
    binding.lengthBytes === identity.lengthBytes
  );
}
