import type { Clock } from './clock.ts';
import { type Seat, Seats } from './seats.ts';

/**
 * Who of a crowd gets a place at a server, for peers that have nothing to show yet. Places are bounded, in
 * all and for each key (an address). Where all are taken others have to go for who comes, and those that went
 * come back at once; so by the order of their coming alone nobody would be left the time to show anything.
 * What each is given:
 *
 *   a turn      newcomers wait in a row for each key, and come in in the order in which they came
 *   a minimum   who is in loses the place to nobody before it has stood still for `graceMs`; what goes on moving keeps it for `protectedMsMax`
 *   an order    then those go first that show the least, of these the one that has stood still for longest
 *   a pace      no more than `perSecond` come in for whom others have to go: each costs work, most of it in vain
 *   an end      who still waits after `waitMsMax` is turned out: those that have the places work, and stay
 *
 * So with P places, a newcomer waits for at most (those before it) / min(P / graceMs, perSecond), and then
 * has at least `graceMs` from step to step.
 *
 * Time is that in which this process ran: while it had no processor nobody could show anything, and on a
 * machine on which all take ten times as long each has ten times as long.
 */
export type DoorLimits = {
  placesMax: number;
  /** Of one key. Less than `placesMax`, so that one alone cannot take all. */
  placesOfKeyMax: number;
  /** In the row. More are refused. */
  waitingMax: number;
  waitingOfKeyMax: number;
  graceMs: number;
  /** Without end where what moves is work. */
  protectedMsMax: number;
  perSecond: number;
  waitMsMax: number;
};

/** For what has a handshake to do, which costs a server little but time. */
export const HANDSHAKES: DoorLimits = {
  placesMax: 256,
  placesOfKeyMax: 192,
  waitingMax: 512,
  waitingOfKeyMax: 448,
  graceMs: 800,
  protectedMsMax: 1_200,
  perSecond: 250,
  waitMsMax: 15_000,
};

export type Guest = {
  readonly key: string;
  /**
   * What it has to show, from 0 on: those with less go first. null: it works, and stays. Asked when a place
   * is needed.
   */
  shows: () => number | null;
  /** Grows as it moves. Asked while others wait, for what nobody else sees move: a handshake of TLS. */
  movedBytes?: () => number;
  /** Its place goes to another, or it waits in vain: the connection is to be ended. */
  turnOut: (reason: string) => void;
};

/** While others wait it is looked so often who may come in. */
const TURN_MS = 20;
/** More than any `nowMs`: what somebody shows comes before since when it stands still. */
const RANK = 2 ** 44;

/** One guest, from its coming to its end. */
export class Stay implements Seat {
  readonly guest: Guest;
  readonly #doorkeeper: Doorkeeper;
  readonly enter: (stay: Stay) => void;
  state: 'comes' | 'waits' | 'in' | 'over' = 'comes';
  readonly #cameMs: number;
  #enteredMs = 0;
  #advancedMs = 0;
  #movedBytes = 0;

  /** By `Doorkeeper.come`. */
  constructor(doorkeeper: Doorkeeper, guest: Guest, enter: (stay: Stay) => void) {
    this.#doorkeeper = doorkeeper;
    this.guest = guest;
    this.enter = enter;
    this.#cameMs = doorkeeper.nowMs();
  }

  get key(): string {
    return this.guest.key;
  }

  /** It came a step further. */
  advances(): void {
    this.#advancedMs = this.#doorkeeper.nowMs();
  }

  /** Since when it has stood still, in time in which this process ran. */
  get stillMs(): number {
    return this.#doorkeeper.nowMs() - this.#advancedMs;
  }

  /** It gives its place back, or leaves the row. Idempotent. */
  end(): void {
    this.#doorkeeper.ended(this);
  }

  // --- for Doorkeeper and Seats
  // ---------------------------------------------------------------------------------------

  get waitedMs(): number {
    return this.#doorkeeper.nowMs() - this.#cameMs;
  }

  begins(): void {
    this.state = 'in';
    this.#enteredMs = this.#doorkeeper.nowMs();
    this.#advancedMs = this.#enteredMs;
    this.#movedBytes = this.guest.movedBytes?.() ?? 0;
  }

