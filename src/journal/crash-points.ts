import { closeSync, openSync } from 'node:fs';
import { systemErrorCode } from '../base/errors.ts';
import type { EventType } from './history.ts';
import type { RunDefinition } from './run.ts';

/**
 * Places at which a test lets the process die: just before and just after each append to the journal. A name
 * is `kind:step:before-X-append` or `kind:step:after-X-append`, where X names the event
 * (CRASH_POINT_OF_EVENT) and step is `run` for what belongs to no step.
 */
export interface CrashPoints {
  reached(name: string): void;
}

export const noCrashPoints: CrashPoints = { reached() {} };

/**
 * Thrown by a CrashPoints, it stands for the death of the process: the journal writes nothing more and lets
 * its database go.
 */
export class Crash extends Error {
  constructor(name: string) {
    super(`crash at ${name}`);
    this.name = 'Crash';
  }
}

export const CRASH_POINT_OF_EVENT: Readonly<Record<EventType, string>> = {
  started: 'started',
  'step-started': 'start',
  'step-succeeded': 'done',
  'step-failed': 'failed',
  put: 'put',
  waiting: 'waiting',
  overdue: 'overdue',
  resumed: 'resumed',
  nudged: 'nudged',
  'cancel-requested': 'cancel',
  forced: 'forced',
  undoing: 'undoing',
  'undo-started': 'undo',
  'undo-finished': 'undone',
  'undo-failed': 'undo-failed',
  finished: 'finished',
};

const both = (kind: string, step: string, type: EventType): string[] => [
  `${kind}:${step}:before-${CRASH_POINT_OF_EVENT[type]}-append`,
  `${kind}:${step}:after-${CRASH_POINT_OF_EVENT[type]}-append`,
];

/**
 * Names of the crash points of a kind. `forward`: those that each run reaches that ends `done`. `backward`:
 * those that are added when a run is undone from its last undoable step. `all`: also those that depend on
 * what the steps do (failures, puts, waits…).
 */
export function crashPointNames(
  definition: RunDefinition<never>,
  path: 'forward' | 'backward' | 'all' = 'all',
): string[] {
  const { kind } = definition;
  const run = (...types: EventType[]) => types.flatMap((type) => both(kind, 'run', type));
  const forward = [
    ...run('started'),
    ...definition.steps.flatMap((step) => [
      ...both(kind, step.name, 'step-started'),
      ...both(kind, step.name, 'step-succeeded'),
    ]),
    ...run('finished'),
  ];
  const pointOfNoReturn = definition.steps.findIndex((step) => step.pointOfNoReturn);
  const undoable = pointOfNoReturn === -1 ? definition.steps : definition.steps.slice(0, pointOfNoReturn + 1);
  const backward = [
    ...run('undoing'),
    ...undoable.toReversed().flatMap((step) => {
      if (!step.undo) return [];
      return [...both(kind, step.name, 'undo-started'), ...both(kind, step.name, 'undo-finished')];
    }),
  ];
  if (path === 'forward') return forward;
  if (path === 'backward') return backward;
  const others = definition.steps.flatMap((step) =>
    (
      [
        'step-failed',
        'put',
        'waiting',
        'overdue',
        'resumed',
        'nudged',
        ...(step.undo ? ['undo-failed'] : []),
      ] as const
    ).flatMap((type) => both(kind, step.name, type as EventType)),
  );
  return [...forward, ...backward, ...others, ...run('cancel-requested', 'forced')];
}

/**
 * Kills this process with SIGKILL when it reaches the point that `GODWIT_CRASH_AT` names. Once: the file
 * `GODWIT_CRASH_MARKER` is made first, and where it exists already nothing happens, so the process that is
 * started next goes on. Without either variable: no crash points.
 */
export function crashPointsFromEnvironment(environment: NodeJS.ProcessEnv): CrashPoints {
  const crashAt = environment.GODWIT_CRASH_AT;
  const marker = environment.GODWIT_CRASH_MARKER;
  if (!crashAt || !marker) return noCrashPoints;
  return {
    reached(name) {
      if (name !== crashAt) return;
      try {
        closeSync(openSync(marker, 'wx'));
      } catch (error) {
        if (systemErrorCode(error) === 'EEXIST') return;
        throw error;
      }
      process.kill(process.pid, 'SIGKILL');
    },
  };
}
