import type { Clock } from '../base/clock.ts';

/** Moves of which a time is kept. Of one that was dropped, the clock counts again as it stands. */
const MOVES_MAX = 1_000;

/**
 * Times of a move on one wall clock: that of the first time that it was asked for here. What is measured
 * between two of them does not see that the clock was set in between. Of an earlier process nothing is known.
 */
export class RunTimes {
  readonly #clock: Clock;
  readonly #offsets = new Map<string, number>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Whole milliseconds since the Unix epoch. */
  nowMs(moveId: string): number {
    const monotonicMs = this.#clock.monotonicMs();
    const known = this.#offsets.get(moveId);
    if (known !== undefined) return Math.round(known + monotonicMs);
    const oldest = this.#offsets.size >= MOVES_MAX ? this.#offsets.keys().next().value : undefined;
    if (oldest !== undefined) this.#offsets.delete(oldest);
    const offsetMs = this.#clock.wallMs() - monotonicMs;
    this.#offsets.set(moveId, offsetMs);
    return Math.round(offsetMs + monotonicMs);
  }
}
