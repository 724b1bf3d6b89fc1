import { isDeepStrictEqual } from 'node:util';
import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { Endpoint } from '../contract/endpoint.ts';
import {
  type HandoffRequest,
  type MoveAnswers,
  PEER,
  type PrepareRequest,
  type TargetFigures,
  type TargetPhase,
  type TargetStatus,
} from '../contract/peer.ts';
import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import type { OperationArgs, OperationResult } from '../opening/operations.ts';
import type { HeatHint } from '../opening/spec.ts';
import { countersign, type Receipt, verifyReceipt, type WorkerKey } from '../receipt/envelope.ts';
import type { CompareReply, CompareRequest, FiguresQuery } from '../receipt/proof.ts';
import type { ReceiptBody } from '../receipt/receipt.ts';
import { targetStatus } from './in-notes.ts';
import { refusal } from './in-tools.ts';
import type { MoveInbox } from './inbox.ts';
import { MIGRATE_IN, type MigrateInOutput, phaseOf, targetRunId } from './migrate-in.ts';
import { MIGRATE_OUT } from './migrate-out.ts';
import { mayHavePassed, stepOf } from './move-watch.ts';
import { diskOf } from './prove.ts';
import type { ReceiptBook } from './receipt-book.ts';
import type { Reservations } from './reservations.ts';
import { RunTimes } from './run-times.ts';
import { reached } from './target-phase.ts';
import type { TargetSide } from './target-side.ts';
import { askingVolume, type VolumeQuestion, type VolumeQuestions } from './volume-questions.ts';

