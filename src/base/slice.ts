/** One turn of the event loop works on something long for so much time at most, in milliseconds. */
const SLICE_MS = 5;

/**
 * Cuts long work into turns of the event loop, so that nobody waits for all of it: `if (slice.over) await slice.rest()` now and then. A promise that is
 * resolved already lets nobody in, so a loop that awaits is not enough. Measures by the processor's clock, whatever time it is where the
 * work belongs.
 */
export class Slice {
  #startedMs = performance.now();

  /** This turn has had its share. */
  get over(): boolean {
    return performance.now() - this.#startedMs >= SLICE_MS;
  }

  /** Lets everything in that waits, timers and I/O too. */
  async rest(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.#startedMs = performance.now();
  }
}
