import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  type About,
  CONDITION_ORDER,
  CONDITIONS,
  type Condition,
  type TellsConditions,
} from './condition.ts';
import { HOST_PARTS } from './host-parts.ts';
import { MOVE_PARTS } from './move-parts.ts';
import { assemble, type PartTable } from './part.ts';
import { SURFACE_PARTS } from './surface-parts.ts';

const ABOUT: About = { kind: 'run', runs: [] };
const condition = (code: Condition['code'], message: string): Condition => ({
  ...{ code, message, holdsUp: 'x', sinceMs: null, whoCanClearIt: 'x', nextAction: 'x' },
});

test('what is told comes in the order of what is true first, whichever part tells it and how long it takes', async () => {
  const late: TellsConditions<object, string> = {
    runs: (made) => [condition('run-goes-on', `the run, by ${made}`)],
    disk: async () => {
      await new Promise((resolve) => setImmediate(resolve));
      return [condition('disk-unwritable', 'the disk')];
    },
  };
  const table: PartTable<object, { first: string; second: string; silent: string }> = {
    first: { needs: [], make: () => 'first', conditions: late },
    second: {
      needs: [],
      make: () => 'second',
      conditions: {
        down: (_, { kind }) => [condition('machine-down', `down, says who was asked about a ${kind}`)],
        runs: () => [condition('run-waits', 'another run'), condition('run-unanswered', 'and whom it asked')],
      },
    },
    silent: { needs: [], make: () => 'silent' },
  };
  const { parts } = await assemble(table, {});
  assert.deepEqual(
    (await parts.conditions(ABOUT)).map(({ message }) => message),
    [
      'down, says who was asked about a run',
      'the disk',
      'the run, by first',
      'another run',
      'and whom it asked',
    ],
  );
});

test('each kind of condition is told by a part, and no kind has two places in the order', () => {
  const tables = [HOST_PARTS, MOVE_PARTS, SURFACE_PARTS];
  const told = tables.flatMap((table) =>
    Object.values(table as Record<string, { conditions?: object }>).flatMap(({ conditions = {} }) =>
      Object.keys(conditions),
    ),
  );
  assert.deepEqual([...new Set(told)].sort(), [...CONDITION_ORDER].sort());
  assert.equal(new Set(CONDITION_ORDER).size, CONDITION_ORDER.length);
  for (const code of Object.keys(CONDITIONS)) assert.match(code, /^[a-z][a-z-]+$/);
});
