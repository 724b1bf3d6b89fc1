import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Static } from 'typebox';
import { Check } from 'typebox/value';
import { drainMachine, FakeWorkerService, machineView, runView } from '../../test/support/fake-service.ts';
import type { RunView } from '../journal/run.ts';
import type { GuestStatistics } from '../opening/guest.ts';
import type { HydrationStatus } from '../opening/status.ts';
import {
  DrainMachine,
  DrainStatus,
  type GuestView,
  type HydrationView,
  MachineView,
  Name,
  RunReply,
  WorkerView,
} from './schemas.ts';

/** Compiles only when both are assignable to each other. */
type Same<Left, Right> = [Left] extends [Right] ? ([Right] extends [Left] ? true : never) : never;

test('the schemas say the same as the types of the rooms below', () => {
  const same: [
    Same<Static<typeof HydrationView>, HydrationStatus>,
    Same<Static<typeof GuestView>, GuestStatistics>,
    Same<Static<typeof RunReply>, RunView>,
  ] = [true, true, true];
  assert.equal(same.length, 3);
});

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
