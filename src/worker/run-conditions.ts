import type { WireError } from '../base/errors.ts';
import { progressText, type Question, questionText, unanswered } from '../base/progress.ts';
import { goesBack, type RunView, stepText } from '../journal/run.ts';
import { MIGRATE_IN } from '../migration/migrate-in.ts';
import { MIGRATE_OUT } from '../migration/migrate-out.ts';
import { isBefore, mayHavePassed, stepOf } from '../migration/move-watch.ts';
import type { Condition } from './condition.ts';

/**
 * Why a run is not over: its own reason, whom it has asked in vain so far, or that it works, and how fast.
 */
export function runConditions(run: RunView, nowMs: number): Condition[] {
  if (run.endedAtMs !== null && run.state !== 'failed') return [];
  if (run.state === 'failed') {
    return [
      {
        code: 'run-failed',
        holdsUp: run.resource,
        message: run.error?.message ?? 'the run failed',
        sinceMs: run.endedAtMs,
        whoCanClearIt: 'an operator',
        nextAction: run.error?.nextAction ?? `godwit runs show ${run.id}`,
      },
    ];
  }
  const pace = run.progress ? progressText(run.progress, nowMs) : null;
  const silent = unanswered(run.asks, nowMs);
  if (!run.reason) {
    if (silent) return [silentCondition(run, silent, pace)];
    const { startedAtMs = null } = run.steps.find(({ name }) => name === run.step) ?? {};
    return [
      {
        code: 'run-goes-on',
        holdsUp: run.resource,
        message: `${run.kind} ${stepText(run)} (${pace ?? 'nothing has advanced in it yet'})`,
        sinceMs: startedAtMs ?? run.createdAtMs,
        whoCanClearIt: waitsForHandoff(run) ?? 'time: it goes on',
        nextAction: nothingToDo(run, pace),
      },
    ];
  }
  return [
    {
      code: 'run-waits',
      holdsUp: run.resource,
      message: `${run.kind} ${stepText(run)}: ${run.reason.message}${pace === null ? '' : ` (${pace})`}`,
      sinceMs: run.reason.sinceMs,
      whoCanClearIt: whoClears(run),
      nextAction: run.reason.nextAction,
    },
    ...(silent ? [silentCondition(run, silent, pace)] : []),
  ];
}

function nothingToDo(run: RunView, pace: string | null): string {
  if (pace !== null) return 'Nothing to do while that advances.';
  if (goesBack(run)) return 'Nothing to do yet: what is undone is tried until it is done.';
  return 'Nothing to do yet; it says why when it gives up.';
}

/** All is ready here, and the machine still runs there. Null: it is in another step. */
function waitsForHandoff(run: RunView): string | null {
  const { sourceWorker } = run.input as { sourceWorker?: string };
  return run.kind === MIGRATE_IN && stepOf(run)?.reaches === 'handed-over' && sourceWorker
    ? `${sourceWorker}, which hands the machine over when it has stopped there`
    : null;
}

/** Somebody has not answered, and the run has no word for that yet. */
function silentCondition(run: RunView, question: Question, pace: string | null): Condition {
  const { who, sinceMs, livesAtMs } = question;
  const meanwhile =
    run.kind === MIGRATE_OUT && isBefore(run, 'interruption') && goesBack(run) === null
      ? 'The machine runs on here meanwhile; if that lasts, the move is undone by itself.'
      : 'All goes on by itself when it answers.';
  const look =
    livesAtMs === undefined
      ? `Look whether ${who} runs, or hangs (its process may be stopped, or its disk hang).`
      : 'Nothing to do yet: it says why when it gives that up.';
  return {
    code: 'run-unanswered',
    holdsUp: run.resource,
    message: `${run.kind} ${stepText(run)}: it ${questionText(question)}${pace === null ? '' : ` (${pace})`}`,
    sinceMs,
    whoCanClearIt: who,
    nextAction: `${look} ${meanwhile}`,
  };
}

function whoClears(run: RunView): string {
  if (goesBack(run)?.begun) return 'this worker, which tries again by itself';
  // Two workers have looked twice: it is the hardware's turn.
  const disputed = run.output.disputed as WireError | null | undefined;
  if (disputed)
    return disputed.code === 'MIGRATION_CONTENT_UNEXPLAINED'
      ? 'an operator'
      : 'an operator; it is tried again by itself';
  const isOut = run.kind === MIGRATE_OUT;
  const peer = isOut ? run.output.target : (run.input as { sourceWorker?: string }).sourceWorker;
  const other = typeof peer === 'string' ? peer : isOut ? 'the target' : 'the source';
  // From the first handoff on only the target knows, or acts.
  if (isOut && mayHavePassed(run)) return other;
  switch (stepOf(run)?.waitsFor) {
    case 'peer':
      return other;
    case 'owner':
      return isOut ? 'its owner; time: it is killed then' : 'its owner';
    case 'this-worker':
      return 'this worker, which tries again by itself; an operator of it';
    default:
      return 'godwit itself';
  }
}
