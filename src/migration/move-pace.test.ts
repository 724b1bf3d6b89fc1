import assert from 'node:assert/strict';
import test from 'node:test';
import type { TargetStatus } from '../contract/peer.ts';
import type { RunView } from '../journal/run.ts';
import { MovePace } from './move-pace.ts';

function move(change: Partial<RunView>): RunView {
  return {
    id: 'r_1',
    kind: 'migrate-out',
    resource: 'machine:m_1',
    state: 'running',
    input: {},
    output: {},
    step: 'stop',
    steps: [],
    pastPointOfNoReturn: false,
    cancelRequested: false,
    reason: null,
    error: null,
    createdAtMs: 0,
    endedAtMs: null,
    ...change,
  };
}

const status = (presentBytes: number): TargetStatus => ({
  runId: 'r_1',
  phase: 'healthy',
  reason: null,
  nextAction: null,
  timesMs: {
    answered: 0,
    handedOver: 0,
    activated: 0,
    attached: 0,
    booted: 0,
    healthy: 0,
    hydrated: null,
  },
  hydration: {
    state: 'running',
    totalBytes: 100,
    presentBytes,
    exposedBytes: 100 - presentBytes,
    wireBytes: presentBytes,
    blocksFetchedTwice: 0,
    bytesPerSecond: 0,
    etaMs: null,
  },
  waivedAtMs: null,
});

const progress = (unit: 'answers' | 'bytes', count: number) => ({
  what: 'x',
  unit,
  count,
  sinceMs: 0,
  lastAtMs: 0,
});

test('a move is held up when nothing of it has changed for so long', () => {
  const pace = new MovePace(5_000);
  const held = (run: RunView, nowMs: number, live: TargetStatus | null = null) =>
    pace.look([run], () => live, nowMs).has(run.id);
  assert.equal(held(move({}), 0), false);
  assert.equal(held(move({}), 4_999), false);
  assert.equal(held(move({}), 5_000), true);
  // A reason, and further tries, are no advance.
  const reason = { message: 'stops', nextAction: 'wait', sinceMs: 7 };
  assert.equal(held(move({ reason, state: 'waiting' }), 6_000), true);
  assert.equal(held(move({ step: 'seal' }), 7_000), false);
  assert.equal(held(move({ step: 'seal', endedAtMs: 1 }), 20_000), false);
  assert.equal(held(move({ step: 'seal' }), 21_000), false, 'one that ended is forgotten');
});

test('answers are an advance only where a step ends by itself; bytes always are', () => {
  const heldIn = (step: string, unit: 'answers' | 'bytes') => {
    const pace = new MovePace(5_000);
    pace.look([move({ step, progress: progress(unit, 1) })], () => null, 0);
    return pace.look([move({ step, progress: progress(unit, 2) })], () => null, 9_000).size === 1;
  };
  assert.equal(heldIn('prepare', 'answers'), false);
  for (const step of ['stop', 'seal', 'settle', 'serve']) {
    assert.equal(heldIn(step, 'answers'), true, step);
    assert.equal(heldIn(step, 'bytes'), false, step);
  }
});

test('a clone that fills is not held up, one that does not is', () => {
  const pace = new MovePace(5_000);
  const run = move({ step: 'serve' });
  pace.look([run], () => status(10), 0);
  assert.equal(pace.look([run], () => status(11), 6_000).size, 0);
  assert.equal(pace.look([run], () => status(11), 11_000).size, 1);
});
