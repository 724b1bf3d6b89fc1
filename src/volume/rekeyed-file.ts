import type { BlockDevice } from '../block/block-device.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { decryptSectors, type HolePolicy, isZeros, Luks2Device } from '../crypt/luks2-device.ts';
import { TWEAK_BYTES, type XtsCipher } from '../crypt/xts.ts';
import type { DecryptedSource } from './decrypted-source.ts';

/**
 * The plaintext of the data file of a clone under another key than its source, in blocks of 4 KiB. A block
 * that came from the source as zeros is zeros in the file too, and not encrypted ones: the volume stays as
 * sparse as it was, and the file alone tells what crossed the wire, also to the next volume server.
 */
export class RekeyedFile extends Luks2Device {
  readonly #file: BlockDevice;
  readonly #source: DecryptedSource;
  readonly #cipher: XtsCipher;
  readonly #tweakOffset: number;
  readonly #holes: HolePolicy;

  /** `cipher` is that of the file, in sectors of 4 KiB. */
  constructor(
    file: BlockDevice,
    source: DecryptedSource,
    own: { cipher: XtsCipher; tweakOffset: number; holes: HolePolicy },
  ) {
    super(file, own);
    this.#file = file;
    this.#source = source;
    this.#cipher = own.cipher;
    this.#tweakOffset = own.tweakOffset;
    this.#holes = own.holes;
  }

  /** The same plaintext written through another handle on the file, which its owner closes. */
  over(file: BlockDevice): Pick<BlockDevice, 'write' | 'writeBack' | 'beginWriteBack' | 'discard'> {
    const own = { cipher: this.#cipher, tweakOffset: this.#tweakOffset, holes: this.#holes };
    const written = new RekeyedFile(file, this.#source, own);
    return {
      write: (offsetBytes, from) => written.write(offsetBytes, from),
      discard: (offsetBytes, lengthBytes) => file.discard(offsetBytes, lengthBytes),
      ...(file.writeBack && { writeBack: (ranges) => file.writeBack!(ranges) }),
      ...(file.beginWriteBack && { beginWriteBack: (ranges) => file.beginWriteBack!(ranges) }),
    };
  }

  override async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    const cameAsZeros = (at: number) =>
      this.#source.cameAsZeros(offsetBytes + at, BLOCK_BYTES) && isZeros(from, at, BLOCK_BYTES);
    for (let start = 0; start < from.length; ) {
      const zeros = cameAsZeros(start);
      let end = start + BLOCK_BYTES;
      while (end < from.length && cameAsZeros(end) === zeros) end += BLOCK_BYTES;
      if (zeros) await this.#file.writeZeroes(offsetBytes + start, end - start);
      else await super.write(offsetBytes + start, from.subarray(start, end));
      start = end;
    }
  }

  /**
   * The plaintext of a part of the file that `stored` reads by another way (past the page cache). Tells the
   * source which blocks are zeros in it, so that `ciphertextUnderOldKey` is exact for what was fetched by an
   * earlier volume server too; not for blocks of a source with smaller sectors of which only some came as
   * zeros.
   */
  decrypting(stored: Pick<BlockDevice, 'read'>): Pick<BlockDevice, 'read'> {
    return {
      read: async (offsetBytes, into) => {
        await stored.read(offsetBytes, into);
        for (let at = 0; at < into.length; at += BLOCK_BYTES) {
          if (isZeros(into, at, BLOCK_BYTES)) this.#source.noteZeros(offsetBytes + at, BLOCK_BYTES);
        }
        decryptSectors(this.#cipher, into, offsetBytes / TWEAK_BYTES + this.#tweakOffset);
      },
    };
  }
}
