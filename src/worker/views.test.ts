import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runView } from '../../test/support/fake-service.ts';
import type { HydrationStatus } from '../opening/status.ts';
import { arriving } from './views.ts';

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
