import { backoffMs } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';

/**
 * Slows down guessing: the refusal of a wrong login is held back, each behind the last one of its address,
 * twice as long with each failure. A login that is right is never held back: who guesses from the same
 * address cannot keep the one who knows out. So a guesser who does not wait for refusals is slowed down by
 * nothing but its connections, and it is the length of the secret that keeps it out. A success clears the
 * address. The table is bounded: the address that failed longest ago is forgotten first.
 */
export class LoginThrottle {
  readonly #clock: Clock;
  readonly #delayMs: number;
  readonly #delayMsMax: number;
  readonly #addressesMax: number;
  readonly #entries = new Map<string, { failures: number; freeAtMs: number }>();

  constructor(options: { clock: Clock; delayMs: number; delayMsMax: number; addressesMax: number }) {
    this.#clock = options.clock;
    this.#delayMs = options.delayMs;
    this.#delayMsMax = options.delayMsMax;
    this.#addressesMax = options.addressesMax;
  }

  /** A login from this address was wrong. Returns for how long its refusal is to be held back. */
  failed(address: string): number {
    const nowMs = this.#clock.monotonicMs();
    const entry = this.#entries.get(address);
    const failures = (entry?.failures ?? 0) + 1;
    // Parallel attempts queue up, so that many connections are not a way round; nobody waits longer than the
    // longest delay for it.
    const freeAtMs = Math.min(
      Math.max(nowMs, entry?.freeAtMs ?? 0) + this.#stepMs(failures),
      nowMs + this.#delayMsMax,
    );
    this.#entries.delete(address);
    this.#entries.set(address, { failures, freeAtMs });
    if (this.#entries.size > this.#addressesMax) {
      const [oldest] = this.#entries.keys();
      this.#entries.delete(oldest!);
    }
    return freeAtMs - nowMs;
  }

  succeeded(address: string): void {
    this.#entries.delete(address);
  }

  get size(): number {
    return this.#entries.size;
  }

  #stepMs(failures: number): number {
    return backoffMs({ firstMs: this.#delayMs, maxMs: this.#delayMsMax }, failures);
  }
}
