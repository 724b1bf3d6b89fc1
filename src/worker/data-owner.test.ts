import assert from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { claimDataFolder } from './data-owner.ts';

test('a data folder belongs to the first worker that is started on it, and refuses any other', () => {
  const state = new DatabaseSync(':memory:');
  claimDataFolder(state, 'worker-1', '/data');
  claimDataFolder(state, 'worker-1', '/data');
  assert.throws(() => claimDataFolder(state, 'worker-2', '/data'), {
    code: 'WORKER_OTHER_DATA',
    message: '/data is the data folder of worker-1, and not of worker-2',
  });
  claimDataFolder(state, 'worker-1', '/data');
  state.close();
});
