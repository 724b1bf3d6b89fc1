/** One turn of the event loop works on long things for so much time at most, in milliseconds. */
const TURN_MS = 5;

/** When somebody first asked in this turn. */
let askedMs: number | null = null;

/**
 * Cuts long work into turns of the event loop, so that nobody waits for all of it: `if (turnIsLong()) await
 * nextTurn()` now and then. A promise that is resolved already lets nobody in, so a loop that awaits is not
 * enough. All that asks shares the turn. Measures by the processor's clock, whatever time it is where the
 * work belongs.
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

/**
 * What one peer may ask for in a turn of the event loop, so that many small requests of one do not keep the
 * others waiting: libuv reads a socket up to 32 times before it looks at the next. After `countMax` it has no
 * more until the turn is over, then `onNext` is called.
 */
export class TurnPortion {
  readonly #countMax: number;
  readonly #onNext: () => void;
  #count = 0;

  constructor(countMax: number, onNext: () => void) {
    this.#countMax = countMax;
    this.#onNext = onNext;
  }

  get isSpent(): boolean {
    return this.#count === this.#countMax;
  }

  /**
   * One more, when it is not spent. The count goes on over turns: only a peer that fills it is set back, and
   * a quiet one costs nothing.
   */
  take(): void {
    this.#count += 1;
    if (this.isSpent) setImmediate(this.#next);
  }

  readonly #next = (): void => {
    this.#count = 0;
    this.#onNext();
  };
}
