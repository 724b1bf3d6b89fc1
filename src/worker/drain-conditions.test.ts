import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runView } from '../../test/support/fake-service.ts';
import type { DrainView } from '../migration/drain.ts';
import { drainConditions, drainOfMachine } from './drain-conditions.ts';

test('a drain says what is left, and of one machine only what no move says', () => {
  const drain = {
    ...{ desired: true, sinceMs: 1 },
    machines: [{ name: 'db', state: 'waiting', reason: 'no room', nextAction: null }],
    volumes: [{ name: 'spare', reason: 'no machine has it', nextAction: 'godwit volume move spare' }],
  } as unknown as DrainView;
  assert.deepEqual(
    drainConditions(drain).map(({ message, nextAction }) => [message, nextAction]),
    [
      ['db is waiting: no room', 'godwit why db'],
      ['the volume spare is here: no machine has it', 'godwit volume move spare'],
    ],
  );
  assert.deepEqual(drainConditions({ ...drain, desired: false }), []);
  const stuck = {
    ...{ worker: 'w1', desired: true, sinceMs: 1, volumes: [] },
    machines: [
      { machineId: 'm', name: 'db', state: 'waiting', runId: 'r', reason: 'no room', nextAction: null },
    ],
  } as unknown as DrainView;
  const machine = { id: 'm', name: 'db' };
  assert.deepEqual(
    drainOfMachine(machine, [], stuck).map(({ code, nextAction }) => [code, nextAction]),
    [['drain-stuck', 'godwit drain w1 --dry-run']],
  );
  assert.deepEqual(drainOfMachine(machine, [runView({ id: 'r', endedAtMs: null })], stuck), []);
  assert.deepEqual(drainOfMachine(machine, [], { ...stuck, desired: false }), []);
});
