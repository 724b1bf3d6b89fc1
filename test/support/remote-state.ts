import type { RemoteState } from '../../src/remote/remote-disk.ts';

/** Resolves when the remote disk is in the state. */
export function reached(
  disk: {
    readonly state: RemoteState;
    onStateChange: (listener: (state: RemoteState) => void) => () => void;
  },
  state: RemoteState,
): Promise<void> {
  return new Promise((resolve) => {
    if (disk.state === state) {
      resolve();
      return;
    }
    const unsubscribe = disk.onStateChange((now) => {
      if (now !== state) return;
      unsubscribe();
      resolve();
    });
  });
}
