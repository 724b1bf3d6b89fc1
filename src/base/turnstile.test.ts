import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from './fake-clock.ts';
import { Turnstile } from './turnstile.ts';

test('they come in in their order, so many a second, and who is forgotten does not', () => {
  const clock = new FakeClock();
  const turnstile = new Turnstile(clock, { perSecond: 100, waitingMax: 6 });
  const came: number[] = [];
  const forget = [0, 1, 2, 3, 4, 5].map((index) => turnstile.wait(() => came.push(index)));
  assert.equal(
    turnstile.wait(() => {}),
    null,
    'too many wait',
  );
  forget[1]!();
  clock.advance(20);
  assert.deepEqual(came, [0, 2]);
  clock.advance(20);
  assert.deepEqual(came, [0, 2, 3, 4]);
  turnstile.close();
  clock.advance(1_000);
  assert.deepEqual([came.length, turnstile.waiting], [4, 0]);
});
