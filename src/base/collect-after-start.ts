import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Clock } from './clock.ts';

/** Whoever waited for the start has what he wanted, and what follows it at once is over. */
const AFTER_MS = 5_000;

/**
 * Gives back what only the start of this process needed. V8 keeps the garbage of a process that then does
 * nothing for as long as it does nothing; there are two of these for each machine. One collection of some
 * milliseconds.
 */
export function collectAfterStart(clock: Pick<Clock, 'timer'>, collect: () => void = collectGarbage): void {
  clock.timer(AFTER_MS, collect);
}

/**
 * The flag is set when it is needed: with it from the start on Node takes none of the code that it brings
 * compiled, which costs more than is won here.
 */
function collectGarbage(): void {
  setFlagsFromString('--expose-gc');
  const collect: () => void = runInNewContext('gc');
  setFlagsFromString('--no-expose-gc');
  collect();
}
