import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GodwitError } from '../base/errors.ts';
import { Abort } from '../journal/outcome.ts';
import { isLasting, isSlow, nowOrNever, orBack } from './obstacle.ts';

const failure = (code: string, values = {}) => new GodwitError(code, code, { values, nextAction: 'x' });
const outcome = (attempt: number, error: Error) =>
  orBack(attempt, Promise.reject(error)).then(
    () => 'done',
    (thrown: unknown) => (thrown instanceof Abort ? 'back' : 'again'),
  );

test('while the machine is stopped a named obstacle sends it back at once, and slowness never does', async () => {
  const held = failure('MACHINE_DEVICE_HELD');
  const slow = [
    failure('MACHINE_UNMOUNT_FAILED', { timedOut: true }),
    failure('RPC_TIMEOUT'),
    failure('API_UNREACHABLE', { delivered: 'unknown' }),
  ];
  assert.equal(await outcome(1, held), 'back');
  for (const error of slow) {
    assert.deepEqual(
      [await outcome(1, error), await outcome(100_000, error)],
      ['again', 'again'],
      error.code,
    );
    assert.deepEqual([isSlow(error), isLasting(error)], [true, false]);
  }
  const busy = failure('MACHINE_UNMOUNT_FAILED', { timedOut: false, errno: 'EBUSY' });
  assert.deepEqual([await outcome(4, busy), await outcome(5, busy)], ['again', 'back']);
  assert.equal(await outcome(100, new Error('of nobody knows what')), 'again');
});

test('before the stop only what lasts ends a step', async () => {
  await assert.rejects(nowOrNever(Promise.reject(failure('CRYPT_WRONG_KEY'))), Abort);
  const passing = failure('ATTACH_SERVER_NOT_READY');
  await assert.rejects(nowOrNever(Promise.reject(passing)), passing);
  assert.equal(await nowOrNever(Promise.resolve(7)), 7);
});
