import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { advanced } from '../base/progress.ts';
import type { PrepareRequest, TargetPhase, TargetStatus } from '../contract/peer.ts';
import { Abort } from '../journal/outcome.ts';
import type { RunDefinition, RunView, StepContext } from '../journal/run.ts';
import type { Ailment } from '../machine/ailment.ts';
import type { MoveInbox } from './inbox.ts';
import type { OverrideNote } from './override-note.ts';
import type { ReceiptBook } from './receipt-book.ts';
import type { TargetSide } from './target-side.ts';

/**
 * The target's run of a move. Its id is the source's run id with `TARGET_RUN_SUFFIX`, so that both may live
 * in one journal.
 *
 *     reserve → volume → attach → await ── activate ─┐ → boot → healthy → settle → hydrate → prove → finish
 *      the      sparse   shim,    the     the fence  │   mount,                              the      drop the
 *      offer    file,    FUSE,    hand-   moves: g+1 │   start                               receipt  clone layer,
 *      again    bits     login    off     the point of no return                             is here, log out
 *                                                                                            or waived
 *
 * Before `activate` the run unwinds when the source says so, when the source's run is gone, or when the
 * handoff does not come; each is first written to the inbox as `forgotten`, so that a handoff that arrives
 * later is refused. After it nothing goes back.
 */
export type MigrateInInput = PrepareRequest;

export type MigrateInOutput = {
  /** Wall clock of this host; only differences between them are used. */
  handedOverAtMs?: number;
  activatedAtMs?: number;
  attachedAtMs?: number;
  bootedAtMs?: number;
  healthyAtMs?: number;
  hydratedAtMs?: number;
  /** An operator did without the receipt, and there is none. */
  waivedAtMs?: number;
  /** Of the free map that came with the handoff, SHA-256 in hex; null: none came. */
  freeMapDigest?: string | null;
  /**
   * The machine did not become healthy in time, or ended; the move went on, because there is no way back.
   * Null: it is now.
   */
  unhealthy?: string | null;
  hydration?: TargetStatus['hydration'];
  /** On whose word an operator had the run go back though the volume was open here. */
  override?: OverrideNote;
};

export type MigrateInOptions = {
  target: TargetSide;
  inbox: MoveInbox;
  receipts: ReceiptBook;
  clock: Clock;
  /** How often a target that waits for the handoff asks whether its source still means it. Default 2 s. */
  sourceProbeMs?: number;
};

/** Name of the kind in the journal. */
export const MIGRATE_IN = 'migrate-in';
const TARGET_RUN_SUFFIX = '.in';

/** Id of the target's run of the move that the source calls `moveId`. */
export function targetRunId(moveId: string): string {
  return `${moveId}${TARGET_RUN_SUFFIX}`;
}

const OBSERVED = { quietMs: PATIENCE.observedStep.ms, livesOnlyMs: PATIENCE.livesOnly.ms };
const LOCAL = { quietMs: PATIENCE.localStep.ms };
const FORWARD = { quietMs: PATIENCE.forwardStep.ms };
const LONG = { quietMs: PATIENCE.longStep.ms };
/** Of the source, whether it still means a move. */
const NO_ANSWER = { gone: null, answered: false };
/** How often a target whose source should be serving it asks whether it still is the machine's owner. */
const SOURCE_WATCH_MS = PAUSE.sourceWatch.ms;

