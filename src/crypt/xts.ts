import { createCipheriv, createDecipheriv } from 'node:crypto';
import { EvpXts, evpIsThere } from '../sys/evp-xts.ts';

/**
 * AES-XTS of sectors (IEEE 1619-2018) with the tweak `plain64`: the number of the sector, little-endian, in
 * units of 512 bytes whatever the size of the sector (LUKS2 on-disk format 1.1, section 3.3; dm-crypt without
 * `iv_large_sectors`).
 */
export interface XtsCipher {
  /** 512 to 4096. */
  readonly sectorBytes: number;
  /**
   * `firstTweak`: of the first sector, in units of 512 bytes. `from` and `into` are as long, whole sectors,
   * and may be the same bytes.
   */
  encrypt(from: Uint8Array, into: Uint8Array, firstTweak: number): void;
  decrypt(from: Uint8Array, into: Uint8Array, firstTweak: number): void;
  /** Overwrites the key. Every call after it throws. */
  dispose(): void;
}

/** The unit of tweaks. */
export const TWEAK_BYTES = 512;

/**
 * The fastest there is. `key` of 32 or 64 bytes is copied. Throws `SYS_CALL_FAILED` for a key that OpenSSL
 * refuses.
 */
export function createXts(key: Uint8Array, sectorBytes: number): XtsCipher {
  return evpIsThere ? new NativeXts(key, sectorBytes) : new NodeXts(key, sectorBytes);
}

/** OpenSSL called directly. */
export class NativeXts implements XtsCipher {
  readonly sectorBytes: number;
  readonly #evp: EvpXts;

  constructor(key: Uint8Array, sectorBytes: number) {
    this.sectorBytes = sectorBytes;
    this.#evp = new EvpXts(key);
  }

  encrypt(from: Uint8Array, into: Uint8Array, firstTweak: number): void {
    this.#evp.encrypt(from, into, this.sectorBytes, firstTweak, this.sectorBytes / TWEAK_BYTES);
  }

  decrypt(from: Uint8Array, into: Uint8Array, firstTweak: number): void {
    this.#evp.decrypt(from, into, this.sectorBytes, firstTweak, this.sectorBytes / TWEAK_BYTES);
  }

  dispose(): void {
    this.#evp.dispose();
  }
}

/** node:crypto, for a node program that does not export OpenSSL. An object and two buffers a sector. */
export class NodeXts implements XtsCipher {
  readonly sectorBytes: number;
  readonly #key: Buffer;
  readonly #tweak = Buffer.alloc(16);
  #disposed = false;

  constructor(key: Uint8Array, sectorBytes: number) {
    this.sectorBytes = sectorBytes;
    this.#key = Buffer.from(key);
  }

  encrypt(from: Uint8Array, into: Uint8Array, firstTweak: number): void {
    this.#run(createCipheriv, from, into, firstTweak);
  }

  decrypt(from: Uint8Array, into: Uint8Array, firstTweak: number): void {
    this.#run(createDecipheriv, from, into, firstTweak);
  }

  dispose(): void {
    this.#key.fill(0);
    this.#disposed = true;
  }

  #run(
    make: typeof createCipheriv | typeof createDecipheriv,
    from: Uint8Array,
    into: Uint8Array,
    firstTweak: number,
  ): void {
    if (this.#disposed) throw new Error('use after dispose');
    const { sectorBytes } = this;
    const algorithm = this.#key.length === 64 ? 'aes-256-xts' : 'aes-128-xts';
    for (
      let at = 0, tweak = firstTweak;
      at < from.length;
      at += sectorBytes, tweak += sectorBytes / TWEAK_BYTES
    ) {
      this.#tweak.writeUInt32LE(tweak % 2 ** 32, 0);
      this.#tweak.writeUInt32LE(Math.floor(tweak / 2 ** 32), 4);
      into.set(make(algorithm, this.#key, this.#tweak).update(from.subarray(at, at + sectorBytes)), at);
    }
  }
}
