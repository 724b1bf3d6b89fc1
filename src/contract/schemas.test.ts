import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Check } from 'typebox/value';
import { drainMachine, FakeWorkerService, machineView, runView } from '../../test/support/fake-service.ts';
import { RunReply } from '../journal/run.ts';
import { DrainMachine, DrainStatus, MachineView, Name, WorkerView } from './schemas.ts';

test('replies of a service fit their schemas', async () => {
  const service = new FakeWorkerService('worker-1');
  assert.ok(Check(WorkerView, await service.worker()));
  assert.ok(Check(MachineView, machineView({})));
  assert.ok(Check(RunReply, runView({})));
  assert.ok(Check(DrainMachine, drainMachine({})));
  assert.ok(Check(DrainStatus, await service.drainStatus()));
});

test('a name is a host name and never looks like an id', () => {
  for (const good of ['a', 'pg', 'pg-1', '0', 'a'.repeat(63)]) assert.ok(Check(Name, good), good);
  for (const bad of ['', 'm_1', 'Pg', '-a', 'a-', 'a b', 'a/b', 'a'.repeat(64), 'ä']) {
    assert.ok(!Check(Name, bad), bad);
  }
});
