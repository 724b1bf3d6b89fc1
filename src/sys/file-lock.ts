import { constants } from 'node:os';
import { GodwitError } from '../base/errors.ts';
import { callError, lastErrno, libc } from './libc.ts';

const flock = libc.func('flock', 'int', ['int', 'int']);

/** include/uapi/asm-generic/fcntl.h */
const LOCK_EX = 2;
const LOCK_NB = 4;
const LOCK_UN = 8;

/**
 * Takes the exclusive flock(2) of an open file without waiting. It belongs to the open file description:
 * children that inherit the descriptor share it, another open() of the same file, in the same process too,
 * does not; it goes when the last descriptor is closed. Throws `SYS_LOCKED` when another holds it.
 */
export function lockExclusive(fd: number): void {
  if (flock(fd, LOCK_EX | LOCK_NB) === 0) return;
  const errno = lastErrno();
  if (errno !== constants.errno.EWOULDBLOCK) throw callError('flock', {}, errno);
  throw new GodwitError('SYS_LOCKED', 'another process holds the lock of this file', {
    nextAction: 'Find who has it with lslocks; one volume has one server at a time.',
  });
}

/** Idempotent. */
export function unlock(fd: number): void {
  if (flock(fd, LOCK_UN) !== 0) throw callError('flock');
}
