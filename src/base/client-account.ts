import { assert } from './assert.ts';
import type { Clock } from './clock.ts';

/**
 * What clients make this process hold: input that is not used yet, output that they do not take, replies,
 * queued work. One book a process, one account a connection, and three bounds: of all clients together, of
 * one address, of one connection.
 *
 *     reserve of a connection ── its own: nobody else's appetite takes it away
 *     beyond it ──────────────── shared, up to the share of the connection, of the address, of the process
 *
 *   account.take(bytes)    before a buffer is allocated; false: not now, and `onRoom` is called once when another try may be worth it
 *   account.charge(bytes)  for what cannot be refused because it is there already; the owner looks at `full` after it and reads no more
 *   account.release(bytes) when it is gone
 *
 * Bytes are those of the allocation, not those that are used of it; what is small is counted as
 * `OBJECT_BYTES`, so that a million replies of 16 bytes are not 16 MB. What is granted beyond the reserves
 * never exceeds `sharedBytesMax`, so all clients together never hold more than `sharedBytesMax` +
 * connections x `connectionBytesReserved` + one charge each.
 *
 * A client that *owes* (the rest of what it began to send, or the taking of what it asked for) and does not
 * move is dropped after `stallTimeoutMs`; sooner, after `pressureTimeoutMs`, while others wait for what it
 * holds. What the device or this process is late with is never the client's debt.
 */
export type ClientLimits = {
  /** Of all clients together beyond their reserves. At least the largest single request. */
  sharedBytesMax: number;
  /** Of one address beyond the reserves of its connections. */
  addressBytesMax: number;
  /**
   * Of one connection, its reserve included. A request on a connection that holds nothing else may exceed it.
   */
  connectionBytesMax: number;
  /** Of a connection, whatever others hold. */
  connectionBytesReserved: number;
  /** A client that owes and moves fewer than `progressBytesMin` in so long is dropped. */
  stallTimeoutMs: number;
  /** The same while another client waits for room, for those that hold more than their reserve. */
  pressureTimeoutMs: number;
  progressBytesMin: number;
};

export const CLIENT_LIMITS: ClientLimits = {
  sharedBytesMax: 128 * 1024 * 1024,
  addressBytesMax: 96 * 1024 * 1024,
  connectionBytesMax: 40 * 1024 * 1024,
  // A request of 1 MiB and what belongs to it.
  connectionBytesReserved: 1280 * 1024,
  stallTimeoutMs: 60_000,
  pressureTimeoutMs: 5_000,
  progressBytesMin: 64 * 1024,
};

/** What a queued reply, task or list entry costs beside its bytes: some objects of V8 with their closures. */
export const OBJECT_BYTES = 512;

/**
 * What a client owes: the rest of something that it began to send, the taking of what is queued for it, or
 * both.
 */
export type Debt = 'nothing' | 'input' | 'output' | 'both';
const DIRECTIONS = ['input', 'output'] as const;

export type ClientAccountOptions = {
  /** Peers of one address share a bound. Of a unix socket: `unix`. */
  address: string;
  /**
   * Asked now and then; never `input` while reading is stopped, never anything because of a device that is
   * slow.
   */
  debt: () => Debt;
  /** Bytes that moved in the direction of the debt since the connection began. */
  movedBytes: (debt: 'input' | 'output') => number;
  /**
   * A `take` was refused, or the account was `full`, and that may be over. Not called inside of `release`:
   * from a later turn.
   */
  onRoom: () => void;
  /** Ends the connection at once. */
  drop: (reason: string) => void;
};

export class ClientAccount {
  readonly #book: ClientBook;
  readonly options: ClientAccountOptions;
  #heldBytes = 0;
  #closed = false;
  /** Of the watch: since when it owes without moving enough, in each direction. */
  readonly owing: Record<'input' | 'output', { sinceMs: number | null; sinceBytes: number }> = {
    input: { sinceMs: null, sinceBytes: 0 },
    output: { sinceMs: null, sinceBytes: 0 },
  };
  /** Of the row: since when it has been waiting for room. */
  waitingSinceMs: number | null = null;
  wantedBytes = 0;

