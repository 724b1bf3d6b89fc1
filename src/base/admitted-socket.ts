import type { Socket } from 'node:net';
import type { Doorkeeper, Guest, Stay } from './doorkeeper.ts';

/**
 * `Doorkeeper.come` for a connection that was accepted paused (`pauseOnConnect`): while it waits nothing is
 * read of it, and when it goes it is forgotten. False: too many wait, and it is closed. `guest.turnOut`
 * closes the socket when it waits.
 */
export function admitSocket(
  doorkeeper: Doorkeeper,
  socket: Socket,
  guest: Guest,
  enter: (stay: Stay) => void,
): boolean {
  const onError = () => socket.destroy();
  const onClose = () => stay?.end();
  const stay = doorkeeper.come(guest, (entered) => {
    socket.off('error', onError);
    socket.off('close', onClose);
    enter(entered);
  });
  if (stay === null) {
    socket.destroy();
    return false;
  }
  if (stay.state === 'waits') {
    socket.on('error', onError);
    socket.once('close', onClose);
  }
  return true;
}
