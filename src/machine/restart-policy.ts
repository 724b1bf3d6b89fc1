import { backoffMs } from '../base/backoff.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import type { WorkloadExit } from '../shim/runtime.ts';

const BACKOFF = { firstMs: 100, maxMs: 10_000 };
/** A run that lasted so long was a good one: counting and backing off begin anew. */
export const STEADY_MS = 10_000;

export type RestartDecision =
  | { kind: 'restart'; delayMs: number; restartsInRow: number }
  /** Ended as it should, or nobody wants it again. */
  | { kind: 'exited' }
  /** Ended badly once too often. */
  | { kind: 'failed' };

/**
 * What to do after the workload ended by itself; pure. `restartsInRow`: restarts so far without a steady run
 * between; `ranMs`: how long this run lasted.
 */
export function decideRestart(
  restart: MachineConfig['restart'],
  exit: WorkloadExit,
  restartsInRow: number,
  ranMs: number,
): RestartDecision {
  const good = exit.exitCode === 0;
  if (restart.policy === 'no') return { kind: 'exited' };
  if (restart.policy === 'on-failure' && good) return { kind: 'exited' };
  const inRow = ranMs >= STEADY_MS ? 0 : restartsInRow;
  if (restart.policy === 'on-failure' && inRow >= restart.retriesMax) return { kind: 'failed' };
  const delayMs = backoffMs(BACKOFF, inRow + 1);
  return { kind: 'restart', delayMs, restartsInRow: inRow + 1 };
}
