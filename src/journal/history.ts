import { type Static, Type } from 'typebox';
import { Compile } from 'typebox/compile';
import { GodwitError, type WireError } from '../base/errors.ts';
import type { Progress, Question } from '../base/progress.ts';
import { Nullable, OneOf } from '../base/schema.ts';
import { WireErrorSchema } from '../base/wire-error-schema.ts';
import type { RunState, RunView, StepView } from './run.ts';

/*
 * The log of a run, and what it adds up to. A run is its header (who, what, which steps) and its events;
 * everything else is computed from them by `applyEvent`, in the running process and after a restart alike. An
 * event in a place where it cannot stand is JOURNAL_CORRUPT: better a run that waits for a person than one
 * that guesses which of its steps are done.
 */

/**
 * A step as it is stored with its run: what `decide` needs, and what a later version of the code is checked
 * against.
 */
export const StoredStep = Type.Object({
  name: Type.String(),
  pointOfNoReturn: Type.Boolean(),
  undo: Type.Boolean(),
  /**
   * `quietMs` of its definition. Of a run that this code carries on, today's holds, not that of the start
   * (journal.ts).
   */
  deadlineMs: Type.Number({ exclusiveMinimum: 0 }),
  /** Left out: `undo`, as all steps were once. */
  whenQuiet: Type.Optional(OneOf('undo', 'wait')),
  retryInitialMs: Type.Number({ minimum: 0 }),
  retryMaxMs: Type.Number({ minimum: 0 }),
});
export type StoredStep = Static<typeof StoredStep>;

export type RunHeader = {
  id: string;
  kind: string;
  resource: string;
  input: unknown;
  steps: readonly StoredStep[];
  createdAtMs: number;
};

const step = Type.Integer({ minimum: 0 });
const attempt = Type.Integer({ minimum: 1 });

/** The kinds of event, in the order in which a run meets them. Times are wall clock, ms since the epoch. */
export const EventBody = Type.Union([
  Type.Object({ type: Type.Literal('started') }),
  /**
   * When the step, and this attempt of it, are over if nothing advances from here on. What advances later is
   * not in the log.
   */
  Type.Object({
    type: Type.Literal('step-started'),
    step,
    attempt,
    deadlineAtMs: Type.Number(),
    limitAtMs: Type.Number(),
  }),
  Type.Object({ type: Type.Literal('step-succeeded'), step, attempt }),
  Type.Object({
    type: Type.Literal('step-failed'),
    step,
    attempt,
    outcome: OneOf('retry', 'abort', 'unrecoverable'),
    error: WireErrorSchema,
    /** Next attempt, for the outcome `retry`. */
    retryAtMs: Type.Number(),
  }),
  Type.Object({ type: Type.Literal('put'), step, values: Type.Record(Type.String(), Type.Unknown()) }),
  Type.Object({ type: Type.Literal('waiting'), step, message: Type.String(), nextAction: Type.String() }),
  /** Nothing in the step (or undo) has advanced for as long as it may, and it goes on. */
  Type.Object({ type: Type.Literal('overdue'), step }),
  /** The process died or ended during the attempt that had started last. */
  Type.Object({ type: Type.Literal('resumed'), step }),
  Type.Object({ type: Type.Literal('nudged'), step }),
  Type.Object({ type: Type.Literal('cancel-requested'), reason: Type.String() }),
  Type.Object({
    type: Type.Literal('forced'),
    how: OneOf('undo', 'forward', 'forget'),
    by: Type.String(),
  }),
  /** From here on only backwards. `endState`: how the run ends when all is undone. */
  Type.Object({
    type: Type.Literal('undoing'),
    endState: OneOf('undone', 'failed'),
    error: WireErrorSchema,
  }),
  Type.Object({ type: Type.Literal('undo-started'), step, attempt, limitAtMs: Type.Number() }),
  Type.Object({ type: Type.Literal('undo-finished'), step, attempt }),
  Type.Object({
    type: Type.Literal('undo-failed'),
    step,
    attempt,
    error: WireErrorSchema,
    retryAtMs: Type.Number(),
  }),
  Type.Object({
    type: Type.Literal('finished'),
    state: OneOf('done', 'undone', 'failed'),
    error: Nullable(WireErrorSchema),
    /** The run failed where it could not be undone: its resource stays locked until an operator decides. */
    holdsResource: Type.Boolean(),
    handedOffTo: Nullable(Type.Object({ runId: Type.String(), kind: Type.String() })),
  }),
]);
export type EventBody = Static<typeof EventBody>;
export type EventType = EventBody['type'];
export type JournalEvent = { sequence: number; atMs: number; body: EventBody };

