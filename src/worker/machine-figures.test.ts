import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { PAUSE } from '../base/patience.ts';
import type { MachineShow } from '../machine/manager.ts';
import { MachineFigures } from './machine-figures.ts';

const guest = { reads: 1, readBytes: 10, writes: 2, writeBytes: 20, flushes: 3, misses: null };

function show(id: string, status: object | null): MachineShow {
  return { record: { id }, shim: { volume: status && { status } } } as unknown as MachineShow;
}

function figuresOf(look: () => Promise<readonly MachineShow[]>) {
  const clock = new FakeClock();
  const figures = new MachineFigures({
    look,
    stateOf: ({ record }) => (record.id === 'm_2' ? 'silent' : 'running'),
    disk: async () => ({ totalBytes: 100, availableBytes: 60, reserveBytes: 10 }),
    clock,
  });
  return { clock, figures };
}

test('machines are counted by state, and what guests and hydration did is summed', async () => {
  const hydration = { exposedBytes: 4096, wireBytes: 500, blocksFetchedTwice: 2 };
  let shows: MachineShow[] = [show('m_1', { guest, hydration }), show('m_2', null)];
  const { figures, clock } = figuresOf(async () => shows);
  assert.ok(Number.isNaN(figures.ageSeconds));
  assert.ok(Number.isNaN(figures.disk('totalBytes')), 'nothing is said of what nobody looked at');
  await figures.wake();
  assert.equal(figures.sum('writeBytes'), 0, 'of before this worker began');
  shows = [
    show('m_1', {
      guest: { ...guest, writeBytes: 60 },
      hydration: { exposedBytes: 4096, wireBytes: 1000, blocksFetchedTwice: 4 },
    }),
    show('m_2', null),
    show('m_3', { guest: { ...guest, misses: 7 }, noRoom: { waiting: 1 } }),
  ];
  await clock.advance(PAUSE.figures.ms);
  await figures.wake();
  assert.deepEqual(figures.states(), [
    { labels: { state: 'running' }, value: 2 },
    { labels: { state: 'silent' }, value: 1 },
  ]);
  assert.deepEqual(
    [figures.sum('writeBytes'), figures.sum('misses'), figures.sum('wireBytes')],
    [60, 7, 500],
  );
  assert.equal(figures.sum('twiceBytes'), 8192);
  assert.deepEqual(figures.missing, { volumes: 1, bytes: 4096, noRoom: 1 });
  assert.equal(figures.disk('reserveBytes'), 10);
  await clock.advance(3_000);
  assert.equal(figures.ageSeconds, 3);
});

test('nobody is asked again within the pause, nor while a look hangs, and what was last heard stays', async () => {
  let looks = 0;
  let hang = false;
  const { figures, clock } = figuresOf(async () => {
    looks++;
    if (hang) await new Promise(() => {});
    return [show('m_1', { guest })];
  });
  await figures.wake();
  await figures.wake();
  assert.equal(looks, 1);
  hang = true;
  await clock.advance(PAUSE.figures.ms);
  void figures.wake();
  await clock.advance(10 * PAUSE.figures.ms);
  void figures.wake();
  assert.equal(looks, 2, 'one look at a time');
  assert.equal(figures.sum('reads'), 0);
  assert.equal(figures.ageSeconds, (11 * PAUSE.figures.ms) / 1000);
});

test('a look that fails is tried again', async () => {
  let fails = true;
  const { figures } = figuresOf(async () => {
    if (fails) throw new Error('no');
    return [];
  });
  await figures.wake();
  assert.ok(Number.isNaN(figures.ageSeconds));
  fails = false;
  await figures.wake();
  assert.equal(figures.ageSeconds, 0);
});