export function migrateIn(options: MigrateInOptions): RunDefinition<MigrateInInput> {
  const { target, inbox, receipts, clock } = options;
  const sourceProbeMs = options.sourceProbeMs ?? PAUSE.sourceProbe.ms;
  type Context = StepContext<MigrateInInput>;
  const out = (context: Context) => context.output as MigrateInOutput;
  /**
   * By the monotonic clock, over all attempts of this process: a clock that is set must not end, nor
   * lengthen, anybody's wait.
   */
  const healthUntilMs = new Map<string, number>();
  const untilHealthyMs = (runId: string): number => {
    const known = healthUntilMs.get(runId) ?? clock.monotonicMs() + PATIENCE.healthPatience.ms;
    healthUntilMs.set(runId, known);
    return known;
  };

  return {
    kind: MIGRATE_IN,
    resource: (input) => `machine:${input.machineId}`,
    steps: [
      {
        name: 'reserve',
        ...LOCAL,
        async do(context) {
          const offer = await target.offer(context.input);
          if (!offer.accepted) throw new Abort(refusal(context.input, offer.worker, offer.reason));
        },
        async undo(context) {
          // Reached by every unwinding, whatever began it.
          inbox.decide(context.input.runId, 'forgotten', clock.wallMs());
        },
      },
      {
        name: 'volume',
        ...LOCAL,
        async do(context) {
          if (context.input.volume) await target.createVolume(context.input);
        },
        async undo(context) {
          const opened = out(context).override === 'source-took-back';
          if (context.input.volume) await target.destroyVolume(context.input, { opened });
        },
      },
      {
        name: 'attach',
        ...OBSERVED,
        async do(context) {
          await target.attachStandby(context.input);
        },
        async undo(context) {
          await target.detach(context.input);
        },
      },
      {
        name: 'await',
        // Longer than what ends it with a word in the inbox.
        quietMs: 2 * PATIENCE.handoffWait.ms,
        async do(context) {
          const moveId = context.input.runId;
          let heardMs = clock.monotonicMs();
          for (;;) {
            await inbox.wait(moveId, sourceProbeMs, context.signal);
            const decided = inbox.verdict(moveId);
            if (decided?.verdict === 'handed-over') return { handedOverAtMs: decided.decidedAtMs };
            if (decided) throw new Abort(abandoned(context.input, 'the source took the move back'));
            context.signal.throwIfAborted();
            const { gone, answered } = await sourceGaveUp(context, moveId);
            if (answered) heardMs = clock.monotonicMs();
            const silentMs = clock.monotonicMs() - heardMs;
            const late =
              silentMs >= PATIENCE.handoffWait.ms ? 'the source has been silent for too long' : null;
            const why = gone ?? late;
            if (why !== null && inbox.decide(moveId, 'forgotten', clock.wallMs()) === 'forgotten') {
              throw new Abort(abandoned(context.input, why));
            }
          }
        },
      },
      {
        name: 'activate',
        ...FORWARD,
        pointOfNoReturn: true,
        retry: { initialMs: 50, maxMs: 5_000 },
        async do(context) {
          await target.activate(context.input);
          return { activatedAtMs: out(context).activatedAtMs ?? clock.wallMs() };
        },
      },
      {
        name: 'boot',
        ...FORWARD,
        retry: { initialMs: 100, maxMs: 10_000 },
        async do(context) {
          let attachedAtMs = clock.wallMs();
          await target.boot(context.input, () => {
            attachedAtMs = clock.wallMs();
          });
          return { attachedAtMs, bootedAtMs: clock.wallMs() };
        },
      },
      {
        name: 'healthy',
        ...FORWARD,
        async do(context) {
          if (!context.input.startMachine || out(context).healthyAtMs !== undefined) return;
          const { ailing } = context.input;
          if (ailing !== undefined) {
            // Known before the move: it is brought here as it was, and nobody waits for what did not come
            // there either.
            await target.hydrate(context.input);
            return { healthyAtMs: clock.wallMs(), unhealthy: `it ${ailing} (so it did at its source)` };
          }
          for (;;) {
            const roundMs = clock.monotonicMs();
            const untilMs = untilHealthyMs(context.runId);
            try {
              await target.awaitHealthy(context.input, PATIENCE.healthRound.ms);
              healthUntilMs.delete(context.runId);
              const unhealthy = unhealthyAtLast(null, await target.ailment(context.input));
              return {
                healthyAtMs: clock.wallMs(),
                ...(unhealthy !== null && { unhealthy }),
              };
            } catch (error) {
              if (!isGodwitError(error, 'MACHINE_NOT_HEALTHY')) throw error;
              context.signal.throwIfAborted();
              await target.hydrate(context.input);
              if (clock.monotonicMs() >= untilMs) {
                healthUntilMs.delete(context.runId);
                return { healthyAtMs: clock.wallMs(), unhealthy: messageOf(error) };
              }
              context.waiting(
                `${context.input.machineName} runs but is not healthy: ${messageOf(error)}`,
                `\`godwit machine logs ${context.input.machineName}\` says what it does.`,
              );
              // Who answers at once is not asked at once again.
              if (clock.monotonicMs() - roundMs < PAUSE.healthAgain.ms)
                await clock.sleep(PAUSE.healthAgain.ms, context.signal);
            }
          }
        },
      },
      {
        name: 'settle',
        ...FORWARD,
        async do(context) {
          await target.settle(context.input);
          return { freeMapDigest: context.input.volume ? await target.freeMapDigest(context.input) : null };
        },
      },
      {
        name: 'hydrate',
        ...LONG,
        retry: { initialMs: 100, maxMs: 5_000 },
        async do(context) {
          if (!context.input.volume) return;
          const yieldToSource = watchSource(context);
          await yieldToSource();
          await target.hydrate(context.input);
          let pauseMs = 20;
          for (;;) {
            await yieldToSource();
            const hydration = await target.hydration(context.input);
            if (!hydration || hydration.exposedBytes === 0) {
              return { hydration, hydratedAtMs: clock.wallMs() };
            }
            if (hydration.state === 'source-lost') {
              context.waiting(
                `${context.input.sourceWorker} does not answer, and some blocks are only there`,
                `Bring ${context.input.sourceWorker} back; what is missing waits, all else goes on. If it never comes back, what was not fetched is lost: ` +
                  `\`godwit runs force ${context.runId} forget --yes\`, then \`godwit machine destroy ${context.input.machineName} --force\`.`,
              );
            } else {
              context.waiting(
                `fetching the blocks that are still only at ${context.input.sourceWorker}`,
                'Nothing to do; keep that worker up until then.',
              );
            }
            await clock.sleep(pauseMs, context.signal);
            pauseMs = Math.min(pauseMs * 2, 500);
          }
        },
      },
      {
        name: 'prove',
        ...LONG,
        async do(context) {
          const { runId, sourceWorker, volume } = context.input;
          if (!volume) return;
          // The source asks, through the receiver (move-receiver.ts); this side stays connected until both
          // have signed.
          const yieldToSource = watchSource(context);
          for (let pauseMs = 20; receipts.get(runId) === null; pauseMs = Math.min(pauseMs * 2, 500)) {
            await yieldToSource();
            const waivedAtMs = receipts.waivedAtMs(runId);
            if (waivedAtMs !== null) return { waivedAtMs };
            context.waiting(
              `${sourceWorker} holds what came against its sealed volume`,
              `Keep that worker up until then; \`godwit why ${runId}\` there says whether it waits for anything. If it never comes back, nothing is ` +
                `missing here, but nobody can prove it: \`godwit runs force ${context.runId} unproven --yes\` does without the receipt.`,
            );
            await clock.sleep(pauseMs, context.signal);
          }
          return;
        },
      },
      {
        name: 'finish',
        ...FORWARD,
        retry: { initialMs: 100, maxMs: 5_000 },
        async do(context) {
          if (context.input.volume) await target.finish(context.input);
          if (!context.input.startMachine) return;
          // As of now, which is what the source hears last.
          const ailment = await target.ailment(context.input).catch(() => null);
          return { unhealthy: unhealthyAtLast(out(context).unhealthy ?? null, ailment) };
        },
      },
    ],
  };

  /**
   * A source that was told that this host is destroyed runs the machine again. When this host is back all the
   * same, it hears so, and stops its own: `MIGRATION_SOURCE_TOOK_BACK`. Asks once in `SOURCE_WATCH_MS`.
   */
  function watchSource(context: Context): () => Promise<void> {
    let askAtMs = 0;
    return async () => {
      if (clock.monotonicMs() < askAtMs) return;
      askAtMs = clock.monotonicMs() + SOURCE_WATCH_MS;
      const signal = AbortSignal.any([context.signal, AbortSignal.timeout(SOURCE_WATCH_MS)]);
      const run = await target.sourceRun(context.input, signal).catch(() => null);
      context.signal.throwIfAborted();
      if (run?.state !== 'undone') return;
      await target.standDown(context.input);
      throw tookBack(context.input, context.runId);
    };
  }

  /**
   * Why the source no longer means this move, or null. A source that cannot be asked may still mean it; one
   * that is slow to say so may have handed over meanwhile, which is not kept waiting for its answer.
   */
  async function sourceGaveUp(
    context: Context,
    moveId: string,
  ): Promise<{ gone: string | null; answered: boolean }> {
    const decided = new AbortController();
    const signal = AbortSignal.any([context.signal, decided.signal]);
    const verdict = inbox.wait(moveId, PATIENCE.handoffWait.ms, signal).then(() => NO_ANSWER);
    verdict.catch(() => {});
    try {
      return await Promise.race([askSource(context, signal), verdict]);
    } finally {
      decided.abort();
    }
  }

  async function askSource(
    context: Context,
    signal: AbortSignal,
  ): Promise<{ gone: string | null; answered: boolean }> {
    try {
      const run = await target.sourceRun(context.input, signal);
      advanced(`answers of ${context.input.sourceWorker}`);
      if (run === null) return { gone: 'the source knows no such run', answered: true };
      const over = run.state === 'undone' || run.state === 'failed';
      return { gone: over ? `the source's run is ${run.state}` : null, answered: true };
    } catch (error) {
      context.signal.throwIfAborted();
      if (signal.aborted) return NO_ANSWER;
      context.waiting(
        `ready; ${context.input.sourceWorker} does not answer: ${messageOf(error)}`,
        'Nothing to do: the machine is still there, and this side forgets the move by itself.',
      );
      return NO_ANSWER;
    }
  }
}

