import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { GodwitError } from '../base/errors.ts';
import { AWAY_MS, askAgain, tellAway } from './ask-again.ts';

const failing = (code: string) => new GodwitError(code, `the ${code}`, { nextAction: 'wait' });

test('what goes on in a worker is watched on when that is back; one that stays away, and any other error, ends the watching', async () => {
  const clock = new FakeClock();
  const { signal } = new AbortController();
  const said: string[] = [];
  const away = tellAway((text) => said.push(text), 'w1', 'the move');
  let backAtMs = 5_000;
  const ask = async () => {
    if (clock.monotonicMs() < backAtMs) throw failing('API_UNREACHABLE');
    return 'done';
  };
  assert.equal(await clock.runUntil(askAgain(ask, { away, clock, signal })), 'done');
  assert.deepEqual(said, [
    'w1 does not answer (the API_UNREACHABLE); the move goes on when it is back',
    'w1 is back',
  ]);
  backAtMs = Number.POSITIVE_INFINITY;
  const beganMs = clock.monotonicMs();
  await assert.rejects(clock.runUntil(askAgain(ask, { away, clock, signal })), { code: 'API_UNREACHABLE' });
  assert.ok(clock.monotonicMs() - beganMs >= AWAY_MS);
  const refused = askAgain(() => Promise.reject(failing('JOURNAL_UNKNOWN_RUN')), { away, clock, signal });
  await assert.rejects(refused, { code: 'JOURNAL_UNKNOWN_RUN' });
});
