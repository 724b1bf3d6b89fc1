/** What is done to a fleet, and to whom: to a host, to the link of two, or to one process of a host. */
export const TROUBLES = {
  off: 'the worker is not there: killed, or without power, or on its way up',
  cut: 'a link is cut',
  hung: 'the worker process is stopped',
  'shim hung': 'a shim is stopped',
  'server hung': 'a volume server is stopped',
  full: 'the disk has no room for volumes',
  'full to the last': 'it has none for journal and records either',
  failing: 'the disk cannot be written',
  clock: 'the wall clock was set',
  shim: 'a shim was killed',
} as const;
export type Trouble = keyof typeof TROUBLES;

type Case = { trouble: Trouble; whom: readonly string[]; sinceMs: number; endedMs: number | null };

/** Cases that ended longer ago explain nothing any more. */
const KEEP_MS = 600_000;

/** What the harness knows to be the matter, and until when it was: what `why` is held against. */
export class Troubles {
  readonly #nowMs: () => number;
  #cases: Case[] = [];

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs;
  }

  /** `whom`: hosts, or a process by its name. Idempotent. */
  begin(trouble: Trouble, ...whom: readonly string[]): void {
    if (this.#open(trouble, whom)) return;
    const nowMs = this.#nowMs();
    this.#cases = this.#cases.filter(({ endedMs }) => endedMs === null || nowMs - endedMs < KEEP_MS);
    this.#cases.push({ trouble, whom, sinceMs: nowMs, endedMs: null });
  }

  /** Idempotent. */
  end(trouble: Trouble, ...whom: readonly string[]): void {
    const open = this.#open(trouble, whom);
    if (open) open.endedMs = this.#nowMs();
  }

  /** Something that is over as soon as it is done. */
  happened(trouble: Trouble, ...whom: readonly string[]): void {
    this.begin(trouble, ...whom);
    this.end(trouble, ...whom);
  }

  /** For how long it has been so; null: it is not. */
  forMs(trouble: Trouble, ...whom: readonly string[]): number | null {
    const open = this.#open(trouble, whom);
    return open ? this.#nowMs() - open.sinceMs : null;
  }

  /** Whether it is so, or was within the last `withinMs`. `whom` left out: to anybody. */
  lately(withinMs: number, troubles: readonly Trouble[] | null, whom?: string): boolean {
    const nowMs = this.#nowMs();
    return this.#cases.some(
      (each) =>
        (each.endedMs === null || nowMs - each.endedMs <= withinMs) &&
        (troubles === null || troubles.includes(each.trouble)) &&
        (whom === undefined || each.whom.some((one) => one === whom || one.startsWith(`${whom}/`))),
    );
  }

  #open(trouble: Trouble, whom: readonly string[]): Case | undefined {
    return this.#cases.find(
      (each) =>
        each.endedMs === null &&
        each.trouble === trouble &&
        each.whom.length === whom.length &&
        each.whom.every((one, index) => one === whom[index]),
    );
  }
}
