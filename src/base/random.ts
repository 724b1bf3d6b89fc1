import { randomBytes } from 'node:crypto';

/** Randomness comes in by constructor, so that a test can replay it from a seed. */
export interface Random {
  /** Integer in [0, limit). `limit` is 1 to 2^32. */
  below(limit: number): number;
  /** `length` random bytes. */
  bytes(length: number): Uint8Array;
}

/** Cryptographic randomness of the machine. */
export const systemRandom: Random = {
  below: (limit) => Math.floor((randomBytes(4).readUInt32LE(0) / 2 ** 32) * limit),
  bytes: (length) => randomBytes(length),
};

/**
 * Mulberry32: small, fast, good enough for tests and jitter; the same seed gives the same sequence
 * everywhere.
 */
export function seededRandom(seed: number): Random {
  let state = seed >>> 0;
  /** 32 bits. */
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
  return {
    below: (limit) => Math.floor((next() / 2 ** 32) * limit),
    bytes: (length) => {
      const words = new Uint32Array(Math.ceil(length / 4));
      for (let word = 0; word < words.length; word++) words[word] = next();
      const bytes = new Uint8Array(words.buffer);
      return length === bytes.length ? bytes : bytes.slice(0, length);
    },
  };
}
