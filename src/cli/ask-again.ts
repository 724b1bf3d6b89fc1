import type { Clock } from '../base/clock.ts';
import { isGodwitError, messageOf } from '../base/errors.ts';

/** A worker that restarts is back within seconds; after this it is taken for lost. */
export const AWAY_MS = 60_000;
const PAUSE_MS = 250;

export type AskAgainOptions = {
  /** Told once when the worker stops answering, and once (null) when it is back. */
  away: (error: Error | null) => void;
  clock: Clock;
  signal: AbortSignal;
};

/**
 * The answer to a question that changes nothing, about something that goes on in a worker: asked again
 * while that is away, as in an upgrade. Rejects `API_UNREACHABLE` after `AWAY_MS`, and with the signal's
 * reason.
 */
export async function askAgain<T>(
  ask: () => Promise<T>,
  { away, clock, signal }: AskAgainOptions,
): Promise<T> {
  let awaySinceMs: number | null = null;
  for (;;) {
    signal.throwIfAborted();
    try {
      const answer = await ask();
      if (awaySinceMs !== null) away(null);
      return answer;
    } catch (error) {
      if (!isGodwitError(error, 'API_UNREACHABLE')) throw error;
      if (awaySinceMs === null) {
        awaySinceMs = clock.monotonicMs();
        away(error);
      } else if (clock.monotonicMs() - awaySinceMs >= AWAY_MS) throw error;
      await clock.sleep(PAUSE_MS, signal);
    }
  }
}

/** For `away`: what is told of a worker, and of what goes on in it. */
export function tellAway(
  note: (text: string) => void,
  worker: string,
  what: string,
): (error: Error | null) => void {
  return (error) =>
    note(
      error
        ? `${worker} does not answer (${messageOf(error)}); ${what} goes on when it is back`
        : `${worker} is back`,
    );
}
