import assert from 'node:assert/strict';
import test from 'node:test';
import type { TargetStatus } from '../contract/peer.ts';
import { interruption, type MigrateOutOutput } from './out-notes.ts';

/** The source's clock is 1,000,000 ms ahead of the target's. */
const AHEAD_MS = 1_000_000;
const output: MigrateOutOutput = {
  stopStartedAtMs: AHEAD_MS + 100,
  stopMs: 30,
  sealMs: 20,
  handedOverAtMs: AHEAD_MS + 175,
  targetAnsweredAtMs: 172,
};
const times: TargetStatus['timesMs'] = {
  answered: 999,
  handedOver: 155,
  activated: 165,
  attached: 180,
  booted: 185,
  healthy: 300,
  hydrated: null,
};

test('the interruption is from the stop to healthy, whatever the clocks of the two hosts say', () => {
  assert.deepEqual(interruption(output, times), {
    stop: 30,
    seal: 20,
    handoff: 8,
    attach: 25,
    boot: 120,
    total: 203,
  });
  const late = { ...output, handedOverAtMs: AHEAD_MS + 675, targetAnsweredAtMs: 672 };
  assert.equal(interruption(late, times)?.total, 203, 'an answer that came after the machine was healthy');
});

test('without one of the times there is no interruption to tell', () => {
  assert.equal(interruption({ ...output, stopStartedAtMs: undefined } as never, times), null);
  assert.equal(interruption(output, { ...times, healthy: null }), null);
});
