import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { silentLogger } from '../../src/base/logger.ts';
import { seededRandom } from '../../src/base/random.ts';
import { Crash, type CrashPoints } from '../../src/journal/crash-points.ts';
import { Journal } from '../../src/journal/journal.ts';
import { Abort, Retry, Unrecoverable } from '../../src/journal/outcome.ts';
import type { RunDefinition, StepDefinition } from '../../src/journal/run.ts';
import { FakeClock } from './fake-clock.ts';
import { printRun } from './print-run.ts';
import {
  checkEndsAfterEachCrash,
  checkSaga,
  checkSucceedsWithStepsRepeated,
  checkUnwindsAtEachStep,
  checkUnwindsWithUndosRepeated,
  type SagaChecks,
} from './saga-checks.ts';
import { scratchDir } from './scratch.ts';
import { testSeed } from './seed.ts';

/** A world in which each step puts its name on a set, and the point of no return turns a key. */
class SetWorld {
  readonly names = new Set<string>();
  rings = 0;

  assertClean(): void {
    assert.deepEqual([...this.names], []);
  }

  assertDone(): void {
    assert.deepEqual([...this.names], ['lock', 'prepare', 'pivot', 'serve']);
  }
}

type Flaw = 'none' | 'undo forgets' | 'undo is not repeatable' | 'step is not repeatable';

function moveIn(world: SetWorld, flaw: Flaw): RunDefinition<string> {
  const step = (name: string, more: Partial<StepDefinition<string>> = {}): StepDefinition<string> => ({
    name,
    quietMs: 60_000,
    do: async ({ put }) => {
      if (flaw === 'step is not repeatable') assert.ok(!world.names.has(name), 'once only');
      world.names.add(name);
      put({ [name]: true });
    },
    undo: async () => {
      if (flaw === 'undo forgets' && name === 'prepare') return;
      if (flaw === 'undo is not repeatable' && !world.names.has(name)) world.names.add('mess');
      world.names.delete(name);
    },
    ...more,
  });
  return {
    kind: 'move',
    resource: (machine) => machine,
    steps: [step('lock'), step('prepare'), step('pivot', { pointOfNoReturn: true }), step('serve')],
  };
}

function checksFor(t: TestContext, flaw: Flaw): SagaChecks<string, SetWorld> {
  const folder = scratchDir(t);
  let databases = 0;
  return {
    makeWorld: () => new SetWorld(),
    makeDefinition: (world) => moveIn(world, flaw),
    input: 'machine:a',
    databasePath: () => join(folder, `${databases++}.sqlite`),
  };
}

test('a sound definition passes all checks', async (t) => {
  await checkSaga(checksFor(t, 'none'));
  // Forwards 2 for `started`, `finished` and each of 4 starts, 4 puts, 4 ends; backwards 2 for `started`,
  // `undoing`, `finished`, 3 starts, 2 puts, 2 ends, a failure, 3 undos begun and 3 ended.
  assert.equal(await checkEndsAfterEachCrash(checksFor(t, 'none')), 2 * 14 + 2 * 17);
});

test('an undo that leaves something behind is found', async (t) => {
  await assert.rejects(
    checkUnwindsAtEachStep(checksFor(t, 'undo forgets')),
    /the world is not as it should be/,
  );
});

test('an undo that cannot be repeated is found', async (t) => {
  await assert.rejects(
    checkUnwindsWithUndosRepeated(checksFor(t, 'undo is not repeatable')),
    /not as it should be/,
  );
});

test('a step that cannot be repeated is found', async (t) => {
  await assert.rejects(
    checkSucceedsWithStepsRepeated(checksFor(t, 'step is not repeatable')),
    /should end done/,
  );
});

