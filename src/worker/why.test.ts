import assert from 'node:assert/strict';
import { test } from 'node:test';
import { machineView, runView } from '../../test/support/fake-service.ts';
import type { VolumeView } from '../api/schemas.ts';
import type { DrainView } from '../migration/drain.ts';
import { machineConditions, runConditions } from './why.ts';

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

test('a step without a reason says after a while how fast it is, or that nothing has advanced in it', () => {
  const step = { attempts: 1, startedAtMs: 1_000, endedAtMs: null };
  const running = runView({
    state: 'running',
    step: 'sync',
    reason: null,
    endedAtMs: null,
    steps: [{ name: 'sync', state: 'running', ...step }],
  });
  const said = (nowMs: number, more: object = {}) =>
    runConditions({ ...running, ...more }, nowMs).map(({ message }) => message);
  assert.deepEqual(said(5_900), []);
  assert.match(said(6_100)[0]!, /in step sync \(nothing has advanced in it yet\)$/);
  const progress = {
    what: 'dirty pages',
    unit: 'bytes' as const,
    count: 2 ** 21,
    sinceMs: 2_000,
    lastAtMs: 9_500,
  };
  assert.match(
    said(10_000, { progress })[0]!,
    /in step sync \(dirty pages: 2\.0 MiB in 8\.0 s, 0\.3 MiB a second, the last 0\.5 s ago\)$/,
  );
  const reason = { message: 'w2 is preparing', nextAction: 'wait', sinceMs: 1 };
  assert.match(said(10_000, { progress, reason })[0]!, /w2 is preparing \(dirty pages: /);
});
