import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '../base/clock.ts';
import { LoginThrottle } from './login-throttle.ts';

function throttle(): { throttle: LoginThrottle; advance: (ms: number) => void } {
  let nowMs = 0;
  const clock = { ...systemClock, monotonicMs: () => nowMs };
  return {
    throttle: new LoginThrottle({ clock, delayMs: 100, delayMsMax: 1_000, addressesMax: 3 }),
    advance: (ms) => {
      nowMs += ms;
    },
  };
}

test('each failure doubles the delay, up to the maximum; a success clears it', () => {
  const { throttle: it, advance } = throttle();
  assert.equal(it.delayMs('a'), 0);
  const seen: number[] = [];
  for (let round = 0; round < 6; round += 1) {
    it.failed('a');
    seen.push(it.delayMs('a'));
    advance(10_000);
  }
  assert.deepEqual(seen, [100, 200, 400, 800, 1_000, 1_000]);
  assert.equal(it.delayMs('b'), 0);
  it.succeeded('a');
  assert.equal(it.delayMs('a'), 0);
});

test('parallel attempts queue up behind each other', () => {
  const { throttle: it } = throttle();
  it.failed('a');
  assert.deepEqual([it.delayMs('a'), it.delayMs('a'), it.delayMs('a')], [100, 200, 300]);
});

test('the table is bounded; the address that failed longest ago goes first', () => {
  const { throttle: it } = throttle();
  for (const address of ['a', 'b', 'c', 'a', 'd']) it.failed(address);
  assert.equal(it.size, 3);
  assert.equal(it.delayMs('b'), 0);
  assert.notEqual(it.delayMs('a'), 0);
});