test('whatever steps do and wherever the process dies, a run ends and its world fits its end', async (t) => {
  const folder = scratchDir(t);
  let databases = 0;
  const outcome = fc.constantFrom('ok', 'ok', 'ok', 'fail', 'retry', 'abort', 'unrecoverable', 'hang');
  const plan = fc.record({
    steps: fc.array(
      fc.record({
        do: fc.array(outcome, { maxLength: 3 }),
        undo: fc.array(fc.constantFrom('ok', 'fail', 'hang'), { maxLength: 2 }),
      }),
      { minLength: 1, maxLength: 5 },
    ),
    pivot: fc.integer({ min: -1, max: 4 }),
    crashes: fc.array(fc.integer({ min: 1, max: 25 }), { maxLength: 4 }),
    cancelAfterMs: fc.option(fc.integer({ min: 0, max: 40_000 })),
  });
  const seed = testSeed();
  await fc.assert(
    fc.asyncProperty(plan, async ({ steps, pivot, crashes, cancelAfterMs }) => {
      const clock = new FakeClock();
      const path = join(folder, `${databases++}.sqlite`);
      const world = new Set<number>();
      let busy = 0;
      const remaining = steps.map((step) => ({ do: [...step.do], undo: [...step.undo] }));
      const act = async (index: number, which: 'do' | 'undo', signal: AbortSignal) => {
        assert.equal(busy++, 0, 'one attempt at a time');
        try {
          const now = remaining[index]![which].shift() ?? 'ok';
          if (now === 'fail') throw new Error('fails');
          if (now === 'retry') throw new Retry('later', { afterMs: 2_000 });
          if (now === 'unrecoverable') throw new Unrecoverable(new Error('dead'), 'system');
          if (now === 'abort') throw new Abort(new Error('no'));
          if (now === 'hang') await clock.sleep(20_000, signal);
        } finally {
          busy--;
        }
      };
      const definition: RunDefinition<string> = {
        kind: 'any',
        resource: (machine) => machine,
        steps: steps.map((_step, index) => ({
          name: `s${index}`,
          quietMs: 15_000,
          pointOfNoReturn: index === pivot,
          do: async ({ signal }) => {
            for (let before = 0; before < index; before++)
              assert.ok(world.has(before), 'earlier steps are done');
            await act(index, 'do', signal);
            world.add(index);
          },
          undo: async ({ signal }) => {
            for (let after = index + 1; after < steps.length; after++)
              assert.ok(!world.has(after), 'later steps are undone');
            await act(index, 'undo', signal);
            world.delete(index);
          },
        })),
      };
      const open = (crashPoints: CrashPoints) =>
        new Journal({
          database: path,
          clock,
          random: seededRandom(3),
          logger: silentLogger,
          definitions: [definition as RunDefinition<never>],
          crashPoints,
        });
      const startMs = clock.wallMs();
      for (const crashAt of [...crashes, Number.POSITIVE_INFINITY]) {
        let reached = 0;
        const journal = open({
          reached(name) {
            if (++reached === crashAt) throw new Crash(name);
          },
        });
        try {
          journal.resume();
          journal.start('any', 'machine:a', { runId: 'r' });
          const cancelTimer =
            cancelAfterMs === null
              ? () => {}
              : clock.timer(startMs + cancelAfterMs - clock.wallMs(), () => {
                  try {
                    journal.cancel('r', 'random');
                  } catch {
                    // too late, over, or crashed
                  }
                });
          const run = await clock.runUntil(journal.wait('r')).finally(cancelTimer);
          const past = pivot >= 0 && pivot < steps.length && run.steps[pivot]!.state === 'done';
          const text = printRun(run, clock.wallMs());
          if (run.state === 'done') assert.equal(world.size, steps.length, text);
          else if (run.state === 'undone') assert.deepEqual([world.size, past], [0, false], text);
          else {
            assert.equal(run.state, 'failed', text);
            assert.equal(run.error?.values.blame, 'system', text);
            const locked = run.step !== null;
            if (locked)
              assert.ok(run.steps.findIndex(({ name }) => name === run.step) >= pivot && pivot >= 0, text);
            else assert.equal(world.size, 0, text);
          }
          assert.deepEqual(journal.get('r'), run);
          return;
        } catch (error) {
          if (reached < crashAt) throw error;
        } finally {
          await clock.runUntil(journal.close());
          // In a real death the step dies too.
          await clock.run(20_000);
        }
      }
      assert.fail('the last journal has no crash point');
    }),
    { numRuns: 150, seed },
  );
});
