import type { BlockDevice, Extent } from '../block/block-device.ts';
import {
  checkGeometry,
  checkRange,
  closedError,
  ExtentList,
  rangeFits,
  readOnlyError,
} from '../block/range.ts';
import { TWEAK_BYTES, type XtsCipher } from './xts.ts';

/**
 * Which calls may leave holes (runs of zeros that take no space) in the ciphertext. Holes show which parts of
 * a volume are unused to whoever can read the disk, and only godwit reads them as zeros: dm-crypt decrypts
 * them to noise.
 *
 * - `none`: a discard writes encrypted zeros, as writeZeroes does. Nothing is shown, no space comes back.
 * - `discards`: a discard is passed down. Right for dm-crypt too, because no filesystem relies on what a
 *   discarded range reads as; a writeZeroes, on which they do rely, writes encrypted zeros.
 * - `all`: a writeZeroes is passed down as well. Takes no space and no time, and dm-crypt must never open the
 *   volume.
 */
export type HolePolicy = 'none' | 'discards' | 'all';

export type Luks2DeviceOptions = {
  /** The device disposes of it when it is closed. */
  cipher: XtsCipher;
  /** `iv_tweak` of the segment: added to the number of each sector, in units of 512 bytes. Default 0. */
  tweakOffset?: number;
  /** Default `discards`. */
  holes?: HolePolicy;
};

/** Bytes that are encrypted and written at once. */
const PIECE_BYTES = 1024 * 1024;
const SMALL_PIECE_BYTES = 64 * 1024;
/** Buffers of each size that are kept for later writes; more are made when more writes are in flight. */
const KEPT_SMALL = 16;
const KEPT_LARGE = 4;

/** Never written to. Pages that are only read are one page of zeros of the kernel. */
const ZEROS = new Uint8Array(PIECE_BYTES);

/**
 * The plaintext of a LUKS2 segment: a layer over its ciphertext. Blocks are sectors of the encryption, or
 * blocks of the device under it where those are larger, so nothing is ever read in order to be written.
 *
 * A sector whose ciphertext is all zeros reads as zeros. That keeps the promise of BlockDevice for discards
 * and makes holes of a sparse file what they look like; a real sector encrypts to zeros with a probability of
 * 2^-4096 or less. Whoever can write to the disk can make a sector read as zeros by it; XTS protects no
 * integrity anyway, and without this rule the same person could make it noise.
 *
 * A read decrypts in the caller's buffer; a write encrypts from the caller's buffer into one of a few that
 * are kept. Nothing is allocated for a sector.
 */
