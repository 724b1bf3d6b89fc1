import { GodwitError } from '../base/errors.ts';
import type { TargetStatus } from '../contract/peer.ts';

/** What stands behind an override, in the run's output (`override`). */
export type OverrideNote = 'target-forgot' | 'volume-gone' | 'target-is-destroyed' | 'source-took-back';

/** The target's word against going back. */
export function hasIt(run: { id: string }, target: string, { phase }: TargetStatus): GodwitError {
  return new GodwitError(
    'MIGRATION_TARGET_HAS_IT',
    `${target} answers, and has the volume (${phase}): the machine would run on two workers`,
    {
      values: { runId: run.id, target, phase },
      nextAction: `Let the move go forward (\`godwit why ${run.id}\`; \`godwit runs force ${run.id} forward --yes\`), and move the machine back afterwards.`,
    },
  );
}
