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
  async do({ target, clock }, { input, notes }) {
    await target.activate(input);
    return { activatedAtMs: notes.activatedAtMs ?? clock.wallMs() };
  },
});

export const boot = inStep({
  ...{ name: 'boot', phase: 'interruption', waitsFor: 'this-worker', reaches: 'booted' },
  ...IN_PATIENCE.forward,
  retry: { initialMs: 100, maxMs: 10_000 },
  gives: ['attachedAtMs', 'bootedAtMs'],
  async do({ target, clock }, { input }) {
    let attachedAtMs = clock.wallMs();
    await target.boot(input, () => {
      attachedAtMs = clock.wallMs();
    });
    return { attachedAtMs, bootedAtMs: clock.wallMs() };
  },
});

export const healthy = inStep({
  ...{ name: 'healthy', phase: 'interruption', waitsFor: 'owner', reaches: 'healthy', hydrates: true },
  ...IN_PATIENCE.forward,
  gives: ['healthyAtMs', 'unhealthy'],
  async do(tools, context) {
    const { target, clock, healthUntilMs } = tools;
    const { input, notes, runId, signal } = context;
    if (!input.startMachine || notes.healthyAtMs !== undefined) return {};
    if (input.ailing !== undefined) {
      // Known before the move: it is brought here as it was, and nobody waits for what did not come there
      // either.
      await target.hydrate(input);
      return { healthyAtMs: clock.wallMs(), unhealthy: `it ${input.ailing} (so it did at its source)` };
    }
    for (;;) {
      const roundMs = clock.monotonicMs();
      const untilMs = untilHealthyMs(tools, runId);
      try {
        await target.awaitHealthy(input, PATIENCE.healthRound.ms);
        healthUntilMs.delete(runId);
        const unhealthy = unhealthyAtLast(null, await target.ailment(input));
        return { healthyAtMs: clock.wallMs(), ...(unhealthy !== null && { unhealthy }) };
      } catch (error) {
        if (!isGodwitError(error, 'MACHINE_NOT_HEALTHY')) throw error;
        signal.throwIfAborted();
        await target.hydrate(input);
        if (clock.monotonicMs() >= untilMs) {
          healthUntilMs.delete(runId);
          return { healthyAtMs: clock.wallMs(), unhealthy: messageOf(error) };
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
