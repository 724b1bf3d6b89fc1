import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deadline } from '../../src/base/clock.ts';
import { FakeClock } from './fake-clock.ts';

test('timers fire in order of time, then of setting, each at its own time', () => {
  const clock = new FakeClock(1000);
  const seen: string[] = [];
  clock.timer(20, () => seen.push(`late ${clock.wallMs()}`));
  clock.timer(10, () => seen.push(`a ${clock.wallMs()}`));
  clock.timer(10, () => {
    seen.push(`b ${clock.wallMs()}`);
    clock.timer(5, () => seen.push(`nested ${clock.wallMs()}`));
  });
  clock.timer(12, () => seen.push('cancelled'))();
  clock.advance(19);
  assert.deepEqual(seen, ['a 1010', 'b 1010', 'nested 1015']);
  clock.advance(1);
  assert.deepEqual(seen.at(-1), 'late 1020');
  assert.equal(clock.pendingTimers, 0);
});

test('sleep resolves in time, rejects with the reason of its signal, and leaves no timer', async () => {
  const clock = new FakeClock();
  const chain = (async () => {
    await clock.sleep(5);
    await clock.sleep(5);
    return clock.monotonicMs();
  })();
  assert.equal(await clock.runUntil(chain), 10);
  const controller = new AbortController();
  const sleeping = clock.sleep(1000, controller.signal);
  controller.abort(new Error('stop'));
  await assert.rejects(sleeping, /stop/);
  await assert.rejects(clock.sleep(1, controller.signal), /stop/);
  assert.equal(clock.pendingTimers, 0);
});

test('run gives promises a turn, so a chain of sleeps ends within one call', async () => {
  const clock = new FakeClock();
  let rounds = 0;
  void (async () => {
    for (;;) {
      await clock.sleep(10);
      rounds++;
    }
  })();
  await clock.run(100);
  assert.equal(rounds, 10);
});

test('stepping the wall clock moves no duration', () => {
  const clock = new FakeClock(0);
  let fired = false;
  clock.timer(10, () => {
    fired = true;
  });
  clock.stepWall(-5000);
  assert.equal(clock.wallMs(), -5000);
  assert.equal(fired, false);
  clock.advance(10);
  assert.equal(fired, true);
  assert.equal(clock.wallMs(), -4990);
});

test('a deadline aborts when its time is up, by the clock that it is of', () => {
  const clock = new FakeClock();
  const signal = deadline(clock, 10);
  clock.advance(9);
  assert.equal(signal.aborted, false);
  clock.advance(1);
  assert.equal(signal.reason.name, 'TimeoutError');
});
