import assert from 'node:assert/strict';
import test from 'node:test';
import type { RunView, StepView } from '../journal/run.ts';
import { IN_STEPS } from './migrate-in.ts';
import { OUT_STEPS } from './migrate-out.ts';
import type { CheckedStep } from './move-step.ts';
import {
  isBefore,
  isPast,
  isServing,
  isUndone,
  lastStepOf,
  mayHavePassed,
  ownsMachine,
  stepOf,
} from './move-watch.ts';

/** A run that has come to `step` (which runs), or, undoing, has taken back all from `step` on. */
function run(kind: 'migrate-out' | 'migrate-in', step: string | null, undoing = false): RunView {
  const names = (kind === 'migrate-out' ? OUT_STEPS : IN_STEPS).map(({ name }) => name);
  const at = step === null ? names.length : names.indexOf(step);
  assert.notEqual(at, -1, `there is a step ${step}`);
  const stateOf = (index: number): StepView['state'] => {
    if (index < at) return 'done';
    if (undoing) return 'undone';
    return index === at ? 'running' : 'pending';
  };
  const steps = names.map((name, index) => ({
    ...{ name, state: stateOf(index), startedAtMs: null, endedAtMs: null },
    attempts: index <= at ? 1 : 0,
  }));
  return { kind, step, steps } as unknown as RunView;
}

test('what a step needs, one before it has put down', () => {
  for (const steps of [OUT_STEPS, IN_STEPS] as CheckedStep<never, never>[][]) {
    const given = new Set<string>();
    for (const { name, needs, gives } of steps) {
      for (const need of needs) assert.ok(given.has(need), `${name} needs ${need}`);
      for (const note of gives) given.add(note);
    }
    const phases = steps.map(({ phase }) => phase);
    assert.deepEqual(
      [...phases].sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b)),
      phases,
      'the phases follow each other',
    );
  }
});
const ORDER = ['before-stop', 'interruption', 'after'];

test('from its first stop to its first healthy answer a move is in its interruption, seen from both sides', () => {
  assert.ok(isBefore(run('migrate-out', 'sync'), 'interruption'));
  assert.ok(!isBefore(run('migrate-out', 'stop'), 'interruption'));
  assert.ok(!isServing(run('migrate-out', 'settle')));
  assert.ok(isServing(run('migrate-out', 'detach')));
  assert.ok(isServing(run('migrate-out', null)));
  assert.ok(isUndone(run('migrate-out', 'stop', true), 'interruption'));
  assert.ok(
    !isUndone(run('migrate-out', 'seal', true), 'interruption'),
    'the machine is not started again yet',
  );
  assert.ok(!isPast(run('migrate-in', 'healthy'), 'interruption'));
  assert.ok(isPast(run('migrate-in', 'settle'), 'interruption'));
  assert.ok(!isServing(run('migrate-in', 'finish')), 'only a source serves');
});

test('the point of no return may be passed as soon as its step was tried, and a machine is owned when it is done', () => {
  assert.ok(!mayHavePassed(run('migrate-out', 'open')));
  assert.ok(mayHavePassed(run('migrate-out', 'handoff')));
  assert.ok(!mayHavePassed(run('migrate-in', 'await')));
  assert.ok(mayHavePassed(run('migrate-in', 'activate')));
  assert.ok(!ownsMachine(run('migrate-in', 'activate')));
  assert.ok(ownsMachine(run('migrate-in', 'boot')));
  assert.ok(!ownsMachine(run('migrate-out', null)));
});

test('a step is known by its run, and no step of another kind, or of none', () => {
  assert.equal(stepOf(run('migrate-in', 'settle'))?.waitsFor, 'this-worker');
  assert.equal(stepOf(run('migrate-out', 'settle'))?.waitsFor, 'peer');
  assert.equal(stepOf({ kind: 'another', step: 'settle' }), null);
  assert.equal(stepOf(run('migrate-out', null)), null);
  assert.equal(lastStepOf(run('migrate-out', 'open'))?.name, 'open');
});
