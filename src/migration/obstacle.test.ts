import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GodwitError, type Retry } from '../base/errors.ts';
import { Abort } from '../journal/outcome.ts';
import { orBack, orElsewhere } from './obstacle.ts';

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
  assert.equal(await thrown(4, foreign), foreign);
  assert.ok((await thrown(5, foreign)) instanceof Abort);
  const calledOff = Object.assign(new Error('this worker ends'), { name: 'AbortError' });
  assert.equal(await thrown(100, calledOff), calledOff);
  const obstacle = failure('never');
  assert.equal(await thrown(5, obstacle), obstacle, 'the journal sends the run back for it');
  assert.equal(await orBack(5, Promise.resolve(7)), 7);
});

test('before the stop it is tried longer, and then another worker may take the machine', async () => {
  const failing = (attempt: number) => orElsewhere(attempt, Promise.reject(failure('unknown')));
  await assert.rejects(failing(5), { code: 'TEST_FAILED' });
  await assert.rejects(failing(8), Abort);
  await assert.rejects(orElsewhere(50, Promise.reject(failure('later'))), { code: 'TEST_FAILED' });
  const forbidden = Object.assign(new Error('EPERM: operation not permitted'), { code: 'EPERM' });
  await assert.rejects(orElsewhere(8, Promise.reject(forbidden)), Abort);
});
