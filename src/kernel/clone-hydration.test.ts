import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type CloneFacts, cloneHydration } from './clone-hydration.ts';

const FACTS: CloneFacts = {
  status: { regionsTotal: 1000, regionsHydrated: 400, regionsHydrating: 10 },
  lengthBytes: 1000 * 4096,
  samples: [
    { atMs: 1_000, regions: 200 },
    { atMs: 3_000, regions: 400 },
  ],
  copies: true,
  lostForMs: null,
  wireBytes: 5,
  lastError: null,
};

test('a copy on its way: what is missing, how fast, until when', () => {
  const hydration = cloneHydration(FACTS);
  assert.equal(hydration.state, 'running');
  assert.equal(hydration.blocksPresent, 400);
  assert.equal(hydration.exposedBytes, 600 * 4096);
  assert.equal(hydration.bytesPerSecond, 100 * 4096);
  assert.equal(hydration.etaMs, 6_000);
  assert.equal(cloneHydration({ ...FACTS, copies: false }).state, 'paused');
  const lost = cloneHydration({ ...FACTS, lostForMs: 7 });
  assert.deepEqual([lost.state, lost.sourceLostForMs, lost.etaMs], ['source-lost', 7, null]);
});

test('as long as nobody could read how far it is, nothing is here', () => {
  const lastError =
    'HOST_UNKNOWN_OUTPUT: dmsetup answers the status of a clone in a form that is not known here';
  const hydration = cloneHydration({ ...FACTS, status: null, samples: [], copies: false, lastError });
  assert.deepEqual(
    [hydration.state, hydration.blocksPresent, hydration.exposedBytes, hydration.lastError],
    ['paused', 0, 1000 * 4096, lastError],
  );
});

test('whole is what has everything and nothing in flight', () => {
  const all = { regionsTotal: 1000, regionsHydrated: 1000, regionsHydrating: 0 };
  assert.equal(cloneHydration({ ...FACTS, status: all, lostForMs: 5 }).state, 'complete');
  assert.equal(cloneHydration({ ...FACTS, status: all }).blocksPresent, 1000);
  const inFlight = cloneHydration({ ...FACTS, status: { ...all, regionsHydrating: 1 } });
  assert.deepEqual([inFlight.state, inFlight.blocksPresent], ['running', 999]);
});
