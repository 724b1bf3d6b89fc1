import assert from 'node:assert/strict';
import test from 'node:test';
import type { ShimStatus } from '../shim/protocol.ts';
import { ailmentOf } from './ailment.ts';

type Workload = NonNullable<ShimStatus['workload']>;

const NOW_MS = 1_000_000;
const running: Workload = {
  machineId: 'm_1',
  state: 'running',
  pid: 1,
  startedAtMs: NOW_MS - 60_000,
  exitedAtMs: null,
  exitCode: null,
  exitSignal: null,
  restarts: 0,
  health: { state: 'healthy', sinceMs: 0, message: '' },
  memoryBytes: null,
  outOfMemoryKills: 0,
};

test('what is wrong with a machine that is wanted has a kind and a sentence', () => {
  const kind = (change: Partial<Workload>) => ailmentOf({ ...running, ...change }, NOW_MS)?.kind ?? null;
  const health = (state: Workload['health']['state']) => ({ state, sinceMs: 0, message: 'no answer' });
  assert.equal(ailmentOf(null, NOW_MS), null);
  assert.equal(kind({}), null);
  assert.equal(kind({ state: 'exited', exitCode: 0 }), null, 'it has done what it was to do');
  assert.equal(kind({ state: 'exited', exitCode: 3 }), 'ended');
  assert.equal(kind({ state: 'failed', exitCode: 127 }), 'ended');
  assert.equal(kind({ state: 'restarting', exitCode: 1, restarts: 4 }), 'restarting');
  assert.equal(
    kind({ startedAtMs: NOW_MS - 50, restarts: 4, exitCode: 1, health: health('none') }),
    'restarting',
    'between two ends',
  );
  assert.equal(kind({ startedAtMs: NOW_MS - 50, restarts: 4 }), null, 'it has come up again');
  assert.equal(kind({ restarts: 4, health: health('none') }), null, 'it ended, and has run for long since');
  const setBack = { startedAtMs: NOW_MS + 7_000_000, restarts: 1, exitCode: 1, health: health('none') };
  assert.equal(kind(setBack), null, 'the clock was set back by two hours');
  assert.equal(kind({ health: health('unhealthy') }), 'unhealthy');
  assert.match(
    ailmentOf({ ...running, state: 'failed', exitSignal: 'SIGSEGV' }, NOW_MS)?.message ?? '',
    /SIGSEGV/,
  );
  const outOfMemory = { ...running, state: 'restarting' as const, exitCode: 137, outOfMemoryKills: 2 };
  assert.match(ailmentOf(outOfMemory, NOW_MS)?.message ?? '', /exit code 137; 2 of .* out of memory/);
});