export const eventBodySchema = Compile(EventBody);
export const storedStepsSchema = Compile(Type.Array(StoredStep, { minItems: 1 }));

export type StepHistory = Omit<StepView, 'name' | 'pointOfNoReturn'> & {
  undoAttempts: number;
  /** Of its latest attempt; null before the first. */
  deadlineAtMs: number | null;
};

/** What the events of one run add up to. Never changed in place. */
export type History = {
  readonly header: RunHeader;
  readonly lastSequence: number;
  readonly phase: 'new' | 'forward' | 'undoing' | 'ended';
  readonly steps: readonly StepHistory[];
  /**
   * forward: the step that runs or is next, `steps.length` after the last. undoing: the same for undos, -1
   * after the last.
   */
  readonly cursor: number;
  /** The attempt that has begun and not ended, as far as the log knows. */
  readonly inFlight: {
    readonly attempt: number;
    readonly startedAtMs: number;
    readonly limitAtMs: number;
  } | null;
  /** How the last attempt at the cursor ended. */
  readonly failure: {
    readonly outcome: 'retry' | 'abort' | 'unrecoverable';
    readonly error: WireError;
    readonly atMs: number;
    readonly retryAtMs: number;
  } | null;
  readonly overdueSinceMs: number | null;
  readonly reason: { readonly message: string; readonly nextAction: string; readonly sinceMs: number } | null;
  readonly output: Readonly<Record<string, unknown>>;
  readonly cancelReason: string | null;
  readonly forced: { readonly how: 'undo' | 'forget'; readonly by: string } | null;
  readonly undoing: {
    readonly endState: 'undone' | 'failed';
    readonly error: WireError;
    /** Where it stood, for turning round; null once an undo has ended. */
    readonly from: { readonly steps: readonly StepHistory[]; readonly cursor: number } | null;
  } | null;
  readonly end: {
    readonly state: 'done' | 'undone' | 'failed';
    readonly error: WireError | null;
    readonly atMs: number;
    readonly holdsResource: boolean;
    readonly handedOffTo: { readonly runId: string; readonly kind: string } | null;
  } | null;
};

/** JOURNAL_CORRUPT: what is stored of a run cannot have been written by this code. */
export function corrupt(runId: string, what: string, values: GodwitError['values'] = {}): GodwitError {
  return new GodwitError('JOURNAL_CORRUPT', `the journal of run ${runId} is damaged: ${what}`, {
    values: { runId, ...values },
    nextAction:
      'Look at what the run was doing, put its resource in order by hand, then force the run with "forget". The events stay in the journal.',
  });
}

export function newHistory(header: RunHeader): History {
  return {
    header,
    lastSequence: -1,
    phase: 'new',
    steps: header.steps.map(() => ({
      state: 'pending',
      attempts: 0,
      undoAttempts: 0,
      startedAtMs: null,
      endedAtMs: null,
      deadlineAtMs: null,
    })),
    cursor: 0,
    inFlight: null,
    failure: null,
    overdueSinceMs: null,
    reason: null,
    output: {},
    cancelReason: null,
    forced: null,
    undoing: null,
    end: null,
  };
}

/** Throws JOURNAL_CORRUPT at the first event that cannot stand where it is. */
export function foldEvents(header: RunHeader, events: Iterable<JournalEvent>): History {
  let history = newHistory(header);
  for (const event of events) history = applyEvent(history, event);
  if (history.phase === 'new') throw corrupt(header.id, 'it has no events');
  return history;
}

/**
 * On which side of the point of no return the run is. `at`: its step has been tried and nobody here knows.
 */
export function sideOf(history: History): 'before' | 'at' | 'past' {
  const index = history.header.steps.findIndex((each) => each.pointOfNoReturn);
  const pivot = history.steps[index];
  if (!pivot || pivot.attempts === 0 || pivot.state === 'undone') return 'before';
  if (pivot.state === 'done') return 'past';
  return history.phase === 'undoing' ? 'before' : 'at';
}

