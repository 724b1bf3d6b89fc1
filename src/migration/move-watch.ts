import type { RunView, StepView } from '../journal/run.ts';
import { IN_STEPS, MIGRATE_IN } from './migrate-in.ts';
import { MIGRATE_OUT, OUT_STEPS } from './migrate-out.ts';
import type { MovePhase, StepFacts } from './move-step.ts';

/*
 * What may be known of a move from one of its two runs. A run of an earlier version has the same steps. Pure.
 */

const STEPS: Readonly<Record<string, readonly StepFacts[]>> = {
  [MIGRATE_OUT]: OUT_STEPS,
  [MIGRATE_IN]: IN_STEPS,
};

/** Of the step that the run is in. Null: it is over, or no move. */
export function stepOf({ kind, step }: Pick<RunView, 'kind' | 'step'>): StepFacts | null {
  return STEPS[kind]?.find(({ name }) => name === step) ?? null;
}

/** Of the last step that was tried. */
export function lastStepOf({ kind, steps }: RunView): StepFacts | null {
  const tried = steps.findLast(({ attempts }) => attempts > 0);
  return tried ? stepOf({ kind, step: tried.name }) : null;
}

function stepsOf({ kind }: RunView, phase: MovePhase): StepFacts[] {
  return (STEPS[kind] ?? []).filter((step) => step.phase === phase);
}

function viewOf({ steps }: RunView, facts: StepFacts | undefined): StepView | undefined {
  return steps.find(({ name }) => name === facts?.name);
}

/** All that a phase is for is done. */
export function isPast(run: RunView, phase: MovePhase): boolean {
  return viewOf(run, stepsOf(run, phase).at(-1))?.state === 'done';
}

/** Nothing of a phase was tried yet. */
export function isBefore(run: RunView, phase: MovePhase): boolean {
  return viewOf(run, stepsOf(run, phase)[0])?.attempts === 0;
}

/** A phase was begun, and all of it was taken back. */
export function isUndone(run: RunView, phase: MovePhase): boolean {
  return viewOf(run, stepsOf(run, phase)[0])?.state === 'undone';
}

/** The machine runs at its target; this worker only serves blocks. */
export function isServing(run: RunView): boolean {
  return run.kind === MIGRATE_OUT && isPast(run, 'interruption');
}

/** Past its point of no return an incoming machine is this worker's. */
export function ownsMachine(run: RunView): boolean {
  return run.kind === MIGRATE_IN && pointOfNoReturn(run)?.state === 'done';
}

/** The point of no return may be passed: its step was tried. */
export function mayHavePassed(run: RunView): boolean {
  return (pointOfNoReturn(run)?.attempts ?? 0) > 0;
}

function pointOfNoReturn(run: RunView): StepView | undefined {
  return viewOf(
    run,
    STEPS[run.kind]?.find((facts) => facts.pointOfNoReturn),
  );
}
