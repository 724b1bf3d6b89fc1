import type { Clock } from './clock.ts';
import type { Logger } from './logger.ts';

/** Of one message, whatever its fields, so many lines in so long. */
const LINES_MAX = 50;
const PERIOD_MS = 60_000;

type Kept = { sinceMs: number; lines: number; leftOut: number };

/**
 * For what peers can make a process log as often as they like: a connection that breaks the protocol, a login
 * that is refused. Of each message the first lines of a minute are written, then it is counted, and how many
 * there were stands in one line when the minute is over and something is logged again. So a peer can neither
 * fill a disk, nor make the process write all the time, nor wash away what was logged before. Messages are
 * constants, and children share the count.
 */
export function sparingLogger(logger: Logger, clock: Clock): Logger {
  const kept = new Map<string, Kept>();
  let sweepAtMs = 0;
  const sweep = (nowMs: number) => {
    if (nowMs < sweepAtMs) return;
    sweepAtMs = Number.POSITIVE_INFINITY;
    for (const [message, { sinceMs, leftOut }] of kept) {
      if (nowMs - sinceMs < PERIOD_MS) {
        sweepAtMs = Math.min(sweepAtMs, sinceMs + PERIOD_MS);
        continue;
      }
      kept.delete(message);
      if (leftOut > 0)
        logger.warn({ message, leftOut, forMs: Math.round(nowMs - sinceMs) }, 'more of the same');
    }
  };
  const isWritten = (message: string): boolean => {
    const nowMs = clock.monotonicMs();
    sweep(nowMs);
    let entry = kept.get(message);
    if (entry === undefined) {
      entry = { sinceMs: nowMs, lines: 0, leftOut: 0 };
      kept.set(message, entry);
      sweepAtMs = Math.min(sweepAtMs, nowMs + PERIOD_MS);
    }
    if (entry.lines === LINES_MAX) entry.leftOut += 1;
    else entry.lines += 1;
    return entry.leftOut === 0;
  };
  const over = (to: Logger): Logger => {
    const line = (level: 'debug' | 'info' | 'warn' | 'error') => (fields: object, message: string) => {
      if (isWritten(message)) to[level](fields, message);
    };
    return {
      debug: (fields, message) => to.debug(fields, message),
      info: line('info'),
      warn: line('warn'),
      error: line('error'),
      child: (fields) => over(to.child(fields)),
    };
  };
  return over(logger);
}
