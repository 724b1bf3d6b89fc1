import assert from 'node:assert/strict';
import test from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { GodwitError } from '../base/errors.ts';
import { rpcTimeout } from '../base/line-rpc.ts';
import type { ShimClient } from './client.ts';
import { ShimLooks } from './looks.ts';
import type { ShimStatus } from './protocol.ts';

const STATUS: ShimStatus = { shimPid: 1, startedAtMs: 1, volume: null, workload: null };

/** A shim that answers when the test says so. */
function shim() {
  const asked: PromiseWithResolvers<ShimStatus>[] = [];
  const client = {
    call: () => {
      const question = Promise.withResolvers<ShimStatus>();
      asked.push(question);
      return question.promise;
    },
  } as unknown as ShimClient;
  return { asked, client };
}

test('a shim that hangs costs one wait; what it said last is what there is until it answers', async () => {
  const clock = new FakeClock();
  const looks = new ShimLooks(clock, 2_000);
  const { asked, client } = shim();
  const first = looks.look('m_1', client);
  asked[0]!.resolve(STATUS);
  assert.deepEqual(await first, { status: STATUS, silentForMs: null });

  const waits = looks.look('m_1', client);
  clock.advance(2_000);
  assert.deepEqual(await waits, { status: STATUS, silentForMs: 2_000 });
  clock.advance(500);
  const again = looks.look('m_1', client);
  clock.advance(0);
  assert.deepEqual(await again, { status: STATUS, silentForMs: 2_500 });
  assert.equal(asked.length, 2, 'no second question beside one that has no answer');

  // What waits for an answer gives up; the silence goes on.
  asked[1]!.reject(rpcTimeout('status', 10_000));
  const later = looks.look('m_1', client);
  clock.advance(0);
  assert.equal((await later).silentForMs, 2_500);
  const answered = looks.look('m_1', client);
  asked[2]!.resolve({ ...STATUS, shimPid: 2 });
  assert.deepEqual(await answered, { status: { ...STATUS, shimPid: 2 }, silentForMs: null });
});

test('what a shim said is forgotten once there is none: the next one of the machine says nothing by it', async () => {
  const clock = new FakeClock();
  const looks = new ShimLooks(clock, 2_000);
  const before = shim();
  const look = looks.look('m_1', before.client);
  before.asked[0]!.resolve(STATUS);
  await look;
  await looks.look('m_1', null);
  const waits = looks.look('m_1', shim().client);
  clock.advance(2_000);
  assert.deepEqual(await waits, { status: null, silentForMs: 2_000 });
});

test('a shim that has gone, or that there is not, is no shim; another error is told', async () => {
  const looks = new ShimLooks(new FakeClock(), 2_000);
  assert.deepEqual(await looks.look('m_1', null), { status: null, silentForMs: null });
  const { asked, client } = shim();
  const gone = looks.look('m_1', client);
  asked[0]!.reject(new GodwitError('RPC_CLOSED', 'gone', { nextAction: 'none' }));
  assert.deepEqual(await gone, { status: null, silentForMs: null });
  const broken = looks.look('m_1', client);
  asked[1]!.reject(new Error('broken'));
  await assert.rejects(broken, /broken/);
});
