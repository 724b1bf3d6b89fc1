import assert from 'node:assert/strict';
import test from 'node:test';
import { ended, type Fetch, InFlight, type Mutation } from './in-flight.ts';

const fetchOf = (first: number, end: number): Fetch => ({
  kind: 'fetch',
  first,
  end,
  purpose: 'hydration',
  released: null,
  state: 'fetching',
  buffer: new Uint8Array(0),
  asArrived: new Uint8Array(0),
  contentBytes: 0,
  contentWaiters: [],
  waiters: [],
  startedAtMs: 0,
  retryNow: null,
});
const mutationOf = (first: number, end: number): Mutation => ({ kind: 'mutation', first, end, waiters: [] });

test('a mutation takes blocks over from a fetch on the wire, not from one that stores', () => {
  const inFlight = new InFlight();
  const fetch = fetchOf(10, 20);
  inFlight.add(fetch);
  assert.equal(inFlight.blockerOf(12, 14), null);
  inFlight.takeOver(12, 14);
  const mutation = mutationOf(12, 14);
  inFlight.add(mutation);
  assert.deepEqual(
    [11, 12, 13, 14].map((block) => inFlight.ownerOf(block)),
    [fetch, mutation, mutation, fetch],
  );
  assert.equal(inFlight.blockerOf(13, 15), mutation);
  inFlight.remove(mutation);
  assert.equal(inFlight.ownerOf(12), null);
  fetch.state = 'storing';
  assert.equal(inFlight.blockerOf(14, 15), fetch);
  assert.equal(inFlight.blockerOf(12, 14), null, 'what was taken over is not stored');
});

test('free and owned runs', () => {
  const inFlight = new InFlight();
  inFlight.add(fetchOf(10, 20));
  inFlight.add(mutationOf(30, 40));
  assert.equal(inFlight.firstFree(10, 25), 20);
  assert.equal(inFlight.firstFree(12, 18), 18);
  assert.equal(inFlight.firstOwned(0, 50), 10);
  assert.equal(inFlight.firstOwned(20, 50), 30);
  assert.equal(inFlight.firstOwned(20, 30), 30);
  // As long as a discard, or a whole volume: it is passed at once.
  inFlight.add(mutationOf(40, 2 ** 34));
  assert.equal(inFlight.firstFree(30, 2 ** 34 + 5), 2 ** 34);
  assert.equal(inFlight.firstFree(41, 2 ** 20), 2 ** 20);
});

test('the end of an entry wakes all who wait for it', async () => {
  const inFlight = new InFlight();
  const mutation = mutationOf(0, 1);
  inFlight.add(mutation);
  const waiting = [ended(mutation), ended(mutation)];
  inFlight.remove(mutation);
  await Promise.all(waiting);
  assert.equal(inFlight.entries.length, 0);
});