/** The history after one more event. Pure. Throws JOURNAL_CORRUPT where the event cannot stand. */
export function applyEvent(history: History, { sequence, atMs, body }: JournalEvent): History {
  const { header } = history;
  const legal = (condition: boolean, why: string) => {
    if (condition) return;
    throw corrupt(header.id, `event ${sequence} (${body.type}): ${why}`, { sequence, type: body.type });
  };
  legal(sequence > history.lastSequence, 'the sequence does not rise');
  if (body.type === 'started') legal(history.phase === 'new', 'the run has started already');
  else legal(history.phase !== 'new', 'the run has not started');
  if (body.type !== 'forced') legal(history.phase !== 'ended', 'the run is over');
  const base = { ...history, lastSequence: sequence };
  const cursor = history.cursor;
  const current = history.steps[cursor];
  if ('step' in body) legal(body.step === cursor && current !== undefined, `step ${cursor} is next`);
  const withStep = (change: Partial<StepHistory>): readonly StepHistory[] =>
    history.steps.map((each, index) => (index === cursor ? { ...each, ...change } : each));
  const failedReason = (error: WireError) => ({
    message: error.message,
    nextAction: error.nextAction,
    sinceMs: history.reason?.message === error.message ? history.reason.sinceMs : atMs,
  });
  const cleared = { inFlight: null, failure: null, overdueSinceMs: null, reason: null };

  switch (body.type) {
    case 'started':
      return { ...base, phase: 'forward' };

    case 'step-started':
      legal(history.phase === 'forward', 'the run goes backwards');
      legal(history.inFlight === null, 'another attempt has not ended');
      legal(history.cancelReason === null, 'the run is cancelled');
      legal(body.attempt > current!.attempts, 'attempts only count up');
      return {
        ...base,
        failure: null,
        inFlight: { attempt: body.attempt, startedAtMs: atMs, limitAtMs: body.limitAtMs },
        steps: withStep({
          state: 'running',
          attempts: body.attempt,
          startedAtMs: current!.startedAtMs ?? atMs,
          deadlineAtMs: body.deadlineAtMs,
        }),
      };

    case 'step-succeeded':
      legal(history.phase === 'forward', 'the run goes backwards');
      legal(history.inFlight?.attempt === body.attempt, 'this attempt is not running');
      return {
        ...base,
        ...cleared,
        cursor: cursor + 1,
        steps: withStep({ state: 'done', endedAtMs: atMs }),
      };

    case 'step-failed':
      legal(history.phase === 'forward', 'the run goes backwards');
      legal(history.inFlight?.attempt === body.attempt, 'this attempt is not running');
      return {
        ...base,
        inFlight: null,
        failure: { outcome: body.outcome, error: body.error, atMs, retryAtMs: body.retryAtMs },
        reason: failedReason(body.error),
        steps: withStep({ state: 'failed' }),
      };

    // A step that has run for long has only its first and latest attempts in the log, but all that it put.
    case 'put':
      legal(current!.attempts > 0, 'the step has not started');
      return { ...base, output: { ...history.output, ...body.values } };

    case 'waiting':
      legal(current!.attempts > 0, 'the step has not started');
      return {
        ...base,
        reason: {
          message: body.message,
          nextAction: body.nextAction,
          sinceMs: history.reason?.message === body.message ? history.reason.sinceMs : atMs,
        },
      };

    case 'overdue':
      legal(current!.attempts > 0, 'the step has not started');
      return { ...base, overdueSinceMs: history.overdueSinceMs ?? atMs };

    case 'resumed':
      legal(history.inFlight !== null, 'no attempt was running');
      return { ...base, inFlight: null };

    case 'nudged':
      legal(history.inFlight === null && history.failure !== null, 'the run does not wait for a retry');
      return { ...base, failure: { ...history.failure!, retryAtMs: atMs } };

    case 'cancel-requested':
      legal(history.phase === 'forward' && sideOf(history) === 'before', 'it is too late for that');
      return { ...base, cancelReason: body.reason };

    case 'forced': {
      legal(
        history.phase !== 'ended' ||
          history.end!.holdsResource ||
          (body.how === 'forward' && wasForgotten(history)),
        'the run is over',
      );
      const turned = body.how === 'forward' && history.phase === 'undoing';
      legal(
        body.how === 'forget' || history.phase !== 'undoing' || (turned && canTurnRound(history)),
        'the run goes backwards',
      );
      if (turned) return turnedRound(base);
      const phase = history.phase === 'ended' ? 'forward' : history.phase;
      if (body.how !== 'forward') {
        return { ...base, phase, end: null, forced: { how: body.how, by: body.by } };
      }
      const deadlineMs = header.steps[cursor]?.deadlineMs ?? 0;
      return {
        ...base,
        phase,
        end: null,
        forced: null,
        failure: null,
        overdueSinceMs: null,
        inFlight: history.inFlight && { ...history.inFlight, limitAtMs: atMs + deadlineMs },
        steps: withStep({ deadlineAtMs: history.inFlight ? atMs + deadlineMs : null }),
      };
    }

    case 'undoing': {
      legal(history.phase === 'forward' && history.inFlight === null, 'the run does not stand still');
      legal(
        history.forced?.how === 'undo' || sideOf(history) !== 'past',
        'the run is past its point of no return',
      );
      const undone = passedOver(header, history.steps, history.steps.length - 1, atMs);
      return {
        ...base,
        ...cleared,
        ...undone,
        forced: null,
        phase: 'undoing',
        undoing: {
          endState: body.endState,
          error: body.error,
          from: { steps: history.steps, cursor },
        },
      };
    }

    case 'undo-started':
      legal(history.phase === 'undoing', 'the run goes forward');
      legal(history.inFlight === null, 'another attempt has not ended');
      legal(body.attempt > current!.undoAttempts, 'attempts only count up');
      return {
        ...base,
        failure: null,
        inFlight: { attempt: body.attempt, startedAtMs: atMs, limitAtMs: body.limitAtMs },
        steps: withStep({ state: 'undoing', undoAttempts: body.attempt }),
      };

    case 'undo-finished': {
      legal(history.phase === 'undoing', 'the run goes forward');
      legal(history.inFlight?.attempt === body.attempt, 'this attempt is not running');
      const steps = withStep({ state: 'undone', endedAtMs: atMs });
      return {
        ...base,
        ...cleared,
        ...passedOver(header, steps, cursor - 1, atMs),
        undoing: { ...history.undoing!, from: null },
      };
    }

    case 'undo-failed':
      legal(history.phase === 'undoing', 'the run goes forward');
      legal(history.inFlight?.attempt === body.attempt, 'this attempt is not running');
      return {
        ...base,
        inFlight: null,
        failure: { outcome: 'retry', error: body.error, atMs, retryAtMs: body.retryAtMs },
        reason: failedReason(body.error),
      };

    case 'finished': {
      legal(history.inFlight === null, 'an attempt has not ended');
      const forgotten = history.forced?.how === 'forget';
      const allDone =
        history.phase === 'forward' && (cursor === history.steps.length || body.handedOffTo !== null);
      const allUndone = history.phase === 'undoing' && cursor === -1;
      const stuck = history.phase === 'forward' && history.failure?.outcome === 'unrecoverable';
      if (body.state === 'done') legal(allDone, 'not all steps are done');
      else if (body.state === 'undone') {
        legal(allUndone && history.undoing!.endState === 'undone', 'not all steps are undone');
      } else {
        legal(
          forgotten || stuck || (allUndone && history.undoing!.endState === 'failed'),
          'nothing says that it failed',
        );
      }
      legal(body.holdsResource === (stuck && !forgotten), 'the lock does not fit the end');
      const { state, error, holdsResource, handedOffTo } = body;
      return {
        ...base,
        phase: 'ended',
        reason: null,
        overdueSinceMs: null,
        forced: null,
        end: { state, error, atMs, holdsResource, handedOffTo },
      };
    }
  }
}

