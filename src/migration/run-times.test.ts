import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { RunTimes } from './run-times.ts';

test('between two times of a move its clock is not set, and another move begins with the clock as it is', async () => {
  const clock = new FakeClock(1_000_000);
  const times = new RunTimes(clock);
  clock.advance(0.375);
  assert.equal(times.nowMs('one'), 1_000_000);
  clock.stepWall(31 * 86_400_000);
  clock.advance(250);
  assert.equal(times.nowMs('one'), 1_000_250);
  assert.equal(times.nowMs('two'), Math.round(clock.wallMs()));
  clock.stepWall(-62 * 86_400_000);
  clock.advance(250);
  assert.equal(times.nowMs('one'), 1_000_500);
  for (let count = 0; count < 1_000; count++) times.nowMs(`more ${count}`);
  assert.equal(times.nowMs('one'), Math.round(clock.wallMs()), 'not all are kept for ever');
});
