import { callError, libc } from './libc.ts';

const ioctlNumber = libc.func('ioctl', 'int', ['int', 'uint64_t', 'int64_t']);
const ioctlBuffer = libc.func('ioctl', 'int', ['int', 'uint64_t', 'void *']);

/**
 * ioctl(2). `request` is the number of the kernel header (the same on x86_64 and arm64); `argument` a plain
 * value, or the struct's bytes, which the kernel reads and changes in place. Returns what the call returned
 * (0 or more); failures are `SYS_CALL_FAILED`.
 */
export function ioctl(fd: number, request: number, argument: number | Uint8Array = 0): number {
  const result: number =
    typeof argument === 'number' ? ioctlNumber(fd, request, argument) : ioctlBuffer(fd, request, argument);
  if (result < 0) throw callError('ioctl', { request });
  return result;
}
