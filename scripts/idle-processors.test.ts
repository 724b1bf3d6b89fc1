import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IdleProcessors, placesFor } from './idle-processors.ts';

const stat = (fields: number[]) => `cpu  ${fields.join(' ')}\ncpu0 1 2 3 4 5 6 7 8 9 10\n`;

test('the share of idle time is of long enough a time, and that of waiting for a disk is told apart', () => {
  const looks = [
    stat([100, 0, 100, 1_000, 50, 0, 0, 0, 900, 0]),
    stat([110, 0, 120, 1_060, 60, 0, 0, 0, 950, 0]),
    stat([110, 0, 120, 1_109, 60, 0, 0, 0, 950, 50]),
    stat([110, 0, 120, 1_260, 260, 0, 0, 0, 950, 0]),
    stat([210, 0, 120, 1_310, 310, 0, 0, 0, 950, 0]),
  ];
  const processors = new IdleProcessors(() => looks.shift()!, 100);
  assert.deepEqual(processors.shares(), { nothing: 0.6, disk: 0.1 });
  assert.equal(processors.shares(), null);
  assert.deepEqual(processors.shares(), { nothing: 0.5, disk: 0.5 });
  assert.equal(processors.share(), 0.5);
});

test('as many processes as were asked for run whatever the machine does, more of them only beside idle processors', () => {
  const after = (places: number, running: number, idleShare: number | null) =>
    placesFor({ places, running, jobs: 2, jobsMax: 4, idleShare });
  assert.deepEqual([after(2, 2, null), after(2, 2, 0), after(2, 2, 0.14), after(2, 2, 0.15)], [2, 2, 2, 3]);
  assert.deepEqual(
    [after(4, 4, 0.9), after(3, 2, 0.9)],
    [4, 3],
    'no more than that, and not before they are used',
  );
  assert.deepEqual([after(4, 4, 0.05), after(4, 4, 0), after(3, 1, 0)], [4, 3, 2]);
  assert.equal(placesFor({ places: 2, running: 2, jobs: 2, jobsMax: 2, idleShare: 1 }), 2);
});
