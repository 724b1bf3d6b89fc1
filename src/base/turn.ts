/** One turn of the event loop works on long things for so much time at most, in milliseconds. */
const TURN_MS = 5;

/** When somebody first asked in this turn. */
let askedMs: number | null = null;

/**
 * Cuts long work into turns of the event loop, so that nobody waits for all of it: `if (turnIsLong()) await nextTurn()` now and then. A promise that is
 * resolved already lets nobody in, so a loop that awaits is not enough. All that asks shares the turn. Measures by the processor's clock,
 * whatever time it is where the work belongs.
 */
export function turnIsLong(): boolean {
  const nowMs = performance.now();
  if (askedMs === null) {
    askedMs = nowMs;
    setImmediate(() => {
      askedMs = null;
    });
  }
  return nowMs - askedMs >= TURN_MS;
}

/** Lets everything in that waits, timers and I/O too. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
