import assert from 'node:assert/strict';
import { test } from 'node:test';
import { evaluateOffer, type HostLoad } from './placement.ts';
import { DEFAULT_INTERRUPTION_MS, type PlanSubject, type PlanTarget, planDrain } from './plan.ts';

const GIB = 2 ** 30;

function subject(name: string, usedBytes: number, more: Partial<PlanSubject> = {}): PlanSubject {
  return {
    machineId: name,
    name,
    running: true,
    obstacle: null,
    placement: {
      machineId: name,
      machineName: name,
      group: null,
      memoryBytes: GIB,
      cpus: 0,
      volumeLengthBytes: 100 * GIB,
      volumeUsedBytes: usedBytes,
    },
    ...more,
  };
}

function workers(memoryByName: Record<string, number>) {
  const loads = Object.entries(memoryByName).map(
    ([worker, memoryBytes]): HostLoad => ({
      worker,
      draining: false,
      tls: false,
      plane: 'userspace',
      lacks: () => null,
      holdsFileOf: () => true,
      encryption: null,
      memoryBytes,
      cpus: 8,
      freeDiskBytes: 500 * GIB,
      reserved: [],
      totalDiskBytes: 1000 * GIB,
      placed: [],
    }),
  );
  return async (): Promise<PlanTarget[]> =>
    loads.map((load) => ({
      worker: load.worker,
      offer: async (machine, planned) => evaluateOffer(load, { sourceWorker: 'w1', ...machine, planned }),
    }));
}

const noHistory = { interruptionMs: () => null, bytesPerSecond: null };

test('a plan fills workers as the drain would, and says who has nowhere to go', async () => {
  const plan = await planDrain(
    'w1',
    [subject('c', 3 * GIB), subject('a', GIB), subject('b', 2 * GIB)],
    workers({ w2: GIB, w3: GIB }),
    noHistory,
  );
  assert.deepEqual(
    plan.steps.map(({ name, target }) => [name, target]),
    [
      ['a', 'w2'],
      ['b', 'w3'],
      ['c', null],
    ],
  );
  assert.match(plan.steps[2]!.reason, /w2 memory: needs 1024 MiB, has 0 MiB; w3 memory/);
  assert.equal(plan.totalBytes, 3 * GIB);
  assert.equal(plan.predictedFinishMs, null);
});

test('interruptions follow one after the other, hydrations share the wire, a stopped machine is not interrupted', async () => {
  const plan = await planDrain(
    'w1',
    [subject('a', GIB), subject('b', GIB, { running: false })],
    workers({ w2: 10 * GIB }),
    { interruptionMs: (id) => (id === 'a' ? 700 : null), bytesPerSecond: GIB },
  );
  assert.deepEqual(
    plan.steps.map((step) => step.predictedInterruptionMs),
    [700, 0],
  );
  assert.deepEqual(
    plan.steps.map((step) => step.predictedHydrationMs),
    [1000, 1000],
  );
  // 500 before the stop, 700 stopped, then a second for the bytes of a; b is ready by then, and its second
  // follows.
  assert.equal(plan.predictedFinishMs, 500 + 700 + 1000 + 1000);
});

test('without history the plan says the default; a machine that cannot move says why', async () => {
  const plan = await planDrain(
    'w1',
    [subject('a', GIB), subject('b', GIB, { obstacle: 'its volume still arrives from w9' })],
    workers({ w2: 10 * GIB }),
    noHistory,
  );
  assert.equal(plan.steps[0]!.predictedInterruptionMs, DEFAULT_INTERRUPTION_MS);
  assert.deepEqual(
    [plan.steps[1]!.target, plan.steps[1]!.reason],
    [null, 'its volume still arrives from w9'],
  );
});

test('a worker without peers has a plan that says so', async () => {
  const plan = await planDrain('w1', [subject('a', 1)], async () => [], noHistory);
  assert.equal(plan.steps[0]!.reason, 'there is no other worker');
});
