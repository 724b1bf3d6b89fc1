import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runView } from '../../test/support/fake-service.ts';
import type { MachineShow } from '../machine/manager.ts';
import type { HydrationStatus } from '../opening/status.ts';
import { arriving, stateOf } from './views.ts';

test('a volume that has come arrives no more, however long its server remembers that it did', () => {
  const hydration = { state: 'complete', exposedBytes: 0 } as HydrationStatus;
  const running = { ...hydration, state: 'running' as const };
  const [inside, outside] = [runView({ kind: 'migrate-in' }), runView({ kind: 'migrate-out' })];
  assert.equal(arriving({ hydration }, null), null);
  assert.equal(arriving({ hydration }, outside), null);
  assert.equal(arriving({ hydration }, inside), hydration);
  // Also where no run is: an import, or a run that an operator had forgotten.
  assert.equal(arriving({ hydration: running }, null), running);
  assert.deepEqual([arriving({}, inside), arriving(null, null)], [null, null]);
});

test('a machine that ended well is stopped, for lists and metrics alike; one that did not has failed', () => {
  const show = (exitCode: number) =>
    ({
      record: { desired: 'running' },
      shim: { workload: { state: 'exited', exitCode, health: { state: 'none' } } },
    }) as MachineShow;
  assert.deepEqual([stateOf(show(0), null), stateOf(show(1), null)], ['stopped', 'failed']);
  assert.equal(stateOf({ ...show(0), silentForMs: 5 }, null), 'silent');
});