  /** `fresh`: the last look was a moment ago, so what has moved since has moved now. */
  look(fresh: boolean): void {
    const movedBytes = this.guest.movedBytes?.() ?? 0;
    if (fresh && movedBytes > this.#movedBytes) this.advances();
    this.#movedBytes = movedBytes;
  }

  worth(): number | null {
    const { graceMs, protectedMsMax } = this.#doorkeeper.limits;
    const nowMs = this.#doorkeeper.nowMs();
    if (nowMs - this.#advancedMs < graceMs && nowMs - this.#enteredMs < protectedMsMax) return null;
    const shown = this.guest.shows();
    return shown === null ? null : shown * RANK + this.#advancedMs;
  }

  evict(reason: string): void {
    this.end();
    this.guest.turnOut(reason);
  }
}

export class Doorkeeper {
  readonly limits: DoorLimits;
  readonly #clock: Clock;
  readonly #seats: Seats;
  readonly #perTurn: number;
  /** In the order in which they came. */
  readonly #row = new Set<Stay>();
  readonly #waitingOfKey = new Map<string, number>();
  readonly #inside = new Set<Stay>();
  /** Time in which this process did not run while somebody waited. */
  #lostMs = 0;
  #armedMs = 0;
  #lookedMs = Number.NEGATIVE_INFINITY;
  #cancel: (() => void) | null = null;
  #closed = false;

  constructor(clock: Clock, limits: DoorLimits) {
    this.#clock = clock;
    this.limits = limits;
    this.#seats = new Seats({ max: limits.placesMax, keyMax: limits.placesOfKeyMax });
    this.#perTurn = Math.max(1, Math.round((limits.perSecond * TURN_MS) / 1_000));
  }

  /** Those that have a place. */
  get inside(): number {
    return this.#inside.size;
  }

  get waiting(): number {
    return this.#row.size;
  }

  /** Of those that have a place, the key that has most; '' when nobody is there. */
  get busiestKey(): string {
    return this.#seats.busiestKey;
  }

  /** Milliseconds in which this process ran, as far as anybody waited for it. */
  nowMs(): number {
    return this.#clock.monotonicMs() - this.#lostMs;
  }

  /** `enter` is called when it has a place: at once where one is free. null: too many wait already. */
  come(guest: Guest, enter: (stay: Stay) => void): Stay | null {
    if (this.#closed) return null;
    const { waitingMax, waitingOfKeyMax } = this.limits;
    const stay = new Stay(this, guest, enter);
    const before = this.#waitingOfKey.get(guest.key) ?? 0;
    if (before === 0 && this.#seats.hasRoom(guest.key)) {
      this.#seats.take(stay);
      this.#letIn(stay);
      return stay;
    }
    if (this.#row.size >= waitingMax || before >= waitingOfKeyMax) return null;
    stay.state = 'waits';
    this.#row.add(stay);
    this.#waitingOfKey.set(guest.key, before + 1);
    this.#arm();
    return stay;
  }

  /** Nobody comes in any more, and those that wait are turned out. Idempotent. */
  close(): void {
    this.#closed = true;
    this.#cancel?.();
    this.#cancel = null;
    for (const stay of [...this.#row]) stay.evict('the server closes');
  }

  /** By `Stay.end`. */
  ended(stay: Stay): void {
    if (stay.state === 'waits') this.#leavesRow(stay);
    this.#seats.leave(stay);
    this.#inside.delete(stay);
    stay.state = 'over';
  }

  #letIn(stay: Stay): void {
    this.#inside.add(stay);
    stay.begins();
    stay.enter(stay);
  }

  #leavesRow(stay: Stay): void {
    if (!this.#row.delete(stay)) return;
    const left = this.#waitingOfKey.get(stay.key)! - 1;
    if (left === 0) this.#waitingOfKey.delete(stay.key);
    else this.#waitingOfKey.set(stay.key, left);
  }

  #arm(): void {
    if (this.#cancel !== null || this.#closed || this.#row.size === 0) return;
    this.#armedMs = this.#clock.monotonicMs();
    this.#cancel = this.#clock.timer(TURN_MS, () => this.#turn());
  }

  #turn(): void {
    this.#cancel = null;
    this.#lostMs += Math.max(0, this.#clock.monotonicMs() - this.#armedMs - TURN_MS);
    this.#look();
    let left = this.#perTurn;
    /** Keys of which nobody may come in this time. */
    const held = new Set<string>();
    for (const stay of this.#row) {
      // Ended by one before it.
      if (stay.state !== 'waits') continue;
      if (stay.waitedMs >= this.limits.waitMsMax) {
        stay.evict('nobody leaves a place');
        continue;
      }
      if (held.has(stay.key)) continue;
      const isFree = this.#seats.hasRoom(stay.key);
      if ((!isFree && left === 0) || !this.#seats.take(stay)) {
        held.add(stay.key);
        continue;
      }
      if (!isFree) left -= 1;
      this.#leavesRow(stay);
      this.#letIn(stay);
    }
    this.#arm();
  }

  #look(): void {
    const nowMs = this.nowMs();
    const fresh = nowMs - this.#lookedMs < 5 * TURN_MS;
    this.#lookedMs = nowMs;
    for (const stay of this.#inside) {
      if (stay.guest.movedBytes !== undefined) stay.look(fresh);
    }
  }
}
