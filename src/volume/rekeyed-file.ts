import type { BlockDevice } from '../block/block-device.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { decryptSectors, type HolePolicy, isZeros, Luks2Device } from '../crypt/luks2-device.ts';
import { TWEAK_BYTES, type XtsCipher } from '../crypt/xts.ts';
import type { DecryptedSource } from './decrypted-source.ts';

/**
 * The plaintext of the data file of a clone under another key than its source, in blocks of 4 KiB. A block that came from the source as zeros is zeros in the
 * file too, and not encrypted ones: the volume stays as sparse as it was, and the file alone tells what crossed the wire, also for the
 * next volume server.
 */
export class RekeyedFile extends Luks2Device {
  readonly #file: BlockDevice;
  readonly #source: DecryptedSource;
  readonly #cipher: XtsCipher;
  readonly #tweakOffset: number;

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
   * What crossed the wire for blocks that were fetched and not written since, from what is in the file now. Exact, except for a block of a source with sectors
   * below 4 KiB some of whose sectors came as zeros.
   */
  async readAsSent(offsetBytes: number, lengthBytes: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(lengthBytes);
    await this.#file.read(offsetBytes, bytes);
    const sent = new Uint8Array(lengthBytes);
    for (let at = 0; at < lengthBytes; at += BLOCK_BYTES) {
      if (isZeros(bytes, at, BLOCK_BYTES)) continue;
      const block = bytes.subarray(at, at + BLOCK_BYTES);
      decryptSectors(this.#cipher, block, (offsetBytes + at) / TWEAK_BYTES + this.#tweakOffset);
      sent.set(this.#source.encrypt(offsetBytes + at, block), at);
    }
    return sent;
  }
}
