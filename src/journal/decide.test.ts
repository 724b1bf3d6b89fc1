import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../base/random.ts';
import { backoffMs, decide } from './decide.ts';
import { type EventBody, foldEvents, type RunHeader } from './history.ts';

const header: RunHeader = {
  id: 'r',
  kind: 'move',
  resource: 'machine:a',
  input: null,
  steps: ['one', 'pivot', 'after'].map((name) => ({
    name,
    pointOfNoReturn: name === 'pivot',
    undo: name !== 'after',
    deadlineMs: 1_000,
    retryInitialMs: 100,
    retryMaxMs: 400,
  })),
  createdAtMs: 0,
};

const error = { code: 'X', message: 'x', values: {}, nextAction: 'y' };
const start = (step: number, attempt = 1): EventBody => ({
  type: 'step-started',
  step,
  attempt,
  deadlineAtMs: 1_000,
  limitAtMs: 1_000,
});
const done = (step: number, attempt = 1): EventBody => ({ type: 'step-succeeded', step, attempt });
const fail = (step: number, outcome: 'retry' | 'abort' | 'unrecoverable', retryAtMs = 100): EventBody => ({
  type: 'step-failed',
  step,
  attempt: 1,
  outcome,
  error,
  retryAtMs,
});
const cancel: EventBody = { type: 'cancel-requested', reason: 'z' };

/** In one word: what follows when the run has come to this. */
function next(nowMs: number, ...bodies: EventBody[]): string {
  const events = [{ type: 'started' } as const, ...bodies].map((body, sequence) => ({
    sequence,
    atMs: 0,
    body,
  }));
  const action = decide(foldEvents(header, events), nowMs);
  switch (action.type) {
    case 'append': {
      const { body } = action;
      if ('step' in body) return `${body.type} ${body.step}`;
      if (body.type === 'undoing') return `undoing to ${body.endState}: ${body.error.code}`;
      return body.type === 'finished'
        ? `finished ${body.state}${body.holdsResource ? ' held' : ''}`
        : body.type;
    }
    case 'sleep':
      return `sleep ${action.untilMs}`;
    case 'await':
      return `await ${action.stop?.code ?? '-'} ${action.wakeAtMs ?? '-'}`;
    case 'rest':
      return 'rest';
  }
}

const pivot = [start(0), done(0), start(1)];
const past = [...pivot, done(1), start(2)];
const table: readonly (readonly [string, string])[] = [
  [next(0), 'step-started 0'],
  [next(0, start(0)), 'await - 1000'],
  [next(1_000, start(0)), 'overdue 0'],
  [next(1_000, start(0), { type: 'overdue', step: 0 }), 'await JOURNAL_STEP_DEADLINE -'],
  [next(10, start(0), cancel), 'await JOURNAL_CANCELLED 1000'],
  [next(10, cancel), 'undoing to undone: JOURNAL_CANCELLED'],
  [next(10, start(0), cancel, done(0)), 'undoing to undone: JOURNAL_CANCELLED'],
  [next(10, start(0), fail(0, 'retry')), 'sleep 100'],
  [next(10, start(0), fail(0, 'retry', 5_000)), 'sleep 1000'],
  [next(100, start(0), fail(0, 'retry')), 'step-started 0'],
  [next(1_000, start(0), fail(0, 'retry')), 'undoing to undone: JOURNAL_STEP_DEADLINE'],
  [next(1_000, start(0), { type: 'resumed', step: 0 }), 'undoing to undone: JOURNAL_STEP_DEADLINE'],
  [next(10, start(0), fail(0, 'abort')), 'undoing to undone: X'],
  [next(10, start(0), fail(0, 'unrecoverable')), 'undoing to failed: X'],
  [next(10, ...pivot, fail(1, 'abort')), 'undoing to undone: X'],
  [next(10, ...pivot, fail(1, 'unrecoverable')), 'finished failed held'],
  [next(1_000, ...pivot, fail(1, 'retry')), 'overdue 1'],
  [next(1_000, ...pivot, fail(1, 'retry'), { type: 'overdue', step: 1 }), 'step-started 1'],
  [next(10, ...past, fail(2, 'unrecoverable')), 'finished failed held'],
  [next(10, ...past, done(2)), 'finished done'],
  [next(10, ...past, { type: 'forced', how: 'undo', by: 'ann' }), 'await JOURNAL_FORCED_UNDO 1000'],
  [
    next(10, ...past, { type: 'forced', how: 'forget', by: 'ann' }, { type: 'resumed', step: 2 }),
    'finished failed',
  ],
  [next(10, start(0), fail(0, 'abort'), { type: 'undoing', endState: 'undone', error }), 'undo-started 0'],
  [next(10, { type: 'undoing', endState: 'undone', error }), 'finished undone'],
  [next(-1e9, start(0), fail(0, 'retry')), `sleep ${-1e9 + 100}`],
];

for (const [index, [actual, expected]] of table.entries()) {
  test(`decision ${index}: ${expected}`, () => assert.equal(actual, expected));
}

test('backoff doubles to its maximum, and stays in its upper half', () => {
  const random = seededRandom(5);
  for (let attempt = 1; attempt < 2_000; attempt++) {
    const fullMs = Math.min(400, 100 * 2 ** (attempt - 1));
    const waitMs = backoffMs(header.steps[0]!, attempt, random);
    assert.ok(waitMs >= fullMs / 2 && waitMs <= fullMs, `${waitMs} of ${fullMs}`);
  }
});
