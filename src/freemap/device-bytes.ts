import type { BlockDevice } from '../block/block-device.ts';
import { noMap } from './errors.ts';

/**
 * Reads any bytes of a device, whatever its blocks are. The result is a view of its own buffer. Error:
 * `FREEMAP_CORRUPT` outside of it.
 */
export async function readBytes(
  device: BlockDevice,
  offsetBytes: number,
  lengthBytes: number,
): Promise<Buffer> {
  const { blockBytes } = device;
  const endBytes = offsetBytes + lengthBytes;
  const start = Math.floor(offsetBytes / blockBytes) * blockBytes;
  const end = Math.ceil(endBytes / blockBytes) * blockBytes;
  if (offsetBytes < 0 || end > device.lengthBytes) {
    throw noMap('FREEMAP_CORRUPT', 'the filesystem points outside of the volume', {
      offsetBytes,
      lengthBytes,
    });
  }
  const buffer = Buffer.alloc(end - start);
  await device.read(start, buffer);
  return buffer.subarray(offsetBytes - start, endBytes - start);
}
