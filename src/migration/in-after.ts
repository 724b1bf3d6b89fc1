import { pauses } from '../base/backoff.ts';
import type { Ailment } from '../machine/ailment.ts';
import { IN_PATIENCE, inStep, watchSource } from './in-tools.ts';
import { LOOK_AGAIN } from './move-step.ts';

/*
 * The target's steps while the machine runs here.
 */

export const settle = inStep({
  ...{ name: 'settle', phase: 'after', waitsFor: 'this-worker', hydrates: true },
  ...IN_PATIENCE.forward,
  gives: ['freeMapDigest'],
  async do({ target }, { input }) {
    await target.settle(input);
    return { freeMapDigest: input.volume ? await target.freeMapDigest(input) : null };
  },
});

export const hydrate = inStep({
  ...{ name: 'hydrate', phase: 'after', waitsFor: 'peer', reaches: 'hydrated', hydrates: true },
  ...IN_PATIENCE.long,
  retry: { initialMs: 100, maxMs: 5_000 },
  gives: ['hydration', 'hydratedAtMs'],
  async do(tools, context) {
    const { target, clock, times } = tools;
    const { input, runId } = context;
    if (!input.volume) return {};
    const yieldToSource = watchSource(tools, context);
    await yieldToSource();
    await target.hydrate(input);
    const pause = pauses(clock, LOOK_AGAIN);
    for (;;) {
      await yieldToSource();
      const hydration = await target.hydration(input);
      if (!hydration || hydration.exposedBytes === 0)
        return { hydration, hydratedAtMs: times.nowMs(input.runId) };
      if (hydration.state === 'source-lost') {
        context.waiting(
          `${input.sourceWorker} does not answer, and some blocks are only there`,
          `Bring ${input.sourceWorker} back; what is missing waits, all else goes on. If it never comes back, what was not fetched is lost: ` +
            `\`godwit runs force ${runId} forget --yes\`, then \`godwit machine destroy ${input.machineName} --force\`.`,
        );
      } else {
        context.waiting(
          `fetching the blocks that are still only at ${input.sourceWorker}`,
          'Nothing to do; keep that worker up until then.',
        );
      }
      await pause(context.signal);
    }
  },
});

export const prove = inStep({
  ...{ name: 'prove', phase: 'after', waitsFor: 'peer', reaches: 'proven' },
  ...IN_PATIENCE.long,
  gives: ['waivedAtMs'],
  async do(tools, context) {
    const { receipts, clock } = tools;
    const { runId, sourceWorker, volume } = context.input;
    if (!volume) return {};
    // The source asks, through `TargetAnswers` (target-answers.ts); this side stays connected until both have
    // signed.
    const yieldToSource = watchSource(tools, context);
    const pause = pauses(clock, LOOK_AGAIN);
    while (receipts.get(runId) === null) {
      await yieldToSource();
      const waivedAtMs = receipts.waivedAtMs(runId);
      if (waivedAtMs !== null) return { waivedAtMs };
      context.waiting(
        `${sourceWorker} holds what came against its sealed volume`,
        `Keep that worker up until then; \`godwit why ${runId}\` there says whether it waits for anything. If it never comes back, nothing is ` +
          `missing here, but nobody can prove it: \`godwit runs force ${context.runId} unproven --yes\` does without the receipt.`,
      );
      await pause(context.signal);
    }
    return {};
  },
});

export const finish = inStep({
  ...{ name: 'finish', phase: 'after', waitsFor: 'this-worker', reaches: 'released', hydrates: true },
  ...IN_PATIENCE.forward,
  retry: { initialMs: 100, maxMs: 5_000 },
  gives: ['unhealthy'],
  async do({ target }, { input, notes }) {
    if (input.volume) await target.finish(input);
    if (!input.startMachine) return {};
    // As of now, which is what the source hears last.
    const ailment = await target.ailment(input).catch(() => null);
    return { unhealthy: unhealthyAtLast(notes.unhealthy ?? null, ailment) };
  },
});

/**
 * What the source hears last of the machine. One that was healthy and whose check fails now and then is its
 * owner's; one that has ended, or never got healthy, is told. Pure.
 */
export function unhealthyAtLast(before: string | null, now: Ailment | null): string | null {
  if (now === null || (now.kind === 'unhealthy' && before === null)) return null;
  return `it ${now.message}`;
}
