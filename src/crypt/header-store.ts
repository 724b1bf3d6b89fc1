import { GodwitError, isGodwitError } from '../base/errors.ts';
import type { BlockDevice } from '../block/block-device.ts';
import {
  BINARY_HEADER_BYTES,
  type BinaryHeader,
  checkChecksum,
  decodeBinaryHeader,
  encodeHeader,
  HEADER_SIZES,
  type HeaderRole,
  hasMagic,
  jsonText,
} from './binary-header.ts';
import { corruptError } from './errors.ts';
import { type JsonObject, parseJson, printJson } from './json.ts';
import { type Luks2Metadata, parseMetadata } from './metadata.ts';

/** A header as it was read or written. Values: an update makes another one. */
export type Luks2Header = {
  binary: BinaryHeader;
  /** All that the JSON area says, also what is not understood. */
  json: JsonObject;
  metadata: Luks2Metadata;
  /** The copy on the disk that is unreadable or older, and is to be rewritten before anything else is. */
  damaged: HeaderRole | null;
};

/** A copy whose checksum is right and whose JSON parses. */
type Copy = { role: HeaderRole; binary: BinaryHeader; json: JsonObject };

/**
 * Reads both copies and takes the newer sound one, from at most 8 MiB of the device, whatever they say.
 * Writes nothing. The device is the one that holds the header: the volume itself, or the file of a detached
 * header.
 *
 * Throws `CRYPT_NOT_LUKS2` where there is no trace of a header, `CRYPT_HEADER_CORRUPT` where no copy is
 * sound, and `CRYPT_UNSUPPORTED` (an older copy is not taken instead: it may be older than the reason).
 */
export async function readHeader(device: BlockDevice): Promise<Luks2Header> {
  const first = await attempt(() => readCopy(device, 'first', 0));
  const second = await readSecond(device, 'binary' in first ? first.binary.headerBytes : null);
  const copies = [first, second]
    .filter((copy) => 'binary' in copy)
    .sort((a, b) => Number(b.binary.sequenceId - a.binary.sequenceId));
  let problem: GodwitError | null = null;
  for (const { role, binary, json } of copies) {
    try {
      const metadata = parseMetadata(json, binary.headerBytes);
      const intact =
        problem === null &&
        copies.length === 2 &&
        copies[0]!.binary.sequenceId === copies[1]!.binary.sequenceId;
      return { binary, json, metadata, damaged: intact ? null : role === 'first' ? 'second' : 'first' };
    } catch (error) {
      if (!isGodwitError(error, 'CRYPT_HEADER_CORRUPT')) throw error;
      problem ??= error;
    }
  }
  throw problem ?? (first as { problem: GodwitError }).problem;
}

/** Rewrites the copy that is damaged, if one is. False: there was nothing to do. */
export async function repairHeader(device: BlockDevice, header: Luks2Header): Promise<boolean> {
  if (header.damaged === null) return false;
  await writeCopy(device, header.binary, header.json, header.damaged);
  return true;
}

/**
 * Writes new JSON into both copies, with the next sequence number, and returns the header as it is now.
 * Whenever power goes, a whole copy is there, the old or the new one: a damaged copy is mended first, and
 * each write is durable before the next begins. What the new JSON refers to must be durable already.
 */
export async function updateHeader(
  device: BlockDevice,
  header: Luks2Header,
  json: JsonObject,
): Promise<Luks2Header> {
  await repairHeader(device, header);
  const binary = { ...header.binary, sequenceId: header.binary.sequenceId + 1n };
  // What would not be read back must not be written.
  const metadata = parseMetadata(parseJson(printJson(json).toString()), binary.headerBytes);
  await writeCopy(device, binary, json, 'first');
  await writeCopy(device, binary, json, 'second');
  return { binary, json, metadata, damaged: null };
}

async function writeCopy(
  device: BlockDevice,
  binary: BinaryHeader,
  json: JsonObject,
  role: HeaderRole,
): Promise<void> {
  await device.write(role === 'first' ? 0 : binary.headerBytes, encodeHeader(binary, printJson(json), role));
  await device.flush();
}

async function readSecond(
  device: BlockDevice,
  headerBytes: number | null,
): Promise<Copy | { problem: GodwitError }> {
  const offsets = headerBytes === null ? HEADER_SIZES : [headerBytes];
  let result: Copy | { problem: GodwitError } | null = null;
  for (const offsetBytes of offsets) {
    result = await attempt(() => readCopy(device, 'second', offsetBytes));
    if ('binary' in result) break;
  }
  return result!;
}

/**
 * The problems of one copy are values, for the other one may be sound. What the device itself throws is not.
 */
async function attempt(read: () => Promise<Copy>): Promise<Copy | { problem: GodwitError }> {
  try {
    return await read();
  } catch (error) {
    if (isGodwitError(error, 'CRYPT_HEADER_CORRUPT') || isGodwitError(error, 'CRYPT_NOT_LUKS2'))
      return { problem: error };
    throw error;
  }
}

async function readCopy(device: BlockDevice, role: HeaderRole, offsetBytes: number): Promise<Copy> {
  const start = await readPiece(device, role, offsetBytes, BINARY_HEADER_BYTES);
  if (!hasMagic(start, role)) throw notLuks2Error();
  const binary = decodeBinaryHeader(start, role, offsetBytes);
  const header = await readPiece(device, role, offsetBytes, binary.headerBytes);
  checkChecksum(header, role);
  return { role, binary, json: parseJson(jsonText(header, role)) };
}

async function readPiece(
  device: BlockDevice,
  role: HeaderRole,
  offsetBytes: number,
  lengthBytes: number,
): Promise<Buffer> {
  if (offsetBytes + lengthBytes > device.lengthBytes)
    throw corruptError(`${role} header`, 'the device ends before it does');
  const bytes = Buffer.alloc(lengthBytes);
  await device.read(offsetBytes, bytes);
  return bytes;
}

function notLuks2Error(): GodwitError {
  return new GodwitError('CRYPT_NOT_LUKS2', 'the device does not begin with a LUKS2 header', {
    retry: 'never',
    nextAction: 'Look whether the volume is encrypted at all; if it was, restore its header from a backup.',
  });
}