/** Ended by an operator past its point of no return, where it stood: what it has done is all there. */
export function wasForgotten(history: History): boolean {
  const { end, undoing } = history;
  return end?.error?.code === 'JOURNAL_FORGOTTEN' && undoing === null && sideOf(history) === 'past';
}

/** An operator had it go back, and nothing has been undone. An undo that is under way ends first. */
export function canTurnRound({ phase, undoing, inFlight, cancelReason }: History): boolean {
  const forced = undoing?.error.code === 'JOURNAL_FORCED_UNDO' && undoing.from !== null;
  return phase === 'undoing' && forced && inFlight === null && cancelReason === null;
}

/** Forward again from where it stood, with its step's deadline anew. */
function turnedRound(history: History): History {
  const { steps, cursor } = history.undoing!.from!;
  return {
    ...history,
    phase: 'forward',
    steps: steps.map((each, index) => (index === cursor ? { ...each, deadlineAtMs: null } : each)),
    cursor,
    undoing: null,
    ...{ forced: null, inFlight: null, failure: null, overdueSinceMs: null, reason: null },
  };
}

/**
 * Goes down from `from` to the next step that has something to undo; the started ones on the way have nothing
 * and count as undone.
 */
function passedOver(
  header: RunHeader,
  steps: readonly StepHistory[],
  from: number,
  atMs: number,
): { cursor: number; steps: readonly StepHistory[] } {
  const needsUndo = (index: number) => steps[index]!.attempts > 0 && header.steps[index]!.undo;
  let cursor = from;
  while (cursor >= 0 && !needsUndo(cursor)) cursor--;
  return {
    cursor,
    steps: steps.map((each, index) =>
      index > cursor && index <= from && each.attempts > 0
        ? { ...each, state: 'undone', endedAtMs: atMs }
        : each,
    ),
  };
}

