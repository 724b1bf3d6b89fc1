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

test('each failure doubles the delay of its refusal, up to the maximum; a success clears it', () => {
  const { throttle: it, advance } = throttle();
  const seen: number[] = [];
  for (let round = 0; round < 6; round += 1) {
    seen.push(it.failed('a'));
    advance(10_000);
  }
  assert.deepEqual(seen, [100, 200, 400, 800, 1_000, 1_000]);
  assert.equal(it.failed('b'), 100);
  it.succeeded('a');
  assert.equal(it.failed('a'), 100);
});

test('parallel failures queue up behind each other, and none waits longer than the longest delay', () => {
  const { throttle: it } = throttle();
  assert.deepEqual([it.failed('a'), it.failed('a'), it.failed('a'), it.failed('a')], [100, 300, 700, 1_000]);
});

test('the table is bounded; the address that failed longest ago goes first', () => {
  const { throttle: it, advance } = throttle();
  for (const address of ['a', 'b', 'c', 'a', 'd']) it.failed(address);
  assert.equal(it.size, 3);
  advance(10_000);
  assert.equal(it.failed('b'), 100);
  assert.notEqual(it.failed('a'), 100);
});
