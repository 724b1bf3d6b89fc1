import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { VolumeView } from '../contract/schemas.ts';
import { hydrationConditions } from './volume-conditions.ts';

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

function messages(hydration: VolumeView['hydration']): string[] {
  return hydrationConditions(hydration, 'machine db', 0).map(({ message }) => message);
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

test('a source that is away is told with since when', () => {
  const [lost] = hydrationConditions(
    { ...HYDRATION, state: 'source-lost', sourceLostForMs: 400 },
    'machine db',
    1_000,
  );
  assert.deepEqual([lost?.code, lost?.sinceMs, lost?.holdsUp], ['source-lost', 600, 'machine db']);
});

test('a source that answers that it cannot read has a disk to be looked at, and no network', () => {
  const lost = { ...HYDRATION, state: 'source-lost', sourceLostForMs: 400, lastError: 'bad sector' } as const;
  const [fails] = hydrationConditions({ ...lost, sourceFails: true }, 'machine db', 1_000);
  assert.match(fails!.message, /answers, and cannot read .*\(bad sector\)/);
  assert.match(fails!.nextAction, /disk of the source worker .*the network is well/);
  const [away] = hydrationConditions(lost, 'machine db', 1_000);
  assert.match(away!.message, /does not answer \(bad sector\)/);
  assert.match(away!.nextAction, /its network/);
});
