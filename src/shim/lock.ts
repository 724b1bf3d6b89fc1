import { createHash } from 'node:crypto';
import { connect } from 'node:net';

/** The abstract unix socket (unix(7)) that a shim listens on for as long as it lives, before all else. */
export function shimLockName(runtimeDir: string): string {
  return `\0godwit-shim-${createHash('sha256').update(runtimeDir).digest('hex').slice(0, 32)}`;
}

/** Whether a shim of this folder lives, also one that has not written anything yet. */
export function isShimLocked(runtimeDir: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ path: shimLockName(runtimeDir) });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}
