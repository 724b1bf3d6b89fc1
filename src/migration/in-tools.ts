import { type Clock, deadline } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import type { InNotes, MigrateInInput } from './in-notes.ts';
import type { MoveInbox } from './inbox.ts';
import { stepsOf, type Waiting } from './move-step.ts';
import type { ReceiptBook } from './receipt-book.ts';
import type { RunTimes } from './run-times.ts';
import type { TargetSide } from './target-side.ts';

/** What the steps of the target's run work with. */
export type InTools = {
  target: TargetSide;
  inbox: MoveInbox;
  receipts: ReceiptBook;
  clock: Clock;
  /** For the interruption. */
  times: RunTimes;
  /** How often a target that waits for the handoff asks whether its source still means it. */
  sourceProbeMs: number;
  /**
   * Until when the health of a run's machine is waited for. By the monotonic clock, over all attempts of this
   * process: a clock that is set must not end, nor lengthen, anybody's wait.
   */
  healthUntilMs: Map<string, number>;
};

export const inStep = stepsOf<InTools, MigrateInInput, InNotes>();

/** How long nothing may advance in a step of the target's run. */
export const IN_PATIENCE = {
  observed: { quietMs: PATIENCE.observedStep.ms, livesOnlyMs: PATIENCE.livesOnly.ms },
  local: { quietMs: PATIENCE.localStep.ms },
  forward: { quietMs: PATIENCE.forwardStep.ms },
  long: { quietMs: PATIENCE.longStep.ms },
} as const;

/** How often a target whose source should be serving it asks whether it still is the machine's owner. */
const SOURCE_WATCH_MS = PAUSE.sourceWatch.ms;

/**
 * A source that was told that this host is destroyed runs the machine again. When this host is back all the
 * same, it hears so, and stops its own: `MIGRATION_SOURCE_TOOK_BACK`. Asks once in `SOURCE_WATCH_MS`.
 */
export function watchSource(
  { target, clock }: InTools,
  { runId, input, signal: ends }: Waiting & { input: MigrateInInput },
): () => Promise<void> {
  let askAtMs = 0;
  return async () => {
    if (clock.monotonicMs() < askAtMs) return;
    askAtMs = clock.monotonicMs() + SOURCE_WATCH_MS;
    const signal = AbortSignal.any([ends, deadline(clock, SOURCE_WATCH_MS)]);
    const run = await target.sourceRun(input, signal).catch(() => null);
    ends.throwIfAborted();
    if (run?.state !== 'undone') return;
    await target.standDown(input);
    throw tookBack(input, runId);
  };
}

/** The target says no. */
export function refusal(input: PrepareRequest, worker: string, reason: string): GodwitError {
  return new GodwitError('MIGRATION_REFUSED', `${worker} does not take ${input.machineName}: ${reason}`, {
    values: { worker, machine: input.machineName },
    retry: 'never',
    nextAction:
      'The drain asks the other workers; make room on this one or undrain it to let it take machines.',
  });
}

function tookBack({ machineName, sourceWorker }: PrepareRequest, runId: string): GodwitError {
  return new GodwitError(
    'MIGRATION_SOURCE_TOOK_BACK',
    `an operator of ${sourceWorker} said that this host is destroyed, and ${machineName} runs there again: it was stopped here`,
    {
      values: { machine: machineName, source: sourceWorker },
      nextAction: `What it wrote here is still here. \`godwit runs force ${runId} undo --yes\` throws it away.`,
    },
  );
}