export class Luks2Device implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly writable: boolean;
  readNow?: NonNullable<BlockDevice['readNow']>;
  extents?: NonNullable<BlockDevice['extents']>;
  readonly #inner: BlockDevice;
  readonly #cipher: XtsCipher;
  readonly #tweakOffset: number;
  readonly #holes: HolePolicy;
  readonly #small: Uint8Array[] = [];
  readonly #large: Uint8Array[] = [];
  #closed = false;

  /**
   * `inner` is the ciphertext from the start of the segment. Throws `BLOCK_BAD_GEOMETRY` when it is not whole
   * sectors long.
   */
  constructor(inner: BlockDevice, options: Luks2DeviceOptions) {
    this.#inner = inner;
    this.#cipher = options.cipher;
    this.#tweakOffset = options.tweakOffset ?? 0;
    this.#holes = options.holes ?? 'discards';
    this.lengthBytes = inner.lengthBytes;
    this.blockBytes = Math.max(inner.blockBytes, options.cipher.sectorBytes);
    this.writable = inner.writable;
    checkGeometry(this);
    if (inner.readNow) {
      this.readNow = (offsetBytes, into) => {
        if (this.#closed || !rangeFits(this, offsetBytes, into.length)) return false;
        if (!inner.readNow!(offsetBytes, into)) return false;
        this.#decrypt(offsetBytes, into);
        return true;
      };
    }
    if (inner.extents) {
      this.extents = async (offsetBytes, lengthBytes, limitExtents) => {
        this.#check(offsetBytes, lengthBytes);
        const found = await inner.extents!(offsetBytes, lengthBytes, limitExtents);
        return wholeBlocks(found, this.blockBytes, limitExtents);
      };
    }
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    this.#check(offsetBytes, into.length);
    await this.#inner.read(offsetBytes, into);
    if (this.#closed) throw closedError();
    this.#decrypt(offsetBytes, into);
  }

  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    this.#checkMutation(offsetBytes, from.length);
    for (let done = 0; done < from.length; done += PIECE_BYTES) {
      await this.#writePiece(offsetBytes + done, from.subarray(done, done + PIECE_BYTES));
    }
  }

  async flush(): Promise<void> {
    if (this.#closed) throw closedError();
    return this.#inner.flush();
  }

  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkMutation(offsetBytes, lengthBytes);
    if (this.#holes === 'none') await this.#writeZeros(offsetBytes, lengthBytes);
    else await this.#inner.discard(offsetBytes, lengthBytes);
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkMutation(offsetBytes, lengthBytes);
    if (this.#holes === 'all') await this.#inner.writeZeroes(offsetBytes, lengthBytes);
    else await this.#writeZeros(offsetBytes, lengthBytes);
  }

  /** Overwrites the key at once: calls in flight that still need it reject with `BLOCK_CLOSED`. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#cipher.dispose();
    await this.#inner.close();
  }

  async #writeZeros(offsetBytes: number, lengthBytes: number): Promise<void> {
    for (let done = 0; done < lengthBytes; done += PIECE_BYTES) {
      await this.#writePiece(
        offsetBytes + done,
        ZEROS.subarray(0, Math.min(PIECE_BYTES, lengthBytes - done)),
      );
    }
  }

  async #writePiece(offsetBytes: number, plain: Uint8Array): Promise<void> {
    if (this.#closed) throw closedError();
    const small = plain.length <= SMALL_PIECE_BYTES;
    const kept = small ? this.#small : this.#large;
    const buffer = kept.pop() ?? new Uint8Array(small ? SMALL_PIECE_BYTES : PIECE_BYTES);
    const cipherText = buffer.subarray(0, plain.length);
    this.#cipher.encrypt(plain, cipherText, this.#tweakOf(offsetBytes));
    try {
      await this.#inner.write(offsetBytes, cipherText);
    } finally {
      if (kept.length < (small ? KEPT_SMALL : KEPT_LARGE)) kept.push(buffer);
    }
  }

  #decrypt(offsetBytes: number, bytes: Uint8Array): void {
    decryptSectors(this.#cipher, bytes, this.#tweakOf(offsetBytes));
  }

  #tweakOf(offsetBytes: number): number {
    return offsetBytes / TWEAK_BYTES + this.#tweakOffset;
  }

  #check(offsetBytes: number, lengthBytes: number): void {
    if (this.#closed) throw closedError();
    checkRange(this, offsetBytes, lengthBytes);
  }

  #checkMutation(offsetBytes: number, lengthBytes: number): void {
    this.#check(offsetBytes, lengthBytes);
    if (!this.writable) throw readOnlyError();
  }
}

/**
 * Whole sectors, in place: runs of them at once. Sectors of zeros are left as they are; `onZeros` is told
 * where each begins.
 */
export function decryptSectors(
  cipher: XtsCipher,
  bytes: Uint8Array,
  firstTweak: number,
  onZeros?: (at: number) => void,
): void {
  const { sectorBytes } = cipher;
  let start = 0;
  for (let at = 0; at <= bytes.length; at += sectorBytes) {
    if (at < bytes.length) {
      if (!isZeros(bytes, at, sectorBytes)) continue;
      onZeros?.(at);
    }
    if (start < at) {
      const run = start === 0 && at === bytes.length ? bytes : bytes.subarray(start, at);
      cipher.decrypt(run, run, firstTweak + start / TWEAK_BYTES);
    }
    start = at + sectorBytes;
  }
}

/** Ciphertext is noise: nearly always the first byte already tells. */
export function isZeros(bytes: Uint8Array, start: number, lengthBytes: number): boolean {
  const end = start + lengthBytes;
  for (let at = start; at < end; at++) if (bytes[at] !== 0) return false;
  return true;
}

/** Holes shrunk to whole blocks; what is only partly a hole counts as data. */
function wholeBlocks(extents: readonly Extent[], blockBytes: number, limitExtents: number): Extent[] {
  const list = new ExtentList(limitExtents);
  const first = extents[0];
  if (first === undefined) return list.extents;
  let at = first.offsetBytes;
  for (const extent of extents) {
    const end = extent.offsetBytes + extent.lengthBytes;
    if (extent.kind === 'data') continue;
    const holeStart = Math.ceil(extent.offsetBytes / blockBytes) * blockBytes;
    const holeEnd = Math.floor(end / blockBytes) * blockBytes;
    if (holeStart >= holeEnd) continue;
    if (!list.add(at, holeStart - at, 'data') || !list.add(holeStart, holeEnd - holeStart, 'hole'))
      return list.extents;
    at = holeEnd;
  }
  const last = extents.at(-1)!;
  // The list under us may have been cut off in the middle of a block; the rest of that block is data, which
  // is always right.
  const end = Math.ceil((last.offsetBytes + last.lengthBytes) / blockBytes) * blockBytes;
  list.add(at, end - at, 'data');
  return list.extents;
}
