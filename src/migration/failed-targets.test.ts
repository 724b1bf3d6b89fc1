import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { PAUSE } from '../base/patience.ts';
import type { RunView } from '../journal/run.ts';
import { FailedTargets } from './failed-targets.ts';

const ERROR = { code: 'MIGRATION_REFUSED', message: 'w2 refuses', values: {}, nextAction: 'look at w2' };

function failed(clock: FakeClock, step: string, more: Partial<RunView> = {}): RunView {
  const names = ['choose', 'export', 'prepare', 'sync', 'stop', 'seal', 'open', 'handoff', 'settle'];
  const reached = names.indexOf(step);
  return {
    id: 'r',
    kind: 'migrate-out',
    resource: 'machine:m',
    state: 'undone',
    input: { machineId: 'm', targetWorker: null, requestedBy: 'drain' },
    output: { target: 'w2' },
    step: null,
    steps: names.map((name, index) => ({
      name,
      state: index <= reached ? 'undone' : 'pending',
      attempts: index <= reached ? 1 : 0,
      startedAtMs: null,
      endedAtMs: null,
    })),
    pastPointOfNoReturn: false,
    cancelRequested: false,
    reason: null,
    error: ERROR,
    createdAtMs: 0,
    endedAtMs: clock.wallMs(),
    ...more,
  };
}

test('a target that refused, or lost the machine again, is known for it for a while', async () => {
  for (const step of ['prepare', 'open', 'handoff']) {
    const clock = new FakeClock();
    const targets = new FailedTargets(clock);
    targets.learn(failed(clock, step));
    assert.deepEqual([...targets.of('m')], [['w2', 'w2 refuses']]);
    assert.equal(targets.of('other').size, 0);
    clock.stepWall(-7_200_000);
    await clock.run(PAUSE.failedTarget.ms - 1);
    assert.equal(targets.of('m').size, 1);
    await clock.run(1);
    assert.equal(targets.of('m').size, 0);
  }
});

test('what fails at the source, was cancelled, or went well, says nothing of the target', () => {
  const clock = new FakeClock();
  const targets = new FailedTargets(clock);
  for (const step of ['choose', 'export', 'sync', 'stop', 'seal']) targets.learn(failed(clock, step));
  targets.learn(failed(clock, 'prepare', { cancelRequested: true }));
  targets.learn(failed(clock, 'settle', { state: 'done', error: null }));
  targets.learn(failed(clock, 'prepare', { endedAtMs: null, state: 'undoing' }));
  targets.learn(failed(clock, 'prepare', { output: {} }));
  targets.learn(failed(clock, 'prepare', { endedAtMs: clock.wallMs() - PAUSE.failedTarget.ms }));
  assert.equal(targets.of('m').size, 0);
});

test('several targets are known at once, each once, and a run that ended in the future counts from now', async () => {
  const clock = new FakeClock();
  const targets = new FailedTargets(clock);
  targets.learn(failed(clock, 'prepare', { endedAtMs: clock.wallMs() + 9_999_999 }));
  targets.learn(failed(clock, 'prepare', { output: { target: 'w3' } }));
  targets.learn(failed(clock, 'open'));
  assert.deepEqual([...targets.of('m').keys()].sort(), ['w2', 'w3']);
  await clock.run(PAUSE.failedTarget.ms);
  assert.equal(targets.of('m').size, 0);
});