  /** By `ClientBook.open`. */
  constructor(book: ClientBook, options: ClientAccountOptions) {
    this.#book = book;
    this.options = options;
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** No more is to be read of this client until `onRoom`. Asking puts it on the list of who is told. */
  get full(): boolean {
    if (this.#closed || this.#book.fits(this, 1)) return false;
    this.#book.wait(this, 1);
    return true;
  }

  /** Counts `bytes` when there is room for them. */
  take(bytes: number): boolean {
    if (this.#closed) return false;
    if (!this.#book.fits(this, bytes) || this.#book.mustGiveWay(this, bytes)) {
      this.#book.wait(this, bytes);
      return false;
    }
    this.charge(bytes);
    return true;
  }

  /** Counts `bytes` that are there already. */
  charge(bytes: number): void {
    if (this.#closed) return;
    this.#book.moved(this.options.address, this.#heldBytes, this.#heldBytes + bytes);
    this.#heldBytes += bytes;
  }

  release(bytes: number): void {
    if (this.#closed) return;
    assert(bytes <= this.#heldBytes, 'what is released was taken');
    this.#book.moved(this.options.address, this.#heldBytes, this.#heldBytes - bytes);
    this.#heldBytes -= bytes;
  }

  /**
   * The connection is gone, and nothing that it held is used by a device any more. Idempotent; what is
   * released later was counted out here.
   */
  close(): void {
    if (this.#closed) return;
    this.release(this.#heldBytes);
    this.#closed = true;
    this.#book.forget(this);
  }
}

/** The accounts of a process. Servers of one process share one. */
export class ClientBook {
  readonly limits: ClientLimits;
  readonly #clock: Clock;
  readonly #accounts = new Set<ClientAccount>();
  /** Bytes beyond the reserves, in all and by address. */
  #sharedBytes = 0;
  readonly #addressBytes = new Map<string, number>();
  readonly #waiting = new Set<ClientAccount>();
  #telling = false;
  #cancelWatch: (() => void) | null = null;

  constructor(clock: Clock, limits: Partial<ClientLimits> = {}) {
    this.#clock = clock;
    this.limits = { ...CLIENT_LIMITS, ...limits };
  }

  /** Bytes that all accounts hold now. */
  get heldBytes(): number {
    let bytes = 0;
    for (const account of this.#accounts) bytes += account.heldBytes;
    return bytes;
  }

  /**
   * Those of them that are beyond the reserves: at most `sharedBytesMax`, but for charges of what was there
   * already.
   */
  get sharedBytes(): number {
    return this.#sharedBytes;
  }

  get connections(): number {
    return this.#accounts.size;
  }

  /** Accounts that wait for room. */
  get waiting(): number {
    return this.#waiting.size;
  }

  open(options: ClientAccountOptions): ClientAccount {
    const account = new ClientAccount(this, options);
    this.#accounts.add(account);
    this.#arm();
    return account;
  }

  // --- for the accounts
  // ----------------------------------------------------------------------------------------------

  fits(account: ClientAccount, bytes: number): boolean {
    if (account.heldBytes + bytes <= this.limits.connectionBytesReserved) return true;
    return this.#fitsItsShares(account, bytes) && this.#fitsAll(account, bytes);
  }

  #fitsItsShares({ heldBytes, options }: ClientAccount, bytes: number): boolean {
    const { connectionBytesReserved, connectionBytesMax, addressBytesMax } = this.limits;
    const after = heldBytes + bytes;
    // A single large request is let through on a connection that has nothing else of weight: it could never
    // run otherwise.
    if (after > connectionBytesMax && heldBytes > connectionBytesReserved) return false;
    const ofAddress = this.#addressBytes.get(options.address) ?? 0;
    return ofAddress === 0 || ofAddress + this.#more(heldBytes, bytes) <= addressBytesMax;
  }

  #fitsAll({ heldBytes }: ClientAccount, bytes: number): boolean {
    return (
      this.#sharedBytes === 0 ||
      this.#sharedBytes + this.#more(heldBytes, bytes) <= this.limits.sharedBytesMax
    );
  }

  #more(heldBytes: number, bytes: number): number {
    return this.#beyond(heldBytes + bytes) - this.#beyond(heldBytes);
  }

  /**
   * True when somebody has waited so long for much that those who want little go behind: they would eat it up
   * as it comes.
   */
  mustGiveWay(account: ClientAccount, bytes: number): boolean {
    if (this.#waiting.size === 0) return false;
    if (account.heldBytes + bytes <= this.limits.connectionBytesReserved) return false;
    // Who is over the bound of its own address or connection holds up nobody else.
    const first = this.#inRow().find((waiting) => this.#fitsItsShares(waiting, waiting.wantedBytes));
    if (first === undefined || first === account) return false;
    // Nobody gives way to who came later: two that have waited long would give way to each other for ever.
    const nowMs = this.#clock.monotonicMs();
    if (first.waitingSinceMs! >= (account.waitingSinceMs ?? nowMs)) return false;
    return nowMs - first.waitingSinceMs! >= ROW_AFTER_MS;
  }

  moved(address: string, beforeBytes: number, afterBytes: number): void {
    const change = this.#beyond(afterBytes) - this.#beyond(beforeBytes);
    if (change !== 0) {
      this.#sharedBytes += change;
      const ofAddress = (this.#addressBytes.get(address) ?? 0) + change;
      if (ofAddress === 0) this.#addressBytes.delete(address);
      else this.#addressBytes.set(address, ofAddress);
    }
    if (afterBytes < beforeBytes) this.#tell();
  }

  wait(account: ClientAccount, bytes: number): void {
    account.wantedBytes = bytes;
    account.waitingSinceMs ??= this.#clock.monotonicMs();
    this.#waiting.add(account);
  }

  /** Those that wait, the longest first. */
  #inRow(): ClientAccount[] {
    return [...this.#waiting].sort((a, b) => a.waitingSinceMs! - b.waitingSinceMs!);
  }

  forget(account: ClientAccount): void {
    this.#accounts.delete(account);
    this.#waiting.delete(account);
    if (this.#accounts.size === 0) {
      this.#cancelWatch?.();
      this.#cancelWatch = null;
    }
  }

  /**
   * True when another waits for what this one holds. Who only waits for room in its own share is in nobody's
   * way.
   */
  #isInTheWay(account: ClientAccount): boolean {
    for (const waiting of this.#waiting) {
      if (waiting === account) continue;
      if (!this.#fitsAll(waiting, waiting.wantedBytes)) return true;
      const near = waiting.options.address === account.options.address;
      if (near && waiting.heldBytes + waiting.wantedBytes <= this.limits.connectionBytesMax) return true;
    }
    return false;
  }

  #beyond(bytes: number): number {
    return Math.max(0, bytes - this.limits.connectionBytesReserved);
  }

  /** In the order in which they came; who still finds no room keeps its place in the row. */
  #tell(): void {
    if (this.#telling || this.#waiting.size === 0) return;
    this.#telling = true;
    setImmediate(() => {
      this.#telling = false;
      for (const account of this.#inRow()) {
        if (!this.#waiting.delete(account)) continue; // closed by one before it
        account.options.onRoom();
        if (!this.#waiting.has(account)) account.waitingSinceMs = null;
      }
    });
  }

  #arm(): void {
    if (this.#cancelWatch !== null) return;
    const { stallTimeoutMs, pressureTimeoutMs } = this.limits;
    const delayMs = Math.min(stallTimeoutMs, pressureTimeoutMs) / 4;
    this.#cancelWatch = this.#clock.timer(delayMs, () => {
      this.#cancelWatch = null;
      this.#watch();
      if (this.#accounts.size > 0) this.#arm();
    });
  }

  #watch(): void {
    const { stallTimeoutMs, pressureTimeoutMs, connectionBytesReserved } = this.limits;
    for (const account of [...this.#accounts]) {
      const debt = account.options.debt();
      for (const direction of DIRECTIONS) {
        const stalledMs = this.#stalledMs(account, direction, debt === direction || debt === 'both');
        const inTheWay =
          stalledMs >= pressureTimeoutMs &&
          account.heldBytes > connectionBytesReserved &&
          this.#isInTheWay(account);
        if (stalledMs < stallTimeoutMs && !inTheWay) continue;
        account.options.drop(REASONS[direction]);
        break;
      }
    }
  }

  /** For how long it has owed without moving enough. */
  #stalledMs(account: ClientAccount, direction: 'input' | 'output', owes: boolean): number {
    const owing = account.owing[direction];
    if (!owes) {
      owing.sinceMs = null;
      return 0;
    }
    const nowMs = this.#clock.monotonicMs();
    const movedBytes = account.options.movedBytes(direction);
    const more = movedBytes - owing.sinceBytes;
    if (owing.sinceMs === null || more < 0 || more >= this.limits.progressBytesMin) {
      owing.sinceMs = nowMs;
      owing.sinceBytes = movedBytes;
    }
    return nowMs - owing.sinceMs;
  }
}

/** From so long a wait on, the row is kept. */
const ROW_AFTER_MS = 1_000;
const REASONS = {
  input: 'the client does not finish what it began',
  output: 'the client does not take what it asked for',
};
