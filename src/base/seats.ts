/**
 * A bounded number of places, with a share for each key (an address, a grant). Whoever comes gets one where
 * somebody can be asked to leave for it: of the keys that have the most, the one that is worth least, of
 * these the one that came first. So a crowd that sits there in silence keeps nobody out who has something to
 * say, and a crowd from one address nobody from another.
 */
export type Seat = {
  readonly key: string;
  /**
   * What it has to show for itself: those with less go first. null: it stays. Asked when a place is needed.
   */
  worth: () => number | null;
  /** It has lost its place. */
  evict: (reason: string) => void;
};

export class Seats {
  readonly #max: number;
  readonly #keyMax: number;
  readonly #byKey = new Map<string, Set<Seat>>();
  #size = 0;

  /** `keyMax`: the share of one key; less than `max`, so that one alone cannot take all. */
  constructor(options: { max: number; keyMax: number }) {
    this.#max = options.max;
    this.#keyMax = options.keyMax;
  }

  get size(): number {
    return this.#size;
  }

  /** The key that has most places; '' when none is taken. */
  get busiestKey(): string {
    let busiest = '';
    let most = 0;
    for (const [key, { size }] of this.#byKey) {
      if (size <= most) continue;
      busiest = key;
      most = size;
    }
    return busiest;
  }

  /** True when one of that key would get a place that is free. */
  hasRoom(key: string): boolean {
    return this.#size < this.#max && (this.#byKey.get(key)?.size ?? 0) < this.#keyMax;
  }

  /** True: it has a place, another may have lost one. False: there is none to be had. */
  take(seat: Seat): boolean {
    let seats = this.#byKey.get(seat.key);
    if (seats !== undefined && seats.size >= this.#keyMax) {
      if (!this.#evictOf(seats)) return false;
    } else if (this.#size >= this.#max && !this.#evictOfLargest(seat.key)) {
      return false;
    }
    seats = this.#byKey.get(seat.key);
    if (seats === undefined) {
      seats = new Set();
      this.#byKey.set(seat.key, seats);
    }
    seats.add(seat);
    this.#size += 1;
    return true;
  }

  /** Idempotent. */
  leave(seat: Seat): void {
    const seats = this.#byKey.get(seat.key);
    if (seats?.delete(seat) !== true) return;
    this.#size -= 1;
    if (seats.size === 0) this.#byKey.delete(seat.key);
  }

  /**
   * Of the keys that have the most, and no fewer than the newcomer's: the most that one has takes nothing
   * from who has less.
   */
  #evictOfLargest(newcomerKey: string): boolean {
    const own = this.#byKey.get(newcomerKey)?.size ?? 0;
    const sizes = [...new Set([...this.#byKey.values()].map(({ size }) => size))];
    for (const size of sizes.sort((left, right) => right - left)) {
      if (size < own) break;
      const alike = [...this.#byKey.values()].filter((seats) => seats.size === size);
      if (this.#evictOf(alike.flatMap((seats) => [...seats]))) return true;
    }
    return false;
  }

  #evictOf(seats: Iterable<Seat>): boolean {
    let least: Seat | null = null;
    let leastWorth = Number.POSITIVE_INFINITY;
    for (const seat of seats) {
      const worth = seat.worth();
      if (worth === null || worth >= leastWorth) continue;
      least = seat;
      leastWorth = worth;
    }
    if (least === null) return false;
    this.leave(least);
    least.evict('others need the place');
    return true;
  }
}
