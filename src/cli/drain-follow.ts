import type { Clock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import type { DrainStatus } from '../contract/schemas.ts';
import { EXIT, type ExitCode } from './exit.ts';

export type FollowOptions = {
  ask: () => Promise<DrainStatus>;
  /** Told every status; decides itself what is new. */
  show: (status: DrainStatus) => void;
  /** Told once when the worker stops answering, and once (null) when it is back. */
  away: (error: Error | null) => void;
  clock: Clock;
  signal: AbortSignal;
  pollMs: number;
  /** How long nothing may move before the drain counts as blocked. */
  blockedAfterMs: number;
  /** How long the worker may be away. */
  awayMs: number;
};

/**
 * Watches a drain to its end. The drain itself lives in the worker: nothing here moves it, and it goes on
 * when nobody watches. Rejects with `API_UNREACHABLE` when the worker is away for too long, and with the
 * signal's reason.
 */
export async function followDrain(
  options: FollowOptions,
): Promise<{ status: DrainStatus; exitCode: ExitCode }> {
  const { clock, signal } = options;
  let blockedSinceMs: number | null = null;
  let awaySinceMs: number | null = null;
  for (;;) {
    signal.throwIfAborted();
    let status: DrainStatus | null = null;
    try {
      status = await options.ask();
    } catch (error) {
      if (!isGodwitError(error, 'API_UNREACHABLE')) throw error;
      if (awaySinceMs === null) {
        awaySinceMs = clock.monotonicMs();
        options.away(error);
      } else if (clock.monotonicMs() - awaySinceMs >= options.awayMs) {
        throw error;
      }
    }
    if (status !== null) {
      if (awaySinceMs !== null) options.away(null);
      awaySinceMs = null;
      options.show(status);
      if (status.state === 'drained') return { status, exitCode: EXIT.done };
      // Somebody ended the drain.
      if (!status.desired) return { status, exitCode: EXIT.blocked };
      if (status.state !== 'waiting') blockedSinceMs = null;
      else {
        blockedSinceMs ??= clock.monotonicMs();
        if (clock.monotonicMs() - blockedSinceMs >= options.blockedAfterMs) {
          return { status, exitCode: EXIT.blocked };
        }
      }
    }
    await clock.sleep(options.pollMs, signal);
  }
}
