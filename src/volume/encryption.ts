import { rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { KeySource, VolumeServerSpec } from '../attach/server-spec.ts';
import { GodwitError } from '../base/errors.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { FileDevice } from '../block/file-device.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { format } from '../crypt/format.ts';
import { assessGeometry, luks2Geometry } from '../crypt/geometry.ts';
import { headerAreaBytes } from '../crypt/header-backup.ts';
import { type Luks2Header, readHeader, repairHeader } from '../crypt/header-store.ts';
import { DEFAULT_KDF_LIMITS } from '../crypt/kdf.ts';
import { ExecKeyProvider, FileKeyProvider, type KeyProvider } from '../crypt/key-provider.ts';
import { unlock } from '../crypt/key-slots.ts';
import type { Luks2Device } from '../crypt/luks2-device.ts';
import { CIPHER } from '../crypt/metadata.ts';
import { openLuks2 } from '../crypt/open.ts';
import type { Secret } from '../crypt/secret.ts';
import { VOLUME_FILES } from './files.ts';
import type { VolumeRecord } from './record.ts';

/**
 * Encrypted volumes of a worker. The LUKS2 header is a file of its own beside the data (a detached header, as `cryptsetup --header` has it), so
 * plaintext and ciphertext are as long, whatever the header's size: lengths of records, exports and clones are the same for both kinds of
 * volume. The header travels in the preparation of a move, so that the target has opened it before anything stops.
 *
 * Sectors of 4096 bytes: the unit of validity of a clone, and the faster size. The loop device on top has them too.
 */
export const ENCRYPTED_SECTOR_BYTES = 4096;

/** Two key slots: one in use, one for a change of the key. 16 KiB each for the headers, 252 KiB for a slot. */
const HEADER_FILE = { headerBytes: 16 * 1024, slotsAreaBytes: 2 * 258_048 };
const HEADER_FILE_BYTES = 2 * HEADER_FILE.headerBytes + HEADER_FILE.slotsAreaBytes;
/** A header of foreign making: cryptsetup's default, and no more. */
export const HEADER_BYTES_MAX = 16 * 1024 * 1024;
const PIECE_BYTES = 1024 * 1024;
const EXTENTS_AT_ONCE = 256;

export type UnlockedVolume = { header: Luks2Header; volumeKey: Secret };

export function keyProvider(source: KeySource): KeyProvider {
  if (source.kind === 'file') return new FileKeyProvider(source.path);
  const [program, ...args] = source.argv;
  return new ExecKeyProvider({ argv: [program!, ...args] });
}

/**
 * The volume key of a volume in `volumeDir`. Rejects with `VOLUME_WRONG_HEADER` when the header is of another volume, and with the errors of the key
 * provider, the header and its key slots.
 */
export async function unlockVolume(
  spec: Pick<VolumeServerSpec, 'volumeId' | 'generation' | 'volumeDir'> & {
    encryption: NonNullable<VolumeServerSpec['encryption']>;
  },
): Promise<UnlockedVolume> {
  const { volumeId, generation, encryption } = spec;
  const device = await openHeader(spec.volumeDir);
  try {
    const header = await readHeader(device);
    if (header.binary.uuid !== encryption.uuid)
      throw wrongHeaderError(volumeId, [`its uuid is ${header.binary.uuid}`]);
    await repairHeader(device, header);
    using passphrase = await keyProvider(encryption.keys).keyOf({ volumeId, generation });
    const { volumeKey } = await unlock(device, header, passphrase, DEFAULT_KDF_LIMITS);
    return { header, volumeKey };
  } finally {
    await device.close();
  }
}

/** The plaintext of `device`. Both kinds of calls leave holes: a volume stays as sparse as its owner makes it. */
export function plaintextOf(device: BlockDevice, unlocked: UnlockedVolume): Luks2Device {
  return openLuks2(device, unlocked.header, unlocked.volumeKey, { detached: true, holes: 'all' });
}

/**
 * Makes the header and the ciphertext of a new volume in a folder that nobody sees yet. `fill` makes the plaintext in a sparse file beside it: an empty
 * filesystem, nothing that is secret. Answers what belongs into the record.
 */
export async function encryptNew(
  folder: string,
  record: VolumeRecord,
  keys: KeySource,
  fill: (path: string) => Promise<void>,
): Promise<NonNullable<VolumeRecord['encryption']>> {
  const { id: volumeId, generation, lengthBytes } = record;
  using passphrase = await keyProvider(keys).keyOf({ volumeId, generation });
  const headerFile = await FileDevice.create(join(folder, VOLUME_FILES.header), {
    lengthBytes: HEADER_FILE_BYTES,
  });
  const plainPath = join(folder, 'plain.new');
  const plain = await FileDevice.create(plainPath, { lengthBytes });
  let target: Luks2Device | undefined;
  try {
    const { header, volumeKey } = await format(headerFile, passphrase, DEFAULT_KDF_LIMITS, {
      ...HEADER_FILE,
      dataOffsetBytes: 0,
      sectorBytes: ENCRYPTED_SECTOR_BYTES,
      label: volumeId,
    });
    using key = volumeKey;
    await fill(plainPath);
    const data = await FileDevice.open({ file: join(folder, VOLUME_FILES.data), lengthBytes });
    target = plaintextOf(data, { header, volumeKey: key });
    await copyData(plain, target);
    await target.flush();
    return { uuid: header.binary.uuid };
  } finally {
    await target?.close();
    await plain.close();
    await headerFile.close();
    await rm(plainPath, { force: true });
  }
}

/** Header and key slots of a volume, for the target of a move. Nobody opens the volume with it without its passphrase. */
export async function readHeaderFile(volumeDir: string): Promise<Buffer> {
  const device = await openHeader(volumeDir);
  try {
    const bytes = Buffer.alloc(device.lengthBytes);
    await device.read(0, bytes);
    return bytes;
  } finally {
    await device.close();
  }
}

/**
 * Rejects with `VOLUME_WRONG_HEADER`, which names every reason, when this host could not open the volume with that header; with the errors of the header
 * when it is none.
 */
export async function checkHeader(
  header: Buffer,
  volume: { volumeId: string; uuid: string; lengthBytes: number },
): Promise<void> {
  const { volumeId, uuid, lengthBytes } = volume;
  const device = new MemoryDevice({ lengthBytes: header.length, content: header, writable: false });
  const found = await readHeader(device);
  const problems = assessGeometry(
    luks2Geometry(found),
    { ciphers: [CIPHER], maxSectorBytes: ENCRYPTED_SECTOR_BYTES, kdfLimits: DEFAULT_KDF_LIMITS },
    { uuid, plainLengthBytes: lengthBytes, deviceLengthBytes: lengthBytes },
  ).map(({ what, message }) => `${what}: ${message}`);
  if (headerAreaBytes(found) > header.length) problems.push('it is cut short');
  if (problems.length > 0) throw wrongHeaderError(volumeId, problems);
}

async function openHeader(volumeDir: string): Promise<FileDevice> {
  const path = join(volumeDir, VOLUME_FILES.header);
  const { size } = await stat(path).catch(() => ({ size: 0 }));
  if (size === 0 || size > HEADER_BYTES_MAX || size % 512 !== 0)
    throw wrongHeaderError(path, [size === 0 ? 'there is none' : `it has ${size} bytes`]);
  return FileDevice.open({ file: path, lengthBytes: size });
}

async function copyData(from: FileDevice, to: BlockDevice): Promise<void> {
  const buffer = new Uint8Array(PIECE_BYTES);
  for (let at = 0; at < from.lengthBytes; ) {
    for (const extent of await from.extents(at, from.lengthBytes - at, EXTENTS_AT_ONCE)) {
      const end = extent.offsetBytes + extent.lengthBytes;
      at = end;
      if (extent.kind === 'hole') continue;
      // Whole sectors: a filesystem of the host may have smaller blocks than we encrypt.
      const start = extent.offsetBytes - (extent.offsetBytes % ENCRYPTED_SECTOR_BYTES);
      for (let piece = start; piece < end; piece += PIECE_BYTES) {
        const wanted = Math.min(PIECE_BYTES, end - piece);
        const bytes = buffer.subarray(0, Math.ceil(wanted / ENCRYPTED_SECTOR_BYTES) * ENCRYPTED_SECTOR_BYTES);
        await from.read(piece, bytes);
        await to.write(piece, bytes);
      }
    }
  }
}

function wrongHeaderError(volumeId: string, problems: string[]): GodwitError {
  return new GodwitError(
    'VOLUME_WRONG_HEADER',
    `the LUKS2 header of ${volumeId} does not do here: ${problems.join('; ')}`,
    {
      values: { volumeId, problems: problems.join('; ') },
      nextAction: 'Nothing was changed. Take another target, or restore the header from a backup.',
    },
  );
}
