import { GodwitError } from '../base/errors.ts';
import { libc } from './libc.ts';
import { addressOf } from './raw-io.ts';

/**
 * AES-XTS by the OpenSSL that is linked into the node program, which exports it. Two calls a sector on fixed
 * addresses and no allocation: node:crypto makes an object and a buffer for each sector and is 40 to 90 times
 * slower (docs/performance.md, "Encryption").
 *
 * EVP_EncryptInit(3): a context keeps its key while EVP_CipherInit_ex with a null cipher and key sets the
 * next IV.
 */
type Evp = {
  contextNew: () => number;
  contextFree: (context: number) => void;
  cipherByKeyBytes: ReadonlyMap<number, () => number>;
  init: (
    context: number,
    cipher: number,
    engine: number,
    key: number,
    iv: number,
    encrypting: number,
  ) => number;
  update: (context: number, into: number, length: number, from: number, lengthBytes: number) => number;
};

function load(): Evp | null {
  try {
    return {
      contextNew: libc.func('EVP_CIPHER_CTX_new', 'uint64_t', []),
      contextFree: libc.func('EVP_CIPHER_CTX_free', 'void', ['uint64_t']),
      cipherByKeyBytes: new Map([
        [32, libc.func('EVP_aes_128_xts', 'uint64_t', [])],
        [64, libc.func('EVP_aes_256_xts', 'uint64_t', [])],
      ]),
      init: libc.func('EVP_CipherInit_ex', 'int', [
        'uint64_t',
        'uint64_t',
        'uint64_t',
        'uint64_t',
        'uint64_t',
        'int',
      ]),
      update: libc.func('EVP_CipherUpdate', 'int', ['uint64_t', 'uint64_t', 'uint64_t', 'uint64_t', 'int']),
    };
  } catch {
    return null;
  }
}

const evp = load();

/** Whether this node program exports OpenSSL. */
export const evpIsThere = evp !== null;

/**
 * One key. The native side keeps copies of it until `dispose`, which overwrites them (EVP_CIPHER_CTX_free
 * does).
 */
export class EvpXts {
  readonly #evp: Evp;
  #encryptContext = 0;
  #decryptContext = 0;
  /**
   * The tweak, 16 bytes little-endian, of which the upper half stays 0; then the `int` that EVP_CipherUpdate
   * wants to tell the length in.
   */
  readonly #scratch = new Uint32Array(8);
  readonly #tweakAddress: number;
  readonly #lengthAddress: number;

  /**
   * `key` is 32 (AES-128) or 64 bytes (AES-256), half for the data and half for the tweak. Throws
   * `SYS_CALL_FAILED`.
   */
  constructor(key: Uint8Array) {
    if (evp === null) throw opensslError('load', 0);
    this.#evp = evp;
    this.#tweakAddress = addressOf(this.#scratch);
    this.#lengthAddress = this.#tweakAddress + 16;
    const cipher = evp.cipherByKeyBytes.get(key.length);
    if (cipher === undefined) throw opensslError('EVP_aes_xts', key.length);
    try {
      this.#encryptContext = this.#makeContext(cipher(), key, 1);
      this.#decryptContext = this.#makeContext(cipher(), key, 0);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /**
   * Every sector of `from` into `into`, which may be the same bytes. The tweak of the first sector is
   * `firstTweak`, a safe integer, and grows by `tweakStep` from sector to sector. Both lengths are the same,
   * whole sectors of at least 16 bytes.
   */
  encrypt(
    from: Uint8Array,
    into: Uint8Array,
    sectorBytes: number,
    firstTweak: number,
    tweakStep: number,
  ): void {
    this.#run(this.#encryptContext, from, into, sectorBytes, firstTweak, tweakStep);
  }

  decrypt(
    from: Uint8Array,
    into: Uint8Array,
    sectorBytes: number,
    firstTweak: number,
    tweakStep: number,
  ): void {
    this.#run(this.#decryptContext, from, into, sectorBytes, firstTweak, tweakStep);
  }

  dispose(): void {
    for (const context of [this.#encryptContext, this.#decryptContext]) {
      if (context !== 0) this.#evp.contextFree(context);
    }
    this.#encryptContext = 0;
    this.#decryptContext = 0;
  }

  #makeContext(cipher: number, key: Uint8Array, encrypting: number): number {
    const context = this.#evp.contextNew();
    if (context === 0) throw opensslError('EVP_CIPHER_CTX_new', key.length);
    if (this.#evp.init(context, cipher, 0, addressOf(key), 0, encrypting) !== 1) {
      this.#evp.contextFree(context);
      throw opensslError('EVP_CipherInit_ex', key.length);
    }
    return context;
  }

  #run(
    context: number,
    from: Uint8Array,
    into: Uint8Array,
    sectorBytes: number,
    firstTweak: number,
    tweakStep: number,
  ): void {
    if (context === 0) throw opensslError('use after dispose', 0);
    // The addresses below are trusted by native code: a length that is off would overwrite foreign memory.
    if (from.length !== into.length || from.length % sectorBytes !== 0)
      throw opensslError('EVP_CipherUpdate', from.length);
    if (from.length === 0) return;
    const { init, update } = this.#evp;
    const scratch = this.#scratch;
    let fromAddress = addressOf(from);
    let intoAddress = addressOf(into);
    const endAddress = fromAddress + from.length;
    for (let tweak = firstTweak; fromAddress < endAddress; tweak += tweakStep) {
      scratch[0] = tweak; // Its low 32 bits (ToUint32).
      scratch[1] = Math.floor(tweak / 2 ** 32);
      if (
        init(context, 0, 0, 0, this.#tweakAddress, -1) !== 1 ||
        update(context, intoAddress, this.#lengthAddress, fromAddress, sectorBytes) !== 1
      )
        throw opensslError('EVP_CipherUpdate', sectorBytes);
      fromAddress += sectorBytes;
      intoAddress += sectorBytes;
    }
  }
}

function opensslError(call: string, lengthBytes: number): GodwitError {
  return new GodwitError('SYS_CALL_FAILED', `OpenSSL: ${call} failed`, {
    values: { call, lengthBytes },
    nextAction: 'OpenSSL refused; with a key of two equal halves it does so for security (IEEE 1619, 5.1).',
  });
}
