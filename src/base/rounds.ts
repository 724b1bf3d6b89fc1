import type { Clock } from './clock.ts';

/**
 * Does something at once, and again `pauseMs` after each end, until it is closed. One that is under way then
 * goes on to its end.
 */
export class Rounds {
  readonly #clock: Clock;
  readonly #pauseMs: number;
  readonly #round: () => Promise<void>;
  #cancelTimer: () => void = () => {};
  #closed = false;

  /** `round` never rejects. */
  constructor(clock: Clock, pauseMs: number, round: () => Promise<void>) {
    this.#clock = clock;
    this.#pauseMs = pauseMs;
    this.#round = round;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Resolves after the first round. */
  async start(): Promise<void> {
    await this.#round();
    if (!this.#closed) this.startLater();
  }

  /** The first round comes after a pause, too. */
  startLater(): void {
    this.#cancelTimer = this.#clock.timer(this.#pauseMs, () => void this.start());
  }

  close(): void {
    this.#closed = true;
    this.#cancelTimer();
  }
}
