import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import type { HostLoad } from '../migration/placement.ts';
import { Admission, type AdmissionOptions } from './admission.ts';
import { placementOf } from './load.ts';

const GIB = 2 ** 30;

/** A machine that asks for so much memory. */
const machine = (id: string, gib: number) =>
  ({ id, name: id, config: { resources: { memoryBytes: gib * GIB } } }) as Parameters<typeof placementOf>[0];

/** One that has no id yet. */
const fresh = (gib: number) => ({ ...machine('new', gib), id: null });

/** A worker of 4 GiB with these machines, all of which run. */
function bench(here: ReturnType<typeof machine>[], more: Partial<HostLoad> = {}) {
  const load = async (): Promise<HostLoad> => ({
    ...{ worker: 'w1', draining: false, tls: false, plane: 'userspace', lacks: () => null },
    ...{ holdsFileOf: () => true, encryption: null, memoryBytes: 4 * GIB, cpus: 4, reserved: [] },
    ...{ freeDiskBytes: 50 * GIB, totalDiskBytes: 100 * GIB },
    placed: here.map((each) => placementOf(each, null)),
    ...more,
  });
  const records = () => here.map(({ id, name }) => ({ id, name, desired: 'running', claimedBy: null }));
  const machines = { records } as unknown as AdmissionOptions['machines'];
  return new Admission({ name: 'w1', machines, load });
}

const code = (expected: string) => (error: unknown) => isGodwitError(error, expected);
const work = async () => 'made';

test('a machine is admitted under a name that no other has; its own is no obstacle to it', async () => {
  const admission = bench([machine('pg', 1)]);
  assert.equal(await admission.admitted(fresh(1), work), 'made');
  assert.equal(await admission.admitted(machine('pg', 1), work), 'made');
  await assert.rejects(admission.admitted({ ...fresh(1), name: 'pg' }, work), code('MACHINE_NAME_TAKEN'));
});

test('memory is promised once, also to two that begin at the same time', async () => {
  const admission = bench([machine('pg', 1)]);
  const first = Promise.withResolvers<string>();
  const making = admission.admitted({ ...fresh(2), name: 'one' }, () => first.promise);
  const second = () => admission.admitted({ ...fresh(2), name: 'two' }, work);
  await new Promise(setImmediate);
  await assert.rejects(second(), code('WORKER_NO_CAPACITY'));
  first.resolve('made');
  await making;
  assert.equal(await second(), 'made', 'the load counts the first one from here on');
});

test('a worker that is being emptied takes nothing, nor does a disk of which only the reserve is left', async () => {
  const draining = bench([], { draining: true });
  await assert.rejects(draining.admitted(fresh(1), work), code('WORKER_DRAINING'));
  await assert.rejects(draining.refuseFull('data'), code('WORKER_DRAINING'));
  await assert.rejects(bench([], { freeDiskBytes: 0 }).refuseFull('data'), code('WORKER_NO_CAPACITY'));
  await bench([]).refuseFull('data');
});
