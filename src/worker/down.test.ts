import assert from 'node:assert/strict';
import test from 'node:test';
import { machineView, runView } from '../../test/support/fake-service.ts';
import { GodwitError } from '../base/errors.ts';
import type { RunView } from '../journal/run.ts';
import { DownEvents, downByMove, downByTrouble, downConditions } from './down.ts';

const step = (name: string, state: 'done' | 'undone' | 'running') => ({
  name,
  state,
  attempts: 1,
  startedAtMs: 1,
  endedAtMs: 2,
});

test('from its stop to its first healthy answer a machine is down because of its move', () => {
  const out = (change: Partial<RunView>, stopStartedAtMs?: number, running = true) =>
    downByMove(
      runView({
        kind: 'migrate-out',
        state: 'running',
        endedAtMs: null,
        step: 'seal',
        steps: [],
        output: { subject: { running }, target: 'w2', ...(stopStartedAtMs && { stopStartedAtMs }) },
        ...change,
      }),
    );
  assert.equal(out({}), null, 'it still runs');
  assert.deepEqual(out({}, 7), { sinceMs: 7, why: 'moves to w2 (step seal)' });
  assert.equal(out({}, 7, false), null, 'its owner had stopped it');
  assert.match(out({ state: 'undoing' }, 7)?.why ?? '', /comes back/);
  assert.equal(out({ state: 'undoing', steps: [step('stop', 'undone')] }, 7), null);
  assert.equal(out({ steps: [step('settle', 'done')] }, 7), null);
  assert.equal(out({ endedAtMs: 9 }, 7), null);

  const incoming = (steps: RunView['steps'], startMachine = true) =>
    downByMove(
      runView({
        kind: 'migrate-in',
        state: 'running',
        endedAtMs: null,
        step: 'boot',
        steps,
        input: { startMachine, sourceWorker: 'w1' },
        output: { handedOverAtMs: 5 },
      }),
    );
  assert.equal(incoming([]), null, 'it is the source that says it');
  assert.deepEqual(incoming([step('activate', 'done')]), { sinceMs: 5, why: 'arrives from w1 (step boot)' });
  assert.equal(incoming([step('activate', 'done')], false), null);
  assert.equal(incoming([step('activate', 'done'), step('healthy', 'done')]), null);
});

test('a machine that could not be started again is down since the first try', () => {
  assert.equal(downByTrouble(null), null);
  const error = new GodwitError('MACHINE_MOUNT_FAILED', 'no', { nextAction: 'look' }).toWire();
  assert.deepEqual(downByTrouble({ error, sinceMs: 3, attempts: 2, retryAtMs: 9 }), {
    sinceMs: 3,
    why: 'could not be started again (MACHINE_MOUNT_FAILED)',
  });
});

test('both ends of it are told once', () => {
  const told: string[] = [];
  const events = new DownEvents((machineId, message) => told.push(`${machineId} ${message}`));
  const run = (change: Partial<RunView>) =>
    runView({
      kind: 'migrate-out',
      state: 'running',
      endedAtMs: null,
      step: 'stop',
      steps: [],
      input: { machineId: 'm_1' },
      output: { subject: { running: true }, target: 'w2', stopStartedAtMs: 7 },
      ...change,
    });
  events.note(run({ output: {} }), 5);
  events.note(run({}), 8);
  events.note(run({ step: 'seal' }), 9);
  events.note(run({ step: 'detach', steps: [step('settle', 'done')] }), 10);
  events.note(run({ step: null, endedAtMs: 12 }), 12);
  assert.deepEqual(told, ['m_1 down: it moves to w2 (step stop)', 'm_1 not down because of godwit any more']);
});

test('a machine that is down because of godwit says so, and since when', () => {
  assert.deepEqual(downConditions(machineView({})), []);
  const [down] = downConditions(machineView({ down: { sinceMs: 5, why: 'moves to w2 (step stop)' } }));
  assert.deepEqual(
    [down?.sinceMs, down?.message],
    [5, 'it is down because of godwit: it moves to w2 (step stop)'],
  );
});
