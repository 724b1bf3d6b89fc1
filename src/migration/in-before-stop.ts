import { GodwitError, messageOf } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import { advanced } from '../base/progress.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import { Abort } from '../journal/outcome.ts';
import type { MigrateInInput } from './in-notes.ts';
import { IN_PATIENCE, type InTools, inStep, refusal } from './in-tools.ts';
import type { MoveInbox } from './inbox.ts';
import type { Waiting } from './move-step.ts';
import { orElsewhere } from './obstacle.ts';
import type { TargetSide } from './target-side.ts';

/*
 * The target's steps until the machine is its own.
 */

export const reserve = inStep({
  ...{ name: 'reserve', phase: 'before-stop', waitsFor: 'this-worker' },
  ...IN_PATIENCE.local,
  async do({ target }, { input }) {
    await holdToOffer(target, input);
  },
  async undo({ inbox, clock }, { input }) {
    // Reached by every unwinding, whatever began it.
    inbox.decide(input.runId, 'forgotten', clock.wallMs());
  },
});

export const volume = inStep({
  ...{ name: 'volume', phase: 'before-stop', waitsFor: 'this-worker' },
  ...IN_PATIENCE.local,
  uses: ['override'],
  async do({ target }, { input, attempt }) {
    if (input.volume) await orElsewhere(attempt, target.createVolume(input));
  },
  async undo({ target }, { input, notes }) {
    const opened = notes.override === 'source-took-back';
    if (input.volume) await target.destroyVolume(input, { opened });
  },
});

export const attach = inStep({
  ...{ name: 'attach', phase: 'before-stop', waitsFor: 'peer', reaches: 'prepared' },
  ...IN_PATIENCE.observed,
  async do({ target }, { input, attempt }) {
    await orElsewhere(attempt, target.attachStandby(input));
    // What was promised may be gone: others write to this disk too, and somebody may drain this worker.
    await holdToOffer(target, input);
  },
  async undo({ target }, { input }) {
    await target.detach(input);
  },
});

/** All is ready here, and the machine still runs there. */
export const awaitHandoff = inStep({
  ...{ name: 'await', phase: 'before-stop', waitsFor: 'peer', reaches: 'handed-over' },
  // Longer than what ends it with a word in the inbox.
  quietMs: 2 * PATIENCE.handoffWait.ms,
  gives: ['handedOverAtMs'],
  async do(tools, context) {
    const { inbox, clock, sourceProbeMs } = tools;
    const { input, signal } = context;
    const moveId = input.runId;
    let heardMs = clock.monotonicMs();
    for (;;) {
      await inbox.wait(moveId, sourceProbeMs, signal);
      const decided = inbox.verdict(moveId);
      if (decided?.verdict === 'handed-over') return { handedOverAtMs: decided.decidedAtMs };
      if (decided) throw new Abort(abandoned(input, 'the source took the move back'));
      signal.throwIfAborted();
      const { gone, answered } = await sourceGaveUp(tools, context);
      if (answered) heardMs = clock.monotonicMs();
      const silentMs = clock.monotonicMs() - heardMs;
      const late = silentMs >= PATIENCE.handoffWait.ms ? 'the source has been silent for too long' : null;
      const why = gone ?? late;
      if (why !== null && inbox.decide(moveId, 'forgotten', clock.wallMs()) === 'forgotten') {
        throw new Abort(abandoned(input, why));
      }
    }
  },
});

/** The machine is not stopped for a target that would not take it any more. */
async function holdToOffer(target: TargetSide, input: MigrateInInput): Promise<void> {
  const offer = await target.offer(input);
  if (!offer.accepted) throw new Abort(refusal(input, offer.worker, offer.reason));
}

type Asking = Waiting & { input: MigrateInInput };
type SourceWord = { gone: string | null; answered: boolean };
const NO_ANSWER: SourceWord = { gone: null, answered: false };

/**
 * Why the source no longer means this move, or null. A source that cannot be asked may still mean it; one
 * that is slow to say so may have handed over meanwhile, which is not kept waiting for its answer.
 */
async function sourceGaveUp(tools: { inbox: MoveInbox } & InTools, context: Asking): Promise<SourceWord> {
  const decided = new AbortController();
  const signal = AbortSignal.any([context.signal, decided.signal]);
  const verdict = tools.inbox
    .wait(context.input.runId, PATIENCE.handoffWait.ms, signal)
    .then(() => NO_ANSWER);
  verdict.catch(() => {});
  try {
    return await Promise.race([askSource(tools, context, signal), verdict]);
  } finally {
    decided.abort();
  }
}

async function askSource({ target }: InTools, context: Asking, signal: AbortSignal): Promise<SourceWord> {
  const { input } = context;
  try {
    const run = await target.sourceRun(input, signal);
    advanced(`answers of ${input.sourceWorker}`);
    if (run === null) return { gone: 'the source knows no such run', answered: true };
    const over = run.state === 'undone' || run.state === 'failed';
    return { gone: over ? `the source's run is ${run.state}` : null, answered: true };
  } catch (error) {
    context.signal.throwIfAborted();
    if (signal.aborted) return NO_ANSWER;
    context.waiting(
      `ready; ${input.sourceWorker} does not answer: ${messageOf(error)}`,
      'Nothing to do: the machine is still there, and this side forgets the move by itself.',
    );
    return NO_ANSWER;
  }
}

function abandoned(input: PrepareRequest, why: string): GodwitError {
  return new GodwitError(
    'MIGRATION_ABANDONED',
    `the move of ${input.machineName} from ${input.sourceWorker} ended: ${why}`,
    {
      values: { machine: input.machineName, source: input.sourceWorker },
      nextAction: `Nothing to do here; the machine is ${input.sourceWorker}'s.`,
    },
  );
}
