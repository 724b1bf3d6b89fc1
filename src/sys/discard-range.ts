import { callError, libc } from './libc.ts';

/** include/uapi/linux/fs.h: _IO(0x12, 119). */
const BLKDISCARD = 0x1277;

const ioctl = libc.func('ioctl', 'int', ['int', 'uint64_t', 'void *']);

/**
 * Tells a block device that a range is not used any more. Offsets and lengths in bytes, whole sectors. In the
 * thread pool, because the device may take its time. Rejects `SYS_CALL_FAILED`, with ENOTSUP where the device
 * cannot do it.
 */
export function discardRange(fd: number, offsetBytes: number, lengthBytes: number): Promise<void> {
  const range = new BigUint64Array([BigInt(offsetBytes), BigInt(lengthBytes)]);
  return new Promise((resolve, reject) => {
    ioctl.async(fd, BLKDISCARD, range, (error: Error | null, result: number) => {
      if (error) reject(error);
      else if (result !== 0) reject(callError('ioctl', { request: BLKDISCARD, offsetBytes, lengthBytes }));
      else resolve();
    });
  });
}
