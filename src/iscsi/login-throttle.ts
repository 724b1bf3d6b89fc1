import type { Clock } from '../base/clock.ts';

/**
 * Slows down guessing: after a failed login the next ones from that address wait, each behind the other, twice as long with each
 * failure. A success clears the address. The table is bounded: the address that failed longest ago is forgotten first.
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

  /** How long a login that begins now has to wait. Takes a place in the row. */
  delayMs(address: string): number {
    const entry = this.#entries.get(address);
    if (entry === undefined) return 0;
    const nowMs = this.#clock.monotonicMs();
    const startMs = Math.max(nowMs, entry.freeAtMs);
    // Parallel attempts queue up, so that many connections are not a way round.
    entry.freeAtMs = startMs + this.#stepMs(entry.failures);
    return startMs - nowMs;
  }

  failed(address: string): void {
    const failures = (this.#entries.get(address)?.failures ?? 0) + 1;
    const freeAtMs = this.#clock.monotonicMs() + this.#stepMs(failures);
    this.#entries.delete(address);
    this.#entries.set(address, { failures, freeAtMs });
    if (this.#entries.size > this.#addressesMax) {
      const [oldest] = this.#entries.keys();
      this.#entries.delete(oldest!);
    }
  }

  succeeded(address: string): void {
    this.#entries.delete(address);
  }

  get size(): number {
    return this.#entries.size;
  }

  #stepMs(failures: number): number {
    return Math.min(this.#delayMs * 2 ** Math.min(failures - 1, 30), this.#delayMsMax);
  }
}
