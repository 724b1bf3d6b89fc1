import type { Clock } from '../base/clock.ts';

/** True when the promise settled, in whatever way, before the time was up. */
export function within(clock: Clock, timeoutMs: number, promise: Promise<unknown>): Promise<boolean> {
  return new Promise((resolve) => {
    const cancel = clock.timer(timeoutMs, () => resolve(false));
    const settled = () => {
      cancel();
      resolve(true);
    };
    promise.then(settled, settled);
  });
}
