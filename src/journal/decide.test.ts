import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../base/random.ts';
import { backoffMs, decide, type Now } from './decide.ts';
import { type EventBody, foldEvents, type RunHeader } from './history.ts';

const header: RunHeader = {
  id: 'r',
  kind: 'move',
  resource: 'machine:a',
  input: null,
  steps: ['one', 'stopped', 'pivot', 'after'].map((name) => ({
    name,
    pointOfNoReturn: name === 'pivot',
    undo: name !== 'after',
    deadlineMs: 1_000,
    ...(name === 'stopped' && { whenQuiet: 'wait' as const }),
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

/** In one word: what follows when the run has come to this, and nothing has advanced since it began at 0. */
function next(nowMs: number, ...bodies: EventBody[]): string {
  return after({ wallMs: nowMs, quietMs: Math.max(0, nowMs), attemptQuietMs: Math.max(0, nowMs) }, ...bodies);
}

function after(now: Now, ...bodies: EventBody[]): string {
  const events = [{ type: 'started' } as const, ...bodies].map((body, sequence) => ({
    sequence,
    atMs: 0,
    body,
  }));
  const action = decide(foldEvents(header, events), now);
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

/** An attempt that began when the step had been quiet for too long, with a patience of its own. */
const again = (step: number, startedAtMs: number): EventBody => ({
  type: 'step-started',
  step,
  attempt: 2,
  deadlineAtMs: 1_000,
  limitAtMs: startedAtMs + 1_000,
});
const stopped = [start(0), done(0), start(1)];
const pivot = [...stopped, done(1), start(2)];
const past = [...pivot, done(2), start(3)];
const table: readonly (readonly [string, string])[] = [
  [next(0), 'step-started 0'],
  [next(0, start(0)), 'await - 1000'],
  [next(1_000, start(0)), 'overdue 0'],
  [next(1_000, start(0), { type: 'overdue', step: 0 }), 'await JOURNAL_STEP_QUIET -'],
  // An hour in which something advanced, 400 ms ago for the last time.
  [after({ wallMs: 3_600_000, quietMs: 400, attemptQuietMs: 400 }, start(0)), 'await - 3600600'],
  [
    after({ wallMs: 3_600_000, quietMs: 400, attemptQuietMs: 400 }, start(0), fail(0, 'retry')),
    'step-started 0',
  ],
  // The wall clock was set, by ten years and back: what advances does not go by it.
  [after({ wallMs: 3e11, quietMs: 5, attemptQuietMs: 5 }, start(0)), `await - ${3e11 + 995}`],
  [after({ wallMs: -3e11, quietMs: 1_000, attemptQuietMs: 1_000 }, start(0)), 'overdue 0'],
  // Attempts that fail, one after the other, advance nothing.
  [after({ wallMs: 1_000, quietMs: 1_000, attemptQuietMs: 10 }, start(0)), 'overdue 0'],
  [next(10, start(0), cancel), 'await JOURNAL_CANCELLED 1000'],
  [next(10, cancel), 'undoing to undone: JOURNAL_CANCELLED'],
  [next(10, start(0), cancel, done(0)), 'undoing to undone: JOURNAL_CANCELLED'],
  [next(10, start(0), fail(0, 'retry')), 'sleep 100'],
  [next(10, start(0), fail(0, 'retry', 5_000)), 'sleep 1000'],
  [next(100, start(0), fail(0, 'retry')), 'step-started 0'],
  [next(1_000, start(0), fail(0, 'retry')), 'undoing to undone: JOURNAL_STEP_QUIET'],
  [next(1_000, start(0), { type: 'resumed', step: 0 }), 'undoing to undone: JOURNAL_STEP_QUIET'],
  [next(10, start(0), fail(0, 'abort')), 'undoing to undone: X'],
  [next(10, start(0), fail(0, 'unrecoverable')), 'undoing to failed: X'],
  // The machine is stopped: an obstacle with a name sends it back at once, silence never does.
  [next(1_000, ...stopped), 'overdue 1'],
  [next(1e9, ...stopped, fail(1, 'retry')), 'overdue 1'],
  [next(1e9, ...stopped, fail(1, 'retry'), { type: 'overdue', step: 1 }), 'step-started 1'],
  [next(10, ...stopped, fail(1, 'abort')), 'undoing to undone: X'],
  [next(10, ...stopped, fail(1, 'unrecoverable')), 'undoing to failed: X'],
  [next(1e9, ...stopped, cancel, { type: 'resumed', step: 1 }), 'undoing to undone: JOURNAL_CANCELLED'],
  [next(10, ...pivot, fail(2, 'abort')), 'undoing to undone: X'],
  [next(10, ...pivot, fail(2, 'unrecoverable')), 'finished failed held'],
  [next(1_000, ...pivot, fail(2, 'retry')), 'overdue 2'],
  [next(1_000, ...pivot, fail(2, 'retry'), { type: 'overdue', step: 2 }), 'step-started 2'],
  [
    after(
      { wallMs: 5_000, quietMs: 5_000, attemptQuietMs: 300 },
      ...pivot,
      fail(2, 'retry'),
      { type: 'overdue', step: 2 },
      again(2, 4_700),
    ),
    'await - 5700',
  ],
  [next(10, ...past, fail(3, 'unrecoverable')), 'finished failed held'],
  [next(10, ...past, done(3)), 'finished done'],
  [next(10, ...past, { type: 'forced', how: 'undo', by: 'ann' }), 'await JOURNAL_FORCED_UNDO 1000'],
  [
    next(10, ...past, { type: 'forced', how: 'forget', by: 'ann' }, { type: 'resumed', step: 3 }),
    'finished failed',
  ],
  [next(10, start(0), fail(0, 'abort'), { type: 'undoing', endState: 'undone', error }), 'undo-started 0'],
  [
    after(
      { wallMs: 9_000, quietMs: 9_000, attemptQuietMs: 100 },
      start(0),
      fail(0, 'abort'),
      { type: 'undoing', endState: 'undone', error },
      { type: 'undo-started', step: 0, attempt: 1, limitAtMs: 0 },
    ),
    'await - 9900',
  ],
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
