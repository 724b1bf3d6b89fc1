import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { Rounds } from './rounds.ts';

test('a round at once, the next ones after a pause from the end of the last, and none after the close', async () => {
  const clock = new FakeClock();
  const begunAtMs: number[] = [];
  const rounds = new Rounds(clock, 1_000, async () => {
    begunAtMs.push(clock.monotonicMs());
    await clock.sleep(500);
  });
  void rounds.start();
  await clock.run(3_600);
  assert.deepEqual(begunAtMs, [0, 1_500, 3_000]);
  // In the middle of one.
  rounds.close();
  assert.equal(rounds.closed, true);
  await clock.run(10_000);
  assert.equal(begunAtMs.length, 3);
});

test('one that is closed between two rounds begins none', async () => {
  const clock = new FakeClock();
  let count = 0;
  const rounds = new Rounds(clock, 1_000, async () => {
    count++;
  });
  await rounds.start();
  rounds.close();
  await clock.run(10_000);
  assert.equal(count, 1);
});
