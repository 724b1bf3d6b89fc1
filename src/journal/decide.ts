import type { GodwitError, WireError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import {
  cancelledText,
  type EventBody,
  forcedUndoText,
  type History,
  type StoredStep,
  sideOf,
} from './history.ts';

/*
 * What a run does next, from its history and from how long nothing in it has advanced. The journal asks after
 * everything that happens, does the one thing that it is told, and asks again.
 */

export type Action =
  /** Write the event; after `step-started` and `undo-started` call the step. */
  | { type: 'append'; body: EventBody }
  /** An attempt runs. `stop`: tell it to end. Ask again when it has ended, at the latest at `wakeAtMs`. */
  | { type: 'await'; stop: WireError | null; wakeAtMs: number | null }
  | { type: 'sleep'; untilMs: number }
  /** The run is over. */
  | { type: 'rest' };

/**
 * The time, for a decision. The two durations are of the monotonic clock: a wall clock that is set makes no
 * step late.
 */
export type Now = {
  wallMs: number;
  /**
   * Since anything in the step at the cursor advanced last; since its first attempt began, where nothing has.
   */
  quietMs: number;
  /** The same for the attempt that is in progress. */
  attemptQuietMs: number;
};

/** Pure. */
export function decide(history: History, now: Now): Action {
  if (history.phase === 'ended' || history.phase === 'new') return { type: 'rest' };
  if (history.inFlight) return decideInFlight(history, now);
  if (history.forced?.how === 'forget') {
    return finish('failed', history.undoing?.error ?? forgotten(history.forced.by));
  }
  return history.phase === 'undoing' ? decideBackward(history, now) : decideForward(history, now);
}

function decideInFlight(history: History, now: Now): Action {
  const { deadlineMs } = history.header.steps[history.cursor]!;
  const leftMs = deadlineMs - (ownLimit(history) ? now.attemptQuietMs : now.quietMs);
  if (leftMs <= 0 && history.overdueSinceMs === null) {
    return { type: 'append', body: { type: 'overdue', step: history.cursor } };
  }
  let stop: WireError | null = null;
  if (history.forced?.how === 'undo') stop = forcedUndo(history.forced.by);
  else if (history.forced) stop = forgotten(history.forced.by);
  else if (history.phase === 'forward' && history.cancelReason !== null)
    stop = cancelled(history.cancelReason);
  else if (leftMs <= 0) stop = nothingAdvances(history);
  return { type: 'await', stop, wakeAtMs: leftMs > 0 ? now.wallMs + leftMs : null };
}

/**
 * True for an undo, and for a step that is tried again although it was quiet for too long: such attempts have
 * a patience of their own.
 */
function ownLimit({ phase, steps, cursor, inFlight }: History): boolean {
  return phase === 'undoing' || inFlight!.limitAtMs > (steps[cursor]?.deadlineAtMs ?? 0);
}

function decideForward(history: History, { wallMs: nowMs, quietMs }: Now): Action {
  const { cursor, failure } = history;
  const side = sideOf(history);
  if (history.forced?.how === 'undo') return undo('undone', forcedUndo(history.forced.by));
  if (failure?.outcome === 'abort' && side !== 'past') return undo('undone', failure.error);
  if (failure?.outcome === 'unrecoverable') {
    if (side === 'before') return undo('failed', failure.error);
    return finish('failed', failure.error, true);
  }
  if (history.cancelReason !== null) return undo('undone', cancelled(history.cancelReason));
  const stored = history.header.steps[cursor];
  const current = history.steps[cursor];
  if (!stored || !current) return finish('done', null);

  const late = quietMs >= stored.deadlineMs;
  const deadlineAtMs = nowMs + stored.deadlineMs - quietMs;
  if (late && side === 'before' && stored.whenQuiet !== 'wait')
    return undo('undone', nothingAdvances(history));
  if (late && history.overdueSinceMs === null)
    return { type: 'append', body: { type: 'overdue', step: cursor } };
  const untilMs = backoffUntil(history, nowMs);
  if (untilMs > nowMs) return { type: 'sleep', untilMs: late ? untilMs : Math.min(untilMs, deadlineAtMs) };
  return {
    type: 'append',
    body: {
      type: 'step-started',
      step: cursor,
      attempt: current.attempts + 1,
      deadlineAtMs,
      // A step that was quiet for too long and is not undone is tried again; each attempt may be quiet for as
      // long once more.
      limitAtMs: late ? nowMs + stored.deadlineMs : deadlineAtMs,
    },
  };
}

function decideBackward(history: History, { wallMs: nowMs }: Now): Action {
  const { cursor, undoing } = history;
  if (cursor === -1) return finish(undoing!.endState, undoing!.error);
  const untilMs = backoffUntil(history, nowMs);
  if (untilMs > nowMs) return { type: 'sleep', untilMs };
  return {
    type: 'append',
    body: {
      type: 'undo-started',
      step: cursor,
      attempt: history.steps[cursor]!.undoAttempts + 1,
      limitAtMs: nowMs + history.header.steps[cursor]!.deadlineMs,
    },
  };
}

/**
 * When the next attempt may begin. A wall clock that was set back makes nobody wait longer than the backoff
 * was meant to be.
 */
function backoffUntil({ failure }: History, nowMs: number): number {
  if (!failure) return nowMs;
  return Math.min(failure.retryAtMs, nowMs + Math.max(0, failure.retryAtMs - failure.atMs));
}

/**
 * Exponential from `retryInitialMs` to `retryMaxMs`; the upper half of it is random, so that runs that failed
 * together part.
 */
export function backoffMs(step: StoredStep, attempt: number, random: Random): number {
  const fullMs = Math.min(step.retryMaxMs, step.retryInitialMs * 2 ** Math.min(attempt - 1, 30));
  const halfMs = Math.floor(fullMs / 2);
  return fullMs - halfMs + random.below(halfMs + 1);
}

function undo(endState: 'undone' | 'failed', error: WireError): Action {
  return { type: 'append', body: { type: 'undoing', endState, error } };
}

function finish(state: 'done' | 'undone' | 'failed', error: WireError | null, holdsResource = false): Action {
  return { type: 'append', body: { type: 'finished', state, error, holdsResource, handedOffTo: null } };
}

function cancelled(reason: string): WireError {
  return wire('JOURNAL_CANCELLED', cancelledText(reason), { reason }, 'Nothing: it was asked for.');
}

function forcedUndo(by: string): WireError {
  return wire('JOURNAL_FORCED_UNDO', forcedUndoText(by), { by }, 'Nothing: it was asked for.');
}

function forgotten(by: string): WireError {
  return wire(
    'JOURNAL_FORGOTTEN',
    `${by} had the run forgotten where it stood`,
    { by },
    'Check by hand that its resource is in order: neither the rest of its steps nor their undos were run.',
  );
}

function nothingAdvances(history: History): WireError {
  const stored = history.header.steps[history.cursor]!;
  const last = history.failure?.error ?? (history.reason && { ...history.reason, code: null });
  const seconds = Math.round(stored.deadlineMs / 100) / 10;
  const what = history.phase === 'undoing' ? `the undo of step ${stored.name}` : `step ${stored.name}`;
  return wire(
    'JOURNAL_STEP_QUIET',
    `nothing advanced in ${what} for ${seconds} s${last ? `; last: ${last.message}` : ''}`,
    { step: stored.name, quietMs: stored.deadlineMs, ...(last?.code ? { lastCode: last.code } : {}) },
    last?.nextAction ?? 'Look for what the step waited for, then start again.',
  );
}

function wire(code: string, message: string, values: GodwitError['values'], nextAction: string): WireError {
  return { code, message, values, nextAction };
}
