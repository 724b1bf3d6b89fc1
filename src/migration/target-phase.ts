import type { TargetPhase, TargetStatus } from '../contract/peer.ts';

const PHASES_IN_ORDER: readonly TargetPhase[] = [
  'preparing',
  'prepared',
  'handed-over',
  'activated',
  'booted',
  'healthy',
  'hydrated',
  'proven',
  'released',
];

/** True when the target is at `phase` or past it. `forgotten` is past nothing. */
export function reached(status: TargetStatus, phase: TargetPhase): boolean {
  return PHASES_IN_ORDER.indexOf(status.phase) >= PHASES_IN_ORDER.indexOf(phase);
}
