/** Time comes in by constructor, so that a simulator can own it. */
export interface Clock {
  /** Milliseconds since the Unix epoch. For records and people, never for durations. */
  wallMs(): number;
  /** Milliseconds on a clock that never goes back. For durations and deadlines. Sub-millisecond resolution. */
  monotonicMs(): number;
  /** Calls back once after `delayMs`; the returned function cancels. Does not keep the process alive on its own. */
  timer(delayMs: number, callback: () => void): () => void;
  /** Resolves after `delayMs`; rejects with the signal's reason when it aborts first. Keeps the process alive. */
  sleep(delayMs: number, signal?: AbortSignal): Promise<void>;
}

/** Real time. */
export const systemClock: Clock = {
  wallMs: () => Date.now(),
  monotonicMs: () => performance.now(),
  timer(delayMs, callback) {
    const timeout = setTimeout(callback, delayMs);
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
      const timeout = setTimeout(() => {
        signal?.removeEventListener('abort', onAbort);
        resolve();
      }, delayMs);
      signal?.addEventListener('abort', onAbort, { once: true });
    });
  },
};
