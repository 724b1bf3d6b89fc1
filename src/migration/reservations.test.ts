import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { PATIENCE } from '../base/patience.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import { Reservations } from './reservations.ts';

const request = (runId: string) => ({ runId, machineId: `m-${runId}` }) as PrepareRequest;
const ids = (requests: PrepareRequest[]) => requests.map(({ runId }) => runId);

test('of moves that ask at once each sees those that asked before it, and everybody else sees all', () => {
  const reservations = new Reservations(new FakeClock());
  for (const runId of ['a', 'b', 'c']) reservations.hold(request(runId));
  assert.deepEqual(ids(reservations.held('a')), []);
  assert.deepEqual(ids(reservations.held('b')), ['a']);
  assert.deepEqual(ids(reservations.held()), ['a', 'b', 'c']);
  reservations.hold(request('a'));
  assert.deepEqual(ids(reservations.held('a')), [], 'who asks again keeps its place');
  reservations.release('b');
  reservations.release('b');
  assert.deepEqual(ids(reservations.held('b')), [], 'it was promised: those that come after it count it');
  assert.deepEqual(ids(reservations.held('c')), ['a']);
});

test('what nobody asks for any more is held no longer', async () => {
  const clock = new FakeClock();
  const reservations = new Reservations(clock);
  reservations.hold(request('a'));
  await clock.run(PATIENCE.reservation.ms - 1);
  reservations.hold(request('b'));
  assert.deepEqual(ids(reservations.held()), ['a', 'b']);
  await clock.run(1);
  assert.deepEqual(ids(reservations.held()), ['b']);
});
