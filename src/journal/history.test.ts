import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError, type WireError } from '../base/errors.ts';
import { applyEvent, type EventBody, foldEvents, type RunHeader, sideOf } from './history.ts';

const HEADER: RunHeader = {
  id: 'run1',
  kind: 'test',
  resource: 'machine:m_1',
  input: {},
  createdAtMs: 0,
  steps: ['first', 'pivot', 'last'].map((name) => ({
    name,
    pointOfNoReturn: name === 'pivot',
    undo: name === 'first' || name === 'pivot',
    deadlineMs: 1_000,
    retryInitialMs: 10,
    retryMaxMs: 100,
  })),
};
const ERROR: WireError = { code: 'TEST', message: 'no', values: {}, nextAction: 'none' };

const started: EventBody = { type: 'started' };
const begin = (step: number, attempt = 1): EventBody => ({
  type: 'step-started',
  step,
  attempt,
  deadlineAtMs: 9_000,
  limitAtMs: 9_000,
});
const ok = (step: number, attempt = 1): EventBody => ({ type: 'step-succeeded', step, attempt });
const fail = (
  step: number,
  outcome: 'retry' | 'abort' | 'unrecoverable' = 'retry',
  attempt = 1,
): EventBody => ({
  type: 'step-failed',
  step,
  attempt,
  outcome,
  error: ERROR,
  retryAtMs: 0,
});
const cancel: EventBody = { type: 'cancel-requested', reason: 'a test' };
const force = (how: 'undo' | 'forward' | 'forget'): EventBody => ({ type: 'forced', how, by: 'a test' });
const undoing = (endState: 'undone' | 'failed' = 'undone'): EventBody => ({
  type: 'undoing',
  endState,
  error: ERROR,
});
const undoBegin = (step: number, attempt = 1): EventBody => ({
  type: 'undo-started',
  step,
  attempt,
  limitAtMs: 9_000,
});
const undoOk = (step: number, attempt = 1): EventBody => ({ type: 'undo-finished', step, attempt });
const undoFail = (step: number, attempt = 1): EventBody => ({
  type: 'undo-failed',
  step,
  attempt,
  error: ERROR,
  retryAtMs: 0,
});
const finish = (state: 'done' | 'undone' | 'failed', holdsResource = false): EventBody => ({
  type: 'finished',
  state,
  error: null,
  holdsResource,
  handedOffTo: null,
});

const fold = (bodies: readonly EventBody[]) =>
  foldEvents(
    HEADER,
    bodies.map((body, sequence) => ({ sequence, atMs: sequence, body })),
  );

const ONE_DONE = [started, begin(0), ok(0)];
const PAST = [...ONE_DONE, begin(1), ok(1)];
const ALL_DONE = [...PAST, begin(2), ok(2)];
const BACKWARDS = [...ONE_DONE, undoing()];
const UNDONE = [...BACKWARDS, undoBegin(0), undoOk(0)];
const STUCK = [...PAST, begin(2), fail(2, 'unrecoverable')];

