import type { Clock } from './clock.ts';
import type { Random } from './random.ts';

/** Above this the factor is more than any pause that somebody would want. */
const DOUBLINGS_MAX = 30;

/** The first pause between attempts, and the longest. */
export type Backoff = { firstMs: number; maxMs: number };

/** The pause after so many failures in a row (1: the first): it doubles with each. Pure. */
export function backoffMs({ firstMs, maxMs }: Backoff, failures: number): number {
  return Math.min(maxMs, firstMs * 2 ** Math.min(Math.max(0, failures - 1), DOUBLINGS_MAX));
}

/**
 * For a loop that looks whether something is so: the first call sleeps for `firstMs`, each other twice
 * as long as the one before. Rejects with the reason of `signal`.
 */
export function pauses(
  clock: Pick<Clock, 'sleep'>,
  backoff: Backoff,
): (signal?: AbortSignal) => Promise<void> {
  let looks = 0;
  return (signal) => clock.sleep(backoffMs(backoff, ++looks), signal);
}

/** Between half of `ms` and all of it, so that those who failed together do not come back together. */
export function jittered(ms: number, random: Random): number {
  return ms / 2 + random.below(Math.ceil(ms / 2) + 1);
}
