import type { Socket } from 'node:net';

/**
 * Bytes that the kernel took of what was written to a socket, also of a write that is not through: Node tells
 * only of whole ones, and one of 32 MiB may take minutes on a slow line. `whole` is the figure for a socket
 * that is gone.
 */
export function takenBytes(socket: Socket, whole: number): number {
  const { _handle: handle } = socket as unknown as {
    _handle?: { bytesWritten?: number; writeQueueSize?: number } | null;
  };
  if (handle?.bytesWritten === undefined) return whole;
  return handle.bytesWritten - (handle.writeQueueSize ?? 0);
}
