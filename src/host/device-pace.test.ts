import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { whileDeviceMoves } from './device-pace.ts';

function waiting(clock: FakeClock, work: Promise<unknown>, counters: () => string | null) {
  return clock.runUntil(
    whileDeviceMoves(work, { device: '/dev/loop7', quietMs: 120_000, clock, read: counters }),
  );
}

test('an unmount that takes an hour is waited for while its device writes', async () => {
  const clock = new FakeClock();
  const work = clock.sleep(3_600_000);
  // A write of a disk that has one every 100 s.
  const counters = () => String(Math.floor(clock.monotonicMs() / 100_000));
  assert.equal(await waiting(clock, work, counters), 'done');
  assert.equal(clock.monotonicMs(), 3_600_000);
});

test('a device that does nothing is late, in time, and one without counters as well', async () => {
  for (const counters of [() => '1 2 3', () => null]) {
    const clock = new FakeClock();
    assert.equal(await waiting(clock, new Promise(() => {}), counters), 'late');
    assert.ok(clock.monotonicMs() >= 120_000 && clock.monotonicMs() < 122_000);
  }
});

test('a failure of the call is its own', async () => {
  const clock = new FakeClock();
  await assert.rejects(
    waiting(clock, Promise.reject(new Error('EBUSY')), () => ''),
    /EBUSY/,
  );
});

test('time in which this process was stopped counts against no device', async () => {
  const clock = new FakeClock();
  const late = whileDeviceMoves(new Promise(() => {}), {
    device: '/dev/loop7',
    quietMs: 120_000,
    clock,
    read: () => '1',
  });
  let over = false;
  void late.then(() => {
    over = true;
  });
  await clock.run(60_000);
  clock.skip(3_600_000);
  await clock.run(30_000);
  assert.equal(over, false);
  assert.equal(await clock.runUntil(late), 'late');
});