/**
 * What the source hears last of the machine. One that was healthy and whose check fails now and then is its
 * owner's; one that has ended, or never got healthy, is told. Pure.
 */
export function unhealthyAtLast(before: string | null, now: Ailment | null): string | null {
  if (now === null || (now.kind === 'unhealthy' && before === null)) return null;
  return `it ${now.message}`;
}

/**
 * The target's answer to "where are you with this move?". `live` is the hydration as of now, if it is known.
 * Pure.
 */
export function targetStatus(
  moveId: string,
  phase: TargetPhase,
  run: RunView | null,
  live: TargetStatus['hydration'] | null,
  nowMs: number,
): TargetStatus {
  const output = (run?.output ?? {}) as MigrateInOutput;
  return {
    runId: moveId,
    phase,
    reason: run?.error?.message ?? run?.reason?.message ?? null,
    nextAction: run?.error?.nextAction ?? run?.reason?.nextAction ?? null,
    ...(run?.error?.retry && { retry: run.error.retry }),
    timesMs: {
      answered: nowMs,
      handedOver: output.handedOverAtMs ?? null,
      activated: output.activatedAtMs ?? null,
      attached: output.attachedAtMs ?? null,
      booted: output.bootedAtMs ?? null,
      healthy: output.healthyAtMs ?? null,
      hydrated: output.hydratedAtMs ?? null,
    },
    hydration: output.hydration ?? live,
    waivedAtMs: output.waivedAtMs ?? null,
    ...(output.unhealthy && { unhealthy: output.unhealthy }),
  };
}

