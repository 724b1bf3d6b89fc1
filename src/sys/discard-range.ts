import { ioctl } from './ioctl.ts';

/** include/uapi/linux/fs.h: _IO(0x12, 119). */
const BLKDISCARD = 0x1277;

/**
 * Tells a block device that a range is not used any more. Offsets and lengths in bytes, whole sectors. Waits for the device. `SYS_CALL_FAILED`, with
 * ENOTSUP where the device cannot do it.
 */
export function discardRangeNow(fd: number, offsetBytes: number, lengthBytes: number): void {
  const range = new BigUint64Array([BigInt(offsetBytes), BigInt(lengthBytes)]);
  ioctl(fd, BLKDISCARD, new Uint8Array(range.buffer));
}
