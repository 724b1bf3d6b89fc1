import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { crc32 } from 'node:zlib';
import { assert } from '../base/assert.ts';
import { GodwitError, systemErrorCode } from '../base/errors.ts';
import { BitCommitter, owedBytes } from '../clone/bit-committer.ts';
import {
  type MapMemory,
  type MapPlace,
  PAGE_BYTES,
  PAGE_WORDS,
  pageCountOf,
  sharedMapMemory,
} from '../clone/map-memory.ts';
import { metadataSectorCount } from '../clone/metadata.ts';
import { blockCountOf, ValidityMap } from '../clone/validity-map.ts';
import { allocateNow, punchHoleNow } from '../sys/fallocate.ts';
import { fileExtents } from '../sys/file-extents.ts';
import { errnoOf } from '../sys/libc.ts';
import { ownFolder } from '../sys/named-path.ts';
import { mapShared, type SharedMapping, unmap } from '../sys/shared-mapping.ts';

/**
 * The live validity bits of a clone in a file that processes share by mmap. It outlives the volume server, so
 * that a write that was acknowledged (its data in the page cache, its bit here) survives a server that was
 * killed. It does not outlive the page cache: after a power cut, and when the filesystem of the data was
 * taken down and mounted again, only the bits of clone/metadata.ts count, because only those were written
 * after their data was durable. The header therefore carries the id of the boot and of the mounted instance,
 * and content of another is thrown away. Of an instance that is not known on either side nothing is
 * concluded: what was acknowledged must not be dropped by mistake.
 *
 *   bytes      content (little endian)
 *   0..7       magic 'GODWITVM'
 *   8..11      format version, 2
 *   12..15     CRC-32 (zlib) of bytes 16..2047
 *   16..51     boot id, as /proc/sys/kernel/random/boot_id prints it (ASCII)
 *   52..55     length of the volume id
 *   56..63     generation
 *   64..71     length of the clone in bytes
 *   72..199    volume id (ASCII, zero padded)
 *   200..263   mounted instance of the filesystem that has the data (sys/filesystem-instance.ts; ASCII, zero padded); zeros: not known
 *   264..327   process that started the server, and so has the guest (`<pid>.<start time>`; ASCII, zero padded); zeros: not known
 *   328..2047  zero
 *   2048..2055 payload that crossed the wire for this clone so far, as a float64: for reports only, so not under the CRC
 *   2056..2059 1: the map of written blocks tells all of them
 *   2060..2063 zero
 *   2064..2071 how many bits are set, as a float64; NaN while that changes
 *   2072..2079 bytes that arrived and are not in place for certain, as a float64: what the next server fetches again when this one is killed
 *   2080..2087 the sum of that over the servers that were killed, as a float64: for reports only
 *   2088..2091 1: the guest wrote something since the last flush of the data began
 *   2092..2095 1: a flush of the data is under way
 *   2096..4095 zero
 *   4096..     a word for each page of 32,768 blocks: all of its bits are the same, or they are below (clone/validity-map.ts)
 *   ...        what of the metadata is not durable, a byte a sector and more (`owedBytes` of clone/bit-committer.ts)
 *   ...        the bits: a page of 4096 bytes for each word above, block 0 in the lowest bit of its first word. A page that no word points to is a hole.
 *
 * Each part begins at a multiple of 4096. Words are in the byte order of this host. Pages are reserved in the
 * file before anything is put there, so a full filesystem is an error and no SIGBUS.
 *
 * Version 1 had all bits from byte 4096 on and nothing else; one of this boot is rewritten when it is opened.
 */
