import assert from 'node:assert/strict';
import test from 'node:test';
import type { StepContext } from '../journal/run.ts';
import { runOf, stepsOf } from './move-step.ts';

type Notes = { left: number; right: number };
const step = stepsOf<{ factor: number }, null, Notes>();
const times = step({
  ...{ name: 'times', phase: 'before-stop', waitsFor: 'godwit', quietMs: 1 },
  needs: ['left'],
  gives: ['right'],
  do: async ({ factor }, { notes }) => ({ right: notes.left * factor }),
  async undo(_tools, { notes, put }) {
    put({ undone: notes.left ?? 'none' });
  },
});

function context(output: Record<string, unknown>, put: StepContext<null>['put'] = () => {}) {
  return { output, put } as unknown as StepContext<null>;
}

test('a step gets what it needs, and ends with an error of a name where that was never put down', async () => {
  const [only] = runOf({ kind: 'k', resource: () => 'r' }, [times], { factor: 3 }).steps;
  assert.deepEqual(await only!.do(context({ left: 2 })), { right: 6 });
  assert.deepEqual(await only!.do(context({ left: 0 })), { right: 0 }, 'what is there may be nought');
  await assert.rejects(only!.do(context({})), { code: 'MIGRATION_NO_SUBJECT', values: { missing: 'left' } });
});

test('an undo runs without what its do would have needed', async () => {
  const [only] = runOf({ kind: 'k', resource: () => 'r' }, [times], { factor: 3 }).steps;
  const put: unknown[] = [];
  await only!.undo!(context({}, (values) => put.push(values)));
  assert.deepEqual(put, [{ undone: 'none' }]);
});
