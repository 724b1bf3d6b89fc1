import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GodwitError, type Retry } from '../base/errors.ts';
import { Abort } from '../journal/outcome.ts';
import { orBack } from './obstacle.ts';

const failure = (retry: Retry) => new GodwitError('TEST_FAILED', 'x', { nextAction: 'x', retry });
const thrown = (attempt: number, error: Error) =>
  orBack(attempt, Promise.reject(error)).then(
    () => assert.fail('it did not fail'),
    (reason: unknown) => reason,
  );

test('while the machine is stopped slowness never sends it back, and what nobody knows does after some tries', async () => {
  const slow = failure('later');
  assert.deepEqual([await thrown(1, slow), await thrown(100_000, slow)], [slow, slow]);
  const unclear = failure('unknown');
  assert.equal(await thrown(4, unclear), unclear);
  assert.ok((await thrown(5, unclear)) instanceof Abort);
  const foreign = new Error('of nobody knows what');
  assert.equal(await thrown(100, foreign), foreign);
  const obstacle = failure('never');
  assert.equal(await thrown(5, obstacle), obstacle, 'the journal sends the run back for it');
  assert.equal(await orBack(5, Promise.resolve(7)), 7);
});
