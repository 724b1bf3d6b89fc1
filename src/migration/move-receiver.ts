import type { HeatHint } from '../attach/server-spec.ts';
import type { Clock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import type { MoveInbox } from './inbox.ts';
import { MIGRATE_IN, phaseOf, refusal, targetRunId, targetStatus } from './migrate-in.ts';
import { reached } from './migrate-out.ts';
import type { HandoffRequest, PrepareRequest, TargetStatus } from './peer.ts';
import type { TargetSide } from './target-side.ts';

const HANDOFF_HOLD_MS = 10_000;

/** The target's end of the calls in peer.ts. */
export class MoveReceiver {
  readonly #journal: Journal;
  readonly #inbox: MoveInbox;
  readonly #target: TargetSide;
  readonly #clock: Clock;
  /** This worker's name, for the words of a refusal. */
  readonly #worker: string;
  readonly #handoffHoldMs: number;

  constructor(options: {
    journal: Journal;
    inbox: MoveInbox;
    target: TargetSide;
    clock: Clock;
    worker: string;
    /** How long an answer to `handoff` is held back for the volume to open, so that the source need not ask again. Default 10 s. */
    handoffHoldMs?: number;
  }) {
    this.#journal = options.journal;
    this.#inbox = options.inbox;
    this.#target = options.target;
    this.#clock = options.clock;
    this.#worker = options.worker;
    this.#handoffHoldMs = options.handoffHoldMs ?? HANDOFF_HOLD_MS;
  }

  async prepare(request: PrepareRequest): Promise<TargetStatus> {
    if (this.#run(request.runId) === null) {
      if (this.#inbox.verdict(request.runId)) {
        throw refusal(request, this.#worker, 'this move was already given up here');
      }
      const offer = await this.#target.offer(request);
      if (!offer.accepted) throw refusal(request, this.#worker, offer.reason);
      try {
        this.#journal.start(MIGRATE_IN, request, { runId: targetRunId(request.runId) });
      } catch (error) {
        if (isGodwitError(error, 'JOURNAL_RESOURCE_BUSY'))
          throw refusal(request, this.#worker, error.message);
        throw error;
      }
    }
    return this.status(request.runId);
  }

  async status(moveId: string): Promise<TargetStatus> {
    const run = this.#run(moveId);
    // A move that this side does not know can never be activated here; say so for good before saying so at all.
    if (run === null) this.#inbox.decide(moveId, 'forgotten', this.#clock.wallMs());
    return targetStatus(moveId, run, run === null ? null : await this.#live(run), this.#clock.wallMs());
  }

  /** Only for a move that is prepared; else the hint has no use. */
  async warm(moveId: string, heat: HeatHint): Promise<void> {
    const run = this.#run(moveId);
    if (run !== null && phaseOf(run) === 'prepared')
      await this.#target.warm(run.input as PrepareRequest, heat);
  }

  async handoff(moveId: string, { freeMap }: HandoffRequest): Promise<TargetStatus> {
    const run = this.#run(moveId);
    if (run === null || phaseOf(run) === 'forgotten') {
      this.#inbox.decide(moveId, 'forgotten', this.#clock.wallMs());
      return this.status(moveId);
    }
    if (phaseOf(run) !== 'preparing' && this.#inbox.verdict(moveId) === null) {
      // Before the verdict: the volume may be activated as soon as that is written.
      if (freeMap !== null) await this.#target.keepFreeMap(run.input as PrepareRequest, freeMap);
      this.#inbox.decide(moveId, 'handed-over', this.#clock.wallMs());
    }
    return this.#until(moveId, (status) => reached(status, 'activated') || status.phase === 'forgotten');
  }

  async cancel(moveId: string): Promise<TargetStatus> {
    const verdict = this.#inbox.decide(moveId, 'forgotten', this.#clock.wallMs());
    const run = this.#run(moveId);
    if (run === null || verdict === 'handed-over') return this.status(moveId);
    if (run.endedAtMs === null && !run.pastPointOfNoReturn && run.state !== 'undoing') {
      try {
        this.#journal.cancel(run.id, 'the source took the move back');
      } catch (error) {
        if (!isGodwitError(error)) throw error;
        // It just passed the point, or is over: the status says which.
      }
    }
    return this.status(moveId);
  }

  /** Answers as soon as `enough`, or with what there is after a while. */
  async #until(moveId: string, enough: (status: TargetStatus) => boolean): Promise<TargetStatus> {
    const untilMs = this.#clock.monotonicMs() + this.#handoffHoldMs;
    for (;;) {
      const status = await this.status(moveId);
      const leftMs = untilMs - this.#clock.monotonicMs();
      if (enough(status) || leftMs <= 0) return status;
      await this.#changed(targetRunId(moveId), Math.min(leftMs, 500));
    }
  }

  async #changed(runId: string, timeoutMs: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const done = () => {
        unsubscribe();
        cancelTimer();
        resolve();
      };
      const unsubscribe = this.#journal.subscribe((run) => {
        if (run.id === runId) done();
      });
      const cancelTimer = this.#clock.timer(timeoutMs, done);
    });
  }

  async #live(run: RunView): Promise<TargetStatus['hydration']> {
    if (run.step !== 'hydrate' && run.step !== 'healthy' && run.step !== 'settle' && run.step !== 'finish')
      return null;
    return this.#target.hydration(run.input as PrepareRequest).catch(() => null);
  }

  #run(moveId: string): RunView | null {
    try {
      return this.#journal.get(targetRunId(moveId));
    } catch (error) {
      if (isGodwitError(error, 'JOURNAL_UNKNOWN_RUN')) return null;
      throw error;
    }
  }
}
