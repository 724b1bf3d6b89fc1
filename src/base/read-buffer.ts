import { Socket, type SocketConstructorOpts } from 'node:net';

/**
 * A socket that reads into buffers of our choice, on the connection of `accepted`. Node offers that for
 * connections that one makes (`onread` of net.connect), not for those that one accepts, so the handle moves
 * to a socket that is made so.
 */
export function withReadBuffer(
  accepted: Socket,
  next: () => Uint8Array,
  landed: (count: number, buffer: Uint8Array) => void,
  first: Uint8Array,
): Socket {
  const withHandle = accepted as unknown as { _handle: object | null };
  const handle = withHandle._handle;
  withHandle._handle = null;
  let current = first;
  const socket = new Socket({
    handle,
    onread: {
      buffer: () => {
        current = next();
        return current;
      },
      callback: (count: number) => {
        landed(count, current);
        return true;
      },
    },
  } as unknown as SocketConstructorOpts);
  // Without its handle it is only what the server counts.
  accepted.destroy();
  return socket;
}
