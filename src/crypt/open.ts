import type { BlockDevice } from '../block/block-device.ts';
import { WindowDevice } from '../block/window-device.ts';
import { corruptError } from './errors.ts';
import { luks2Geometry, plainLengthBytes } from './geometry.ts';
import { headerAreaBytes } from './header-backup.ts';
import type { Luks2Header } from './header-store.ts';
import { type HolePolicy, Luks2Device } from './luks2-device.ts';
import type { Secret } from './secret.ts';
import { createXts } from './xts.ts';

/**
 * The plaintext of a volume. `device` holds the ciphertext at the place that the header names: the volume
 * with its header before the data, or, with `detached`, only the data. The volume key is copied; it is the
 * one that `unlock` gave for this header.
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
