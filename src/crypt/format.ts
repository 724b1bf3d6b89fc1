import { randomBytes, randomUUID } from 'node:crypto';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { BINARY_HEADER_BYTES, HEADER_SIZES } from './binary-header.ts';
import { geometryError } from './errors.ts';
import { type Luks2Header, readHeader } from './header-store.ts';
import type { JsonObject } from './json.ts';
import { deriveKey, type KdfLimits } from './kdf.ts';
import { addKey, DEFAULT_KDF, type KdfChoice } from './key-slots.ts';
import { CIPHER, parseMetadata } from './metadata.ts';
import { Secret } from './secret.ts';

export type FormatOptions = {
  /**
   * Where the ciphertext begins: 16 MiB as cryptsetup does, or 4 MiB. 0 for a detached header. Default 16
   * MiB.
   */
  dataOffsetBytes?: number;
  /**
   * 512, 1024, 2048 or 4096. Default 4096, which is the faster one; the length of the volume is a multiple of
   * it.
   */
  sectorBytes?: number;
  /** 32 (AES-128) or 64 (AES-256). Default 64. */
  keyBytes?: 32 | 64;
  /** Of one binary header with its JSON area, 16 KiB to 4 MiB, a power of two. Default 16 KiB. */
  headerBytes?: number;
  /** Space for key slots. Default: what is left before the data, or 16 MiB less the headers when detached. */
  slotsAreaBytes?: number;
  kdf?: KdfChoice;
  /** Default: random. */
  uuid?: string;
  label?: string;
  /** Formats over a header that is there. Its volume is lost. */
  overwrite?: boolean;
};

const DEFAULT_DATA_OFFSET_BYTES = 16 * 1024 * 1024;
/** LUKS2_MAX_KEYSLOTS_SIZE of cryptsetup. */
const MAX_SLOTS_AREA_BYTES = 128 * 1024 * 1024;
/**
 * The volume key has 256 random bits or more: no number of iterations adds to that. This is the least that
 * cryptsetup takes.
 */
const DIGEST_ITERATIONS = 1000;

/**
 * Makes a new volume key and a header with one slot for the passphrase. The data is not touched. The first
 * thing that makes the device a LUKS2 volume is the last thing written, so a crash leaves one that opens,
 * none, or half a header, which `overwrite` gets rid of.
 *
 * Rejects with `CRYPT_BAD_GEOMETRY`, and `CRYPT_NOT_BLANK` where there is a header already.
 */
export async function format(
  device: BlockDevice,
  passphrase: Secret,
  limits: KdfLimits,
  options: FormatOptions = {},
): Promise<{ header: Luks2Header; volumeKey: Secret }> {
  const { keyBytes = 64, headerBytes = 16 * 1024, dataOffsetBytes = DEFAULT_DATA_OFFSET_BYTES } = options;
  const slotsAreaBytes = options.slotsAreaBytes ?? defaultSlotsAreaBytes(headerBytes, dataOffsetBytes);
  const areaEndBytes = 2 * headerBytes + slotsAreaBytes;
  if (slotsAreaBytes <= 0 || slotsAreaBytes > MAX_SLOTS_AREA_BYTES || slotsAreaBytes % 4096 !== 0)
    throw geometryError('that is no space for key slots', { headerBytes, dataOffsetBytes, slotsAreaBytes });
  checkFormat(device, options, areaEndBytes);
  if (options.overwrite !== true) await checkBlank(device);

  const volumeKey = Secret.take(randomBytes(keyBytes));
  try {
    const json = await blankJson(volumeKey, headerBytes, slotsAreaBytes, options);
    const binary = {
      headerBytes,
      sequenceId: 0n,
      label: options.label ?? '',
      uuid: options.uuid ?? randomUUID(),
      subsystem: '',
    };
    const blank: Luks2Header = { binary, json, metadata: parseMetadata(json, headerBytes), damaged: null };
    await device.writeZeroes(0, areaEndBytes);
    await device.flush();
    const { header } = await addKey(
      device,
      blank,
      volumeKey,
      passphrase,
      limits,
      options.kdf ?? DEFAULT_KDF,
      0,
    );
    return { header, volumeKey };
  } catch (error) {
    volumeKey.dispose();
    throw error;
  }
}

function defaultSlotsAreaBytes(headerBytes: number, dataOffsetBytes: number): number {
  const spaceBytes = dataOffsetBytes === 0 ? DEFAULT_DATA_OFFSET_BYTES : dataOffsetBytes;
  return Math.min(spaceBytes - 2 * headerBytes, MAX_SLOTS_AREA_BYTES);
}

function checkFormat(device: BlockDevice, options: FormatOptions, areaEndBytes: number): void {
  const {
    dataOffsetBytes = DEFAULT_DATA_OFFSET_BYTES,
    sectorBytes = 4096,
    headerBytes = 16 * 1024,
  } = options;
  const values = {
    dataOffsetBytes,
    sectorBytes,
    headerBytes,
    areaEndBytes,
    deviceLengthBytes: device.lengthBytes,
  };
  if (!HEADER_SIZES.includes(headerBytes)) throw geometryError('a header of that size cannot be', values);
  if (![512, 1024, 2048, 4096].includes(sectorBytes))
    throw geometryError('sectors of that size cannot be', values);
  if (dataOffsetBytes % 4096 !== 0 || (dataOffsetBytes !== 0 && dataOffsetBytes < areaEndBytes))
    throw geometryError('the data would begin inside the header', values);
  if (areaEndBytes > device.lengthBytes || dataOffsetBytes > device.lengthBytes)
    throw geometryError('the device is too short for the header', values);
}

async function checkBlank(device: BlockDevice): Promise<void> {
  try {
    await readHeader(device);
  } catch (error) {
    if (isGodwitError(error, 'CRYPT_NOT_LUKS2')) return;
    // A damaged or foreign header is somebody's volume too.
    if (!isGodwitError(error, 'CRYPT_HEADER_CORRUPT') && !isGodwitError(error, 'CRYPT_UNSUPPORTED'))
      throw error;
  }
  throw new GodwitError('CRYPT_NOT_BLANK', 'there is a LUKS header on the device', {
    retry: 'never',
    nextAction: 'Look which volume it is; format over it only when its content may be lost.',
  });
}

async function blankJson(
  volumeKey: Secret,
  headerBytes: number,
  slotsAreaBytes: number,
  options: FormatOptions,
): Promise<JsonObject> {
  const salt = randomBytes(32);
  using digest = await deriveKey(
    { type: 'pbkdf2', hash: 'sha256', salt, iterations: DIGEST_ITERATIONS },
    volumeKey.bytes,
    32,
    { memoryKib: 0, memoryPassesKib: 0, lanes: 0, iterations: DIGEST_ITERATIONS },
  );
  return {
    keyslots: {},
    tokens: {},
    segments: {
      '0': {
        type: 'crypt',
        offset: `${options.dataOffsetBytes ?? DEFAULT_DATA_OFFSET_BYTES}`,
        size: 'dynamic',
        iv_tweak: '0',
        encryption: CIPHER,
        sector_size: options.sectorBytes ?? 4096,
      },
    },
    digests: {
      '0': {
        type: 'pbkdf2',
        keyslots: [],
        segments: ['0'],
        hash: 'sha256',
        iterations: DIGEST_ITERATIONS,
        salt: salt.toString('base64'),
        digest: digest.bytes.toString('base64'),
      },
    },
    config: { json_size: `${headerBytes - BINARY_HEADER_BYTES}`, keyslots_size: `${slotsAreaBytes}` },
  };
}
