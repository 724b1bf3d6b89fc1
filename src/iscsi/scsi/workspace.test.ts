import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Workspace } from './workspace.ts';

test('so many work at a time, the others in the order in which they came, also after one that fails', async () => {
  const workspace = new Workspace(2);
  const begun: number[] = [];
  const ends: (() => void)[] = [];
  let most = 0;
  let working = 0;
  const all = Array.from({ length: 6 }, (_, index) =>
    workspace.use(async () => {
      begun.push(index);
      working += 1;
      most = Math.max(most, working);
      await new Promise<void>((resolve) => ends.push(resolve));
      working -= 1;
      if (index === 1) throw new Error('failed');
      return index;
    }),
  );
  assert.equal(workspace.hasRoom, false);
  const settled = Promise.allSettled(all);
  while (begun.length < 6 || ends.length > 0) {
    ends.shift()?.();
    await new Promise((resolve) => setImmediate(resolve));
  }
  const results = await settled;
  assert.deepEqual([begun, most], [[0, 1, 2, 3, 4, 5], 2]);
  assert.deepEqual(
    results.map((result) => (result.status === 'fulfilled' ? result.value : 'failed')),
    [0, 'failed', 2, 3, 4, 5],
  );
  assert.ok(workspace.hasRoom);
});
