import { createHash, timingSafeEqual } from 'node:crypto';
import { CHAP_ALGORITHM } from './constants.ts';

/**
 * CHAP (RFC 1994) as iSCSI uses it (RFC 7143 section 12.1.3):
 *
 *   response = hash(identifier(1) || secret || challenge)
 */
export type ChapAlgorithmName = keyof typeof CHAP_ALGORITHM;

const HASH: Readonly<Record<number, { name: string; bytes: number }>> = {
  [CHAP_ALGORITHM.md5]: { name: 'md5', bytes: 16 },
  [CHAP_ALGORITHM.sha1]: { name: 'sha1', bytes: 20 },
  [CHAP_ALGORITHM.sha256]: { name: 'sha256', bytes: 32 },
  [CHAP_ALGORITHM.sha3_256]: { name: 'sha3-256', bytes: 32 },
};

/** Strongest first. */
export const CHAP_ALGORITHMS_DEFAULT: readonly ChapAlgorithmName[] = ['sha3_256', 'sha256', 'sha1', 'md5'];

/** Longest challenge that is taken, RFC 7143 section 12.1.3. */
export const CHALLENGE_BYTES_MAX = 1024;
/** Shortest: a challenge that can be guessed is no challenge. */
export const CHALLENGE_BYTES_MIN = 8;

/** Length of a response, and of the challenges that we make. */
export function chapBytes(algorithm: number): number {
  return HASH[algorithm]!.bytes;
}

export function chapResponse(
  algorithm: number,
  identifier: number,
  secret: string,
  challenge: Uint8Array,
): Buffer {
  return createHash(HASH[algorithm]!.name)
    .update(Uint8Array.of(identifier))
    .update(secret, 'utf8')
    .update(challenge)
    .digest();
}

/** Compares in constant time; a response of another length is wrong. */
export function chapMatches(expected: Uint8Array, received: Uint8Array): boolean {
  return expected.length === received.length && timingSafeEqual(expected, received);
}
