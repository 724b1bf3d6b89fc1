import { constants } from 'node:os';
import koffi from 'koffi';
import { type ErrorValues, GodwitError, systemErrorCode } from '../base/errors.ts';

/**
 * The C library that this process already has: the few system calls that Node lacks go through it. Declared
 * for 64-bit Linux (x86_64 and arm64), where `off_t`, `size_t`, `long` and pointers are 64 bits and variadic
 * functions take integers the same way as others (System V AMD64 ABI 3.5.7; AAPCS64 on Linux).
 */
export const libc = koffi.load(null);

export type NativeFunction = ReturnType<typeof libc.func>;

/**
 * Those of Linux that Node has no name for (asm-generic/errno.h). EUCLEAN is what a mount of a damaged
 * filesystem says.
 */
const nameByErrno = new Map<number, string>([
  [117, 'EUCLEAN'],
  [121, 'EREMOTEIO'],
  [123, 'ENOMEDIUM'],
  [124, 'EMEDIUMTYPE'],
  [126, 'ENOKEY'],
  [129, 'EKEYREJECTED'],
  [133, 'EHWPOISON'],
]);
for (const [name, errno] of Object.entries(constants.errno)) {
  // Two names of one number (EAGAIN and EWOULDBLOCK, ENOTSUP and EOPNOTSUPP): the first one, as Node's own
  // errors say.
  if (!nameByErrno.has(errno)) nameByErrno.set(errno, name);
}

/** `ENOSPC` for 28. Numbers without a name come as `E28`. */
export function errnoName(errno: number): string {
  return nameByErrno.get(errno) ?? `E${errno}`;
}

/**
 * errno of the last call through `libc` on this thread that failed; in the callback of an asynchronous call:
 * of that one.
 */
export function lastErrno(): number {
  return koffi.errno();
}

/** `SYS_CALL_FAILED` for the last call on this thread; `errno` in its values is the name. */
export function callError(call: string, values: ErrorValues = {}, errno: number = lastErrno()): GodwitError {
  const name = errnoName(errno);
  return new GodwitError('SYS_CALL_FAILED', `${call} failed with ${name}`, {
    values: { call, errno: name, ...values },
    nextAction: `The kernel refused; the manual page of ${call} says what ${name} means for it.`,
  });
}

/** The errno name of a failed system call, made here or by Node; else undefined. */
export function errnoOf(error: unknown): string | undefined {
  if (error instanceof GodwitError) {
    return typeof error.values.errno === 'string' ? error.values.errno : undefined;
  }
  return systemErrorCode(error);
}

/**
 * Runs a call that returns 0 or -1 in the thread pool. Rejects with `SYS_CALL_FAILED`; repeats what a signal
 * interrupted.
 */
export function callAsync(
  call: string,
  native: NativeFunction,
  args: readonly (number | bigint | string | null)[],
  values: ErrorValues = {},
): Promise<void> {
  return new Promise((resolve, reject) => {
    const start = () => {
      native.async(...args, (error: Error | null, result: number) => {
        if (error) return reject(error);
        if (result === 0) return resolve();
        const errno = lastErrno();
        if (errno === constants.errno.EINTR) start();
        else reject(callError(call, values, errno));
      });
    };
    start();
  });
}
