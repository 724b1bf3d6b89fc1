import assert from 'node:assert/strict';
import test from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { collectAfterStart } from './collect-after-start.ts';

test('a process collects its garbage once, some time after its start', () => {
  const clock = new FakeClock();
  let collections = 0;
  collectAfterStart(clock, () => collections++);
  clock.advance(1_000);
  assert.equal(collections, 0);
  clock.advance(60_000);
  assert.equal(collections, 1);
});

test('what nobody has any more is gone afterwards', async () => {
  const clock = new FakeClock();
  const left = new WeakRef({ bytes: new Uint8Array(1024) });
  collectAfterStart(clock);
  // What a weak reference was asked for, or made with, stays until the end of that turn.
  await new Promise(setImmediate);
  clock.advance(60_000);
  assert.equal(left.deref(), undefined);
});
