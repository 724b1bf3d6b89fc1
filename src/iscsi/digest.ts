import { crc32c } from '@node-rs/crc32';

/*
 * CRC32C digests (RFC 7143 sections 11.2.3 and 13.1). On the wire the least significant byte comes first: 32
 * bytes of zeros give aa 36 91 8a (appendix A.4 of RFC 3720).
 */

const ZEROS = new Uint8Array(4);

/** CRC32C over `bytes`, and over zero padding to the next multiple of 4. */
export function digestOf(bytes: Uint8Array): number {
  const sum = crc32c(bytes);
  const padding = -bytes.length & 3;
  return padding === 0 ? sum : crc32c(ZEROS.subarray(0, padding), sum);
}
