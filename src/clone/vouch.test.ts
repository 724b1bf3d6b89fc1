import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { silentLogger } from '../base/logger.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { Arrivals } from './arrival.ts';
import type { BitCommitter } from './bit-committer.ts';
import { DiskGate } from './disk-gate.ts';
import { type Fetch, InFlight } from './in-flight.ts';
import { HeapMapMemory } from './map-memory.ts';
import { ValidityMap } from './validity-map.ts';

function setUp() {
  const looks: PromiseWithResolvers<void>[] = [];
  const validity = new ValidityMap(new HeapMapMemory(16), 16);
  const inFlight = new InFlight();
  const clock = new FakeClock();
  const arrivals = new Arrivals({
    store: new MemoryDevice({ lengthBytes: 16 * BLOCK_BYTES }),
    validity,
    inFlight,
    committer: { hydrated: () => {} } as unknown as BitCommitter,
    log: null,
    gate: new DiskGate(new FakeClock(), 2 ** 20),
    clock,
    logger: silentLogger,
    vouch: () => {
      const look = Promise.withResolvers<void>();
      looks.push(look);
      return look.promise;
    },
  });
  const buffer = new Uint8Array(4 * BLOCK_BYTES).fill(7);
  const fetch = {
    ...{ kind: 'fetch', first: 4, end: 8, purpose: 'hydration', released: null, state: 'storing' },
    ...{ buffer, asArrived: buffer, contentBytes: buffer.length, contentWaiters: [], waiters: [] },
    ...{ startedAtMs: 0, retryNow: null },
  } as unknown as Fetch;
  inFlight.add(fetch);
  return { looks, validity, inFlight, arrivals, fetch, clock };
}

async function settle(): Promise<void> {
  for (let round = 0; round < 5; round += 1) await turn();
}

test('what came is the clone’s own when a look that began after it was good, and not before', async () => {
  const { looks, validity, arrivals, fetch, clock } = setUp();
  const placed = arrivals.place(fetch);
  await settle();
  assert.equal(looks.length, 1);
  // A source that says nothing is not the local disk's fault.
  clock.skip(60_000);
  assert.equal(arrivals.error, null);
  assert.equal(validity.has(4), false);
  assert.equal(fetch.state, 'stored', 'a guest that writes there need not wait for the look');
  looks[0]!.resolve();
  assert.equal(await placed, true);
  assert.ok(validity.hasAll(4, 8));
});

test('what the guest has taken over meanwhile is not marked for what came', async () => {
  const { looks, validity, inFlight, arrivals, fetch } = setUp();
  const placed = arrivals.place(fetch);
  await settle();
  inFlight.takeOver(5, 6);
  looks[0]!.resolve();
  await placed;
  assert.deepEqual(
    [4, 5, 6, 7].map((block) => validity.has(block)),
    [true, false, true, true],
  );
});

test('of a source that is another nothing is marked; closing ends the wait', async () => {
  const { looks, validity, arrivals, fetch } = setUp();
  const placed = arrivals.place(fetch);
  await settle();
  looks[0]!.reject(new Error('another disk'));
  await settle();
  assert.match(arrivals.error!, /another disk/);
  assert.equal(validity.has(4), false);
  fetch.retryNow!();
  await settle();
  assert.equal(looks.length, 2);
  arrivals.close();
  await settle();
  fetch.retryNow?.();
  assert.equal(await placed, false);
  assert.equal(validity.has(4), false);
  await assert.rejects(arrivals.vouched(), { code: 'BLOCK_CLOSED' });
});
