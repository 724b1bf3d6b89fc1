import { createHash, randomBytes } from 'node:crypto';
import { corruptError, unsupportedError } from './errors.ts';

/**
 * The binary header of LUKS2: 4096 bytes, twice on the disk, each before a JSON area of its own. "LUKS2
 * On-Disk Format Specification", version 1.1.x, section 2.1 (`struct luks2_hdr_disk`); integers are
 * big-endian.
 *
 *     offset  bytes  field
 *          0      6  magic         "LUKS" 0xba 0xbe (first header), "SKUL" 0xba 0xbe (second)
 *          6      2  version       2
 *          8      8  hdr_size      bytes of binary header and JSON area: 16 KiB to 4 MiB, a power of two
 *         16      8  seqid         grows by one with every update; the higher copy is the newer one
 *         24     48  label         text, ends with NUL
 *         72     32  csum_alg      "sha256", ends with NUL
 *        104     64  salt          random, another one with every write and copy
 *        168     40  uuid          text, ends with NUL
 *        208     48  subsystem     text, ends with NUL
 *        256      8  hdr_offset    where this header is, from the start of the device: 0 or hdr_size
 *        264    184  padding       zeros
 *        448     64  csum          over binary header (with this field as zeros) and JSON area
 *        512   3584  padding       zeros
 */
export const BINARY_HEADER_BYTES = 4096;

/** What hdr_size can be, hence where a second header can begin. */
export const HEADER_SIZES: readonly number[] = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096].map(
  (kib) => kib * 1024,
);

export type HeaderRole = 'first' | 'second';

export type BinaryHeader = {
  /** Bytes of binary header and JSON area. */
  headerBytes: number;
  sequenceId: bigint;
  label: string;
  uuid: string;
  subsystem: string;
};

const MAGIC = { first: Buffer.from('LUKS\xba\xbe', 'latin1'), second: Buffer.from('SKUL\xba\xbe', 'latin1') };
const CHECKSUM_OFFSET = 448;
const CHECKSUM_FIELD_BYTES = 64;
/**
 * cryptsetup writes sha256 and leaves the choice to the format; the bytes in the field are as many as the
 * digest has.
 */
const CHECKSUM_ALGORITHMS: readonly string[] = ['sha256', 'sha512', 'sha1'];

/** True when the bytes begin as a LUKS header does, of any version. */
export function hasMagic(bytes: Uint8Array, role: HeaderRole): boolean {
  return MAGIC[role].equals(bytes.subarray(0, 6));
}

/**
 * Fields of a binary header at its place, without the checksum (for which the JSON area is needed). Throws
 * `CRYPT_HEADER_CORRUPT`, and `CRYPT_UNSUPPORTED` for LUKS1.
 */
export function decodeBinaryHeader(bytes: Buffer, role: HeaderRole, offsetBytes: number): BinaryHeader {
  if (!hasMagic(bytes, role)) throw corruptError(`${role} header`, 'no magic');
  const version = bytes.readUInt16BE(6);
  if (version === 1) throw unsupportedError('version', '1');
  if (version !== 2) throw corruptError(`${role} header`, `version ${version}`);
  const headerBytes = Number(bytes.readBigUInt64BE(8));
  if (!HEADER_SIZES.includes(headerBytes)) throw corruptError(`${role} header`, `hdr_size ${headerBytes}`);
  if (Number(bytes.readBigUInt64BE(256)) !== offsetBytes)
    throw corruptError(`${role} header`, 'hdr_offset is of another place');
  if (role === 'second' && headerBytes !== offsetBytes)
    throw corruptError('second header', 'it does not follow the first one');
  return {
    headerBytes,
    sequenceId: bytes.readBigUInt64BE(16),
    label: text(bytes, 24, 48, 'label'),
    uuid: text(bytes, 168, 40, 'uuid'),
    subsystem: text(bytes, 208, 48, 'subsystem'),
  };
}

/** Throws `CRYPT_HEADER_CORRUPT` unless the checksum of a whole header (`headerBytes` long) is right. */
export function checkChecksum(header: Buffer, role: HeaderRole): void {
  const algorithm = text(header, 72, 32, 'csum_alg');
  if (!CHECKSUM_ALGORITHMS.includes(algorithm))
    throw corruptError(`${role} header`, 'unknown checksum algorithm');
  const digest = checksum(header, algorithm);
  if (!digest.equals(header.subarray(CHECKSUM_OFFSET, CHECKSUM_OFFSET + digest.length)))
    throw corruptError(`${role} header`, 'wrong checksum');
}

/** A whole header, binary and JSON area, ready to be written at its place. */
export function encodeHeader(binary: BinaryHeader, json: Buffer, role: HeaderRole): Buffer {
  const header = Buffer.alloc(binary.headerBytes);
  // A NUL ends the text, so at least one byte stays free.
  if (json.length >= binary.headerBytes - BINARY_HEADER_BYTES)
    throw unsupportedError('JSON area of', `${json.length} bytes`);
  MAGIC[role].copy(header, 0);
  header.writeUInt16BE(2, 6);
  header.writeBigUInt64BE(BigInt(binary.headerBytes), 8);
  header.writeBigUInt64BE(binary.sequenceId, 16);
  header.write(binary.label, 24, 47, 'utf8');
  header.write('sha256', 72, 'latin1');
  randomBytes(64).copy(header, 104);
  header.write(binary.uuid, 168, 39, 'utf8');
  header.write(binary.subsystem, 208, 47, 'utf8');
  header.writeBigUInt64BE(role === 'first' ? 0n : BigInt(binary.headerBytes), 256);
  json.copy(header, BINARY_HEADER_BYTES);
  checksum(header, 'sha256').copy(header, CHECKSUM_OFFSET);
  return header;
}

/** The JSON text of a header: up to its first NUL, with nothing behind. Throws `CRYPT_HEADER_CORRUPT`. */
export function jsonText(header: Buffer, role: HeaderRole): string {
  const area = header.subarray(BINARY_HEADER_BYTES);
  const end = area.indexOf(0);
  if (end < 0) throw corruptError(`${role} JSON area`, 'it does not end');
  // A long compare is a memcmp; a loop in JavaScript over 4 MiB is not.
  if (!area.subarray(end).equals(Buffer.alloc(area.length - end)))
    throw corruptError(`${role} JSON area`, 'bytes behind its end');
  return area.toString('utf8', 0, end);
}

function checksum(header: Buffer, algorithm: string): Buffer {
  return createHash(algorithm)
    .update(header.subarray(0, CHECKSUM_OFFSET))
    .update(Buffer.alloc(CHECKSUM_FIELD_BYTES))
    .update(header.subarray(CHECKSUM_OFFSET + CHECKSUM_FIELD_BYTES))
    .digest();
}

function text(bytes: Buffer, offset: number, lengthBytes: number, field: string): string {
  const end = bytes.indexOf(0, offset);
  if (end < 0 || end >= offset + lengthBytes) throw corruptError(field, 'it does not end');
  return bytes.toString('utf8', offset, end);
}
