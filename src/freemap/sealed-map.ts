import { crc32c } from '@node-rs/crc32';
import { assert } from '../base/assert.ts';
import { type ErrorValues, GodwitError } from '../base/errors.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import type { BlockRun } from './free-map.ts';

/**
 * A free map as it travels in the handoff of a move: bound to the volume and to the generation that was
 * sealed when it was read.
 *
 *   0  8  magic "GWFREEM\0"
 *   8  2  format version, 1
 *  10  2  length of the volume id in bytes, 1 to 256
 *  12  4  number of runs
 *  16  8  length of the volume in bytes
 *  24  8  generation
 *  32  .  volume id, UTF-8
 *   .  .  runs in ascending order: two numbers each, used blocks since the end of the one before (or the start of the volume), free
 *         blocks; LEB128, 1 to 6 bytes. Only the first number may be 0, and none has a needless last byte.
 *   .  4  CRC32C of all bytes before it
 *
 * All integers are little-endian. There is one encoding of a map.
 */
const MAGIC = 'GWFREEM\0';
const FORMAT_VERSION = 1;
const HEADER_BYTES = 32;
const CHECKSUM_BYTES = 4;
const VOLUME_ID_BYTES_MAX = 256;
const NUMBER_BYTES_MAX = 6;

/** Longest encoding. Base64 of it fits a request, a line and a row of the journal. */
export const SEALED_MAP_BYTES_MAX = 512 * 1024;

/** What a map belongs to. */
export type SealedMapIdentity = { volumeId: string; generation: number; lengthBytes: number };

/**
 * Encodes free runs, which `runs` gives in ascending order, anew at each call. Where there are too many for
 * `bytesMax` (default `SEALED_MAP_BYTES_MAX`), the shortest are left out: those blocks travel.
 */
export function encodeSealedMap(
  identity: SealedMapIdentity,
  runs: () => Iterable<BlockRun>,
  bytesMax: number = SEALED_MAP_BYTES_MAX,
): Buffer {
  const volumeId = Buffer.from(identity.volumeId, 'utf8');
  assert(volumeId.length >= 1 && volumeId.length <= VOLUME_ID_BYTES_MAX, 'a volume id fits the header');
  const start = HEADER_BYTES + volumeId.length;
  assert(bytesMax >= start + CHECKSUM_BYTES, 'a map without a run fits');
  const buffer = Buffer.alloc(bytesMax);
  for (let blocksMin = 1; ; blocksMin *= 2) {
    const written = encodeRuns(buffer.subarray(start, bytesMax - CHECKSUM_BYTES), runs(), blocksMin);
    if (written === null) continue;
    buffer.write(MAGIC, 0, 'latin1');
    buffer.writeUInt16LE(FORMAT_VERSION, 8);
    buffer.writeUInt16LE(volumeId.length, 10);
    buffer.writeUInt32LE(written.count, 12);
    buffer.writeBigUInt64LE(BigInt(identity.lengthBytes), 16);
    buffer.writeBigUInt64LE(BigInt(identity.generation), 24);
    volumeId.copy(buffer, HEADER_BYTES);
    const end = start + written.bytes;
    buffer.writeUInt32LE(crc32c(buffer.subarray(0, end)), end);
    return Buffer.from(buffer.subarray(0, end + CHECKSUM_BYTES));
  }
}

/**
 * The free runs of a map of exactly this volume and generation. Memory: some 20 times the input at most.
 * Errors: `FREEMAP_BAD_MAP`, `FREEMAP_WRONG_VOLUME`.
 */
export function decodeSealedMap(bytes: Uint8Array, expected: SealedMapIdentity): BlockRun[] {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  if (buffer.length > SEALED_MAP_BYTES_MAX) throw badMap('it is too long');
  if (buffer.length < HEADER_BYTES + CHECKSUM_BYTES) throw badMap('it is too short');
  if (buffer.toString('latin1', 0, 8) !== MAGIC) throw badMap('it is no free map');
  const end = buffer.length - CHECKSUM_BYTES;
  if (crc32c(buffer.subarray(0, end)) !== buffer.readUInt32LE(end)) throw badMap('its checksum does not fit');
  const version = buffer.readUInt16LE(8);
  if (version !== FORMAT_VERSION) throw badMap(`it has format version ${version}`);
  const idBytes = buffer.readUInt16LE(10);
  if (HEADER_BYTES + idBytes > end) throw badMap('it is too short');
  const found = {
    volumeId: buffer.toString('utf8', HEADER_BYTES, HEADER_BYTES + idBytes),
    generation: Number(buffer.readBigUInt64LE(24)),
    lengthBytes: Number(buffer.readBigUInt64LE(16)),
  };
  for (const name of ['volumeId', 'generation', 'lengthBytes'] as const) {
    if (found[name] !== expected[name]) throw wrongVolume(name, found[name], expected[name]);
  }
  return decodeRuns(
    buffer.subarray(HEADER_BYTES + idBytes, end),
    buffer.readUInt32LE(12),
    Math.floor(expected.lengthBytes / BLOCK_BYTES),
  );
}

/** Null: more than `into` holds. */
function encodeRuns(
  into: Buffer,
  runs: Iterable<BlockRun>,
  blocksMin: number,
): { bytes: number; count: number } | null {
  let at = 0;
  let count = 0;
  let previousEnd = 0;
  const put = (value: number) => {
    let rest = value;
    for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) into[at++] = (rest % 0x80) | 0x80;
    into[at++] = rest;
  };
  for (const { first, end } of runs) {
    if (end - first < blocksMin) continue;
    if (at + 2 * NUMBER_BYTES_MAX > into.length) return null;
    put(first - previousEnd);
    put(end - first);
    previousEnd = end;
    count++;
  }
  return { bytes: at, count };
}

function decodeRuns(bytes: Uint8Array, count: number, blockCount: number): BlockRun[] {
  // A run takes two bytes at least, so the count of a liar costs no memory.
  if (count * 2 > bytes.length) throw badMap('it has fewer runs than it says');
  const runs: BlockRun[] = [];
  let at = 0;
  const take = (): number => {
    let value = 0;
    for (let index = 0; index < NUMBER_BYTES_MAX; index++) {
      const byte = bytes[at++];
      if (byte === undefined) throw badMap('it ends inside of a run');
      value += (byte & 0x7f) * 0x80 ** index;
      if (byte < 0x80) {
        if (byte === 0 && index > 0) throw badMap('a number is not in its shortest form');
        return value;
      }
    }
    throw badMap('a number is too long');
  };
  let previousEnd = 0;
  for (let index = 0; index < count; index++) {
    const used = take();
    const free = take();
    if (free === 0 || (used === 0 && index > 0)) throw badMap('a run is empty or touches another');
    const first = previousEnd + used;
    const end = first + free;
    if (end > blockCount) throw badMap('a run lies outside of the volume');
    runs.push({ first, end });
    previousEnd = end;
  }
  if (at !== bytes.length) throw badMap('there are bytes behind its runs');
  return runs;
}

function badMap(why: string): GodwitError {
  return new GodwitError('FREEMAP_BAD_MAP', `the free map of the handoff cannot be used: ${why}`, {
    nextAction: 'Both workers must be of the same godwit version.',
  });
}

function wrongVolume(field: string, found: string | number, expected: string | number): GodwitError {
  const values: ErrorValues = { field, found, expected };
  return new GodwitError('FREEMAP_WRONG_VOLUME', `the free map is of ${field} ${found}, not ${expected}`, {
    values,
    nextAction: 'This must not happen: a map is made for one handoff. Report it.',
  });
}
