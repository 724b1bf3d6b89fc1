/** Of all processors' time, what must be idle for one more suite beside those that run. */
const IDLE_SHARE_MIN = 0.3;

/**
 * Whether one more suite is started: `jobs` whatever the machine does, up to `jobsMax` while it has nothing
 * to do. `idleShare` is null as long as nobody knows.
 */
export function mayStart(now: {
  running: number;
  jobs: number;
  jobsMax: number;
  idleShare: number | null;
}): boolean {
  if (now.running < now.jobs) return true;
  return now.running < now.jobsMax && now.idleShare !== null && now.idleShare >= IDLE_SHARE_MIN;
}

/**
 * The share of all processors' time, 0 to 1, in which they had nothing to do, from the first line of
 * /proc/stat (proc(5): user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice in ticks;
 * guest is in user). Waiting for a disk is not idle: a second suite would wait for the same disk.
 */
export class IdleProcessors {
  readonly #read: () => string;
  readonly #ticksMin: number;
  #last: { idle: number; all: number };

  /**
   * `ticksMin`: of all processors together (USER_HZ, 100 a second each), over how many a share says
   * something.
   */
  constructor(read: () => string, ticksMin: number) {
    this.#read = read;
    this.#ticksMin = ticksMin;
    this.#last = ticks(read());
  }

  /** Begins anew: what was before says nothing any more. */
  restart(): void {
    this.#last = ticks(this.#read());
  }

  /** Since the last share; null as long as that is less than `ticksMin` ago. */
  share(): number | null {
    const now = ticks(this.#read());
    const { idle, all } = this.#last;
    if (now.all - all < this.#ticksMin) return null;
    this.#last = now;
    return (now.idle - idle) / (now.all - all);
  }
}

function ticks(stat: string): { idle: number; all: number } {
  const fields = stat.slice(0, stat.indexOf('\n')).trim().split(/\s+/).slice(1, 9).map(Number);
  return { idle: fields[3] ?? 0, all: fields.reduce((sum, field) => sum + field, 0) };
}