/** Where the run is, an event that cannot stand there, and what is said of it. */
const ILLEGAL: [string, readonly EventBody[], EventBody, RegExp][] = [
  ['started', [started], started, /has started already/],
  ['over', [...ALL_DONE, finish('done')], begin(2, 2), /is over/],
  ['over and let go', [...ALL_DONE, finish('done')], force('undo'), /is over/],
  ['at its first step', [started], begin(1), /step 0 is next/],
  ['past its last step', ALL_DONE, begin(3), /step 3 is next/],
  ['backwards', BACKWARDS, begin(0, 2), /goes backwards/],
  ['in an attempt', [started, begin(0)], begin(0, 2), /another attempt has not ended/],
  ['cancelled', [started, cancel], begin(0), /is cancelled/],
  ['after an attempt', [started, begin(0, 2), fail(0, 'retry', 2)], begin(0, 2), /only count up/],
  ['in an undo', [...BACKWARDS, undoBegin(0)], ok(0), /goes backwards/],
  ['in an undo', [...BACKWARDS, undoBegin(0)], fail(0), /goes backwards/],
  ['in another attempt', [started, begin(0, 2)], ok(0), /is not running/],
  ['in another attempt', [started, begin(0, 2)], fail(0), /is not running/],
  ['before the step', [started], { type: 'put', step: 0, values: {} }, /has not started/],
  [
    'before the step',
    [started],
    { type: 'waiting', step: 0, message: '', nextAction: '' },
    /has not started/,
  ],
  ['before the step', [started], { type: 'overdue', step: 0 }, /has not started/],
  ['between attempts', [started], { type: 'resumed', step: 0 }, /no attempt was running/],
  ['in an attempt', [started, begin(0)], { type: 'nudged', step: 0 }, /does not wait for a retry/],
  ['before an attempt', [started], { type: 'nudged', step: 0 }, /does not wait for a retry/],
  ['past its point of no return', PAST, cancel, /too late/],
  ['at its point of no return', [...ONE_DONE, begin(1)], cancel, /too late/],
  ['backwards', BACKWARDS, cancel, /too late/],
  ['backwards', BACKWARDS, force('undo'), /goes backwards/],
  ['backwards, by itself', BACKWARDS, force('forward'), /goes backwards/],
  ['in an attempt', [started, begin(0)], undoing(), /does not stand still/],
  ['backwards', BACKWARDS, undoing(), /does not stand still/],
  ['past its point of no return', PAST, undoing(), /past its point of no return/],
  ['forward', ONE_DONE, undoBegin(1), /goes forward/],
  ['in an undo', [...BACKWARDS, undoBegin(0)], undoBegin(0, 2), /another attempt has not ended/],
  ['after an undo', [...BACKWARDS, undoBegin(0, 2), undoFail(0, 2)], undoBegin(0, 2), /only count up/],
  ['forward, in an attempt', [started, begin(0)], undoOk(0), /goes forward/],
  ['forward, in an attempt', [started, begin(0)], undoFail(0), /goes forward/],
  ['in another undo', [...BACKWARDS, undoBegin(0, 2)], undoOk(0), /is not running/],
  ['in another undo', [...BACKWARDS, undoBegin(0, 2)], undoFail(0), /is not running/],
  ['in an attempt', [...PAST, begin(2)], finish('done'), /has not ended/],
  ['with a step to do', PAST, finish('done'), /not all steps are done/],
  ['backwards to the end', UNDONE, finish('done'), /not all steps are done/],
  ['forward', ALL_DONE, finish('undone'), /not all steps are undone/],
  ['in the middle of its undos', BACKWARDS, finish('undone'), /not all steps are undone/],
  [
    'undone for a failure',
    [...ONE_DONE, undoing('failed'), undoBegin(0), undoOk(0)],
    finish('undone'),
    /undone/,
  ],
  ['undone', UNDONE, finish('failed'), /nothing says that it failed/],
  ['whole', ALL_DONE, finish('failed'), /nothing says that it failed/],
  ['stuck', STUCK, finish('failed', false), /lock does not fit/],
  ['stuck and forgotten', [...STUCK, force('forget')], finish('failed', true), /lock does not fit/],
];

test('an event that cannot stand where a run is is damage, and says why', () => {
  for (const [where, before, body, why] of ILLEGAL) {
    const history = fold(before);
    assert.throws(
      () => applyEvent(history, { sequence: before.length, atMs: 0, body }),
      (error) => isGodwitError(error, 'JOURNAL_CORRUPT') && why.test(error.message),
      `${body.type} of a run that is ${where}`,
    );
  }
  assert.throws(() => applyEvent(fold([started]), { sequence: 0, atMs: 0, body: begin(0) }), /does not rise/);
  assert.throws(() => fold([begin(0)]), /has not started/);
  assert.throws(() => fold([]), /no events/);
});

test('what may be: ends of each kind, a stuck run that goes on, and one that is turned round', () => {
  assert.equal(fold([...ALL_DONE, finish('done')]).end?.state, 'done');
  assert.equal(fold([...UNDONE, finish('undone')]).end?.state, 'undone');
  assert.equal(fold([...STUCK, finish('failed', true)]).end?.holdsResource, true);
  assert.equal(fold([...STUCK, finish('failed', true), force('forward')]).phase, 'forward');
  const forced: EventBody = { ...undoing(), error: { ...ERROR, code: 'JOURNAL_FORCED_UNDO' } } as EventBody;
  const turned = fold([...ONE_DONE, begin(1), fail(1), force('undo'), forced, force('forward')]);
  assert.deepEqual([turned.phase, turned.cursor, turned.steps[0]!.state], ['forward', 1, 'done']);
});

test('the side of the point of no return is known from what was tried and what was done', () => {
  assert.equal(sideOf(fold(ONE_DONE)), 'before');
  assert.equal(sideOf(fold([...ONE_DONE, begin(1)])), 'at');
  assert.equal(sideOf(fold([...ONE_DONE, begin(1), fail(1)])), 'at');
  assert.equal(sideOf(fold(PAST)), 'past');
  assert.equal(sideOf(fold([...ONE_DONE, begin(1), fail(1, 'abort'), undoing()])), 'before');
});
