import { GodwitError, isGodwitError } from '../base/errors.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { noMap } from './errors.ts';
import { Ext4Reader, readExt4Superblock } from './ext4.ts';
import { isExt4 } from './ext4-layout.ts';
import type { FreeMap } from './free-map.ts';
import { isXfs, readXfs } from './xfs.ts';

export type FreeMapResult =
  | { kind: 'map'; map: FreeMap; filesystem: 'ext4' | 'xfs' }
  /** Nothing may be taken for free; why. */
  | { kind: 'none'; reason: GodwitError };

/**
 * Reads which blocks the filesystem of a volume does not use, in two passes: `prime` while it may be mounted, `finish` once it is
 * unmounted. The first is only there to make the second short; nothing that it read is believed without a checksum that was read afterwards.
 */
export class FreeMapReader {
  readonly #device: BlockDevice;
  readonly #ext4: Ext4Reader;

  constructor(device: BlockDevice) {
    this.#device = device;
    this.#ext4 = new Ext4Reader(device);
  }

  /** ext4: block bitmaps that the last `finish` could not take from what `prime` had read. */
  get bitmapsRead(): number {
    return this.#ext4.bitmapsRead;
  }

  /** A filesystem that is being written may look like anything: what cannot be read now is read by `finish`. Rejects with errors of the device. */
  async prime(): Promise<void> {
    try {
      const superblock = await readExt4Superblock(this.#device);
      if (superblock !== null && isExt4(superblock)) await this.#ext4.prime(superblock);
    } catch (error) {
      if (!isReason(error)) throw error;
    }
  }

  /** Nobody may write to the device any more. Rejects with errors of the device only. */
  async finish(): Promise<FreeMapResult> {
    try {
      const superblock = await readExt4Superblock(this.#device);
      if (superblock === null) throw noMap('FREEMAP_UNKNOWN_FILESYSTEM', 'the volume is too small for a filesystem');
      if (isExt4(superblock)) {
        return { kind: 'map', map: await this.#ext4.read(superblock), filesystem: 'ext4' };
      }
      if (await isXfs(this.#device)) return { kind: 'map', map: await readXfs(this.#device), filesystem: 'xfs' };
      throw noMap('FREEMAP_UNKNOWN_FILESYSTEM', 'the volume has neither an ext2, ext3 or ext4 nor an XFS');
    } catch (error) {
      if (!isReason(error)) throw error;
      return { kind: 'none', reason: error };
    }
  }
}

/** Both passes in one, of a filesystem that is not mounted. Rejects with errors of the device only. */
export function readFreeMap(device: BlockDevice): Promise<FreeMapResult> {
  return new FreeMapReader(device).finish();
}

function isReason(error: unknown): error is GodwitError {
  return isGodwitError(error) && error.code.startsWith('FREEMAP_');
}
