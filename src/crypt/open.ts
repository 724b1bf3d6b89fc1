import type { BlockDevice } from '../block/block-device.ts';
import { WindowDevice } from '../block/window-device.ts';
import { corruptError, geometryError } from './errors.ts';
import { type Luks2Geometry, luks2Geometry, plainLengthBytes } from './geometry.ts';
import { headerAreaBytes } from './header-backup.ts';
import type { Luks2Header } from './header-store.ts';
import { type HolePolicy, Luks2Device } from './luks2-device.ts';
import type { Secret } from './secret.ts';
import { createXts } from './xts.ts';

/**
 * The plaintext of a volume. `device` holds the ciphertext at the place that the header names: the volume with its header before the data, or,
 * with `detached`, only the data. The volume key is copied; it is the one that `unlock` gave for this header.
 *
 * Throws `CRYPT_HEADER_CORRUPT` when the data would overlap an attached header, and `CRYPT_BAD_GEOMETRY`.
 */
export function openLuks2(
  device: BlockDevice,
  header: Luks2Header,
  volumeKey: Secret,
  options: { holes?: HolePolicy; detached?: boolean } = {},
): Luks2Device {
  const { segment } = header.metadata;
  if (options.detached !== true && segment.offsetBytes < headerAreaBytes(header))
    throw corruptError('segment 0 offset', 'the data begins inside the header');
  const lengthBytes = plainLengthBytes(luks2Geometry(header), device.lengthBytes);
  const cipher = createXts(volumeKey.bytes, segment.sectorBytes);
  try {
    return new Luks2Device(new WindowDevice(device, segment.offsetBytes, lengthBytes), {
      cipher,
      tweakOffset: segment.tweakOffset,
      ...(options.holes !== undefined && { holes: options.holes }),
    });
  } catch (error) {
    cipher.dispose();
    throw error;
  }
}

/**
 * Length of the device that a move with another key needs, so that the plaintext is exactly as long as at the source, whatever header is before it. Throws
 * `CRYPT_BAD_GEOMETRY` when the sectors of the target do not divide it.
 */
export function rekeyedDeviceLengthBytes(
  source: Luks2Geometry,
  sourceDeviceLengthBytes: number,
  target: { dataOffsetBytes: number; sectorBytes: number },
): number {
  const lengthBytes = plainLengthBytes(source, sourceDeviceLengthBytes);
  if (lengthBytes % target.sectorBytes !== 0) {
    throw geometryError('the plaintext is not whole sectors of the target', {
      plainLengthBytes: lengthBytes,
      sectorBytes: target.sectorBytes,
    });
  }
  return target.dataOffsetBytes + lengthBytes;
}

/** One side of a move with another key. */
export type EncryptedSide = { device: BlockDevice; header: Luks2Header; volumeKey: Secret };

/**
 * The two plaintexts of a move with another key: `source` reads ciphertext of the old key, `target` writes it under the new one, behind a header of its own size. A clone from
 * the first to the second hydrates through decrypt and encrypt. Both are as long, else `CRYPT_BAD_GEOMETRY`.
 */
export function openRekey(
  source: EncryptedSide,
  target: EncryptedSide,
  options: { holes?: HolePolicy } = {},
): { source: Luks2Device; target: Luks2Device } {
  const [sourceBytes, targetBytes] = [source, target].map(({ header, device }) =>
    plainLengthBytes(luks2Geometry(header), device.lengthBytes),
  );
  if (sourceBytes !== targetBytes)
    throw geometryError('source and target would not be as long', {
      sourceBytes: sourceBytes!,
      targetBytes: targetBytes!,
    });
  return {
    source: openLuks2(source.device, source.header, source.volumeKey),
    target: openLuks2(target.device, target.header, target.volumeKey, options),
  };
}
