import { setImmediate as immediate } from 'node:timers/promises';
import type { AnswerTime } from './answer-time.ts';
import type { Clock } from './clock.ts';
import { advanced, asks, lives, type Question } from './progress.ts';

/*
 * Slow or dead? A call that takes long is not given up for that: whoever works on it is asked something cheap
 * meanwhile, and as long as that is answered the call is waited for. Only who answers none of several
 * questions in a row, each waited for as long as its earlier answers let expect and twice as long as the one
 * before, is silent.
 *
 * A process that was stopped itself, or had no processor, finds its timers due and the answers unread. So
 * what has arrived is looked at before a question counts as unanswered, and a question whose time passed
 * while this process slept does not count at all.
 */

export type WhileAlive = {
  /** Who is asked, for `advanced` and `asks`: `worker-2`. */
  who: string;
  /** A cheap question. Aborted when it does not matter any more. */
  ask: (signal: AbortSignal) => Promise<unknown>;
  /** Of this question, over all calls to the same peer. */
  times: AnswerTime;
  /** Questions in a row that may stay without an answer. */
  questionsMax: number;
  /** How long a call goes on before anybody is asked, and between one answer and the next question. */
  pauseMs: number;
  /** What the call ends with when nobody answers. */
  silent: (silentForMs: number) => Error;
  clock: Clock;
  signal?: AbortSignal | undefined;
};

/**
 * As `work` ends; as `silent` says when nobody answers; with the reason of `signal`. `work` must end when its
 * own signal aborts.
 */
export async function whileAlive<T>(
  work: (signal: AbortSignal) => Promise<T>,
  options: WhileAlive,
): Promise<T> {
  const stop = new AbortController();
  const over = new AbortController();
  const onAbort = () => stop.abort(options.signal?.reason);
  if (options.signal?.aborted) onAbort();
  else options.signal?.addEventListener('abort', onAbort, { once: true });
  const question: Question = { who: options.who, sinceMs: options.clock.wallMs() };
  void watch(stop, over.signal, question, options);
  const heard = asks(question);
  try {
    const result = await work(stop.signal);
    advanced(answersOf(options.who));
    return result;
  } finally {
    heard();
    options.signal?.removeEventListener('abort', onAbort);
    over.abort(OVER);
  }
}

/** Nobody waits for the answer any more. One for all: each error that is made takes its stack along. */
const OVER = new Error('the call is over');

function answersOf(who: string): string {
  return `answers of ${who}`;
}

/** Asks until `over`, and stops the work when nobody answers. */
async function watch(
  stop: AbortController,
  over: AbortSignal,
  question: Question,
  options: WhileAlive,
): Promise<void> {
  const { ask, times, questionsMax, pauseMs, clock, silent, who } = options;
  let heardMs = clock.monotonicMs();
  let unanswered = 0;
  let wake = () => {};
  await sleepQuietly(clock, pauseMs, over);
  while (!over.aborted) {
    const askedMs = clock.monotonicMs();
    const patienceMs = times.patienceMs;
    const answer = Promise.withResolvers<void>();
    wake = answer.resolve;
    let answered = false;
    ask(over).then(
      () => {
        // Also the answer to an earlier question: it lives, and this is how long it takes.
        answered = true;
        heardMs = clock.monotonicMs();
        times.answered(heardMs - askedMs);
        unanswered = 0;
        question.livesAtMs = clock.wallMs();
        if (!over.aborted) lives(answersOf(who));
        wake();
      },
      () => {},
    );
    const heardBeforeMs = heardMs;
    await sleepQuietly(clock, patienceMs, over, answer.promise);
    await immediate();
    if (over.aborted) return;
    if (answered || heardMs > heardBeforeMs) {
      await sleepQuietly(clock, pauseMs, over);
      continue;
    }
    times.unanswered();
    if (clock.monotonicMs() - askedMs < 1.5 * patienceMs) unanswered++;
    if (unanswered >= questionsMax) {
      stop.abort(silent(clock.monotonicMs() - heardMs));
      return;
    }
  }
}

/** A pause that ends early at `early` or `over`, and never rejects. */
async function sleepQuietly(
  clock: Clock,
  ms: number,
  over: AbortSignal,
  early?: Promise<void>,
): Promise<void> {
  const done = Promise.withResolvers<void>();
  const cancel = clock.timer(ms, done.resolve);
  const end = () => done.resolve();
  over.addEventListener('abort', end, { once: true });
  if (over.aborted) end();
  void early?.then(end);
  await done.promise;
  over.removeEventListener('abort', end);
  cancel();
}
