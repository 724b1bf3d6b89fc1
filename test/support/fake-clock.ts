import { setImmediate as immediate, setTimeout as realSleep } from 'node:timers/promises';
import type { Clock } from '../../src/base/clock.ts';

type Timer = { atMs: number; order: number; callback: () => void };

/** Turns of the event loop that `settle` gives to promises and immediates. */
const SETTLE_TURNS = 4;
/** How long `runUntil` waits, in real time, for a promise that no timer drives. */
const STUCK_AFTER_TURNS = 5_000;

/** `Clock.sleep` of a clock that has timers. */
export function sleepBy(clock: Pick<Clock, 'timer'>, delayMs: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason);
      return;
    }
    const onAbort = () => {
      cancel();
      reject(signal?.reason);
    };
    const cancel = clock.timer(delayMs, () => {
      signal?.removeEventListener('abort', onAbort);
      resolve();
    });
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}

/**
 * A clock that only moves when told to. For tests. Timers that fall due together run in the order in which
 * they were set.
 */
export class FakeClock implements Clock {
  #monotonicMs = 0;
  #wallOffsetMs: number;
  #order = 0;
  readonly #timers = new Set<Timer>();

  /** `wallMs`: milliseconds since the Unix epoch at which the clock stands first. */
  constructor(wallMs = Date.UTC(2026, 0, 1)) {
    this.#wallOffsetMs = wallMs;
  }

  wallMs(): number {
    return this.#wallOffsetMs + this.#monotonicMs;
  }

  monotonicMs(): number {
    return this.#monotonicMs;
  }

  timer(delayMs: number, callback: () => void): () => void {
    const timer = { atMs: this.#monotonicMs + Math.max(0, delayMs), order: this.#order++, callback };
    this.#timers.add(timer);
    return () => this.#timers.delete(timer);
  }

  sleep(delayMs: number, signal?: AbortSignal): Promise<void> {
    return sleepBy(this, delayMs, signal);
  }

  /**
   * Moves on by `ms` and runs what falls due, in order and at its own time, without giving promises a turn.
   */
  advance(ms: number): void {
    const untilMs = this.#monotonicMs + ms;
    for (let next = this.#next(); next !== undefined && next.atMs <= untilMs; next = this.#next())
      this.#fire(next);
    // What was run may have skipped further.
    this.#monotonicMs = Math.max(this.#monotonicMs, untilMs);
  }

  /**
   * Moves on by `ms` without running anything: this process was stopped (SIGSTOP, no processor), and finds
   * its timers long due.
   */
  skip(ms: number): void {
    this.#monotonicMs += ms;
  }

  /**
   * Moves on by `ms`; after each timer promises get their turn, so what they set falls due in the same call.
   */
  async run(ms: number): Promise<void> {
    const untilMs = this.#monotonicMs + ms;
    await this.settle();
    for (let next = this.#next(); next !== undefined && next.atMs <= untilMs; next = this.#next()) {
      this.#fire(next);
      await this.settle();
    }
    this.#monotonicMs = Math.max(this.#monotonicMs, untilMs);
    await this.settle();
  }

  /**
   * Moves from timer to timer until `promise` settles, and returns its value. Only for work in memory: time
   * does not wait for real I/O. Rejects when nothing moves any more.
   */
  async runUntil<T>(promise: Promise<T>): Promise<T> {
    let settled = false;
    const note = () => {
      settled = true;
    };
    promise.then(note, note);
    let idleTurns = 0;
    for (;;) {
      await this.settle();
      if (settled) return promise;
      const next = this.#next();
      if (next !== undefined) {
        idleTurns = 0;
        this.#fire(next);
      } else {
        if (++idleTurns > STUCK_AFTER_TURNS) throw new Error('the promise is pending and no timer is set');
        await realSleep(1);
      }
    }
  }

  /** Steps the wall clock, as NTP or a person does; durations and timers do not notice. */
  stepWall(ms: number): void {
    this.#wallOffsetMs += ms;
  }

  /** Lets promises and immediates run, without moving time. */
  async settle(): Promise<void> {
    for (let turn = 0; turn < SETTLE_TURNS; turn++) await immediate();
  }

  /** Timers that are set. A test that expects to leave none behind asserts 0. */
  get pendingTimers(): number {
    return this.#timers.size;
  }

  #next(): Timer | undefined {
    let first: Timer | undefined;
    for (const timer of this.#timers) {
      if (!first || timer.atMs < first.atMs || (timer.atMs === first.atMs && timer.order < first.order))
        first = timer;
    }
    return first;
  }

  #fire(timer: Timer): void {
    this.#timers.delete(timer);
    this.#monotonicMs = Math.max(this.#monotonicMs, timer.atMs);
    timer.callback();
  }
}
