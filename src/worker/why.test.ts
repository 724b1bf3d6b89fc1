import assert from 'node:assert/strict';
import { test } from 'node:test';
import { machineView } from '../../test/support/fake-service.ts';
import type { VolumeView } from '../api/schemas.ts';
import type { DrainView } from '../migration/drain.ts';
import { machineConditions } from './why.ts';

const HYDRATION: NonNullable<VolumeView['hydration']> = {
  state: 'running',
  blocksTotal: 1024,
  blocksPresent: 512,
  exposedBytes: 2 ** 21,
  wireBytes: 2 ** 21,
  blocksFetchedTwice: 0,
  missesKept: true,
  bytesPerSecond: 2 ** 20,
  etaMs: 2000,
  sourceLostForMs: null,
  lastError: null,
  transport: 'tcp',
};
const NO_DRAIN = { machines: [], desired: false } as unknown as DrainView;

function messages(hydration: NonNullable<VolumeView['hydration']>): string[] {
  return machineConditions(machineView({ hydration }), [], NO_DRAIN).map(({ message }) => message);
}

test('a volume that is arriving says how much is missing, and how it comes', () => {
  assert.deepEqual(messages(HYDRATION), [
    '2 MiB of its volume are still only at the source, and come in the clear',
  ]);
  assert.deepEqual(messages({ ...HYDRATION, state: 'complete', exposedBytes: 0 }), []);
});

test('in the kernel plane it also says that read misses are neither kept nor counted', () => {
  const [message] = messages({ ...HYDRATION, missesKept: false, blocksFetchedTwice: null });
  assert.match(message!, /not kept \(kernel plane\).*not counted/);
});
