import { rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { GodwitError } from '../base/errors.ts';
import { BLOCK_BYTES, type BlockDevice } from '../block/block-device.ts';
import { FileDevice } from '../block/file-device.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import type { CloneSource } from '../clone/fetcher.ts';
import { format } from '../crypt/format.ts';
import {
  assessGeometry,
  type HostCapabilities,
  type Luks2Geometry,
  luks2Geometry,
} from '../crypt/geometry.ts';
import { headerAreaBytes } from '../crypt/header-backup.ts';
import { type Luks2Header, readHeader, repairHeader } from '../crypt/header-store.ts';
import { DEFAULT_KDF_LIMITS } from '../crypt/kdf.ts';
import {
  ExecKeyProvider,
  FileKeyProvider,
  type KeyProvider,
  type KeyRequest,
} from '../crypt/key-provider.ts';
import { unlock } from '../crypt/key-slots.ts';
import type { HolePolicy, Luks2Device } from '../crypt/luks2-device.ts';
import { CIPHER } from '../crypt/metadata.ts';
import { openLuks2 } from '../crypt/open.ts';
import type { Secret } from '../crypt/secret.ts';
import { createXts } from '../crypt/xts.ts';
import type { BlockRun } from '../freemap/free-map.ts';
import type { EncryptionSpec, KeySource, OpeningSpec } from '../opening/spec.ts';
import { replaceFile } from '../sys/durable-file.ts';
import { DecryptedSource } from './decrypted-source.ts';
import { VOLUME_FILES } from './files.ts';
import { BINARY_AND_JSON_BYTES, HEADER_BYTES_MAX } from './header-size.ts';
import type { VolumeRecord } from './record.ts';
import { RekeyedFile } from './rekeyed-file.ts';

/**
 * Encrypted volumes of a worker. The LUKS2 header is a file of its own beside the data (a detached header, as
 * `cryptsetup --header` has it), so plaintext and ciphertext are as long, whatever the header's size: lengths
 * of records, exports and clones are the same for both kinds of volume. The header travels in the preparation
 * of a move, so that the target has opened it before anything stops.
 *
 * Sectors of 4096 bytes: the unit of validity of a clone, and the faster size. The loop device on top has
 * them too.
 */
export const ENCRYPTED_SECTOR_BYTES = 4096;

const PIECE_BYTES = 1024 * 1024;
const EXTENTS_AT_ONCE = 256;

export type UnlockedVolume = { header: Luks2Header; volumeKey: Secret };

function keyProvider(source: KeySource): KeyProvider {
  if (source.kind === 'file') return new FileKeyProvider(source.path);
  const [program, ...args] = source.argv;
  return new ExecKeyProvider({ argv: [program!, ...args] });
}

/**
 * The volume key of a volume in `volumeDir`, by its own header. Rejects with `VOLUME_WRONG_HEADER` when the
 * header is of another volume, and with the errors of the key provider, the header and its key slots.
 */
export async function unlockVolume(
  spec: Pick<OpeningSpec, 'volumeId' | 'generation' | 'volumeDir'> & {
    encryption: EncryptionSpec;
  },
): Promise<UnlockedVolume> {
  const { generation, volumeDir, encryption } = spec;
  const { uuid, keyGeneration, keys, keyVolumeId: volumeId = spec.volumeId } = encryption;
  return unlockFile(join(volumeDir, VOLUME_FILES.header), uuid, keys, {
    volumeId,
    generation,
    keyGeneration,
  });
}

/** As `unlockVolume`, for the source of a clone under another key: it was sealed one generation earlier. */
export async function unlockSource(
  spec: Parameters<typeof unlockVolume>[0],
  source: { uuid: string; keyGeneration: number; keyVolumeId?: string },
): Promise<UnlockedVolume> {
  const { generation, volumeDir, encryption } = spec;
  return unlockFile(join(volumeDir, VOLUME_FILES.sourceHeader), source.uuid, encryption.keys, {
    volumeId: source.keyVolumeId ?? spec.volumeId,
    generation: generation - 1,
    keyGeneration: source.keyGeneration,
  });
}

async function unlockFile(
  path: string,
  uuid: string,
  keys: KeySource,
  request: KeyRequest,
): Promise<UnlockedVolume> {
  const device = await openHeader(path);
  try {
    const header = await readHeader(device);
    if (header.binary.uuid !== uuid)
      throw wrongHeaderError(request.volumeId, [`its uuid is ${header.binary.uuid}`]);
    await repairHeader(device, header);
    using passphrase = await keyProvider(keys).keyOf(request);
    const { volumeKey } = await unlock(device, header, passphrase, DEFAULT_KDF_LIMITS);
    return { header, volumeKey };
  } finally {
    await device.close();
  }
}

/**
 * The plaintext of `device`. By default both discards and zeroes leave holes: a volume stays as sparse as its
 * owner makes it.
 */
export function plaintextOf(
  device: BlockDevice,
  { header, volumeKey }: UnlockedVolume,
  holes: HolePolicy = 'all',
): Luks2Device {
  return openLuks2(device, header, volumeKey, { detached: true, holes });
}

/** The plaintext of the source of a clone under another key. */
export function plaintextOfSource(
  source: CloneSource,
  { header, volumeKey }: UnlockedVolume,
): DecryptedSource {
  const { segment } = header.metadata;
  return new DecryptedSource(source, {
    cipher: createXts(volumeKey.bytes, segment.sectorBytes),
    tweakOffset: segment.tweakOffset,
  });
}

/** The plaintext of the data file of a clone under another key than its source. */
export function rekeyedFile(
  device: BlockDevice,
  { header, volumeKey }: UnlockedVolume,
  source: DecryptedSource,
  holes: HolePolicy = 'all',
): RekeyedFile {
  const { segment } = header.metadata;
  return new RekeyedFile(device, source, {
    cipher: createXts(volumeKey.bytes, segment.sectorBytes),
    tweakOffset: segment.tweakOffset,
    holes,
  });
}

/**
 * Makes the header and the ciphertext of a new volume in a folder that nobody sees yet. `fill` makes the
 * plaintext in a sparse file beside it: an empty filesystem, nothing that is secret. With `dmCrypt` what the
 * filesystem uses of its holes is written, as encrypted zeros. Answers what belongs into the record.
 */
export async function encryptNew(
  folder: string,
  record: VolumeRecord,
  options: {
    keys: KeySource;
    headerFileBytes: number;
    fill: (path: string) => Promise<void>;
    dmCrypt?: boolean;
  },
): Promise<NonNullable<VolumeRecord['encryption']>> {
  const { id: volumeId, generation, lengthBytes } = record;
  using passphrase = await keyProvider(options.keys).newKeyOf({ volumeId, generation, keyGeneration: 1 });
  const headerFile = await createHeader(folder, options.headerFileBytes);
  const plainPath = join(folder, 'plain.new');
  const plain = await FileDevice.create(plainPath, { lengthBytes });
  let target: Luks2Device | undefined;
  try {
    const { header, volumeKey } = await formatHeader(headerFile, passphrase, volumeId);
    using key = volumeKey;
    await options.fill(plainPath);
    const data = await FileDevice.open({ file: join(folder, VOLUME_FILES.data), lengthBytes });
    target = plaintextOf(data, { header, volumeKey: key }, options.dmCrypt ? 'none' : 'all');
    await copyData(plain, target, options.dmCrypt ? await unusedRuns(plain, record.filesystem) : null);
    await target.flush();
    return { uuid: header.binary.uuid, ...(options.dmCrypt && { holes: 'none' }) };
  } finally {
    await target?.close();
    await plain.close();
    await headerFile.close();
    await rm(plainPath, { force: true });
  }
}

/**
 * The header of an incoming volume that moves to another key, and that of its source beside it, in a folder
 * that nobody sees yet. Proves on the way that this worker gets the key of the source and that it opens the
 * source's header. Answers what belongs into the record.
 *
 * Rejects with `CRYPT_KEY_NOT_NEW` when the provider gives the same key again, with its own errors, and with
 * those of the header and its key slots.
 */
export async function rekeyIncoming(
  folder: string,
  record: Pick<VolumeRecord, 'id' | 'generation'>,
  options: {
    keys: KeySource;
    headerFileBytes: number;
    source: {
      uuid: string;
      keyGeneration: number;
      keyVolumeId?: string;
      header: Buffer;
      holes?: 'none';
    };
  },
): Promise<NonNullable<VolumeRecord['encryption']>> {
  const { id: volumeId, generation } = record;
  const { uuid, keyGeneration, keyVolumeId, header: bytes, holes } = options.source;
  const provider = keyProvider(options.keys);
  using oldPassphrase = await provider.keyOf({
    volumeId: keyVolumeId ?? volumeId,
    generation: generation - 1,
    keyGeneration,
  });
  const old = new MemoryDevice({ lengthBytes: bytes.length, content: bytes, writable: false });
  const { volumeKey: oldKey } = await unlock(old, await readHeader(old), oldPassphrase, DEFAULT_KDF_LIMITS);
  oldKey.dispose();
  using passphrase = await provider.newKeyOf({ volumeId, generation, keyGeneration: generation });
  if (passphrase.bytes.equals(oldPassphrase.bytes)) throw keyNotNewError(volumeId, generation);
  const headerFile = await createHeader(folder, options.headerFileBytes);
  try {
    const { header, volumeKey } = await formatHeader(headerFile, passphrase, volumeId);
    volumeKey.dispose();
    await replaceFile(join(folder, VOLUME_FILES.sourceHeader), bytes);
    return {
      uuid: header.binary.uuid,
      keyGeneration: generation,
      ...(holes && { holes }),
      source: { uuid, keyGeneration, ...(keyVolumeId !== undefined && { keyVolumeId }) },
    };
  } finally {
    await headerFile.close();
  }
}

function createHeader(folder: string, lengthBytes: number): Promise<FileDevice> {
  return FileDevice.create(join(folder, VOLUME_FILES.header), { lengthBytes });
}

function formatHeader(
  device: FileDevice,
  passphrase: Secret,
  volumeId: string,
): Promise<{ header: Luks2Header; volumeKey: Secret }> {
  return format(device, passphrase, DEFAULT_KDF_LIMITS, {
    headerBytes: BINARY_AND_JSON_BYTES,
    slotsAreaBytes: device.lengthBytes - 2 * BINARY_AND_JSON_BYTES,
    dataOffsetBytes: 0,
    sectorBytes: ENCRYPTED_SECTOR_BYTES,
    label: volumeId,
  });
}

/**
 * Header and key slots of a volume, for the target of a move. Nobody opens the volume with it without its
 * passphrase.
 */
export async function readHeaderFile(volumeDir: string): Promise<Buffer> {
  const device = await openHeader(join(volumeDir, VOLUME_FILES.header));
  try {
    const bytes = Buffer.alloc(device.lengthBytes);
    await device.read(0, bytes);
    return bytes;
  } finally {
    await device.close();
  }
}

/**
 * What a move tells other workers of the volume before anything stops. Rejects with `VOLUME_WRONG_HEADER` and
 * the errors of the header.
 */
export async function readGeometry(volumeDir: string): Promise<Luks2Geometry> {
  const device = await openHeader(join(volumeDir, VOLUME_FILES.header));
  try {
    return luks2Geometry(await readHeader(device));
  } finally {
    await device.close();
  }
}

/** What this host could open: a KDF may take no more memory than there is. */
export function encryptionCapabilities(freeMemoryBytes = Number.POSITIVE_INFINITY): HostCapabilities {
  const memoryKib = Math.min(DEFAULT_KDF_LIMITS.memoryKib, Math.floor(freeMemoryBytes / 1024));
  return {
    ciphers: [CIPHER],
    maxSectorBytes: ENCRYPTED_SECTOR_BYTES,
    kdfLimits: { ...DEFAULT_KDF_LIMITS, memoryKib },
  };
}

/**
 * Rejects with `VOLUME_WRONG_HEADER`, which names every reason, when this host could not open the volume with
 * that header; with the errors of the header when it is none.
 */
export async function checkHeader(
  header: Buffer,
  volume: { volumeId: string; uuid: string; lengthBytes: number },
): Promise<void> {
  const { volumeId, uuid, lengthBytes } = volume;
  const device = new MemoryDevice({ lengthBytes: header.length, content: header, writable: false });
  const found = await readHeader(device);
  const problems = assessGeometry(luks2Geometry(found), encryptionCapabilities(), {
    uuid,
    plainLengthBytes: lengthBytes,
    deviceLengthBytes: lengthBytes,
  }).map(({ what, message }) => `${what}: ${message}`);
  if (headerAreaBytes(found) > header.length) problems.push('it is cut short');
  if (problems.length > 0) throw wrongHeaderError(volumeId, problems);
}

async function openHeader(path: string): Promise<FileDevice> {
  const { size } = await stat(path).catch(() => ({ size: 0 }));
  if (size === 0 || size > HEADER_BYTES_MAX || size % 512 !== 0)
    throw wrongHeaderError(path, [size === 0 ? 'there is none' : `it has ${size} bytes`]);
  return FileDevice.open({ file: path, lengthBytes: size });
}

/**
 * What the filesystem does not use: nobody will ever ask what is there. Nothing where that cannot be told.
 */
async function unusedRuns(plain: FileDevice, filesystem: VolumeRecord['filesystem']): Promise<BlockRun[]> {
  if (filesystem === 'none') return [];
  // Volume servers do without this code and its memory.
  const { FreeMapReader } = await import('../freemap/free-map-reader.ts');
  const result = await new FreeMapReader(plain, filesystem).finish();
  return result.kind === 'map' ? [...result.map.runs()] : [];
}

/**
 * Copies what `from` holds; with `unused`, which ascends, zeros too where it has holes that are not in there.
 * In one pass: blocks that are reserved and not written turn from hole to data when somebody reads them into
 * the page cache.
 */
async function copyData(
  from: FileDevice,
  to: BlockDevice,
  unused: readonly BlockRun[] | null,
): Promise<void> {
  const buffer = new Uint8Array(PIECE_BYTES);
  for (let at = 0; at < from.lengthBytes; ) {
    for (const extent of await from.extents(at, from.lengthBytes - at, EXTENTS_AT_ONCE)) {
      const end = extent.offsetBytes + extent.lengthBytes;
      at = end;
      if (extent.kind === 'hole') {
        // A sector that is a hole in part is copied whole.
        const holeEnd = end - (end % ENCRYPTED_SECTOR_BYTES);
        if (unused !== null) await writeUsedZeros(to, wholeSectors(extent.offsetBytes), holeEnd, unused);
        continue;
      }
      // Whole sectors: a filesystem of the host may have smaller blocks than we encrypt.
      const start = extent.offsetBytes - (extent.offsetBytes % ENCRYPTED_SECTOR_BYTES);
      for (let piece = start; piece < end; piece += PIECE_BYTES) {
        const bytes = buffer.subarray(0, wholeSectors(Math.min(PIECE_BYTES, end - piece)));
        await from.read(piece, bytes);
        await to.write(piece, bytes);
      }
    }
  }
}

async function writeUsedZeros(
  to: BlockDevice,
  startBytes: number,
  endBytes: number,
  unused: readonly BlockRun[],
): Promise<void> {
  let at = startBytes;
  for (const { first, end } of unused) {
    if (at >= endBytes) return;
    if (end * BLOCK_BYTES <= at) continue;
    const usedEnd = Math.min(endBytes, first * BLOCK_BYTES);
    if (at < usedEnd) await to.writeZeroes(at, usedEnd - at);
    at = end * BLOCK_BYTES;
  }
  if (at < endBytes) await to.writeZeroes(at, endBytes - at);
}

function wholeSectors(bytes: number): number {
  return Math.ceil(bytes / ENCRYPTED_SECTOR_BYTES) * ENCRYPTED_SECTOR_BYTES;
}

function keyNotNewError(volumeId: string, generation: number): GodwitError {
  return new GodwitError('CRYPT_KEY_NOT_NEW', `the new key of volume ${volumeId} is the one that it has`, {
    values: { volumeId, generation },
    retry: 'never',
    nextAction:
      'What gives the keys must give another one for another GODWIT_KEY_GENERATION (docs/encryption.md); or move without --rekey.',
  });
}

function wrongHeaderError(volumeId: string, problems: string[]): GodwitError {
  return new GodwitError(
    'VOLUME_WRONG_HEADER',
    `the LUKS2 header of ${volumeId} does not do here: ${problems.join('; ')}`,
    {
      values: { volumeId, problems: problems.join('; ') },
      retry: 'never',
      nextAction: 'Nothing was changed. Take another target, or restore the header from a backup.',
    },
  );
}
