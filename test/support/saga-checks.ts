import { assert } from '../../src/base/assert.ts';
import type { Clock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { seededRandom } from '../../src/base/random.ts';
import { Crash, type CrashPoints, noCrashPoints } from '../../src/journal/crash-points.ts';
import { Journal } from '../../src/journal/journal.ts';
import { Abort } from '../../src/journal/outcome.ts';
import type { RunDefinition, RunView, StepDefinition } from '../../src/journal/run.ts';
import { FakeClock } from './fake-clock.ts';
import { printRun } from './print-run.ts';

/*
 * What each kind of run must pass (after the helpers of omicron's sagas, with crashes added):
 *   1. it fails at each step and unwinds                        4. the process dies before and after every append, forwards
 *   2. it unwinds with every undo run twice                        and backwards, and the run still ends
 *   3. it succeeds with every step run twice
 * A world is what the steps change: a model in memory that says whether it is clean and whether the work is
 * done.
 */

export type World = {
  /** Throws when anything is left of a run that was undone. */
  assertClean(): void | Promise<void>;
  /** Throws when a run that ended well has not done its work, or has done it twice. */
  assertDone(): void | Promise<void>;
};

export type SagaChecks<Input, W extends World> = {
  makeWorld: (clock: Clock) => W | Promise<W>;
  makeDefinition: (world: W, clock: Clock) => RunDefinition<Input>;
  input: Input;
  /** A new path for a database with each call. */
  databasePath: () => string;
  /**
   * A clock for each run. Default: a FakeClock, which suits worlds in memory; a world with real I/O needs the
   * system's.
   */
  makeClock?: () => Clock;
};

/** All four. */
export async function checkSaga<Input, W extends World>(checks: SagaChecks<Input, W>): Promise<void> {
  await checkUnwindsAtEachStep(checks);
  await checkUnwindsWithUndosRepeated(checks);
  await checkSucceedsWithStepsRepeated(checks);
  await checkEndsAfterEachCrash(checks);
}

/**
 * Fails at each step, once before it did anything and once after all that it does. Up to the point of no
 * return the run is undone and the world clean; past it the run ends well in spite of the failure. (After the
 * step of the point of no return an abort would be a lie: not tried.)
 */
export async function checkUnwindsAtEachStep<Input, W extends World>(
  checks: SagaChecks<Input, W>,
): Promise<void> {
  await eachFailure(checks, async (failing) => {
    await runOnce(checks, failing.what, failing.end, failing.change);
  });
}

/** The same with every undo run twice in a row. */
export async function checkUnwindsWithUndosRepeated<Input, W extends World>(
  checks: SagaChecks<Input, W>,
): Promise<void> {
  await eachFailure(checks, async (failing) => {
    await runOnce(checks, `${failing.what}, undos twice`, failing.end, (step, index) =>
      twice(failing.change(step, index), 'undo'),
    );
  });
}

/** Each step is run twice in a row, as after a crash between its work and its record. */
export async function checkSucceedsWithStepsRepeated<Input, W extends World>(
  checks: SagaChecks<Input, W>,
): Promise<void> {
  await runOnce(checks, 'each step twice', 'done', (step) => twice(step, 'do'));
}

/**
 * Lets the process die before and after each append, one run for each: forwards, and backwards from a failure
 * at the last step that can be undone. Returns how many deaths it tried.
 */
export async function checkEndsAfterEachCrash<Input, W extends World>(
  checks: SagaChecks<Input, W>,
): Promise<number> {
  let crashes = 0;
  for (const end of ['done', 'undone'] as const) {
    for (let nth = 1; ; nth++) {
      const crashed = await crashOnce(checks, end, nth);
      if (!crashed) break;
      crashes++;
    }
  }
  return crashes;
}

type Change<Input> = (step: StepDefinition<Input>, index: number) => StepDefinition<Input>;

function changed<Input>(definition: RunDefinition<Input>, change: Change<Input>): RunDefinition<Input> {
  return { ...definition, steps: definition.steps.map(change) };
}

function twice<Input>(step: StepDefinition<Input>, which: 'do' | 'undo'): StepDefinition<Input> {
  const once = step[which];
  if (!once) return step;
  return {
    ...step,
    [which]: async (context: Parameters<typeof once>[0]) => {
      await once(context);
      return once(context);
    },
  };
}

/** `do` that throws once: `Abort` where the run can be undone, else something that is retried. */
function failing<Input>(
  step: StepDefinition<Input>,
  when: 'before' | 'after',
  undoable: boolean,
): StepDefinition<Input> {
  let failures = 0;
  return {
    ...step,
    do: async (context) => {
      if (when === 'after') await step.do(context);
      if (failures++ === 0) {
        const error = new Error(`injected ${when} the work of ${step.name}`);
        throw undoable ? new Abort(error) : error;
      }
      if (when === 'before') await step.do(context);
    },
  };
}

async function eachFailure<Input, W extends World>(
  checks: SagaChecks<Input, W>,
  visit: (failure: { what: string; end: 'done' | 'undone'; change: Change<Input> }) => Promise<void>,
): Promise<void> {
  const { steps } = await exampleOf(checks);
  const pivot = pivotOf(steps);
  for (const [at, step] of steps.entries()) {
    for (const when of ['before', 'after'] as const) {
      if (at === pivot && when === 'after') continue;
      const undoable = at <= pivot;
      await visit({
        what: `failure ${when} the work of ${step.name}`,
        end: undoable ? 'undone' : 'done',
        change: (each, index) => (index === at ? failing(each, when, undoable) : each),
      });
    }
  }
}

async function exampleOf<Input, W extends World>(
  checks: SagaChecks<Input, W>,
): Promise<RunDefinition<Input>> {
  const clock = checks.makeClock?.() ?? new FakeClock();
  return checks.makeDefinition(await checks.makeWorld(clock), clock);
}

/** Index of the step of the point of no return; without one every step can be undone. */
function pivotOf(steps: readonly StepDefinition<never>[]): number {
  const pivot = steps.findIndex((step) => step.pointOfNoReturn);
  return pivot === -1 ? steps.length : pivot;
}

async function runOnce<Input, W extends World>(
  checks: SagaChecks<Input, W>,
  what: string,
  end: 'done' | 'undone',
  change: Change<Input>,
): Promise<void> {
  const clock = checks.makeClock?.() ?? new FakeClock();
  const world = await checks.makeWorld(clock);
  const definition = changed(checks.makeDefinition(world, clock), change);
  const journal = open(clock, checks.databasePath(), definition, noCrashPoints);
  try {
    const { id } = journal.start(definition.kind, checks.input);
    const run = await drive(clock, journal.wait(id));
    await assertEnd(world, run, end, what, clock);
  } finally {
    await drive(clock, journal.close());
  }
}

/** False when the run ended before its `nth` crash point. */
async function crashOnce<Input, W extends World>(
  checks: SagaChecks<Input, W>,
  end: 'done' | 'undone',
  nth: number,
): Promise<boolean> {
  const clock = checks.makeClock?.() ?? new FakeClock();
  const world = await checks.makeWorld(clock);
  const path = checks.databasePath();
  // After the crash the same thing goes wrong again, as it would.
  const backwards: Change<Input> = (step, index) => {
    const { steps } = original;
    if (end === 'done' || index !== Math.min(pivotOf(steps), steps.length - 1)) return step;
    return {
      ...step,
      do: async () => {
        throw new Abort(new Error('injected'));
      },
    };
  };
  const original = checks.makeDefinition(world, clock);
  const definition = changed(original, backwards);
  const runId = 'r_crash';
  let reached = 0;
  let crashedAt: string | null = null;
  const first = open(clock, path, definition, {
    reached(name) {
      if (++reached !== nth) return;
      crashedAt = name;
      throw new Crash(name);
    },
  });
  try {
    first.start(definition.kind, checks.input, { runId });
    const run = await drive(clock, first.wait(runId));
    if (crashedAt === null) {
      await assertEnd(world, run, end, 'no crash', clock);
      return false;
    }
  } catch (error) {
    if (crashedAt === null) throw error;
  } finally {
    await drive(clock, first.close());
  }

  const second = open(clock, path, changed(checks.makeDefinition(world, clock), backwards), noCrashPoints);
  try {
    second.resume();
    // The caller of the dead process never got its answer and asks again.
    second.start(definition.kind, checks.input, { runId });
    await assertEnd(world, await drive(clock, second.wait(runId)), end, `crash at ${crashedAt}`, clock);
  } finally {
    await drive(clock, second.close());
  }
  return true;
}

function open<Input>(
  clock: Clock,
  database: string,
  definition: RunDefinition<Input>,
  crashPoints: CrashPoints,
): Journal {
  return new Journal({
    database,
    clock,
    random: seededRandom(1),
    logger: silentLogger,
    definitions: [definition as RunDefinition<never>],
    crashPoints,
  });
}

function drive<T>(clock: Clock, promise: Promise<T>): Promise<T> {
  return clock instanceof FakeClock ? clock.runUntil(promise) : promise;
}

async function assertEnd(
  world: World,
  run: RunView,
  end: 'done' | 'undone',
  what: string,
  clock: Clock,
): Promise<void> {
  assert(run.state === end, `${what}: should end ${end}\n${printRun(run, clock.wallMs())}`);
  try {
    if (end === 'done') await world.assertDone();
    else await world.assertClean();
  } catch (error) {
    throw new Error(`${what}: the world is not as it should be\n${printRun(run, clock.wallMs())}`, {
      cause: error,
    });
  }
}
