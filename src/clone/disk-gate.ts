import type { Clock } from '../base/clock.ts';
import {
  type DiskWindow,
  diskRegionBytes,
  diskWindowAfterPlaced,
  diskWindowAfterTick,
  flushHoldMs,
  type GuestWaits,
  initialDiskWindow,
} from './disk-window.ts';

type Entry = { bytes: number; go: () => void };

export type Passage = {
  /** Resolves when it is its turn; null: it is. */
  turn: Promise<void> | null;
  /** Ends the wait. */
  goNow: () => void;
  /** The bytes are there, or will not be. Call it once, after the turn. */
  ended: (placed: boolean) => void;
};

/**
 * Where what was fetched in the background waits for its turn at the local disk, in the order of arrival: as
 * much as disk-window.ts says is on its way there at once. Misses do not wait here, but they count.
 */
export class DiskGate {
  readonly #clock: Clock;
  readonly #maxBytes: number;
  #window: DiskWindow;
  #guest: (() => GuestWaits) | null = null;
  #inFlightBytes = 0;
  /** Flushes of the guest that nothing may go before. */
  #flushes = 0;
  readonly #waiting: Entry[] = [];

  constructor(clock: Clock, maxBytes: number) {
    this.#clock = clock;
    this.#maxBytes = maxBytes;
    this.#window = initialDiskWindow(maxBytes);
  }

  /**
   * Who tells what the guest waited for since it was asked last; nobody: the guest is taken not to use the
   * disk.
   */
  watch(guest: () => GuestWaits): void {
    this.#guest = guest;
  }

  /** How much one background fetch takes at most. */
  get regionBytes(): number {
    return diskRegionBytes(this.#window);
  }

  /** The way of so many bytes to the disk; `waits: false` goes at once. */
  enter(bytes: number, { waits }: { waits: boolean }): Passage {
    const { promise, resolve } = Promise.withResolvers<void>();
    let startedAtMs = 0;
    const entry: Entry = {
      bytes,
      go: () => {
        startedAtMs = this.#clock.monotonicMs();
        this.#inFlightBytes += bytes;
        resolve();
      },
    };
    const goes = !waits || (this.#waiting.length === 0 && this.#fits(bytes));
    if (goes) entry.go();
    else this.#waiting.push(entry);
    return {
      turn: goes ? null : promise,
      goNow: () => {
        const index = this.#waiting.indexOf(entry);
        if (index === -1) return;
        this.#waiting.splice(index, 1);
        entry.go();
      },
      ended: (placed) => {
        this.#inFlightBytes -= bytes;
        const nowMs = this.#clock.monotonicMs();
        const durationMs = nowMs - startedAtMs;
        if (placed) this.#window = diskWindowAfterPlaced(this.#window, { nowMs, bytes, durationMs });
        this.#letIn();
      },
    };
  }

  /**
   * A flush of the guest begins; call what is returned when it has ended. The kernel waits for all pages of
   * the file that are on their way to the disk, from its front to its end, and meets there also what began
   * its way meanwhile: so nothing does, for as long as what is there by now may take.
   */
  flushing(): () => void {
    let holds = true;
    this.#flushes++;
    const end = () => {
      cancel();
      if (!holds) return;
      holds = false;
      this.#flushes--;
      this.#letIn();
    };
    const cancel = this.#clock.timer(flushHoldMs(this.#window), end);
    return end;
  }

  tick(nowMs: number): void {
    if (this.#guest === null) return;
    const observed = { nowMs, waits: this.#guest(), inFlightBytes: this.#inFlightBytes };
    this.#window = diskWindowAfterTick(this.#window, observed, this.#maxBytes);
    this.#letIn();
  }

  /** A window that is open lets one in, however large. */
  #fits(bytes: number): boolean {
    const { windowBytes } = this.#window;
    if (this.#flushes > 0) return false;
    return windowBytes > 0 && (this.#inFlightBytes === 0 || this.#inFlightBytes + bytes <= windowBytes);
  }

  #letIn(): void {
    for (let next = this.#waiting[0]; next && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift();
      next.go();
    }
  }
}
