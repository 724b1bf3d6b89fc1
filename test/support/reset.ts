import type { Socket } from 'node:net';

/**
 * Ends a connection with an RST. One whose own side has ended is only destroyed: libuv does not reset it
 * (uv_tcp_close_reset answers EINVAL), and Node then takes the handle for closed, which leaks it and keeps
 * the process from exiting.
 */
export function reset(socket: Socket): void {
  if (socket.writableEnded) socket.destroy();
  else socket.resetAndDestroy();
}
