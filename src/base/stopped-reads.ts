import type { Socket } from 'node:net';

type Handle = { reading: boolean; readStart: () => void; readStop: () => void };

function handleOf(socket: Socket): Handle | null {
  return (socket as unknown as { _handle: Handle | null })._handle;
}

/**
 * `socket.pause`, at once. A paused stream of Node reads on until 64 KiB have come together; over TLS each
 * record is a buffer of its own, and a peer that sends records of a byte makes that 64 Ki buffers, some 10
 * MiB. So the handle below it is stopped too, as Node itself does it where it reads into a buffer of ours.
 */
export function stopReading(socket: Socket): void {
  socket.pause();
  const handle = handleOf(socket);
  if (handle?.reading !== true) return;
  handle.reading = false;
  handle.readStop();
}

/** After `stopReading`. */
export function startReading(socket: Socket): void {
  const handle = handleOf(socket);
  if (handle?.reading === false) {
    handle.reading = true;
    handle.readStart();
  }
  socket.resume();
}