/** The target's end of the calls in peer.ts. */
export class TargetAnswers
  extends askingVolume<string, 'compare' | 'figures'>('compare', 'figures')
  implements MoveAnswers
{
  readonly #journal: Journal;
  readonly #inbox: MoveInbox;
  readonly #target: TargetSide;
  readonly #clock: Clock;
  readonly #times: RunTimes;
  /** This worker's name, for the words of a refusal. */
  readonly #worker: string;
  readonly #handoffHoldMs: number;
  readonly #key: WorkerKey;
  readonly #receipts: ReceiptBook;
  readonly #reservations: Reservations | null;

  constructor(options: {
    journal: Journal;
    inbox: MoveInbox;
    target: TargetSide;
    clock: Clock;
    /** Those of the run of this side. Left out: its own. */
    times?: RunTimes;
    worker: string;
    key: WorkerKey;
    receipts: ReceiptBook;
    /** Where the room of a move is held while its answer is made; left out: nowhere. */
    reservations?: Reservations;
    /**
     * How long an answer to `handoff` is held back for the volume to open, so that the source need not ask
     * again. Default 10 s.
     */
    handoffHoldMs?: number;
  }) {
    super();
    this.#journal = options.journal;
    this.#inbox = options.inbox;
    this.#target = options.target;
    this.#clock = options.clock;
    this.#times = options.times ?? new RunTimes(options.clock);
    this.#worker = options.worker;
    this.#key = options.key;
    this.#receipts = options.receipts;
    this.#reservations = options.reservations ?? null;
    this.#handoffHoldMs = options.handoffHoldMs ?? PATIENCE.handoffHold.ms;
  }

  async prepare(request: PrepareRequest): Promise<TargetStatus> {
    if (this.#run(request.runId) === null) {
      const decided = this.#inbox.verdict(request.runId);
      if (decided?.verdict === 'handed-over') return this.status(request.runId);
      if (decided) throw refusal(request, this.#worker, 'this move was already given up here');
      await this.#promise(request);
    }
    return this.status(request.runId);
  }

  /**
   * Rejects `MIGRATION_REFUSED`. Its room is held while it is looked for, so that a move that comes meanwhile
   * does not get it too.
   */
  async #promise(request: PrepareRequest): Promise<void> {
    this.#reservations?.hold(request);
    try {
      const offer = await this.#target.offer(request);
      if (!offer.accepted) throw refusal(request, this.#worker, offer.reason);
      this.#journal.start(MIGRATE_IN, request, { runId: targetRunId(request.runId) });
    } catch (error) {
      if (isGodwitError(error, 'JOURNAL_RESOURCE_BUSY')) throw refusal(request, this.#worker, error.message);
      throw error;
    } finally {
      this.#reservations?.release(request.runId);
    }
  }

  async status(moveId: string): Promise<TargetStatus> {
    const run = this.#run(moveId);
    const { phase, gone } = await this.#phase(moveId, run);
    const live = run === null || phase === 'forgotten' ? null : await this.#live(run);
    const status = targetStatus(moveId, phase, run, live, this.#times.nowMs(moveId));
    status.waivedAtMs ??= this.#receipts.waivedAtMs(moveId);
    if (run === null && phase === 'activated' && !gone) {
      status.reason = `${this.#worker} took the volume, and its journal does not know the run any more`;
      status.nextAction = `\`godwit machine list\` says whether the machine is on ${this.#worker}.`;
    }
    const ended = run !== null && run.state === 'failed' && phase !== 'forgotten' && phase !== 'released';
    if (ended && !gone) status.standsStill = true;
    if (gone) {
      status.gone = true;
      status.reason = `${this.#worker} had the volume open, and it is not there any more: it was destroyed`;
      status.nextAction = `\`godwit runs force ${moveId} undo --yes\` brings the sealed volume back at the source.`;
    }
    return status;
  }

  /**
   * Writes down how a run of this side ended: the journal forgets it. Called at its end, and for `unended`
   * ones at the start, since the process may die between the two.
   */
  async noteEnd(run: RunView): Promise<void> {
    if (run.kind !== MIGRATE_IN || run.endedAtMs === null) return;
    const { runId, volume } = run.input as PrepareRequest;
    const { phase } = await this.#phase(runId, run);
    this.#inbox.end(runId, {
      phase: phase === 'released' || phase === 'forgotten' ? phase : 'activated',
      volume: volume && { volumeId: volume.volumeId, generation: volume.sealedGeneration + 1 },
    });
  }

  /** `noteEnd` for what ended without it: the process had died, or it was of an earlier version. */
  async noteEnds(): Promise<void> {
    for (const moveId of this.#inbox.unended()) {
      const run = this.#run(moveId);
      // A record that cannot be read now may be readable at the next start; until then the run itself is
      // there.
      if (run !== null) await this.noteEnd(run).catch(() => {});
    }
  }

  /**
   * Where the move is. The word that was given counts before all else, then the volume's record, then the
   * run: a run may be damaged, forced to its end, or forgotten by the journal, and "forgotten" has the source
   * start the machine. `gone`: what was opened here is not here any more.
   */
  async #phase(moveId: string, run: RunView | null): Promise<{ phase: TargetPhase; gone: boolean }> {
    const decided = this.#inbox.verdict(moveId);
    const told = run === null ? null : phaseOf(run);
    const is = (phase: TargetPhase, gone = false) => ({ phase, gone });
    if (decided?.verdict !== 'handed-over') {
      if (told !== null && told !== 'forgotten') return is(told);
      // A move that this side does not know can never be activated here; say so for good before saying so at
      // all.
      const stands = this.#inbox.decide(moveId, 'forgotten', this.#clock.wallMs());
      return stands === 'forgotten' ? is('forgotten') : this.#phase(moveId, run);
    }
    if (told !== null && told !== 'forgotten' && run!.endedAtMs === null) return is(told);
    if (told === 'released') return is(told);
    const { ending } = decided;
    if (ending && ending.phase !== 'activated') return is(ending.phase);
    const request = run === null ? null : (run.input as PrepareRequest);
    const volume = request?.volume
      ? { volumeId: request.volume.volumeId, generation: request.volume.sealedGeneration + 1 }
      : (ending?.volume ?? null);
    // Begun is enough: nobody can say how far it came.
    const tried = ending !== null || run === null || mayHavePassed(run);
    if (volume === null) return is(tried ? 'activated' : 'forgotten');
    const state = await this.#target.volumeState(volume.volumeId, volume.generation);
    if (state === 'opened') return is(atLeastActivated(told));
    if (state === 'absent' && tried) return is('activated', true);
    return is('forgotten');
  }

  /** Only for a move that is prepared; else the hint has no use. */
  async warm(moveId: string, heat: HeatHint): Promise<void> {
    const run = this.#run(moveId);
    if (run !== null && phaseOf(run) === 'prepared')
      await this.#target.warm(run.input as PrepareRequest, heat);
  }

  async handoff(moveId: string, { freeMap }: HandoffRequest): Promise<TargetStatus> {
    const { phase } = await this.#phase(moveId, this.#run(moveId));
    if (phase === 'prepared' && this.#inbox.verdict(moveId) === null) {
      const request = this.#run(moveId)!.input as PrepareRequest;
      // Before the verdict: the volume may be activated as soon as that is written.
      if (freeMap !== null) await this.#target.keepFreeMap(request, freeMap);
      this.#inbox.decide(moveId, 'handed-over', this.#times.nowMs(moveId));
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

  override async askVolume<Op extends VolumeQuestion>(
    moveId: string,
    op: Op,
    args: OperationArgs<Op>,
  ): Promise<OperationResult<Op>> {
    const volume: VolumeQuestions<PrepareRequest> = this.#target;
    return volume[op](this.#requestOf(moveId, PEER[op].ofVolume), args);
  }

  /**
   * Rejects `MIGRATION_PROOF_DIFFERS` for another free map than that of the handoff: what it names is not
   * here.
   */
  async compare(moveId: string, request: CompareRequest): Promise<CompareReply> {
    const { freeMapDigest } = (this.#run(moveId)?.output ?? {}) as MigrateInOutput;
    if (freeMapDigest !== undefined && freeMapDigest !== request.freeMapDigest)
      throw this.#differs(moveId, 'free map');
    return this.askVolume(moveId, 'compare', request);
  }

  async figures(moveId: string, query: FiguresQuery): Promise<TargetFigures> {
    const { publicKey, fingerprint } = this.#key;
    const figures = await this.askVolume(moveId, 'figures', query);
    return { ...figures, worker: { worker: this.#worker, publicKey, keyFingerprint: fingerprint } };
  }

  /**
   * Signs what this side finds too, and nothing else. Rejects `MIGRATION_PROOF_DIFFERS`,
   * `MIGRATION_NOT_PROVABLE`, and as `verifyReceipt` throws.
   */
  async countersign(moveId: string, draft: Receipt): Promise<Receipt> {
    const kept = this.#receipts.get(moveId);
    if (kept) return kept;
    const request = this.#requestOf(moveId, 'whole');
    const body = verifyReceipt(draft, { stage: 'draft' });
    const figures = await this.figures(moveId, { freeMapDigest: body.freeMapDigest });
    const { freeMapDigest } = (this.#run(moveId)?.output ?? {}) as MigrateInOutput;
    const difference = differenceOf(body, request, figures, freeMapDigest);
    if (difference !== null) {
      throw this.#differs(moveId, difference);
    }
    return this.#receipts.keep(countersign(draft, this.#key));
  }

  async receipt(moveId: string): Promise<Receipt | null> {
    return this.#receipts.get(moveId);
  }

  /**
   * An operator's word, for a source that can never sign: `run`, this side's run of a move that has all its
   * blocks, goes on without the receipt. Throws `MIGRATION_NOTHING_TO_WAIVE` for any other run, and as
   * `Journal.force`.
   */
  waiveReceipt(run: RunView, by: string): RunView {
    const waits = run.kind === MIGRATE_IN && run.endedAtMs === null && phaseOf(run) === 'hydrated';
    const { runId } = run.input as PrepareRequest;
    if (!waits || this.#receipts.get(runId) !== null) throw nothingToWaive(run);
    this.#receipts.waive(runId, this.#clock.wallMs());
    // It looks at once, and its log says who wanted it.
    return this.#journal.force(run.id, 'forward', `${by}, without a receipt`);
  }

  #differs(moveId: string, field: string): GodwitError {
    return new GodwitError(
      'MIGRATION_PROOF_DIFFERS',
      `${this.#worker} does not sign: it has another ${field}`,
      {
        values: { moveId, field },
        nextAction:
          'It is tried again by itself. If it stays, both workers must be of the same godwit version.',
      },
    );
  }

  /** The request of a move that is not finished, whose blocks are all here, or arrive. */
  #requestOf(moveId: string, blocks: NonNullable<Endpoint['ofVolume']>): PrepareRequest {
    const run = this.#run(moveId);
    const arrive = run?.endedAtMs === null && stepOf(run)?.hydrates === true;
    if (run !== null && (blocks === 'whole' ? phaseOf(run) === 'hydrated' : arrive))
      return run.input as PrepareRequest;
    throw new GodwitError(
      'MIGRATION_NOT_PROVABLE',
      `${this.#worker} cannot be asked that of the volume of this move now`,
      {
        values: { moveId, phase: run === null ? 'forgotten' : phaseOf(run) },
        nextAction: 'Nothing to do while it is under way; godwit why on the move says where it is.',
      },
    );
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
    if (!stepOf(run)?.hydrates) return null;
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

/** A run that was ended by force, or is damaged, may say less than its volume does. */
function atLeastActivated(told: TargetPhase | null): TargetPhase {
  return told === 'booted' || told === 'healthy' || told === 'hydrated' || told === 'proven'
    ? told
    : 'activated';
}

function nothingToWaive(run: RunView): GodwitError {
  const nextAction =
    run.kind === MIGRATE_OUT
      ? `It is for the target to do without the receipt: godwit runs force ${targetRunId(run.id)} unproven --yes.`
      : `godwit why ${run.id} says what it waits for; without a receipt only a move ends that has all its blocks.`;
  return new GodwitError('MIGRATION_NOTHING_TO_WAIVE', `run ${run.id} does not wait for a receipt`, {
    values: { runId: run.id, kind: run.kind, state: run.state, step: run.step },
    nextAction,
  });
}

/** What a receipt says otherwise than this side knows it; null: nothing. Pure. */
export function differenceOf(
  body: ReceiptBody,
  request: PrepareRequest,
  figures: TargetFigures,
  freeMapDigest: string | null | undefined,
): string | null {
  const { volume } = request;
  if (!volume) return 'volume';
  const rules: [name: string, found: unknown, expected: unknown][] = [
    ['move', body.moveId, request.runId],
    ['machine', body.machine.id, request.machineId],
    ['machine name', body.machine.name, request.machineName],
    ['volume', body.volume.id, volume.volumeId],
    ['volume name', body.volume.name, volume.name],
    ['length', body.volume.lengthBytes, volume.lengthBytes],
    ['encryption', body.volume.encrypted, volume.encryption !== undefined],
    ['generation', body.generations.sealed, volume.sealedGeneration],
    ['source', body.source.worker, request.sourceWorker],
    ['name', body.target.worker, figures.worker.worker],
    ['key', body.target.publicKey, figures.worker.publicKey],
    ['root', body.root, figures.root],
    ['number of ranges', body.ranges, figures.ranges],
    ['number of bytes compared', body.bytes.compared, figures.comparedBytes],
    ['number of bytes fetched', body.bytes.fetched, figures.fetchedBytes],
    // A source of an earlier version does not say it.
    ['number of bytes fetched again', body.bytes.refetched ?? figures.refetchedBytes, figures.refetchedBytes],
    ['disk', isDeepStrictEqual(body.disk, figures.disk && diskOf(figures.disk)), true],
    // Not known where it was lost before it was digested (a power cut within seconds of the handoff).
    ['free map', body.freeMapDigest, freeMapDigest === undefined ? body.freeMapDigest : freeMapDigest],
  ];
  return rules.find(([, found, expected]) => found !== expected)?.[0] ?? null;
}
