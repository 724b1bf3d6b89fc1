import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runView } from '../../test/support/fake-service.ts';
import { runConditions } from './run-conditions.ts';

test('a step without a reason says how fast it is, or that nothing has advanced in it, and never that it waits for nothing', () => {
  const step = { attempts: 1, startedAtMs: 1_000, endedAtMs: null };
  const running = runView({
    state: 'running',
    step: 'sync',
    reason: null,
    endedAtMs: null,
    steps: [{ name: 'sync', state: 'running', ...step }],
  });
  const said = (nowMs: number, more: object = {}) =>
    runConditions({ ...running, ...more }, nowMs).map(({ message }) => message);
  assert.match(said(1_100)[0]!, /in step sync \(nothing has advanced in it yet\)$/);
  const progress = {
    what: 'dirty pages',
    unit: 'bytes' as const,
    count: 2 ** 21,
    sinceMs: 2_000,
    lastAtMs: 9_500,
  };
  assert.match(
    said(10_000, { progress })[0]!,
    /in step sync \(dirty pages: 2\.0 MiB in 8\.0 s, 0\.3 MiB a second, the last 0\.5 s ago\)$/,
  );
  const reason = { message: 'w2 is preparing', nextAction: 'wait', sinceMs: 1 };
  assert.match(said(10_000, { progress, reason })[0]!, /w2 is preparing \(dirty pages: /);
});

test('who was asked and does not answer is named, since he was asked, beside a reason too', () => {
  const step = { attempts: 1, startedAtMs: 1_000, endedAtMs: null };
  const running = runView({
    state: 'running',
    step: 'prepare',
    reason: null,
    endedAtMs: null,
    steps: [
      { name: 'prepare', state: 'running', ...step },
      { name: 'stop', state: 'pending', attempts: 0, startedAtMs: null, endedAtMs: null },
    ],
    asks: { who: 'w2', sinceMs: 2_000 },
  });
  const [young] = runConditions(running, 2_900);
  assert.match(young?.message ?? '', /nothing has advanced/);
  const [told, ...rest] = runConditions(running, 3_100);
  assert.deepEqual([told?.sinceMs, told?.whoCanClearIt, rest], [2_000, 'w2', []]);
  assert.match(told?.message ?? '', /in step prepare: it waits for an answer of w2$/);
  assert.match(told?.nextAction ?? '', /machine runs on here meanwhile/);
  const reason = { message: 'w2 is preparing', nextAction: 'wait', sinceMs: 1 };
  const both = runConditions({ ...running, reason }, 3_100).map(({ message }) => message);
  assert.match(both.join(), /w2 is preparing,.*an answer of w2/);
  // Who says that he lives does not hang.
  const asks = { who: 'w2', sinceMs: 2_000, livesAtMs: 9_000 };
  const [lives] = runConditions({ ...running, asks }, 9_100);
  assert.match(lives?.message ?? '', /it waits for w2, which lives and works on it$/);
  assert.doesNotMatch(lives?.nextAction ?? '', /hang/);
});

test('a run that goes back says so first, and why, whatever it waits for', () => {
  const back = runView({
    kind: 'migrate-out',
    state: 'undoing',
    step: 'choose',
    reason: null,
    endedAtMs: null,
    steps: [{ name: 'stop', state: 'pending', attempts: 0, startedAtMs: null, endedAtMs: null }],
    error: { code: 'X', message: 'w2 is full', values: {}, nextAction: 'look' },
  });
  const said = (more: object = {}) => {
    const told = runConditions({ ...back, ...more }, 5_000);
    return told.map(({ message, nextAction }) => `${message} ${nextAction}`).join(' ');
  };
  const goesBack = /^migrate-out goes back \(w2 is full\), and undoes step choose now/;
  assert.match(said(), goesBack);
  assert.doesNotMatch(said(), /gives up/);
  const reason = { message: 'no disk', nextAction: 'wait', sinceMs: 1 };
  assert.match(said({ state: 'waiting', reason }), goesBack);
  assert.match(said({ reason }), /now: no disk/);
  const asks = { who: 'w2', sinceMs: 2_000 };
  assert.match(said({ asks }), goesBack);
  assert.doesNotMatch(said({ asks }), /the move is undone by itself/);
  const cancelled = { error: null, state: 'running', cancelRequested: true };
  assert.match(
    said(cancelled),
    /^migrate-out goes back \(cancelled\) as soon as what runs in step choose has/,
  );
  assert.match(said({ ...cancelled, calledOff: 'cancelled: enough' }), /goes back \(cancelled: enough\) as/);
});

test('who can clear it is the one who can', () => {
  const who = (kind: string, step: string) =>
    runConditions(
      runView({
        kind,
        step,
        state: 'waiting',
        endedAtMs: null,
        steps: [],
        input: { sourceWorker: 'w1' },
        output: { target: 'w2' },
        reason: { message: 'waits', nextAction: 'look', sinceMs: 1 },
      }),
      2,
    )[0]?.whoCanClearIt;
  assert.match(who('migrate-out', 'stop') ?? '', /its owner/);
  assert.equal(who('migrate-out', 'prepare'), 'w2');
  assert.equal(who('migrate-in', 'healthy'), 'its owner');
  assert.match(who('migrate-in', 'boot') ?? '', /this worker/);
  assert.equal(who('migrate-in', 'hydrate'), 'w1');
});
