import assert from 'node:assert/strict';
import { test } from 'node:test';
import { owned, pick } from './fleet-client.ts';

const rank = { moving: 1, incoming: 2, moved: 3 };
const at = (worker: string, id: string, name: string, state: string) => ({
  worker,
  item: { id, name, state },
});

test('a thing is found by id before name', () => {
  const things = [at('w1', 'm_1', 'pg', 'running'), at('w2', 'pg', 'other', 'running')];
  assert.equal(pick('m_1', 'machine', things, rank)?.worker, 'w1');
  assert.equal(pick('pg', 'machine', things, rank)?.worker, 'w2');
  assert.equal(pick('nobody', 'machine', things, rank), null);
});

test('of two sides of a move the owner is asked', () => {
  const moving = [at('w2', 'm_1', 'pg', 'incoming'), at('w1', 'm_1', 'pg', 'moving')];
  assert.equal(pick('pg', 'machine', moving, rank)?.worker, 'w1');
  const moved = [at('w1', 'm_1', 'pg', 'moved'), at('w2', 'm_1', 'pg', 'running')];
  assert.equal(pick('pg', 'machine', moved, rank)?.worker, 'w2');
  assert.deepEqual(
    owned(
      'machine',
      [...moved, at('w1', 'm_2', 'web', 'moving')].map(({ item }) => item),
    ).map(({ state }) => state),
    ['running', 'moving'],
  );
  assert.deepEqual(
    owned('volume', [
      { id: 'v', name: 'v', state: 'sealed' },
      { id: 'v', name: 'v', state: 'clone' },
      { id: 'v', name: 'v', state: 'retained' },
    ]).map(({ state }) => state),
    ['clone'],
  );
});

test('a name that several things have is an error that lists their ids', () => {
  const twice = [at('w1', 'm_1', 'pg', 'running'), at('w2', 'm_2', 'pg', 'running')];
  assert.throws(() => pick('pg', 'machine', twice, rank), { code: 'CLI_AMBIGUOUS_REF', message: /m_1, m_2/ });
  assert.equal(pick('m_2', 'machine', twice, rank)?.worker, 'w2');
});
