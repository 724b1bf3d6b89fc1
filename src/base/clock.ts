/** Time comes in by constructor, so that a simulator can own it. */
export interface Clock {
  /** Milliseconds since the Unix epoch. For records and people, never for durations. */
  wallMs(): number;
  /**
   * Milliseconds on a clock that never goes back. For durations and deadlines. Sub-millisecond resolution.
   */
  monotonicMs(): number;
  /**
   * Calls back once after `delayMs`; the returned function cancels. Does not keep the process alive on its
   * own.
   */
  timer(delayMs: number, callback: () => void): () => void;
  /**
   * Resolves after `delayMs`; rejects with the signal's reason when it aborts first. Keeps the process alive.
   */
  sleep(delayMs: number, signal?: AbortSignal): Promise<void>;
}

/** Longest delay of a timer of Node, 24 days and 20 hours: one that is longer fires at once. */
export const TIMER_MS_MAX = 2 ** 31 - 1;

/** Real time. A delay above `TIMER_MS_MAX` ends then. */
export const systemClock: Clock = {
  wallMs: () => Date.now(),
  monotonicMs: () => performance.now(),
  timer(delayMs, callback) {
    const timeout = setTimeout(callback, Math.min(delayMs, TIMER_MS_MAX));
    timeout.unref();
    return () => clearTimeout(timeout);
  },
  sleep(delayMs, signal) {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason);
        return;
      }
      const onAbort = () => {
        clearTimeout(timeout);
        reject(signal?.reason);
      };
      const timeout = setTimeout(
        () => {
          signal?.removeEventListener('abort', onAbort);
          resolve();
        },
        Math.min(delayMs, TIMER_MS_MAX),
      );
      signal?.addEventListener('abort', onAbort, { once: true });
    });
  },
};

/** Aborts after `delayMs` with a `TimeoutError`. Does not keep the process alive. */
export function deadline(clock: Pick<Clock, 'timer'>, delayMs: number): AbortSignal {
  const controller = new AbortController();
  clock.timer(delayMs, () => controller.abort(new DOMException('the time is up', 'TimeoutError')));
  return controller.signal;
}