export type ValidityFile = {
  /**
   * True: the bits are what the last server of this boot left. False: they are all zero and the durable ones
   * count.
   */
  readonly current: boolean;
  /** The bits. Valid until `close`. */
  readonly memory: MapMemory;
  /** For `CloneDeviceOptions.owed`; valid until `close`. */
  readonly owed: Uint8Array;
  /** For a thread that sees the bits without a copy (`sharedMapMemory`). */
  readonly place: MapPlace;
  /**
   * Payload bytes that earlier servers of this clone and boot counted; what is put here the next one finds.
   */
  wireBytes: number;
  /** There was no map. */
  readonly fresh: boolean;
  /**
   * The guest is the one of the last server, and what it wrote and had not flushed is gone with the
   * filesystem that it was in.
   */
  readonly guestLost: boolean;
  /**
   * Whether the guest wrote since a flush of the data began, and whether one is under way: [0] and [1], 1 for
   * yes. Shared like the bits.
   */
  readonly unflushed: Uint32Array;
  /** Address of the same. */
  readonly unflushedAddress: bigint;
  /** Bytes that arrived and are not in place for certain. */
  unplacedBytes: number;
  /**
   * Bytes that earlier servers of this clone and boot left so when they were killed: they were fetched again.
   */
  refetchedBytes: number;
  /** For a map of written blocks (`writtenPath`): that it tells all of them. False in a new file. */
  tellsAll: boolean;
  /** Unmaps; the file stays for the next server. Nobody may touch what views it afterwards. */
  close(): void;
};

export type ValidityFileRequest = {
  /** On tmpfs where there is one: the bits change with every first write to a block. */
  path: string;
  volumeId: string;
  generation: number;
  lengthBytes: number;
  /** Of the running kernel (sys/boot-id.ts). */
  bootId: string;
  /** Of the filesystem that has the data (sys/filesystem-instance.ts); null or left out: not known. */
  instance?: string | null;
  /** Who started this server, and so has the guest; null or left out: not known. */
  supervisor?: string | null;
};

const MAGIC = Buffer.from('GODWITVM', 'latin1');
const FORMAT_VERSION = 2;
const FLAT_VERSION = 1;
const HEADER_BYTES = 4096;
const CHECKED_BYTES = 2048;
const COUNT_AT = 2064;
const ARRIVALS_AT = 2072;
const UNFLUSHED_AT = 2088;
const INSTANCE_AT = 200;
const SUPERVISOR_AT = 264;
const NAME_BYTES_MAX = 64;
const BOOT_ID_BYTES = 36;
const VOLUME_ID_BYTES_MAX = 128;

/** Where in the file what is, in bytes. */
type Layout = { owedAt: number; owedLengthBytes: number; bitsAt: number; lengthBytes: number; pages: number };

function layoutOf(lengthBytes: number): Layout {
  const pages = pageCountOf(blockCountOf(lengthBytes));
  const owedLengthBytes = owedBytes(metadataSectorCount(lengthBytes));
  const owedAt = HEADER_BYTES + roundUp(pages * 4);
  const bitsAt = owedAt + roundUp(owedLengthBytes);
  return { owedAt, bitsAt, lengthBytes: bitsAt + pages * PAGE_BYTES, pages, owedLengthBytes };
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / PAGE_BYTES) * PAGE_BYTES;
}

/**
 * Opens the map or makes it. A file of another boot, or of an earlier generation of the same volume, is
 * replaced by an empty one. Throws `VOLUME_VALIDITY_FOREIGN` for a file that is not this volume's map
 * (nothing of it is changed), `SYS_PATH_REFUSED` for a folder of somebody else, `VOLUME_VALIDITY_CORRUPT` for
 * one of this boot whose header or length is damaged, `VOLUME_NO_SPACE`.
 */
export function openValidityFile(request: ValidityFileRequest): ValidityFile {
  const found = inspect(request);
  if (found === 'flat') rewriteFlat(request);
  else if (found === 'current') nameHolder(request);
  else replaceWith(request, () => {});
  const file = mapFile(request, request.path, found === 'current' || found === 'flat');
  return Object.assign(file, { fresh: found === 'absent', guestLost: found === 'lost' });
}

/** Writes down who has the map now, where that is known. */
function nameHolder(request: ValidityFileRequest): void {
  if (!request.instance || !request.supervisor) return;
  const fd = openSync(request.path, constants.O_RDWR | constants.O_NOFOLLOW);
  try {
    writeSync(fd, encodeHeader(request), 0, CHECKED_BYTES, 0);
  } finally {
    closeSync(fd);
  }
}

