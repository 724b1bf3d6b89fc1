import { type GodwitError, isGodwitError } from '../base/errors.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { readBytes } from './device-bytes.ts';
import { noMap } from './errors.ts';
import { Ext4Reader } from './ext4.ts';
import { isExt4, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET_BYTES } from './ext4-layout.ts';
import type { FreeMap } from './free-map.ts';
import { damageOfXfs, isXfs, readXfs } from './xfs.ts';

/** `ext4` is ext2 and ext3 as well. */
export type FreeMapFilesystem = 'ext4' | 'xfs';

export type FreeMapResult =
  | { kind: 'map'; map: FreeMap }
  /** Nothing may be taken for free; why. */
  | { kind: 'none'; reason: GodwitError };

/**
 * Reads which blocks the filesystem of a volume does not use, in two passes: `prime` while it may be mounted,
 * `finish` once it is unmounted. The first is only there to make the second short; nothing that it read is
 * believed without a checksum that was read afterwards.
 *
 * The caller says which filesystem is on the volume, and no other is looked for: under data that is no
 * filesystem at all the superblock of an earlier one may have survived.
 */
export class FreeMapReader {
  readonly #device: BlockDevice;
  readonly #filesystem: FreeMapFilesystem;
  readonly #ext4: Ext4Reader;

  constructor(device: BlockDevice, filesystem: FreeMapFilesystem) {
    this.#device = device;
    this.#filesystem = filesystem;
    this.#ext4 = new Ext4Reader(device);
  }

  /** ext4: block bitmaps that the last `finish` could not take from what `prime` had read. */
  get bitmapsRead(): number {
    return this.#ext4.bitmapsRead;
  }

  /**
   * A filesystem that is being written may look like anything: what cannot be read now is read by `finish`.
   * Rejects with errors of the device. Resolves with what keeps every kernel from mounting it again, should
   * it stay so: a descriptor of ext4, a header of an allocation group of XFS, that does not fit its checksum.
   * Null: nothing was seen.
   */
  async prime(): Promise<GodwitError | null> {
    try {
      if (this.#filesystem === 'ext4') return await this.#ext4.prime(await this.#ext4Superblock());
      return (await isXfs(this.#device)) ? await damageOfXfs(this.#device) : null;
    } catch (error) {
      if (!isReason(error)) throw error;
      return null;
    }
  }

  /** Nobody may write to the device any more. Rejects with errors of the device only. */
  async finish(): Promise<FreeMapResult> {
    try {
      return { kind: 'map', map: await this.#read() };
    } catch (error) {
      if (!isReason(error)) throw error;
      return { kind: 'none', reason: error };
    }
  }

  async #read(): Promise<FreeMap> {
    if (this.#filesystem === 'ext4') return this.#ext4.read(await this.#ext4Superblock());
    if (!(await isXfs(this.#device))) throw unknown(this.#filesystem);
    return readXfs(this.#device);
  }

  async #ext4Superblock(): Promise<Buffer> {
    const fits = this.#device.lengthBytes >= SUPERBLOCK_OFFSET_BYTES + SUPERBLOCK_BYTES;
    const superblock = fits ? await readBytes(this.#device, SUPERBLOCK_OFFSET_BYTES, SUPERBLOCK_BYTES) : null;
    if (superblock === null || !isExt4(superblock)) throw unknown(this.#filesystem);
    return superblock;
  }
}

/** Both passes in one, of a filesystem that is not mounted. Rejects with errors of the device only. */
export function readFreeMap(device: BlockDevice, filesystem: FreeMapFilesystem): Promise<FreeMapResult> {
  return new FreeMapReader(device, filesystem).finish();
}

function unknown(filesystem: FreeMapFilesystem): GodwitError {
  return noMap('FREEMAP_UNKNOWN_FILESYSTEM', `the volume should have an ${filesystem}, and has none`, {
    filesystem,
  });
}

function isReason(error: unknown): error is GodwitError {
  return isGodwitError(error) && error.code.startsWith('FREEMAP_');
}
