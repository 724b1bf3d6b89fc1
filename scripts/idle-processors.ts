/** Of all processors' time, what must be without work for one more process beside those that run. */
const IDLE_SHARE_MORE = 0.15;
/** With less, one that ends has no successor. */
const IDLE_SHARE_LESS = 0.01;

/**
 * How many processes of tests may run: never fewer than `jobs`, up to `jobsMax` while the machine has nothing
 * to do. `places`: as many as might until now. `idleShare` is null as long as nobody knows.
 */
export function placesFor(now: {
  places: number;
  running: number;
  jobs: number;
  jobsMax: number;
  idleShare: number | null;
}): number {
  const { places, running, jobs, jobsMax, idleShare } = now;
  if (idleShare === null) return places;
  if (idleShare < IDLE_SHARE_LESS) return Math.max(jobs, places - 1);
  return idleShare >= IDLE_SHARE_MORE && running >= places ? Math.min(jobsMax, places + 1) : places;
}

/** Of all processors' time, 0 to 1: in which they had nothing to do, and in which that was for a disk. */
export type IdleShares = { nothing: number; disk: number };

/**
 * Since the last look, from the first line of /proc/stat (proc(5): user, nice, system, idle, iowait, irq,
 * softirq, steal, guest, guest_nice in ticks; guest is in user).
 */
export class IdleProcessors {
  readonly #read: () => string;
  readonly #ticksMin: number;
  #last: Ticks;

  /**
   * `ticksMin`: of all processors together (USER_HZ, 100 a second each), over how many a share says
   * something.
   */
  constructor(read: () => string, ticksMin: number) {
    this.#read = read;
    this.#ticksMin = ticksMin;
    this.#last = ticks(read());
  }

  /** Null as long as the last one is less than `ticksMin` ago. */
  shares(): IdleShares | null {
    const now = ticks(this.#read());
    const { idle, disk, all } = this.#last;
    if (now.all - all < this.#ticksMin) return null;
    this.#last = now;
    const share = (part: number) => part / (now.all - all);
    return { nothing: share(now.idle - idle), disk: share(now.disk - disk) };
  }

  /**
   * All of it in which no suite could run on. Time for a disk is part of that: whoever comes next may have
   * other things to do.
   */
  share(): number | null {
    const shares = this.shares();
    return shares === null ? null : shares.nothing + shares.disk;
  }
}

type Ticks = { idle: number; disk: number; all: number };

function ticks(stat: string): Ticks {
  const fields = stat.slice(0, stat.indexOf('\n')).trim().split(/\s+/).slice(1, 9).map(Number);
  return { idle: fields[3] ?? 0, disk: fields[4] ?? 0, all: fields.reduce((sum, field) => sum + field, 0) };
}