/** Where a run is, from the steps that are done. Pure. */
export function phaseOf(run: RunView): TargetPhase {
  const done = (name: string) => run.steps.some((step) => step.name === name && step.state === 'done');
  if (done('activate')) {
    if (done('finish')) return 'released';
    if (done('prove')) return 'proven';
    if (done('hydrate')) return 'hydrated';
    if (done('healthy')) return 'healthy';
    return done('boot') ? 'booted' : 'activated';
  }
  if (run.state === 'undoing' || run.state === 'undone' || run.state === 'failed') return 'forgotten';
  if (done('await')) return 'handed-over';
  return done('attach') ? 'prepared' : 'preparing';
}

/** The target says no. */
export function refusal(input: PrepareRequest, worker: string, reason: string): GodwitError {
  return new GodwitError('MIGRATION_REFUSED', `${worker} does not take ${input.machineName}: ${reason}`, {
    values: { worker, machine: input.machineName },
    retry: 'never',
    nextAction:
      'The drain asks the other workers; make room on this one or undrain it to let it take machines.',
  });
}

function tookBack({ machineName, sourceWorker }: PrepareRequest, runId: string): GodwitError {
  return new GodwitError(
    'MIGRATION_SOURCE_TOOK_BACK',
    `an operator of ${sourceWorker} said that this host is destroyed, and ${machineName} runs there again: it was stopped here`,
    {
      values: { machine: machineName, source: sourceWorker },
      nextAction: `What it wrote here is still here. \`godwit runs force ${runId} undo --yes\` throws it away.`,
    },
  );
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
