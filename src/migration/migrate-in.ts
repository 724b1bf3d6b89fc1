import { PAUSE } from '../base/patience.ts';
import type { TargetPhase } from '../contract/peer.ts';
import type { RunDefinition, RunView } from '../journal/run.ts';
import { finish, hydrate, prove, settle } from './in-after.ts';
import { attach, awaitHandoff, reserve, volume } from './in-before-stop.ts';
import { activate, boot, healthy } from './in-interruption.ts';
import type { MigrateInInput } from './in-notes.ts';
import type { InTools } from './in-tools.ts';
import { runOf } from './move-step.ts';
import { RunTimes } from './run-times.ts';

export type { MigrateInInput, MigrateInOutput } from './in-notes.ts';

/** Name of the kind in the journal. */
export const MIGRATE_IN = 'migrate-in';
const TARGET_RUN_SUFFIX = '.in';

/** Id of the target's run of the move that the source calls `moveId`. */
export function targetRunId(moveId: string): string {
  return `${moveId}${TARGET_RUN_SUFFIX}`;
}

/**
 * The target's run of a move. Its id is the source's run id with `TARGET_RUN_SUFFIX`, so that both may live
 * in one journal.
 *
 *     reserve → volume → attach → await ── activate ─┐ → boot → healthy → settle → hydrate → prove → finish
 *      the      sparse   shim,    the     the fence  │   mount,                              the      drop the
 *      offer    file,    FUSE,    hand-   moves: g+1 │   start                               receipt  clone layer,
 *      again    bits     login    off     the point of no return                             is here, log out
 *                                                                                            or waived
 *
 * Before `activate` the run unwinds when the source says so, when the source's run is gone, or when the
 * handoff does not come; each is first written to the inbox as `forgotten`, so that a handoff that arrives
 * later is refused. After it nothing goes back.
 */
export const IN_STEPS = [
  ...[reserve, volume, attach, awaitHandoff],
  ...[activate, boot, healthy],
  ...[settle, hydrate, prove, finish],
];

export type MigrateInOptions = Omit<InTools, 'times' | 'sourceProbeMs' | 'healthUntilMs'> & {
  /** Those of who answers the source (`TargetAnswers`). Left out: its own. */
  times?: RunTimes;
  /** How often a target that waits for the handoff asks whether its source still means it. Default 2 s. */
  sourceProbeMs?: number;
};

export function migrateIn(options: MigrateInOptions): RunDefinition<MigrateInInput> {
  const { times = new RunTimes(options.clock), sourceProbeMs = PAUSE.sourceProbe.ms } = options;
  return runOf(
    { kind: MIGRATE_IN, resource: ({ machineId }) => `machine:${machineId}`, takenUp: true },
    IN_STEPS,
    { ...options, times, sourceProbeMs, healthUntilMs: new Map() },
  );
}

/** Where a run is, from the steps that are done. Pure. */
export function phaseOf(run: RunView): TargetPhase {
  const done = IN_STEPS.filter(({ name }) =>
    run.steps.some((step) => step.name === name && step.state === 'done'),
  );
  if (!done.some(({ pointOfNoReturn }) => pointOfNoReturn)) {
    if (run.state === 'undoing' || run.state === 'undone' || run.state === 'failed') return 'forgotten';
  }
  return done.findLast(({ reaches }) => reaches !== undefined)?.reaches ?? 'preparing';
}
