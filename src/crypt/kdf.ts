import { argon2, pbkdf2 } from 'node:crypto';
import { GodwitError } from '../base/errors.ts';
import { Secret } from './secret.ts';

/** How a key comes from a passphrase: Argon2 (RFC 9106) or PBKDF2 (RFC 8018, section 5.2). */
export type Kdf =
  | { type: 'pbkdf2'; salt: Buffer; hash: string; iterations: number }
  | { type: 'argon2id' | 'argon2i'; salt: Buffer; passes: number; memoryKib: number; lanes: number };

/** Bytes that the hashes give which a header may name. */
export const DIGEST_BYTES: ReadonlyMap<string, number> = new Map([
  ['sha1', 20],
  ['sha224', 28],
  ['sha256', 32],
  ['sha384', 48],
  ['sha512', 64],
]);

/**
 * What a header may ask of this host. A header of foreign hands could else ask for 4 TiB or for a thousand
 * years.
 */
export type KdfLimits = {
  memoryKib: number;
  /**
   * Argon2: memory (KiB) times passes, which is what its time is proportional to. 2^20 is 1 GiB once, about a
   * second.
   */
  memoryPassesKib: number;
  lanes: number;
  /** PBKDF2: about two million a second. */
  iterations: number;
};

/**
 * What cryptsetup chooses on any machine (at most 1 GiB, 4 lanes, tuned to 2 s) with room for one ten times
 * as fast.
 */
export const DEFAULT_KDF_LIMITS: KdfLimits = {
  memoryKib: 1024 * 1024,
  memoryPassesKib: 32 * 1024 * 1024,
  lanes: 16,
  iterations: 100_000_000,
};

/** `CRYPT_KDF_LIMIT` when the work is above the limits, else null. */
export function kdfLimitError(kdf: Kdf, limits: KdfLimits): GodwitError | null {
  if (kdf.type === 'pbkdf2') {
    return kdf.iterations <= limits.iterations
      ? null
      : limitError('iterations', kdf.iterations, limits.iterations);
  }
  if (kdf.memoryKib > limits.memoryKib) return limitError('memoryKib', kdf.memoryKib, limits.memoryKib);
  if (kdf.lanes > limits.lanes) return limitError('lanes', kdf.lanes, limits.lanes);
  const memoryPassesKib = kdf.memoryKib * kdf.passes;
  return memoryPassesKib <= limits.memoryPassesKib
    ? null
    : limitError('memoryPassesKib', memoryPassesKib, limits.memoryPassesKib);
}

/**
 * A key of `keyBytes` from a passphrase, computed in the thread pool. Rejects with `CRYPT_KDF_LIMIT` and
 * `CRYPT_KDF_FAILED` (no memory).
 */
export async function deriveKey(
  kdf: Kdf,
  passphrase: Uint8Array,
  keyBytes: number,
  limits: KdfLimits,
): Promise<Secret> {
  const problem = kdfLimitError(kdf, limits);
  if (problem !== null) throw problem;
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const done = (error: Error | null, key: Buffer) => (error ? reject(error) : resolve(key));
  try {
    if (kdf.type === 'pbkdf2') pbkdf2(passphrase, kdf.salt, kdf.iterations, keyBytes, kdf.hash, done);
    else {
      argon2(
        kdf.type,
        {
          message: passphrase,
          nonce: kdf.salt,
          parallelism: kdf.lanes,
          tagLength: keyBytes,
          memory: kdf.memoryKib,
          passes: kdf.passes,
        },
        done,
      );
    }
    return Secret.take(await promise);
  } catch (cause) {
    // Parameters that RFC 9106 forbids (memory below 8 KiB a lane, salt below 8 bytes), or no memory.
    throw new GodwitError('CRYPT_KDF_FAILED', `the key could not be derived with ${kdf.type}`, {
      values: { kdf: kdf.type, memoryKib: kdf.type === 'pbkdf2' ? 0 : kdf.memoryKib },
      retry: 'never',
      nextAction: 'Look at the free memory of this host; parameters of a damaged header fail too.',
      cause,
    });
  }
}

function limitError(what: string, found: number, limit: number): GodwitError {
  return new GodwitError(
    'CRYPT_KDF_LIMIT',
    `the header asks for ${what} ${found}, this host allows ${limit}`,
    {
      values: { what, found, limit },
      retry: 'never',
      nextAction:
        'Raise the limit of this worker, or give the volume a key slot that costs less (change its key).',
    },
  );
}