/** The run as others see it. `parked`: a reason outside the log for which it cannot go on now. */
export function viewOf(
  history: History,
  parked: RunView['reason'] = null,
  { progress, asks }: { progress: Progress | null; asks: Question | null } = { progress: null, asks: null },
): RunView {
  const { header, end } = history;
  const reason = end ? null : (parked ?? reasonOf(history));
  let state: RunState;
  if (end) state = end.state;
  else if (parked) state = 'waiting';
  else if (history.phase === 'undoing') state = 'undoing';
  else state = reason ? 'waiting' : 'running';
  return {
    id: header.id,
    kind: header.kind,
    resource: header.resource,
    state,
    input: header.input,
    output: { ...history.output },
    step: end && !end.holdsResource ? null : (header.steps[history.cursor]?.name ?? null),
    steps: history.steps.map((each, index) => ({
      name: header.steps[index]!.name,
      state: each.state,
      attempts: each.attempts,
      startedAtMs: each.startedAtMs,
      endedAtMs: each.endedAtMs,
      pointOfNoReturn: header.steps[index]!.pointOfNoReturn,
    })),
    pastPointOfNoReturn: sideOf(history) === 'past',
    cancelRequested: history.cancelReason !== null,
    ...callOff(history),
    reason,
    ...(progress !== null && !end && { progress }),
    ...(asks !== null && !end && { asks }),
    error: end ? end.error : (history.undoing?.error ?? null),
    createdAtMs: header.createdAtMs,
    endedAtMs: end?.atMs ?? null,
    handedOffTo: end?.handedOffTo ?? null,
  };
}

export const cancelledText = (reason: string) => `cancelled: ${reason}`;
export const forcedUndoText = (by: string) => `${by} forced the run to be undone`;

function callOff({ cancelReason, forced, end }: History): Pick<RunView, 'calledOff'> {
  if (end) return {};
  if (forced?.how === 'undo') return { calledOff: forcedUndoText(forced.by) };
  return cancelReason === null ? {} : { calledOff: cancelledText(cancelReason) };
}

function reasonOf(history: History): RunView['reason'] {
  if (history.overdueSinceMs === null) return history.reason && { ...history.reason };
  const name = history.header.steps[history.cursor]?.name;
  const what = history.phase === 'undoing' ? `the undo of step ${name}` : `step ${name}`;
  const doing = history.inFlight ? 'was told to stop and has not ended yet' : 'is tried again and again';
  return {
    message: `nothing advances in ${what}, which ${doing}${history.reason ? `: ${history.reason.message}` : ''}`,
    nextAction:
      history.reason?.nextAction ??
      'Look for what the step waits for; it goes on by itself when that is there.',
    sinceMs: history.overdueSinceMs,
  };
}
