import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { silentLogger } from '../base/logger.ts';
import { BLOCK_BYTES, type ByteRange } from '../block/block-device.ts';
import { type ArrivalStore, Arrivals } from './arrival.ts';
import type { BitCommitter } from './bit-committer.ts';
import { DiskGate } from './disk-gate.ts';
import { type Fetch, InFlight } from './in-flight.ts';
import { HeapMapMemory } from './map-memory.ts';
import { ValidityMap } from './validity-map.ts';

const BLOCKS = 64;

/** A store whose writes and write-backs end when the test says so. */
function setUp() {
  const writes: PromiseWithResolvers<void>[] = [];
  const begun: (readonly ByteRange[])[] = [];
  const waited: { ranges: readonly ByteRange[]; end: PromiseWithResolvers<void> }[] = [];
  const store: ArrivalStore = {
    write: () => {
      const end = Promise.withResolvers<void>();
      writes.push(end);
      return end.promise;
    },
    writeBack: (ranges) => {
      const end = Promise.withResolvers<void>();
      waited.push({ ranges, end });
      return end.promise;
    },
    beginWriteBack: async (ranges) => void begun.push(ranges),
    discard: async () => {},
  };
  const validity = new ValidityMap(new HeapMapMemory(BLOCKS), BLOCKS);
  const inFlight = new InFlight();
  const clock = new FakeClock();
  const arrivals = new Arrivals({
    store,
    validity,
    inFlight,
    committer: { hydrated: () => {} } as unknown as BitCommitter,
    log: null,
    gate: new DiskGate(clock, 2 ** 20),
    clock,
    logger: silentLogger,
  });
  const place = (first: number, end: number) => {
    const buffer = new Uint8Array((end - first) * BLOCK_BYTES).fill(7);
    const fetch = {
      ...{ kind: 'fetch', first, end, purpose: 'hydration', released: null, state: 'storing' },
      ...{ buffer, asArrived: buffer, contentBytes: buffer.length, contentWaiters: [], waiters: [] },
      ...{ startedAtMs: 0, retryNow: null },
    } as unknown as Fetch;
    inFlight.add(fetch);
    return arrivals.place(fetch);
  };
  return { writes, begun, waited, validity, clock, place };
}

const blocks = (first: number, end: number) => ({
  offsetBytes: first * BLOCK_BYTES,
  lengthBytes: (end - first) * BLOCK_BYTES,
});

async function settle(): Promise<void> {
  for (let round = 0; round < 5; round++) await turn();
}

test('pieces that are written side by side go to the disk as one request, and are marked when it has them', async () => {
  const { writes, begun, waited, validity, place } = setUp();
  const placed = [place(0, 4), place(8, 12), place(4, 8)];
  await settle();
  for (const { resolve } of writes.splice(0, 2)) resolve();
  await settle();
  assert.equal(waited.length, 0, 'the third is about to come');
  writes[0]!.resolve();
  await settle();
  assert.deepEqual([waited.map(({ ranges }) => ranges), begun], [[[blocks(0, 12)]], []]);
  assert.ok(!validity.has(0));
  waited[0]!.end.resolve();
  assert.deepEqual(await Promise.all(placed), [true, true, true]);
  assert.ok(validity.hasAll(0, 12));
});

test('what comes while a request is waited for begins its way at once, and is waited for afterwards', async () => {
  const { writes, begun, waited, place } = setUp();
  const first = place(0, 4);
  await settle();
  writes[0]!.resolve();
  await settle();
  const others = [place(4, 8), place(8, 12)];
  await settle();
  for (const { resolve } of writes.splice(1)) resolve();
  await settle();
  assert.deepEqual(begun, [[blocks(4, 12)]]);
  waited[0]!.end.resolve();
  assert.equal(await first, true);
  await settle();
  assert.deepEqual(waited[1]!.ranges, [blocks(4, 12)]);
  waited[1]!.end.resolve();
  assert.deepEqual(await Promise.all(others), [true, true]);
});

test('a write that finds no room holds up no other', async () => {
  const { writes, waited, validity, clock, place } = setUp();
  void place(0, 4);
  const other = place(8, 12);
  await settle();
  writes[1]!.resolve();
  await settle();
  assert.equal(waited.length, 0);
  clock.advance(5);
  await settle();
  assert.deepEqual(waited[0]?.ranges, [blocks(8, 12)]);
  waited[0]!.end.resolve();
  assert.equal(await other, true);
  assert.ok(validity.hasAll(8, 12) && !validity.has(0));
});
