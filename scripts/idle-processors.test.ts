import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IdleProcessors, mayStart } from './idle-processors.ts';

const stat = (fields: number[]) => `cpu  ${fields.join(' ')}\ncpu0 1 2 3 4 5 6 7 8 9 10\n`;

test('the share of idle time is of long enough a time, and waiting for a disk is not idle', () => {
  const looks = [
    stat([100, 0, 100, 1_000, 50, 0, 0, 0, 900, 0]),
    stat([110, 0, 120, 1_060, 60, 0, 0, 0, 950, 0]),
    stat([110, 0, 120, 1_109, 60, 0, 0, 0, 950, 50]),
    stat([110, 0, 120, 1_260, 260, 0, 0, 0, 950, 0]),
  ];
  const processors = new IdleProcessors(() => looks.shift()!, 100);
  assert.equal(processors.share(), 0.6);
  assert.equal(processors.share(), null);
  assert.equal(processors.share(), 0.5);
});

test('as many suites as were asked for run whatever the machine does, more of them only beside idle processors', () => {
  const at = (running: number, idleShare: number | null) =>
    mayStart({ running, jobs: 2, jobsMax: 4, idleShare });
  assert.deepEqual([at(0, null), at(1, 0), at(2, 0.29), at(2, null)], [true, true, false, false]);
  assert.deepEqual([at(2, 0.3), at(3, 0.9), at(4, 0.9)], [true, true, false]);
  assert.equal(mayStart({ running: 2, jobs: 2, jobsMax: 2, idleShare: 1 }), false);
});
