import { type Static, Type } from 'typebox';
import { Nullable, OneOf } from '../base/schema.ts';
import { WireErrorSchema } from '../base/wire-error-schema.ts';

/**
 * What a run of any kind looks like from outside. `waiting` is running with a reason that a person should
 * know (`godwit why`). Times are wall clock.
 */
export const RunReply = Type.Object({
  id: Type.String(),
  kind: Type.String(),
  /** What the run changes, e.g. `machine:m_…`; at most one unfinished run per resource, over all kinds. */
  resource: Type.String(),
  state: OneOf('running', 'waiting', 'undoing', 'done', 'undone', 'failed'),
  input: Type.Unknown(),
  /** What the steps have put down so far. */
  output: Type.Record(Type.String(), Type.Unknown()),
  /** Name of the step that runs, waits or failed; null when the run is over. */
  step: Nullable(Type.String()),
  steps: Type.Array(
    Type.Object({
      name: Type.String(),
      state: OneOf('pending', 'running', 'done', 'failed', 'undoing', 'undone'),
      attempts: Type.Integer(),
      startedAtMs: Nullable(Type.Number()),
      endedAtMs: Nullable(Type.Number()),
    }),
  ),
  /** Past it nothing is undone. */
  pastPointOfNoReturn: Type.Boolean(),
  cancelRequested: Type.Boolean(),
  /**
   * Who called the run off, and how, until it ends. Left out: nobody, or its worker is of an earlier version
   * and does not say.
   */
  calledOff: Type.Optional(Type.String()),
  reason: Nullable(
    Type.Object({ message: Type.String(), nextAction: Type.String(), sinceMs: Type.Number() }),
  ),
  /** What advances in the step that runs, as far as this process has heard of it. Left out: nothing yet. */
  progress: Type.Optional(
    Nullable(
      Type.Object({
        what: Type.String(),
        unit: OneOf('bytes', 'answers', 'processor ms', 'steps'),
        count: Type.Number(),
        sinceMs: Type.Number(),
        lastAtMs: Type.Number(),
      }),
    ),
  ),
  /** Whom the step that runs has asked, and who has not answered: the one asked first. Left out: nobody. */
  asks: Type.Optional(
    Type.Object({ who: Type.String(), sinceMs: Type.Number(), livesAtMs: Type.Optional(Type.Number()) }),
  ),
  error: Nullable(WireErrorSchema),
  createdAtMs: Type.Number(),
  endedAtMs: Nullable(Type.Number()),
});

/** `handedOffTo`: the run that took over, when this one ended with a Handoff. */
export type RunView = Omit<Static<typeof RunReply>, 'steps'> & {
  steps: StepView[];
  handedOffTo?: { runId: string; kind: string } | null;
};
/**
 * Why a run goes back. `begun`: not where the step that runs has to end first. Null: it goes forward, or is
 * over. Pure.
 */
export function goesBack(
  run: Pick<RunView, 'endedAtMs' | 'error' | 'cancelRequested' | 'calledOff'>,
): { why: string; begun: boolean } | null {
  if (run.endedAtMs !== null) return null;
  if (run.error !== null) return { why: run.error.message, begun: true };
  if (run.calledOff === undefined && !run.cancelRequested) return null;
  return { why: run.calledOff ?? 'cancelled', begun: false };
}

/** What it is doing in its step, as the end of a sentence that begins with its name. Pure. */
export function stepText(run: RunView): string {
  const back = goesBack(run);
  const step = run.step ?? '?';
  if (back === null) return `is in step ${step}`;
  return back.begun
    ? `goes back (${back.why}), and undoes step ${step} now`
    : `goes back (${back.why}) as soon as what runs in step ${step} has ended`;
}

export type RunState = RunView['state'];
export type StepView = Static<typeof RunReply>['steps'][number] & { pointOfNoReturn?: boolean };

/** Given to a step. */
export type StepContext<Input> = {
  readonly runId: string;
  readonly input: Input;
  /** What earlier steps (and earlier attempts of this one) put down; durable before the next step begins. */
  readonly output: Readonly<Record<string, unknown>>;
  /** 1 for the first try of this step over all restarts. */
  readonly attempt: number;
  /**
   * Aborts when nothing has advanced for the step's `quietMs`, at a cancel before the point of no return, and
   * when the process ends in good order.
   */
  readonly signal: AbortSignal;
  /**
   * Aborts when somebody has the run go back or end (a cancel, a forced end), also after `signal` has aborted
   * for being quiet.
   */
  readonly calledOff: AbortSignal;
  /** Puts values into `output`, durably before it returns. */
  put(values: Record<string, unknown>): void;
  /** Says why the step waits; shown by `godwit why`. Cleared when the step ends. */
  waiting(message: string, nextAction: string): void;
};

/** Values that are put into `output` together with the end of the step, in one append; nothing is fine. */
// biome-ignore lint/suspicious/noConfusingVoidType: a step that returns nothing at all is the usual one
export type StepResult = Record<string, unknown> | void;

export type StepDefinition<Input> = {
  name: string;
  /** Must be idempotent: it is repeated when the process died before its end was durable. */
  do: (context: StepContext<Input>) => Promise<StepResult>;
  /** Must be idempotent, and safe when `do` never ran or ran half. A step without one has nothing to undo. */
  undo?: (context: StepContext<Input>) => Promise<void>;
  /**
   * How long nothing in it may advance (base/progress.ts; an attempt that fails is no advance, however
   * often). Then the attempt is told to end, and the run is undone (before the point of no return), or waits
   * with a reason and tries again (after it). However long a step takes in which something advances, it is
   * not ended for that.
   */
  quietMs: number;
  /**
   * How long answers that say no more than "I live" (`lives` of base/progress.ts) count as an advance when
   * nothing else advances. Default: for ever.
   */
  livesOnlyMs?: number;
  /**
   * `wait`: not undone for being quiet before the point of no return either, because its machine is stopped.
   * Default: `undo`.
   */
  whenQuiet?: 'undo' | 'wait';
  retry?: { initialMs: number; maxMs: number };
  /**
   * The step at which the run changes sides. While it runs nobody can know from here whether the other side
   * has gone over, so neither silence nor a cancel undoes it (it waits with a reason): only an Abort that it
   * throws itself, meaning "certainly not gone over", does. Once it is done the run only goes forward.
   */
  pointOfNoReturn?: boolean;
};

export type RunDefinition<Input> = {
  kind: string;
  resource: (input: Input) => string;
  steps: readonly StepDefinition<Input>[];
  /** An undo that an operator forced may be called off (`forward`) until its first undo has ended. */
  turnsRound?: boolean;
  /**
   * A run that an operator had forgotten past its point of no return may be taken up again (`forward`) where
   * it stood.
   */
  takenUp?: boolean;
  /** Finished runs older than this are pruned. Default 30 days. */
  keepMs?: number;
};
