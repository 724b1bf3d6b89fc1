import assert from 'node:assert/strict';
import { test } from 'node:test';
import { drainMachine } from '../../test/support/fake-service.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import type { DrainStatus } from '../contract/schemas.ts';
import { type FollowOptions, followDrain } from './drain-follow.ts';

/** Time passes only by sleeping, and at once. */
function sleepingClock(): Clock {
  let nowMs = 0;
  return {
    wallMs: () => nowMs,
    monotonicMs: () => nowMs,
    timer: () => () => {},
    sleep: async (delayMs, signal) => {
      signal?.throwIfAborted();
      nowMs += delayMs;
    },
  };
}

const unreachable = new GodwitError('API_UNREACHABLE', 'no answer', { nextAction: 'look' });

function status(state: DrainStatus['state'], desired = true): DrainStatus {
  return { worker: 'worker-1', desired, sinceMs: 0, endedAtMs: null, state, machines: [drainMachine({})] };
}

/** Answers with `script`, one after the other; the last one for ever. */
function follow(script: (DrainStatus | Error)[], some: Partial<FollowOptions> = {}) {
  const shown: string[] = [];
  const away: (string | null)[] = [];
  const clock = sleepingClock();
  let next = 0;
  const result = followDrain({
    ask: async () => {
      const answer = script[Math.min(next++, script.length - 1)]!;
      if (answer instanceof Error) throw answer;
      return answer;
    },
    show: (each) => shown.push(each.state),
    away: (error) => away.push(error?.message ?? null),
    clock,
    signal: new AbortController().signal,
    pollMs: 100,
    blockedAfterMs: 1_000,
    awayMs: 5_000,
    ...some,
  });
  return { result, shown, away, clock };
}

test('ends with 0 when the worker is drained', async () => {
  const { result, shown } = follow([status('draining'), status('draining'), status('drained')]);
  assert.equal((await result).exitCode, 0);
  assert.deepEqual(shown, ['draining', 'draining', 'drained']);
});

test('ends with 3 only when nothing has moved for the whole time', async () => {
  const hiccup = [
    ...Array(9).fill(status('waiting')),
    status('draining'),
    ...Array(9).fill(status('waiting')),
  ];
  assert.equal((await follow([...hiccup, status('drained')]).result).exitCode, 0);
  const { result, clock } = follow([...hiccup, status('waiting')]);
  assert.equal((await result).exitCode, 3);
  assert.equal(clock.monotonicMs(), 2_000);
});

test('ends with 3 when somebody ended the drain', async () => {
  assert.equal((await follow([status('draining'), status('idle', false)]).result).exitCode, 3);
});

test('outlives a restart of the worker, and says once that it is away and back', async () => {
  const { result, away } = follow([
    status('draining'),
    ...Array(20).fill(unreachable),
    status('draining'),
    status('drained'),
  ]);
  assert.equal((await result).exitCode, 0);
  assert.deepEqual(away, ['no answer', null]);
});

test('gives up on a worker that stays away', async () => {
  await assert.rejects(follow([status('draining'), unreachable]).result, { code: 'API_UNREACHABLE' });
});

test('any other error ends it at once', async () => {
  const refused = new GodwitError('API_UNAUTHORIZED', 'no', { nextAction: '' });
  await assert.rejects(follow([refused]).result, { code: 'API_UNAUTHORIZED' });
});

test('an interrupt ends it with its reason', async () => {
  const abort = new AbortController();
  const { result } = follow([status('draining')], {
    signal: abort.signal,
    show: () => abort.abort(new Error('Ctrl-C')),
  });
  await assert.rejects(result, /Ctrl-C/);
});
