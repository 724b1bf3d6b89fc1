import { AsyncLocalStorage } from 'node:async_hooks';
import { PAUSE } from './patience.ts';

/*
 * What advances while somebody waits. Whoever can see that work goes on (an answer came, bytes were written,
 * a process used its processor) says so with `advanced`, however deep in the call it is; whoever decides
 * whether to go on waiting listens with `listening`. Work that nobody listens to says it to nobody, at the
 * cost of one look.
 *
 * The listener is found through the asynchronous context of the call, so that a question that six rooms lie
 * between needs no parameter in each of them: how far something is has no influence on what it does.
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

/**
 * Somebody was asked, and has not answered. `sinceMs`: wall clock; `livesAtMs`: when he last said that he
 * lives, since he was asked. Left out: he has said nothing at all.
 */
export type Question = { who: string; sinceMs: number; livesAtMs?: number };

export type Listener = {
  advanced: (advance: Advance) => void;
  /**
   * The returned function is called when the question is over, answered or not. Left out: questions are
   * nothing to it.
   */
  asks?: (question: Question) => () => void;
};

const listeners = new AsyncLocalStorage<Listener>();

/**
 * Runs `work`, and tells `listener` of everything that says in it, or in what it starts, that it advanced,
 * or whom it asks.
 */
export function listening<T>(listener: Listener, work: () => T): T {
  const outer = listeners.getStore();
  const asks = (question: Question) => {
    const ends = [listener.asks?.(question), outer?.asks?.(question)];
    return () => {
      for (const end of ends) end?.();
    };
  };
  const heard = (advance: Advance) => {
    listener.advanced(advance);
    outer?.advanced(advance);
  };
  return listeners.run({ advanced: heard, asks }, work);
}

/** Something that somebody may wait for has advanced. */
export function advanced(what: string, count = 1, unit: AdvanceUnit = 'answers'): void {
  listeners.getStore()?.advanced({ what, count, unit });
}

/** Who works on something that somebody may wait for has answered that it lives. */
export function lives(what: string): void {
  listeners.getStore()?.advanced({ what, count: 1, unit: 'answers', livesOnly: true });
}

/** Somebody was asked something that somebody may wait for; the returned function ends that. */
export function asks(question: Question): () => void {
  return listeners.getStore()?.asks?.(question) ?? (() => {});
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

/** A question that is younger has its answer before anybody reads of it. */
const TOLD_AFTER_MS = PAUSE.askedTold.ms;

/** Who is waited for, when it has not answered for long enough to be told. Pure. */
export function unanswered(asks: Question | undefined, nowMs: number): Question | null {
  return asks !== undefined && nowMs - asks.sinceMs >= TOLD_AFTER_MS ? asks : null;
}

/** `waits for an answer of w2`, or that w2 lives and has it in hand. */
export function questionText({ who, livesAtMs }: Question): string {
  return livesAtMs === undefined
    ? `waits for an answer of ${who}`
    : `waits for ${who}, which lives and works on it`;
}
