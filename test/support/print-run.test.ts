import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { RunView } from '../../src/journal/run.ts';
import { printRun } from './print-run.ts';

const at = Date.UTC(2026, 0, 1);

const waiting: RunView = {
  id: 'r_1',
  kind: 'migrate-out',
  resource: 'machine:m_1',
  state: 'waiting',
  input: {},
  output: {},
  step: 'handoff',
  steps: [
    { name: 'lock', state: 'done', attempts: 1, startedAtMs: at, endedAtMs: at + 120 },
    { name: 'prepare', state: 'done', attempts: 2, startedAtMs: at + 120, endedAtMs: at + 4_000 },
    {
      name: 'handoff',
      state: 'failed',
      attempts: 14,
      startedAtMs: at + 4_000,
      endedAtMs: null,
      pointOfNoReturn: true,
    },
    { name: 'serve', state: 'pending', attempts: 0, startedAtMs: null, endedAtMs: null },
  ],
  pastPointOfNoReturn: false,
  cancelRequested: false,
  reason: {
    message: 'worker-2 does not answer',
    nextAction: 'See whether worker-2 runs.',
    sinceMs: at + 5_000,
  },
  error: null,
  createdAtMs: at,
  endedAtMs: null,
};

test('a run that waits says why and what to do', () => {
  assert.equal(
    printRun(waiting, at + 190_000),
    `run r_1 · migrate-out on machine:m_1 · waiting
  since 2026-01-01T00:00:00.000Z (3 min 10 s ago)
  why   worker-2 does not answer (for 3 min 5 s)
  do    See whether worker-2 runs.
  ✓ lock     done           0.1 s
  ✓ prepare  done           3.9 s  attempt 2
  ✗ handoff  failed     3 min 6 s  attempt 14
  ── point of no return ──
    serve    pending`,
  );
});

test('a run that failed past the point of no return says that it keeps the lock', () => {
  const failed: RunView = {
    ...waiting,
    state: 'failed',
    step: 'serve',
    steps: waiting.steps.map((step, index) => ({
      ...step,
      state: index === 3 ? 'failed' : 'done',
      startedAtMs: at,
      endedAtMs: index === 3 ? null : at + 7_200_000,
    })),
    pastPointOfNoReturn: true,
    reason: null,
    error: { code: 'VOLUME_GONE', message: 'the volume is gone', values: {}, nextAction: 'Restore it.' },
    endedAtMs: at + 100_000_000,
  };
  assert.equal(
    printRun(failed, at + 300_000_000),
    `run r_1 · migrate-out on machine:m_1 · failed
  from  2026-01-01T00:00:00.000Z to 2026-01-02T03:46:40.000Z (1 d 3 h)
  error VOLUME_GONE: the volume is gone
  do    Restore it.
  lock  machine:m_1 stays locked until the run is forced forward, undone or forgotten
  ✓ lock     done       2 h 0 min
  ✓ prepare  done       2 h 0 min  attempt 2
  ✓ handoff  done       2 h 0 min  attempt 14
  ── point of no return ──
  ✗ serve    failed       1 d 3 h`,
  );
});

test('a run that handed over names its successor', () => {
  const text = printRun(
    {
      ...waiting,
      state: 'done',
      reason: null,
      endedAtMs: at,
      handedOffTo: { runId: 'r_2', kind: 'migrate-in' },
    },
    at,
  );
  assert.match(text, /^ {2}next {2}run r_2 · migrate-in$/m);
});
