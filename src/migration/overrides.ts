import { type Clock, deadline } from '../base/clock.ts';
import { GodwitError, messageOf } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { Peer, PrepareRequest, TargetStatus } from '../contract/peer.ts';
import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import { MIGRATE_IN, phaseOf } from './migrate-in.ts';
import { MIGRATE_OUT, type MigrateOutOutput } from './migrate-out.ts';
import { mayHavePassed } from './move-watch.ts';
import { hasIt, type OverrideNote } from './override-note.ts';
import type { TargetAnswers } from './target-answers.ts';
import { reached } from './target-phase.ts';

/** An override, and what its operator states beside it. */
export type Override = {
  how: 'undo' | 'forward' | 'forget' | 'unproven';
  /** The target's host, and what the machine wrote there, will never come back. */
  targetIsDestroyed: boolean;
  /** For the log. */
  by: string;
};

const ASK_TIMEOUT_MS = PATIENCE.overrideQuestion.ms;

export type OverridesOptions = {
  journal: Journal;
  targetAnswers: TargetAnswers;
  peers: () => readonly Peer[];
  clock: Clock;
};

/**
 * An operator's overrides of the two runs of a move. One host may not decide for two: where an override could
 * have the machine run twice, or takes blocks from a target that needs them, the other worker is asked first.
 * Its word counts; when there is none, only the statement that it is destroyed stands in for it.
 */
export class Overrides {
  readonly #options: OverridesOptions;

  constructor(options: OverridesOptions) {
    this.#options = options;
  }

  /**
   * Rejects as `Journal.force`, and `MIGRATION_TARGET_HAS_IT`, `MIGRATION_TARGET_NEEDS_BLOCKS`,
   * `MIGRATION_TARGET_UNASKED`; `unproven` as `TargetAnswers.waiveReceipt`.
   */
  async force(id: string, override: Override): Promise<RunView> {
    const { journal, targetAnswers } = this.#options;
    const run = journal.get(id);
    const { how, by } = override;
    if (how === 'unproven') return targetAnswers.waiveReceipt(run, by);
    if (how === 'forward') await this.#mustBeHere(run);
    const asks = how !== 'forward' && (run.endedAtMs === null || run.state === 'failed');
    if (!asks) return journal.force(id, how, by);
    const note =
      run.kind === MIGRATE_OUT ? await this.#ofSource(run, override) : await this.#ofTarget(run, how);
    const stated = note === 'target-is-destroyed' ? `${by}, who says that the target is destroyed` : by;
    return journal.force(id, how, stated, note === null ? {} : { override: note });
  }

  /** On whose word the source's run may go back, or be forgotten. Null: it needs nobody's. */
  async #ofSource(run: RunView, { how, targetIsDestroyed }: Override): Promise<OverrideNote | null> {
    // The target may have been told that the volume is its own.
    if (!mayHavePassed(run)) return null;
    const target = (run.output as MigrateOutOutput).target ?? 'the target';
    const status = await this.#ask(target, run.id);
    if (status instanceof Error) {
      if (targetIsDestroyed) return 'target-is-destroyed';
      throw unasked(run, target, how, status);
    }
    if (status.gone) return 'volume-gone';
    if (status.phase === 'forgotten') return 'target-forgot';
    if (how === 'undo') throw hasIt(run, target, status);
    const { subject } = run.output as MigrateOutOutput;
    if (subject?.volume && !reached(status, 'hydrated')) throw needsBlocks(run, target);
    return null;
  }

  /** A run of the target that was forgotten is taken up again only while its volume is here. */
  async #mustBeHere(run: RunView): Promise<void> {
    if (run.kind !== MIGRATE_IN || run.state !== 'failed') return;
    const { gone, phase } = await this.#options.targetAnswers.status((run.input as PrepareRequest).runId);
    if (!gone && phase !== 'forgotten') return;
    throw new GodwitError('JOURNAL_RUN_OVER', `run ${run.id} is over, and its volume is not here any more`, {
      values: { runId: run.id, state: run.state },
      nextAction: 'Nothing is left to go on with.',
    });
  }

  async #ofTarget(run: RunView, how: Override['how']): Promise<OverrideNote | null> {
    if (run.kind !== MIGRATE_IN || how !== 'undo') return null;
    const { runId, sourceWorker } = run.input as PrepareRequest;
    const { phase } = await this.#options.targetAnswers.status(runId);
    if (phase === 'forgotten' || phaseOf(run) === 'preparing' || phaseOf(run) === 'prepared') return null;
    if (phase === 'handed-over' && !mayHavePassed(run)) return null;
    const peer = this.#options.peers().find(({ name }) => name === sourceWorker);
    const asked = await peer
      ?.run(runId, { signal: deadline(this.#options.clock, ASK_TIMEOUT_MS) })
      .catch(() => null);
    if (asked?.state === 'undone') return 'source-took-back';
    throw new GodwitError(
      'MIGRATION_TARGET_HAS_IT',
      `the volume of ${run.resource} is open here: to undo run ${run.id} would throw away what the machine has written`,
      {
        values: { runId: run.id, phase },
        nextAction: `Let it go forward (godwit why ${run.id}), and move the machine back afterwards. To give it up: \`godwit runs force ${run.id} forget --yes\`, then destroy the machine.`,
      },
    );
  }

  /** The target's word; it forgets the move for good where it was never told that the volume is its own. */
  async #ask(name: string, moveId: string): Promise<TargetStatus | Error> {
    const peer = this.#options.peers().find((candidate) => candidate.name === name);
    if (!peer) return new Error('it is not among the peers of this worker');
    try {
      return await peer.cancel(moveId, { signal: deadline(this.#options.clock, ASK_TIMEOUT_MS) });
    } catch (error) {
      return error instanceof Error ? error : new Error(messageOf(error));
    }
  }
}

function needsBlocks(run: RunView, target: string): GodwitError {
  return new GodwitError(
    'MIGRATION_TARGET_NEEDS_BLOCKS',
    `${target} runs the machine, and some of its blocks are still only here`,
    {
      values: { runId: run.id, target },
      nextAction: `Let it fetch them (\`godwit why ${run.id}\`).`,
    },
  );
}

function unasked(run: RunView, target: string, how: string, error: Error): GodwitError {
  const { handedOverAtMs, stopStartedAtMs } = run.output as MigrateOutOutput;
  const sinceMs = handedOverAtMs ?? stopStartedAtMs;
  const since = sinceMs === undefined ? '' : ` since ${new Date(sinceMs).toISOString()}`;
  const loss =
    how === 'undo'
      ? `what the machine wrote there${since} would be lost, and should ${target} come back, it would run twice until it hears of this`
      : `blocks that ${target} still needs would be taken away from it`;
  return new GodwitError(
    'MIGRATION_TARGET_UNASKED',
    `${target} cannot be asked (${error.message}), and it may have the volume: ${loss}`,
    {
      values: { runId: run.id, target, how },
      nextAction: `Bring ${target} back. If its host is lost for good: \`godwit runs force ${run.id} ${how} --target-is-destroyed --yes\`.`,
    },
  );
}
