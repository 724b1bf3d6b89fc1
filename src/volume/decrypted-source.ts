import type { Extent } from '../block/block-device.ts';
import { checkRange, closedError } from '../block/range.ts';
import { ReadOnlyDevice } from '../block/read-only-device.ts';
import type { CloneSource } from '../clone/fetcher.ts';
import { HeapMapMemory } from '../clone/map-memory.ts';
import { ValidityMap } from '../clone/validity-map.ts';
import { decryptSectors, isZeros } from '../crypt/luks2-device.ts';
import { TWEAK_BYTES, type XtsCipher } from '../crypt/xts.ts';

export type DecryptedSourceOptions = {
  /** Of the source's key. Disposed of by `close`. */
  cipher: XtsCipher;
  /** `iv_tweak` of the source's segment, in units of 512 bytes. */
  tweakOffset: number;
};

/**
 * The plaintext of a source under its own key: what a clone with another key hydrates from. `inner` is the
 * ciphertext from the start of the segment, and is closed by its owner.
 *
 * A sector whose ciphertext is zeros reads as zeros, as everywhere (crypt/luks2-device.ts), and so do holes:
 * what the source reads there as its volume's content, the target reads too.
 */
export class DecryptedSource extends ReadOnlyDevice implements CloneSource {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly #inner: CloneSource;
  readonly #cipher: XtsCipher;
  readonly #tweakOffset: number;
  /**
   * A bit for each sector that came as zeros: plaintext zeros do not tell whether they were encrypted. The
   * source is sealed, so a bit stays true. Memory is used where such sectors came.
   */
  readonly #zeroSectors: ValidityMap;
  #closed = false;

  constructor(inner: CloneSource, { cipher, tweakOffset }: DecryptedSourceOptions) {
    super();
    this.#inner = inner;
    this.#cipher = cipher;
    this.#tweakOffset = tweakOffset;
    this.lengthBytes = inner.lengthBytes;
    this.blockBytes = Math.max(inner.blockBytes, cipher.sectorBytes);
    const sectors = Math.ceil(this.lengthBytes / cipher.sectorBytes);
    this.#zeroSectors = new ValidityMap(new HeapMapMemory(sectors), sectors);
  }

  async vouch(): Promise<void> {
    await this.#inner.vouch?.();
  }

  async read(
    offsetBytes: number,
    into: Uint8Array,
    options?: { priority?: 'guest' | 'background' },
  ): Promise<void> {
    if (this.#closed) throw closedError();
    checkRange(this, offsetBytes, into.length);
    await this.#inner.read(offsetBytes, into, options);
    if (this.#closed) throw closedError();
    const { sectorBytes } = this.#cipher;
    decryptSectors(this.#cipher, into, this.#tweakOf(offsetBytes), (at) =>
      this.noteZeros(offsetBytes + at, sectorBytes),
    );
  }

  /** The range, whole sectors, came as zeros. */
  noteZeros(offsetBytes: number, lengthBytes: number): void {
    const { sectorBytes } = this.#cipher;
    this.#zeroSectors.setRange(offsetBytes / sectorBytes, (offsetBytes + lengthBytes) / sectorBytes);
  }

  /**
   * What crossed the wire for plaintext that was read here: it is encrypted again under the source's key,
   * except for sectors that came as zeros. Exact for every range that this object has read; whole sectors.
   */
  ciphertextUnderOldKey(offsetBytes: number, plaintext: Uint8Array): Uint8Array {
    if (this.#closed) throw closedError();
    checkRange(this, offsetBytes, plaintext.length);
    const { sectorBytes } = this.#cipher;
    const ciphertext = new Uint8Array(plaintext.length);
    this.#cipher.encrypt(plaintext, ciphertext, this.#tweakOf(offsetBytes));
    for (let at = 0; at < plaintext.length; at += sectorBytes) {
      // Somebody who changed the content since then gets bytes that never crossed the wire, as he should.
      if (this.cameAsZeros(offsetBytes + at, sectorBytes) && isZeros(plaintext, at, sectorBytes))
        ciphertext.fill(0, at, at + sectorBytes);
    }
    return ciphertext;
  }

  /** True when all of the range, whole sectors, is known to have come as zeros. */
  cameAsZeros(offsetBytes: number, lengthBytes: number): boolean {
    const { sectorBytes } = this.#cipher;
    return this.#zeroSectors.hasAll(offsetBytes / sectorBytes, (offsetBytes + lengthBytes) / sectorBytes);
  }

  /**
   * Of the ciphertext: a hole of it reads as zeros. One that covers a sector in part is for the caller to
   * leave, who asks for whole blocks.
   */
  async extents(offsetBytes: number, lengthBytes: number, limitExtents: number): Promise<Extent[]> {
    if (this.#closed) throw closedError();
    if (this.#inner.extents) return this.#inner.extents(offsetBytes, lengthBytes, limitExtents);
    return [{ offsetBytes, lengthBytes, kind: 'data' }];
  }

  /** Overwrites the key at once. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#cipher.dispose();
  }

  #tweakOf(offsetBytes: number): number {
    return offsetBytes / TWEAK_BYTES + this.#tweakOffset;
  }
}
