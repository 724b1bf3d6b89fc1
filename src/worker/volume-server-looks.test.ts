import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { GodwitError } from '../base/errors.ts';
import { serverConditions, VolumeServerLooks } from './volume-server-looks.ts';

function failing(code: string, values: GodwitError['values'] = {}) {
  return new GodwitError(code, code, { values, nextAction: 'wait' });
}

test('a volume server that hangs is named since it was first found, with the process that may be killed; one that answers is not', async () => {
  const clock = new FakeClock();
  const looks = new VolumeServerLooks(clock);
  let answer: Error | null = failing('RPC_TIMEOUT');
  const shim = {
    volume: async () => {
      if (answer) throw answer;
      return {};
    },
  };
  const foundAtMs = clock.wallMs();
  const first = await looks.look('m_1', shim, 71);
  await clock.run(5_000);
  assert.deepEqual([first?.sinceMs, (await looks.look('m_1', shim, 71))?.sinceMs], [foundAtMs, foundAtMs]);
  const [told] = serverConditions(first, '/run/m_1', 'db');
  assert.match(
    told?.message ?? '',
    /volume server of db does not answer: .*waits, and nothing of it is lost/,
  );
  assert.match(told?.nextAction ?? '', /pid 71.*\/run\/m_1\/volume-server\.log.*may be killed/);

  answer = failing('ATTACH_SERVER_NOT_READY', { lastError: 'data.raw is too short' });
  const [ended] = serverConditions(await looks.look('m_1', shim, null), '/run/m_1', 'db');
  assert.match(ended?.message ?? '', /has ended, and does not come back: data\.raw is too short/);

  answer = null;
  assert.equal(await looks.look('m_1', shim, 71), null);
  answer = failing('RPC_TIMEOUT');
  assert.equal((await looks.look('m_1', shim, 71))?.sinceMs, clock.wallMs());
  // A shim of a kind that does not know the question is not in trouble.
  answer = failing('RPC_UNKNOWN_OP');
  assert.deepEqual(serverConditions(await looks.look('m_1', shim, 71), '/run/m_1', 'db'), []);
});
