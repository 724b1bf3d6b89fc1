import { isGodwitError, messageOf } from '../base/errors.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { unhealthyAtLast } from './in-after.ts';
import { IN_PATIENCE, type InTools, inStep } from './in-tools.ts';

/*
 * The target's steps from the handoff to the machine's first healthy answer.
 */

export const activate = inStep({
  ...{ name: 'activate', phase: 'interruption', waitsFor: 'this-worker' },
  ...{ pointOfNoReturn: true, reaches: 'activated' },
  ...IN_PATIENCE.forward,
  retry: { initialMs: 50, maxMs: 5_000 },
  gives: ['activatedAtMs'],
  async do({ target, times }, { input, notes }) {
    await target.activate(input);
    return { activatedAtMs: notes.activatedAtMs ?? times.nowMs(input.runId) };
  },
});

export const boot = inStep({
  ...{ name: 'boot', phase: 'interruption', waitsFor: 'this-worker', reaches: 'booted' },
  ...IN_PATIENCE.forward,
  retry: { initialMs: 100, maxMs: 10_000 },
  gives: ['attachedAtMs', 'bootedAtMs'],
  async do({ target, times }, { input }) {
    let attachedAtMs = times.nowMs(input.runId);
    await target.boot(input, () => {
      attachedAtMs = times.nowMs(input.runId);
    });
    return { attachedAtMs, bootedAtMs: times.nowMs(input.runId) };
  },
});

export const healthy = inStep({
  ...{ name: 'healthy', phase: 'interruption', waitsFor: 'owner', reaches: 'healthy', hydrates: true },
  ...IN_PATIENCE.forward,
  gives: ['healthyAtMs', 'unhealthy'],
  async do(tools, context) {
    const { target, clock, times, healthUntilMs } = tools;
    const { input, notes, runId, signal } = context;
    if (!input.startMachine || notes.healthyAtMs !== undefined) return {};
    if (input.ailing !== undefined) {
      // Known before the move: it is brought here as it was, and nobody waits for what did not come there
      // either.
      await target.hydrate(input);
      return {
        healthyAtMs: times.nowMs(input.runId),
        unhealthy: `it ${input.ailing} (so it did at its source)`,
      };
    }
    for (;;) {
      const roundMs = clock.monotonicMs();
      const untilMs = untilHealthyMs(tools, runId);
      try {
        await target.awaitHealthy(input, PATIENCE.healthRound.ms);
        healthUntilMs.delete(runId);
        const unhealthy = unhealthyAtLast(null, await target.ailment(input));
        return { healthyAtMs: times.nowMs(input.runId), ...(unhealthy !== null && { unhealthy }) };
      } catch (error) {
        if (!isGodwitError(error, 'MACHINE_NOT_HEALTHY')) throw error;
        signal.throwIfAborted();
        await target.hydrate(input);
        if (clock.monotonicMs() >= untilMs) {
          healthUntilMs.delete(runId);
          return { healthyAtMs: times.nowMs(input.runId), unhealthy: messageOf(error) };
        }
        context.waiting(
          `${input.machineName} runs but is not healthy: ${messageOf(error)}`,
          `\`godwit machine logs ${input.machineName}\` says what it does.`,
        );
        // Who answers at once is not asked at once again.
        if (clock.monotonicMs() - roundMs < PAUSE.healthAgain.ms)
          await clock.sleep(PAUSE.healthAgain.ms, signal);
      }
    }
  },
});

function untilHealthyMs({ healthUntilMs, clock }: InTools, runId: string): number {
  const known = healthUntilMs.get(runId) ?? clock.monotonicMs() + PATIENCE.healthPatience.ms;
  healthUntilMs.set(runId, known);
  return known;
}