function mapFile(request: ValidityFileRequest, path: string, current: boolean): ValidityFile {
  const layout = layoutOf(request.lengthBytes);
  const fd = openSync(path, constants.O_RDWR | constants.O_NOFOLLOW);
  let mapping: SharedMapping;
  try {
    // What every opening looks at; the pages of the bits are reserved one by one.
    reserve(request, fd, 0, layout.bitsAt);
    mapping = mapShared(fd, layout.lengthBytes, layout.bitsAt);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  const { buffer, byteOffset } = mapping.view;
  const wireBytes = new Float64Array(buffer, byteOffset + CHECKED_BYTES, 1);
  const tellsAll = new Uint32Array(buffer, byteOffset + CHECKED_BYTES + 8, 1);
  const arrivals = new Float64Array(buffer, byteOffset + ARRIVALS_AT, 2);
  arrivals[1]! += arrivals[0]!;
  arrivals[0] = 0;
  const place = {
    countAddress: mapping.address + BigInt(COUNT_AT),
    entriesAddress: mapping.address + BigInt(HEADER_BYTES),
    bitsAddress: mapping.address + BigInt(layout.bitsAt),
    pages: layout.pages,
  };
  return {
    current,
    fresh: false,
    guestLost: false,
    unflushed: new Uint32Array(buffer, byteOffset + UNFLUSHED_AT, 2),
    unflushedAddress: mapping.address + BigInt(UNFLUSHED_AT),
    memory: sharedMapMemory(place, {
      reserve: (page) => reserve(request, fd, layout.bitsAt + page * PAGE_BYTES, PAGE_BYTES),
      release: (page) => punchHoleNow(fd, layout.bitsAt + page * PAGE_BYTES, PAGE_BYTES),
    }),
    owed: new Uint8Array(buffer, byteOffset + layout.owedAt, layout.owedLengthBytes),
    place,
    get wireBytes() {
      return wireBytes[0]!;
    },
    set wireBytes(bytes) {
      wireBytes[0] = bytes;
    },
    get unplacedBytes() {
      return arrivals[0]!;
    },
    set unplacedBytes(bytes) {
      arrivals[0] = bytes;
    },
    get refetchedBytes() {
      return arrivals[1]!;
    },
    set refetchedBytes(bytes) {
      arrivals[1] = bytes;
    },
    get tellsAll() {
      return tellsAll[0] === 1;
    },
    set tellsAll(tells) {
      tellsAll[0] = tells ? 1 : 0;
    },
    close: () => {
      unmap(mapping.address, layout.lengthBytes);
      closeSync(fd);
    },
  };
}

function reserve(request: ValidityFileRequest, fd: number, offsetBytes: number, lengthBytes: number): void {
  try {
    allocateNow(fd, offsetBytes, lengthBytes);
  } catch (error) {
    if (errnoOf(error) === 'ENOSPC') throw noSpace(request, error);
    // A filesystem that cannot reserve: its pages come when they are touched.
    if (errnoOf(error) !== 'ENOTSUP') throw error;
  }
}

/** The map goes with the clone. Nothing to do where there is none. */
export function removeValidityFile(path: string): void {
  rmSync(path, { force: true });
  rmSync(writtenPath(path), { force: true });
}

/** What the map and the one beside it take now; 0 where there is none. */
export function validityFilesBytes(path: string): number {
  const sizes = [path, writtenPath(path)].map(
    (each) => statSync(each, { throwIfNoEntry: false })?.blocks ?? 0,
  );
  return sizes.reduce((sum, blocks) => sum + blocks * 512, 0);
}

/**
 * Beside the validity bits a map of the same layout: the blocks that the guest overwrote, or may have. A bit
 * is set before the data changes. After a reboot who wrote what is not known: every block that is local then
 * counts as written.
 */
export function writtenPath(validityPath: string): string {
  return `${validityPath}.written`;
}

/** `lost`: stale, and with it what a guest wrote that is still there. */
function inspect(request: ValidityFileRequest): 'absent' | 'stale' | 'lost' | 'current' | 'flat' {
  let fd: number;
  try {
    fd = openSync(request.path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return 'absent';
    if (systemErrorCode(error) === 'ELOOP') throw foreign(request, 'it is a symbolic link');
    throw error;
  }
  try {
    const status = fstatSync(fd);
    if (!status.isFile()) throw foreign(request, 'it is not a regular file');
    const header = Buffer.alloc(HEADER_BYTES);
    const bytesRead = readSync(fd, header, 0, HEADER_BYTES, 0);
    if (bytesRead < MAGIC.length || !header.subarray(0, MAGIC.length).equals(MAGIC)) {
      throw foreign(request, 'it does not begin with the magic of a validity map');
    }
    const found = bytesRead === HEADER_BYTES ? decodeHeader(header) : undefined;
    if (found === undefined) throw corrupt(request, 'its header is damaged');
    if (found.bootId !== request.bootId) return 'stale';
    if (found.volumeId !== request.volumeId)
      throw foreign(request, `it is the map of volume ${found.volumeId}`);
    if (found.generation < request.generation) return 'stale';
    if (found.generation > request.generation) {
      throw foreign(request, `it is of the later generation ${found.generation}`);
    }
    if (found.lengthBytes !== request.lengthBytes) {
      throw foreign(request, `it is of a clone of ${found.lengthBytes} bytes`);
    }
    const flat = found.version === FLAT_VERSION;
    const lengthBytes = flat
      ? HEADER_BYTES + flatWordCount(request) * 4
      : layoutOf(request.lengthBytes).lengthBytes;
    if (request.instance && found.instance && found.instance !== request.instance) {
      const unflushed = header.readUInt32LE(UNFLUSHED_AT) + header.readUInt32LE(UNFLUSHED_AT + 4) > 0;
      const sameGuest = request.supervisor != null && found.supervisor === request.supervisor;
      return unflushed && sameGuest ? 'lost' : 'stale';
    }
    if (status.size !== lengthBytes)
      throw corrupt(request, `it has ${status.size} bytes instead of ${lengthBytes}`);
    return flat ? 'flat' : 'current';
  } finally {
    closeSync(fd);
  }
}

function flatWordCount({ lengthBytes }: ValidityFileRequest): number {
  return Math.ceil(blockCountOf(lengthBytes) / 32);
}

/**
 * Built beside its place and renamed, so that a killed server leaves either what was there or a whole new
 * map.
 */
function replaceWith(request: ValidityFileRequest, fill: (path: string) => void): void {
  const temporary = `${request.path}.new`;
  // Its worker made the folder; but on a tmpfs there are others who tidy up.
  ownFolder(dirname(request.path));
  try {
    rmSync(temporary, { force: true });
    const fd = openSync(temporary, 'wx', 0o600);
    try {
      ftruncateSync(fd, layoutOf(request.lengthBytes).lengthBytes);
      writeSync(fd, encodeHeader(request), 0, HEADER_BYTES, 0);
    } finally {
      closeSync(fd);
    }
    fill(temporary);
    renameSync(temporary, request.path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw systemErrorCode(error) === 'ENOSPC' ? noSpace(request, error) : error;
  }
}

/** Takes a map of version 1 over: which of its bits are durable is not known, so all of them are owed. */
function rewriteFlat(request: ValidityFileRequest): void {
  const from = openSync(request.path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    replaceWith(request, (path) => copyFlat(request, from, path));
  } finally {
    closeSync(from);
  }
}

function copyFlat(request: ValidityFileRequest, from: number, path: string): void {
  const into = mapFile(request, path, true);
  try {
    const blockCount = blockCountOf(request.lengthBytes);
    const map = new ValidityMap(into.memory, blockCount);
    const words = new Uint32Array(PAGE_WORDS);
    const endBytes = HEADER_BYTES + flatWordCount(request) * 4;
    for (const extent of fileExtents(from, HEADER_BYTES, endBytes - HEADER_BYTES)) {
      if (extent.kind === 'hole') continue;
      const extentEnd = extent.offsetBytes + extent.lengthBytes;
      for (
        let at = Math.floor(extent.offsetBytes / PAGE_BYTES) * PAGE_BYTES;
        at < extentEnd;
        at += PAGE_BYTES
      ) {
        words.fill(0);
        readSync(from, words, 0, Math.min(PAGE_BYTES, endBytes - at), at);
        map.orWords((at - HEADER_BYTES) / 4, words);
      }
    }
    for (let block = map.firstPresent(0, blockCount); block < blockCount; ) {
      const end = map.firstAbsent(block, blockCount);
      BitCommitter.owe(into.owed, metadataSectorCount(request.lengthBytes), block, end);
      block = map.firstPresent(end, blockCount);
    }
    const tail = new DataView(new ArrayBuffer(12));
    readSync(from, tail, 0, tail.byteLength, CHECKED_BYTES);
    into.wireBytes = tail.getFloat64(0, true);
    into.tellsAll = tail.getUint32(8, true) === 1;
  } finally {
    into.close();
  }
}

function noSpace({ path, lengthBytes }: ValidityFileRequest, cause: unknown): GodwitError {
  return new GodwitError('VOLUME_NO_SPACE', `no room for the validity map ${path}`, {
    values: { path, lengthBytes },
    retry: 'never',
    nextAction: 'Free memory or space on the filesystem that holds it.',
    cause,
  });
}

type Header = Pick<
  ValidityFileRequest,
  'bootId' | 'volumeId' | 'generation' | 'lengthBytes' | 'instance' | 'supervisor'
>;

function encodeHeader(header: Header): Buffer {
  assert(/^[\x21-\x7e]{1,128}$/.test(header.volumeId), 'a volume id is short ASCII');
  assert(/^[0-9a-f-]{36}$/.test(header.bootId), 'a boot id is a UUID');
  const bytes = Buffer.alloc(HEADER_BYTES);
  MAGIC.copy(bytes, 0);
  bytes.writeUInt32LE(FORMAT_VERSION, 8);
  bytes.write(header.bootId, 16, 'latin1');
  bytes.writeUInt32LE(header.volumeId.length, 52);
  bytes.writeBigUInt64LE(BigInt(header.generation), 56);
  bytes.writeBigUInt64LE(BigInt(header.lengthBytes), 64);
  bytes.write(header.volumeId, 72, 'latin1');
  for (const name of [header.instance, header.supervisor])
    assert(!name || /^[\x21-\x7e]{1,64}$/.test(name), 'a name is short ASCII');
  bytes.write(header.instance ?? '', INSTANCE_AT, 'latin1');
  bytes.write(header.supervisor ?? '', SUPERVISOR_AT, 'latin1');
  bytes.writeUInt32LE(crc32(bytes.subarray(16, CHECKED_BYTES)), 12);
  return bytes;
}

/** Undefined for a header that this version did not write or that is damaged. */
function decodeHeader(bytes: Buffer): (Header & { version: number }) | undefined {
  const version = bytes.readUInt32LE(8);
  if (version !== FORMAT_VERSION && version !== FLAT_VERSION) return undefined;
  if (bytes.readUInt32LE(12) !== crc32(bytes.subarray(16, CHECKED_BYTES))) return undefined;
  const idLength = bytes.readUInt32LE(52);
  if (idLength < 1 || idLength > VOLUME_ID_BYTES_MAX) return undefined;
  return {
    version,
    bootId: bytes.toString('latin1', 16, 16 + BOOT_ID_BYTES),
    volumeId: bytes.toString('latin1', 72, 72 + idLength),
    generation: Number(bytes.readBigUInt64LE(56)),
    lengthBytes: Number(bytes.readBigUInt64LE(64)),
    instance: nameAt(bytes, INSTANCE_AT),
    supervisor: nameAt(bytes, SUPERVISOR_AT),
  };
}

/** Null: not known. */
function nameAt(bytes: Buffer, offsetBytes: number): string | null {
  return bytes.toString('latin1', offsetBytes, offsetBytes + NAME_BYTES_MAX).replace(/\0+$/, '') || null;
}

function foreign(request: ValidityFileRequest, reason: string): GodwitError {
  return new GodwitError(
    'VOLUME_VALIDITY_FOREIGN',
    `${request.path} is not the map of this clone: ${reason}`,
    {
      values: { path: request.path, volumeId: request.volumeId, generation: request.generation },
      nextAction: 'See who made the file; move it away if nobody needs it, then attach again.',
    },
  );
}

function corrupt(request: ValidityFileRequest, reason: string): GodwitError {
  return new GodwitError(
    'VOLUME_VALIDITY_CORRUPT',
    `the validity map ${request.path} is damaged: ${reason}`,
    {
      values: { path: request.path, volumeId: request.volumeId, generation: request.generation },
      nextAction:
        'Remove the file to go on with the bits of the last flush. While the machine runs that is a loss of data: stop it, godwit volume accept-loss, start it.',
    },
  );
}
