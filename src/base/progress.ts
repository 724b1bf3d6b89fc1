import { AsyncLocalStorage } from 'node:async_hooks';

/*
 * What advances while somebody waits. Whoever can see that work goes on (an answer came, bytes were written, a process used its processor)
 * says so with `advanced`, however deep in the call it is; whoever decides whether to go on waiting listens with `listening`. Work that nobody
 * listens to says it to nobody, at the cost of one look.
 *
 * The listener is found through the asynchronous context of the call, so that a question that six rooms lie between needs no parameter in each
 * of them: how far something is has no influence on what it does.
 */

export type AdvanceUnit = 'bytes' | 'answers' | 'processor ms' | 'steps';

export type Advance = {
  /** What advances, as the subject of "…: 12 answers", e.g. `answers of worker-2`. */
  what: string;
  /** How much of `unit` since it was said last. */
  count: number;
  unit: AdvanceUnit;
  /** It lives, and that is all that is known: whether its work goes on nobody has seen. */
  livesOnly?: true;
};

const listeners = new AsyncLocalStorage<(advance: Advance) => void>();

/** Runs `work`, and calls `listener` for everything that says in it, or in what it starts, that it advanced. */
export function listening<T>(listener: (advance: Advance) => void, work: () => T): T {
  const outer = listeners.getStore();
  return listeners.run((advance) => {
    listener(advance);
    outer?.(advance);
  }, work);
}

/** Something that somebody may wait for has advanced. */
export function advanced(what: string, count = 1, unit: AdvanceUnit = 'answers'): void {
  listeners.getStore()?.({ what, count, unit });
}

/** Who works on something that somebody may wait for has answered that it lives. */
export function lives(what: string): void {
  listeners.getStore()?.({ what, count: 1, unit: 'answers', livesOnly: true });
}

/** What a step has got done so far, for people. Times are wall clock, ms since the epoch. */
export type Progress = {
  what: string;
  unit: AdvanceUnit;
  count: number;
  /** When it was first and last heard of. */
  sinceMs: number;
  lastAtMs: number;
};

/** The sum with one more advance; begins anew when something else advances. Pure. */
export function addAdvance(progress: Progress | null, advance: Advance, nowMs: number): Progress {
  const { what, unit, count } = advance;
  if (progress?.what !== what || progress.unit !== unit) {
    return { what, unit, count, sinceMs: nowMs, lastAtMs: nowMs };
  }
  return { ...progress, count: progress.count + count, lastAtMs: nowMs };
}

/** How fast that is: `answers of worker-2: 120 in 40.0 s, 3.0 a second, the last 0.2 s ago`. */
export function progressText({ what, unit, count, sinceMs, lastAtMs }: Progress, nowMs: number): string {
  const forS = Math.max(0, nowMs - sinceMs) / 1000;
  const ago = `the last ${(Math.max(0, nowMs - lastAtMs) / 1000).toFixed(1)} s ago`;
  const rate = forS >= 0.1 ? count / forS : 0;
  if (unit === 'bytes') {
    return `${what}: ${mebibytes(count)} MiB in ${forS.toFixed(1)} s, ${mebibytes(rate)} MiB a second, ${ago}`;
  }
  const amount = unit === 'processor ms' ? `${Math.round(count)} ms of processor time` : `${count}`;
  return `${what}: ${amount} in ${forS.toFixed(1)} s, ${rate.toFixed(1)} a second, ${ago}`;
}

function mebibytes(bytes: number): string {
  return (bytes / 2 ** 20).toFixed(1);
}
