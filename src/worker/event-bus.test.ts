import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { EventBus } from './event-bus.ts';

test('an event has its code and kind, and is counted whether anybody listens or not', async () => {
  const bus = new EventBus('w1', new FakeClock());
  bus.emit('drain-requested', 'w1', 'drain requested');
  const ends = new AbortController();
  const follower = bus.follow(ends.signal);
  const first = follower.next();
  bus.emit('machine-down', 'm_1', 'down: it moves', { down: true, sinceMs: 5, runId: 'r1' });
  const { value } = await first;
  assert.ok(value);
  const { atMs, ...event } = value;
  assert.equal(typeof atMs, 'number');
  assert.deepEqual(event, {
    worker: 'w1',
    kind: 'machine',
    code: 'machine-down',
    subject: 'm_1',
    message: 'down: it moves',
    data: { down: true, sinceMs: 5, runId: 'r1' },
  });
  ends.abort();
  assert.equal((await follower.next()).done, true);
  bus.emit('machine-down', 'm_2', 'down: it moves');
  assert.deepEqual(bus.counts.read(), [
    { labels: { event: 'drain-requested' }, value: 1 },
    { labels: { event: 'machine-down' }, value: 2 },
  ]);
});

test('who lags far behind loses the oldest events, and nobody else does', async () => {
  const bus = new EventBus('w1', new FakeClock());
  const ends = new AbortController();
  const follower = bus.follow(ends.signal);
  const first = follower.next();
  for (let count = 0; count <= 2_000; count++) bus.emit('run-changed', `r${count}`, 'run');
  await first;
  const second = await follower.next();
  assert.notEqual(second.value?.subject, 'r1', 'a backlog without an end');
  ends.abort();
});
