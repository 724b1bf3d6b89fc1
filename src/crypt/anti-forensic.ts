import { hash, randomFillSync } from 'node:crypto';
import { DIGEST_BYTES } from './kdf.ts';

/**
 * The anti-forensic split of LUKS: a key becomes `stripes` times as many bytes, of which each one is needed,
 * so that losing any one sector (a disk that remaps and keeps old sectors loses some when it is wiped) loses
 * the key. Fruhwirth, "New Methods in Hard Disk Encryption", 2005, section 5.2; LUKS On-Disk Format 1.2.3,
 * section 2.4; `lib/luks1/af.c` of cryptsetup:
 *
 *     s_1 .. s_n-1 random;  d_0 = 0, d_k = H(d_k-1 xor s_k);  s_n = d_n-1 xor key
 *     H: each piece of digest length, with its number before it (32 bits, big-endian), is replaced by its hash
 */
export function splitKey(key: Uint8Array, stripes: number, hashName: string): Buffer {
  const split = Buffer.allocUnsafeSlow(key.length * stripes);
  randomFillSync(split, 0, key.length * (stripes - 1));
  const chain = chainOf(split, key.length, stripes, hashName);
  for (let i = 0; i < key.length; i++) split[key.length * (stripes - 1) + i] = chain[i]! ^ key[i]!;
  chain.fill(0);
  return split;
}

/** Undoes `splitKey`. `split` is `keyBytes * stripes` long. The result is the caller's to overwrite. */
export function mergeKey(split: Uint8Array, keyBytes: number, stripes: number, hashName: string): Buffer {
  const key = chainOf(split, keyBytes, stripes, hashName);
  for (let i = 0; i < keyBytes; i++) key[i]! ^= split[keyBytes * (stripes - 1) + i]!;
  return key;
}

/** d_n-1 */
function chainOf(split: Uint8Array, keyBytes: number, stripes: number, hashName: string): Buffer {
  const chain = Buffer.alloc(keyBytes);
  for (let stripe = 0; stripe < stripes - 1; stripe++) {
    const start = stripe * keyBytes;
    for (let i = 0; i < keyBytes; i++) chain[i]! ^= split[start + i]!;
    diffuse(chain, hashName);
  }
  return chain;
}

function diffuse(bytes: Buffer, hashName: string): void {
  const digestBytes = DIGEST_BYTES.get(hashName)!;
  let numbered: Buffer | null = null;
  for (let at = 0, number = 0; at < bytes.length; number++) {
    const pieceBytes = Math.min(digestBytes, bytes.length - at);
    if (numbered?.length !== 4 + pieceBytes) numbered = Buffer.alloc(4 + pieceBytes);
    numbered.writeUInt32BE(number, 0);
    bytes.copy(numbered, 4, at, at + pieceBytes);
    hash(hashName, numbered, 'buffer').copy(bytes, at, 0, pieceBytes);
    at += pieceBytes;
  }
  numbered?.fill(0);
}
