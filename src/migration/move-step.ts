import { GodwitError } from '../base/errors.ts';
import type { TargetPhase } from '../contract/peer.ts';
import type { RunDefinition, StepContext, StepDefinition, StepResult } from '../journal/run.ts';

/** What the machine does while a step runs: it runs at its source, nowhere, at its target. */
export type MovePhase = 'before-stop' | 'interruption' | 'after';

/** Between looks of a step at what others do meanwhile: `base/backoff.ts`, `pauses`. */
export const LOOK_AGAIN = { firstMs: 20, maxMs: 500 };

/** What may be known of a step by whoever watches its run: nobody else goes by its name. */
export type StepFacts = {
  /** As it stands in journals: never another. */
  readonly name: string;
  readonly phase: MovePhase;
  /** Whose doing it is that the step ends, where it says why it has not yet. */
  readonly waitsFor: 'godwit' | 'owner' | 'peer' | 'this-worker';
  /** Once it is done nothing goes back, and while it is tried nobody knows from here. */
  readonly pointOfNoReturn?: true;
  /** Where the target is when the step is done. */
  readonly reaches?: TargetPhase;
  /** It ends by itself: that a worker answers means that it comes further. */
  readonly answersAdvance?: true;
  /** Its failure says something of the target; what fails elsewhere fails for every target. */
  readonly blamesTarget?: true;
  /** Blocks come meanwhile. */
  readonly hydrates?: true;
};

/** What a step of a run gets: its run's input, and of the notes those that it has named. */
export type MoveContext<Input, Notes, Puts = unknown> = Omit<StepContext<Input>, 'output' | 'put'> & {
  readonly notes: Readonly<Notes>;
  put(values: Puts): void;
};

/** The part of a context by which a helper says that it waits, and hears that it is to end. */
export type Waiting = Pick<StepContext<unknown>, 'runId' | 'signal' | 'waiting'>;

// biome-ignore lint/suspicious/noConfusingVoidType: a step that puts nothing down returns nothing
type Given<Notes, Names extends keyof Notes> = [Names] extends [never] ? void : Pick<Notes, Names>;

/**
 * A step, with the notes (`Notes`: names and types of all that a run puts down) that it reads and writes. An
 * undo may find each of them missing, since its do may not have run.
 */
type MoveStep<
  Tools,
  Input,
  Notes,
  Needs extends keyof Notes,
  Uses extends keyof Notes,
  Gives extends keyof Notes,
> = StepFacts &
  Pick<StepDefinition<Input>, 'quietMs' | 'livesOnlyMs' | 'whenQuiet' | 'retry'> & {
    /** Put down by steps before it. */
    readonly needs?: readonly Needs[];
    /** May be missing: of an earlier attempt, of an operator, or because an earlier version put down less. */
    readonly uses?: readonly Uses[];
    readonly gives?: readonly Gives[];
    do(
      tools: Tools,
      context: MoveContext<
        Input,
        Pick<Notes, Needs> & Partial<Pick<Notes, Uses | Gives>>,
        Partial<Pick<Notes, Gives>>
      >,
    ): Promise<Given<Notes, Gives>>;
    undo?(
      tools: Tools,
      context: MoveContext<Input, Partial<Pick<Notes, Needs | Uses | Gives>>>,
    ): Promise<void>;
  };

/** A step whose notes are checked when it runs, as lists of steps have it. */
export type CheckedStep<Tools, Input> = StepFacts &
  Pick<StepDefinition<Input>, 'quietMs' | 'livesOnlyMs' | 'whenQuiet' | 'retry'> & {
    readonly needs: readonly string[];
    readonly gives: readonly string[];
    do(tools: Tools, context: StepContext<Input>): Promise<StepResult>;
    undo?: (tools: Tools, context: StepContext<Input>) => Promise<void>;
  };

/** How the steps of a kind of run are written: `const step = stepsOf<Tools, Input, Notes>()`. */
export function stepsOf<Tools, Input, Notes>() {
  type Name = keyof Notes & string;
  return <
    const Needs extends Name = never,
    const Uses extends Name = never,
    const Gives extends Name = never,
  >(
    step: MoveStep<Tools, Input, Notes, Needs, Uses, Gives>,
  ): CheckedStep<Tools, Input> => {
    const { needs = [], gives = [], undo, ...rest } = step;
    return {
      ...rest,
      ...{ needs, gives },
      async do(tools: Tools, { output: notes, ...context }: StepContext<Input>) {
        const missing = needs.find((name) => !Object.hasOwn(notes, name));
        if (missing !== undefined) throw noNote(missing);
        return step.do(tools, { ...context, notes } as never) as Promise<StepResult>;
      },
      ...(undo && {
        undo: (tools: Tools, { output: notes, ...context }: StepContext<Input>) =>
          undo(tools, { ...context, notes } as never),
      }),
    };
  };
}

/** The run that these steps make, for the journal. */
export function runOf<Tools, Input>(
  run: Omit<RunDefinition<Input>, 'steps'>,
  steps: readonly CheckedStep<Tools, Input>[],
  tools: Tools,
): RunDefinition<Input> {
  return {
    ...run,
    steps: steps.map(({ do: act, undo, ...step }) => ({
      ...step,
      do: (context: StepContext<Input>) => act(tools, context),
      ...(undo && { undo: (context: StepContext<Input>) => undo(tools, context) }),
    })),
  };
}

function noNote(name: string): GodwitError {
  return new GodwitError('MIGRATION_NO_SUBJECT', `the run has not put down its ${name}`, {
    values: { missing: name },
    nextAction: 'Cancel the run and start the move again.',
  });
}
