import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Condition } from './condition.ts';

test('who waits looks again at each change, and goes on when it holds', async () => {
  const condition = new Condition();
  let count = 2;
  let gone = false;
  await condition.until(() => count === 2);
  const waiting = condition
    .until(() => count === 0)
    .then(() => {
      gone = true;
    });
  for (const left of [1, 0]) {
    assert.equal(gone, false);
    count = left;
    condition.changed();
    await new Promise((resolve) => setImmediate(resolve));
  }
  await waiting;
  assert.equal(gone, true);
});
