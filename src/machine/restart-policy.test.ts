import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decideRestart, STEADY_MS } from './restart-policy.ts';

const good = { exitCode: 0, exitSignal: null };
const bad = { exitCode: 1, exitSignal: null };
const killed = { exitCode: null, exitSignal: 'SIGKILL' };

test('no: never again', () => {
  for (const exit of [good, bad, killed]) {
    assert.deepEqual(decideRestart({ policy: 'no', retriesMax: 5 }, exit, 0, 0), { kind: 'exited' });
  }
});

test('on-failure: a good end is an end; bad ones are retried so often in a row', () => {
  const restart = { policy: 'on-failure' as const, retriesMax: 2 };
  assert.deepEqual(decideRestart(restart, good, 0, 0), { kind: 'exited' });
  assert.deepEqual(decideRestart(restart, bad, 0, 0), { kind: 'restart', delayMs: 100, restartsInRow: 1 });
  assert.deepEqual(decideRestart(restart, killed, 1, 0), { kind: 'restart', delayMs: 200, restartsInRow: 2 });
  assert.deepEqual(decideRestart(restart, bad, 2, 0), { kind: 'failed' });
  assert.equal(decideRestart(restart, bad, 2, STEADY_MS).kind, 'restart', 'a steady run begins a new row');
});

test('always: also after a good end, without giving up, at most every 10 s', () => {
  const restart = { policy: 'always' as const, retriesMax: 0 };
  let inRow = 0;
  const delays: number[] = [];
  for (let round = 0; round < 100; round++) {
    const decision = decideRestart(restart, good, inRow, 0);
    assert.ok(decision.kind === 'restart');
    inRow = decision.restartsInRow;
    delays.push(decision.delayMs);
  }
  assert.deepEqual(delays.slice(0, 8), [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000]);
  assert.equal(delays.at(-1), 10_000);
});
