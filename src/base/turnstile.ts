import type { Clock } from './clock.ts';

const TURN_MS = 20;

/**
 * Lets those in one after the other for whom others have to go. Without it the peers that lost their places come back at once and push out the next, and
 * whoever has something to say is pushed out before it is heard: at this pace each has `places` / `perSecond` to prove itself.
 */
export class Turnstile {
  readonly #clock: Clock;
  readonly #perTurn: number;
  readonly #waitingMax: number;
  readonly #waiting = new Set<() => void>();
  #cancel: (() => void) | null = null;

  constructor(clock: Clock, options: { perSecond: number; waitingMax: number }) {
    this.#clock = clock;
    this.#perTurn = Math.max(1, Math.round((options.perSecond * TURN_MS) / 1_000));
    this.#waitingMax = options.waitingMax;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  /** `enter` is called when it is its turn, in the order in which they came; the returned function forgets it. null: too many wait. */
  wait(enter: () => void): (() => void) | null {
    if (this.#waiting.size >= this.#waitingMax) return null;
    this.#waiting.add(enter);
    this.#cancel ??= this.#clock.timer(TURN_MS, () => this.#turn());
    return () => this.#waiting.delete(enter);
  }

  close(): void {
    this.#cancel?.();
    this.#cancel = null;
    this.#waiting.clear();
  }

  #turn(): void {
    this.#cancel = null;
    let count = this.#perTurn;
    for (const enter of this.#waiting) {
      if (count === 0) break;
      count -= 1;
      this.#waiting.delete(enter);
      enter();
    }
    if (this.#waiting.size > 0) this.#cancel = this.#clock.timer(TURN_MS, () => this.#turn());
  }
}
