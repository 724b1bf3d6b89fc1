import type { Socket } from 'node:net';
import { libc } from './libc.ts';

const poll = libc.func('poll', 'int', ['void *', 'uint64_t', 'int']);

/** poll(2): the peer has closed its side, or at least its sending one; and what is always told. */
const POLLERR = 0x8;
const POLLHUP = 0x10;
const POLLRDHUP = 0x2000;

/**
 * Whether the other end of a connected socket has gone, or says nothing more: also where what it sent before
 * that has not been read yet. False for a socket that is closed here.
 */
export function hasHungUp(socket: Socket): boolean {
  const fd = (socket as unknown as { _handle: { fd?: number } | null })._handle?.fd;
  if (fd === undefined || fd < 0) return false;
  // struct pollfd: int fd; short events; short revents.
  const entry = Buffer.alloc(8);
  entry.writeInt32LE(fd, 0);
  entry.writeInt16LE(POLLRDHUP, 4);
  return poll(entry, 1, 0) > 0 && (entry.readInt16LE(6) & (POLLRDHUP | POLLHUP | POLLERR)) !== 0;
}
