import { PATIENCE } from '../base/patience.ts';
import type { RunDefinition } from '../journal/run.ts';
import { runOf } from './move-step.ts';
import { OfferDesk } from './offers.ts';
import { awaitBlocks, detach, prove, release } from './out-after.ts';
import { choose, openExport, prepare, sync } from './out-before-stop.ts';
import { handoff, open, seal, settle, stop } from './out-interruption.ts';
import type { MigrateOutInput } from './out-notes.ts';
import type { OutTools } from './out-tools.ts';
import { RunTimes } from './run-times.ts';

export type { Interruption, MigrateOutInput, MigrateOutOutput } from './out-notes.ts';

/** Name of the kind in the journal. */
export const MIGRATE_OUT = 'migrate-out';

/**
 * The source's run of a move.
 *
 *     choose → export → prepare → sync → stop → seal → open → handoff ─┐ → settle → detach → serve → prove → release
 *       ask     standby   target    dirty   the    g      blocks  the   │    the      our      until   what    keep the
 *       for     for one   does all  pages   machine       may be  point │    target   shim     it is   came    sealed file
 *       offers  grant     it can    out                   read    of no │    boots    ends     whole   is it   as a way back
 *                                                                 return
 * Everything before `stop` happens while the machine runs; from `stop` to the target's first healthy answer
 * it does not. Until `handoff` every failure unwinds: the target forgets, the volume is unsealed as g+2, and
 * the machine starts here again.
 */
export const OUT_STEPS = [
  ...[choose, openExport, prepare, sync],
  ...[stop, seal, open, handoff, settle],
  ...[detach, awaitBlocks, prove, release],
];

export type MigrateOutOptions = Omit<OutTools, 'desk' | 'times' | 'handoffPatienceMs'> & {
  /** That all who ask for offers share. Left out: one of its own. */
  desk?: OfferDesk;
  /**
   * How long a stopped machine waits for a target that cannot be asked, before it starts here again. Default
   * 15 s.
   */
  handoffPatienceMs?: number;
};

export function migrateOut(options: MigrateOutOptions): RunDefinition<MigrateOutInput> {
  const { peers, clock } = options;
  const { desk = new OfferDesk({ peers, clock }), handoffPatienceMs = PATIENCE.targetLost.ms } = options;
  return runOf(
    { kind: MIGRATE_OUT, resource: ({ machineId }) => `machine:${machineId}`, turnsRound: true },
    OUT_STEPS,
    { ...options, desk, times: new RunTimes(clock), handoffPatienceMs },
  );
}
