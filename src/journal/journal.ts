import type { DatabaseSync } from 'node:sqlite';
import { ulid } from 'ulid';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, toWireError, type WireError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { type Advance, addAdvance, listening, type Progress, type Question } from '../base/progress.ts';
import type { Random } from '../base/random.ts';
import { nextTurn, turnIsLong } from '../base/turn.ts';
import { CRASH_POINT_OF_EVENT, Crash, type CrashPoints, noCrashPoints } from './crash-points.ts';
import { type Action, backoffMs, decide, type Now } from './decide.ts';
import {
  applyEvent,
  canTurnRound,
  type EventBody,
  type History,
  type JournalEvent,
  newHistory,
  type RunHeader,
  type StoredStep,
  sideOf,
  viewOf,
  wasForgotten,
} from './history.ts';
import { Abort, Handoff, Retry, Unrecoverable } from './outcome.ts';
import type { RunDefinition, RunState, RunView, StepContext, StepDefinition } from './run.ts';
import { type EndState, type LoadedRun, resourceBusy, Store } from './store.ts';

/*
 * Durable runs. One owner, one loop: whatever happens to a run (its step ends, time passes, someone cancels)
 * is written to its log, and then `decide` (decide.ts) is asked what comes next, from the log alone. So a
 * restart is no special case: the log is read, and `decide` is asked.
 *
 * What always holds:
 *   - A step runs only after its `step-started` is durable, and the next one only after its `step-succeeded` is. An append that
 *     fails is a step that failed.
 *   - At most one run holds a resource, over all kinds; a unique index sees to it.
 *   - At most one attempt of a run is in progress: an undo never begins while a `do` has not returned.
 *   - Nothing is undone past the point of no return, unless an operator forces it.
 */

const RETRY_DEFAULT = { initialMs: 100, maxMs: 5_000 };
const KEEP_MS_DEFAULT = 30 * 24 * 60 * 60 * 1000;
const KEEP_RUNS_DEFAULT = 10_000;
const KEEP_NEWEST_DEFAULT = 1_000;
/** Views of runs that are over, some 10 KiB each. */
const REMEMBERED_MAX = 1_000;
/** Runs that are pruned in one turn of the event loop, in one transaction. */
const PRUNE_RUNS_MAX = 16;
const OPEN_STATES: readonly RunState[] = ['running', 'waiting', 'undoing'];
/** Between attempts to write a journal that cannot be written. */
const APPEND_RETRY_MS = PAUSE.appendRetry.ms;
/** Longest single timer (setTimeout takes 2^31-1 ms); `decide` is asked again after it. */
const TIMER_MAX_MS = 24 * 60 * 60 * 1000;
const CLOSE_GRACE_MS = PATIENCE.journalClose.ms;
/** A timer that is later than this says that this process did not run. */
const LATE_MS = PAUSE.late.ms;
/** What such a process has left, to hear what it did not. */
const CATCH_UP_MS = PATIENCE.catchUp.ms;

export type RunListener = (run: RunView, event: JournalEvent) => void;

export type JournalOptions = {
  /** Path of the journal's own database file, or an open database that has nothing else in it. */
  database: string | DatabaseSync;
  clock: Clock;
  random: Random;
  logger: Logger;
  definitions: readonly RunDefinition<never>[];
  crashPoints?: CrashPoints;
  /** Finished runs beyond this many are pruned, oldest first. */
  keepRuns?: number;
  /** So many of those that were made last stay, however old the clock says that they are. */
  keepNewest?: number;
};

/**
 * How an attempt ended: the event that says so, and, for a Handoff, the run that takes over. `values`: what
 * the step returned, put down in the same append. `retryDueMs`: of one that failed, when it is tried again,
 * on the monotonic clock: the wall clock may be set before the journal can be told.
 */
type AttemptEnd = {
  body: EventBody;
  handoff: Handoff | null;
  values?: Record<string, unknown>;
  retryDueMs?: number;
};

type Attempt = {
  readonly controller: AbortController;
  readonly calledOff: AbortController;
  readonly settled: Promise<void>;
  /** An append within the attempt failed, so the attempt failed, whatever it says itself. */
  appendError: GodwitError | null;
  /** Not answered yet, in the order in which they were asked. */
  readonly questions: Set<Question>;
};

/**
 * When something last advanced in the step (or undo) at the cursor. On the monotonic clock, since the log and
 * the wall clock may be set.
 */
type Pace = {
  readonly phase: History['phase'];
  readonly cursor: number;
  advancedMs: number;
  /** The same without answers that only said that somebody lives. */
  workedMs: number;
  /** Beginning of the attempt, or what advanced in it. */
  attemptMs: number;
  progress: Progress | null;
};

/** A run that holds its resource, in memory. */
type LiveRun = {
  readonly header: RunHeader;
  history: History;
  readonly definition: RunDefinition<unknown> | null;
  /** Why the run cannot go on here, apart from what its log says. */
  parked: RunView['reason'];
  damage: GodwitError | null;
  attempt: Attempt | null;
  pace: Pace | null;
  /** An attempt has ended and the log does not know yet. */
  pendingEnd: AttemptEnd | null;
  /** Why the journal cannot be written at present. */
  trouble: RunView['reason'];
  cancelTimer: (() => void) | null;
  /**
   * The failure whose backoff is slept out, and when that is over, on the monotonic clock: whatever is done
   * to the wall clock meanwhile.
   */
  backoff: { failure: History['failure']; dueMs: number } | null;
  scheduled: boolean;
  driven: boolean;
};

type Waiter = {
  until: (run: RunView) => boolean;
  resolve: (run: RunView) => void;
  reject: (error: Error) => void;
};

/** `limit`: 1000 where it is left out. */
export type RunQuery = {
  resource?: string;
  kind?: string;
  state?: RunState | readonly RunState[];
  limit?: number;
};

/** Starts runs, carries them on over restarts, and answers for them. */
export class Journal {
  readonly #store: Store;
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #logger: Logger;
  readonly #crashPoints: CrashPoints;
  readonly #keepRuns: number;
  readonly #keepNewest: number;
  readonly #definitions = new Map<string, RunDefinition<unknown>>();
  readonly #live = new Map<string, LiveRun>();
  /** Runs that are over and were asked for: `newest` is asked for the same ones again and again. */
  readonly #over = new Map<string, RunView>();
  readonly #waiters = new Map<string, Set<Waiter>>();
  readonly #listeners = new Set<RunListener>();
  #state: 'open' | 'closing' | 'closed' = 'open';
  /** Takes back the timer after which pruning goes on; null: none is set. */
  #cancelPrune: (() => void) | null = null;
  /** Since pruning began. */
  #prunedRuns = 0;

  /**
   * Reads the runs that are open; none goes on before `resume`. Throws what the database throws:
   * JOURNAL_LOCKED, JOURNAL_CORRUPT, JOURNAL_NEWER, JOURNAL_UNUSABLE. A single damaged run does not keep the
   * others from their work: it is parked.
   */
  constructor(options: JournalOptions) {
    this.#clock = options.clock;
    this.#random = options.random;
    this.#logger = options.logger;
    this.#crashPoints = options.crashPoints ?? noCrashPoints;
    this.#keepRuns = options.keepRuns ?? KEEP_RUNS_DEFAULT;
    this.#keepNewest = Math.min(this.#keepRuns, options.keepNewest ?? KEEP_NEWEST_DEFAULT);
    for (const definition of options.definitions) {
      checkDefinition(definition);
      assert(!this.#definitions.has(definition.kind), `two definitions of kind ${definition.kind}`);
      this.#definitions.set(definition.kind, definition as RunDefinition<unknown>);
    }
    this.#store = new Store(options.database);
    for (const loaded of this.#store.loadHeld()) this.#live.set(loaded.header.id, this.#adopt(loaded));
  }

  /**
   * Starts a run and returns at once; its first step begins in a moment. With a `runId` that exists already:
   * returns that run when kind and input are the same, else throws JOURNAL_RUN_CONFLICT. Throws
   * JOURNAL_RESOURCE_BUSY when any run holds the resource, JOURNAL_UNKNOWN_KIND, JOURNAL_APPEND_FAILED,
   * JOURNAL_CLOSED. `input` is stored as JSON.
   */
  start(kind: string, input: unknown, options: { runId?: string } = {}): RunView {
    this.#mustBeOpen();
    const header = this.#newHeader(kind, input, options.runId);
    const existing = options.runId === undefined ? null : this.#find(options.runId);
    if (existing) {
      const same = existing.kind === kind && canonical(existing.input) === canonical(header.input);
      if (same) return existing;
      throw new GodwitError('JOURNAL_RUN_CONFLICT', `run ${existing.id} exists with another kind or input`, {
        values: { runId: existing.id, kind: existing.kind },
        nextAction: 'Use another run id for another run.',
      });
    }
    const started: JournalEvent = { sequence: 0, atMs: header.createdAtMs, body: { type: 'started' } };
    this.#crashable(() => {
      this.#reached(header, 'before', started.body);
      this.#store.create(header, started);
      this.#reached(header, 'after', started.body);
    });
    const run = this.#begin(header, started);
    return this.#view(run);
  }

  /** Carries on all open runs. Call once, when everything that the steps need is there. Prunes old runs. */
  resume(): void {
    this.#mustBeOpen();
    for (const run of this.#live.values()) {
      run.driven = true;
      if (run.parked) {
        this.#logger.warn(
          { runId: run.header.id, kind: run.header.kind, reason: run.parked.message },
          'a run is parked',
        );
      } else if (!run.history.end) {
        this.#logger.info(
          { runId: run.header.id, kind: run.header.kind, step: this.#view(run).step },
          'a run goes on',
        );
        this.#schedule(run);
      }
    }
    this.#prune();
  }

  /** Throws JOURNAL_UNKNOWN_RUN. A pruned run is unknown. */
  get(id: string): RunView {
    const view = this.#find(id);
    if (!view) throw unknownRun(id);
    return view;
  }

  /**
   * Runs that fit all that is given, open ones first, then newest first; at most `limit` (default 1000). What
   * it costs follows the runs that it returns, not the length of the history; with states of open runs alone,
   * nothing is read.
   */
  find(filter: RunQuery = {}): RunView[] {
    const { found, ids } = this.#search(filter);
    for (const id of ids) found.push(this.get(id));
    return found;
  }

  /**
   * As `find`, reading no longer than a turn of the event loop may take at a time: for lists, whose runs
   * nobody may have asked for before.
   */
  async findInTurns(filter: RunQuery = {}): Promise<RunView[]> {
    const { found, ids } = this.#search(filter);
    await this.#readInTurns(ids, found);
    return found;
  }

  async #readInTurns(ids: readonly string[], found: RunView[]): Promise<void> {
    for (const id of ids) {
      if (turnIsLong()) await nextTurn();
      // It may have been pruned in between.
      const run = this.#find(id);
      if (run !== null) found.push(run);
    }
  }

  /** Runs that are in memory, and the ids of those that follow them. */
  #search(filter: RunQuery): { found: RunView[]; ids: string[] } {
    const { resource, kind, limit = 1000 } = filter;
    const states = filter.state === undefined ? null : [filter.state].flat();
    const found: RunView[] = [];
    const ids: string[] = [];
    for (const run of [...this.#live.values()].reverse()) {
      if (found.length >= limit) return { found, ids };
      if (resource !== undefined && run.header.resource !== resource) continue;
      if (kind !== undefined && run.header.kind !== kind) continue;
      const view = this.#view(run);
      if (!states || states.includes(view.state)) found.push(view);
    }
    const endStates = states?.filter(isOver);
    if (found.length >= limit || endStates?.length === 0) return { found, ids };
    this.#mustNotBeClosed();
    for (const id of this.#store.idsOver({
      ...(resource !== undefined && { resource }),
      ...(kind !== undefined && { kind }),
      ...(endStates && { endStates }),
    })) {
      ids.push(id);
      if (found.length + ids.length >= limit) break;
    }
    return { found, ids };
  }

  /** Runs that are not over, newest first. From memory. */
  open(filter: { resource?: string; kind?: string } = {}): RunView[] {
    return this.find({ ...filter, state: OPEN_STATES }).filter((run) => run.endedAtMs === null);
  }

  /**
   * Of each resource the newest run of a kind, where it was created at `sinceMs` (wall clock) or later. What
   * is over is read once and remembered.
   */
  newest(kind: string, sinceMs: number): RunView[] {
    this.#mustNotBeClosed();
    return this.#store.newestIds(kind, sinceMs).map((id) => this.get(id));
  }

  /** As `newest`, reading no longer than a turn of the event loop may take at a time. */
  async newestInTurns(kind: string, sinceMs: number): Promise<RunView[]> {
    this.#mustNotBeClosed();
    const found: RunView[] = [];
    await this.#readInTurns(this.#store.newestIds(kind, sinceMs), found);
    return found;
  }

  /** How many runs of a kind a resource had since `sinceMs` (wall clock), open ones too. */
  count(resource: string, kind: string, sinceMs: number): number {
    this.#mustNotBeClosed();
    return this.#store.count(resource, kind, sinceMs);
  }

  /**
   * Resolves when the run is over, or when `until` says so. Rejects with JOURNAL_UNKNOWN_RUN, with
   * JOURNAL_WAIT_TIMEOUT after `timeoutMs`, with JOURNAL_CLOSED when the journal closes first.
   */
  async wait(
    id: string,
    options: { timeoutMs?: number; until?: (run: RunView) => boolean } = {},
  ): Promise<RunView> {
    const until = options.until ?? (() => false);
    const now = this.get(id);
    if (isOver(now.state) || until(now)) return now;
    return await new Promise<RunView>((resolve, reject) => {
      let cancelTimer = () => {};
      const forget = () => {
        cancelTimer();
        const waiters = this.#waiters.get(id);
        waiters?.delete(waiter);
        if (waiters?.size === 0) this.#waiters.delete(id);
      };
      const waiter: Waiter = {
        until,
        resolve: (run) => {
          forget();
          resolve(run);
        },
        reject: (error) => {
          forget();
          reject(error);
        },
      };
      const { timeoutMs } = options;
      if (timeoutMs !== undefined) {
        cancelTimer = this.#clock.timer(timeoutMs, () => {
          const { state, step } = this.#find(id) ?? now;
          waiter.reject(
            new GodwitError(
              'JOURNAL_WAIT_TIMEOUT',
              `run ${id} was not over after ${timeoutMs} ms: ${state} at step ${step}`,
              {
                values: { runId: id, timeoutMs, state, step },
                nextAction: 'The run goes on; ask why it takes long, or wait again.',
              },
            ),
          );
        });
      }
      let waiters = this.#waiters.get(id);
      if (!waiters) {
        waiters = new Set();
        this.#waiters.set(id, waiters);
      }
      waiters.add(waiter);
    });
  }

  /**
   * Asks a run to stop and undo what it did; returns at once. Asking again changes nothing. Throws
   * JOURNAL_CANCEL_TOO_LATE in the step of the point of no return and past it, JOURNAL_RUN_OVER,
   * JOURNAL_RUN_PARKED, JOURNAL_UNKNOWN_RUN, JOURNAL_APPEND_FAILED.
   */
  cancel(id: string, reason: string): RunView {
    const run = this.#mustBeLive(id);
    const { history } = run;
    if (history.phase === 'undoing' || history.cancelReason !== null) return this.#view(run);
    this.#mustNotBeParked(run);
    const side = sideOf(history);
    if (side !== 'before' || history.end) {
      const step = history.header.steps.find((each) => each.pointOfNoReturn)?.name ?? null;
      throw new GodwitError(
        'JOURNAL_CANCEL_TOO_LATE',
        side === 'past'
          ? `run ${id} is past its point of no return (step ${step}) and only goes forward`
          : `run ${id} is in step ${step}: the other side may have gone over already, so it cannot be undone from here`,
        {
          values: { runId: id, step, side },
          nextAction: 'Let it end. To go back, start a run in the other direction afterwards.',
        },
      );
    }
    this.#append(run, [{ type: 'cancel-requested', reason }]);
    this.#schedule(run);
    return this.#view(run);
  }

  /**
   * Ends the backoff of a run, so that it tries again now. No effect on a run that does not wait for a retry.
   * Throws JOURNAL_UNKNOWN_RUN.
   */
  nudge(id: string): RunView {
    this.#mustBeOpen();
    const run = this.#live.get(id);
    if (!run) return this.get(id);
    const { history, parked } = run;
    if (
      !parked &&
      !history.end &&
      !history.inFlight &&
      history.failure &&
      history.failure.retryAtMs > this.#clock.wallMs()
    ) {
      this.#append(run, [{ type: 'nudged', step: history.cursor }]);
      this.#schedule(run);
    }
    return this.#view(run);
  }

  /**
   * The operator's override; recorded with `by`. `undo`: undo now, also past the point of no return.
   * `forward`: the step's patience begins anew; a run that failed past its point of no return goes on; one
   * that was forgotten there goes on where it stood, if its kind is taken up again and its resource is free;
   * and one that was forced to go back, and whose kind turns round, goes forward again until its first undo
   * has ended. `values` are put into its output. `forget`: end as `failed` and free the resource; neither
   * steps nor undos are run any more. What is running is told to stop, and the run follows when it has.
   * Throws JOURNAL_FORCE_REFUSED where it makes no sense, JOURNAL_RUN_PARKED (a parked run can only be
   * forgotten), JOURNAL_RUN_OVER, JOURNAL_RESOURCE_BUSY, JOURNAL_UNKNOWN_RUN, JOURNAL_APPEND_FAILED.
   */
  force(
    id: string,
    how: 'undo' | 'forward' | 'forget',
    by: string,
    values: Record<string, unknown> = {},
  ): RunView {
    const run = how === 'forward' ? (this.#forgotten(id) ?? this.#mustBeLive(id)) : this.#mustBeLive(id);
    if (run.damage) {
      this.#mustBeForget(run, how);
      this.#store.endDamaged(id, this.#clock.wallMs());
      this.#live.delete(id);
      this.#logger.warn({ runId: id, by }, 'a damaged run was forgotten');
      const view = this.get(id);
      this.#wake(view);
      return view;
    }
    if (run.parked) {
      this.#mustBeForget(run, how);
      if (run.history.inFlight) this.#append(run, [{ type: 'resumed', step: run.history.cursor }]);
      this.#append(run, [{ type: 'forced', how, by }]);
      const action = decide(run.history, this.#now(run));
      assert(action.type === 'append', 'a forgotten run ends');
      this.#append(run, [action.body]);
      return this.get(id);
    }
    const backwards = run.history.phase === 'undoing' || run.history.cancelReason !== null;
    const turns = run.definition?.turnsRound === true && canTurnRound(run.history);
    if (how === 'forward' && backwards && !turns) {
      throw new GodwitError('JOURNAL_FORCE_REFUSED', `run ${id} goes backwards and cannot be turned round`, {
        values: { runId: id, how },
        nextAction: 'Remove what its undo waits for, or force it with "forget".',
      });
    }
    const put: EventBody[] =
      isIn(run.history.output, values) || !run.history.steps[run.history.cursor]?.attempts
        ? []
        : [{ type: 'put', step: run.history.cursor, values: jsonCopy(values) as Record<string, unknown> }];
    if (how === 'undo' && run.history.phase === 'undoing') {
      if (put.length > 0) this.#append(run, put);
      return this.nudge(id);
    }
    this.#append(run, [{ type: 'forced', how, by }, ...put]);
    // Of one that is taken up again, which was over.
    this.#live.set(id, run);
    this.#over.delete(id);
    if (how === 'forward') run.pace = null;
    run.driven = true;
    this.#schedule(run);
    return this.#view(run);
  }

  /** Called after every event of every run, in order. Returns the way to stop it. */
  subscribe(listener: RunListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** The log of a run. Throws JOURNAL_UNKNOWN_RUN, JOURNAL_CORRUPT. */
  events(id: string): JournalEvent[] {
    this.get(id);
    return this.#store.events(id);
  }

  /**
   * Tells what runs to stop, waits for it (at most `graceMs`), and closes the database. All open runs stay as
   * they are and go on at the next `resume`. A step that ends well while it is told to stop has ended; one
   * that fails then will be tried again.
   */
  async close(options: { graceMs?: number } = {}): Promise<void> {
    if (this.#state !== 'open') return;
    this.#state = 'closing';
    const reason = closedError();
    const settled: Promise<void>[] = [];
    for (const run of this.#live.values()) {
      run.cancelTimer?.();
      if (!run.attempt) continue;
      settled.push(run.attempt.settled);
      run.attempt.controller.abort(reason);
    }
    if (settled.length > 0) {
      const { promise: graceOver, resolve } = Promise.withResolvers<void>();
      const cancelGrace = this.#clock.timer(options.graceMs ?? CLOSE_GRACE_MS, resolve);
      await Promise.race([Promise.all(settled), graceOver]);
      cancelGrace();
    }
    this.#shut();
  }

  // ---- one run ----

  #newHeader(kind: string, input: unknown, runId: string | undefined): RunHeader {
    const definition = this.#definitions.get(kind);
    if (!definition) {
      throw new GodwitError('JOURNAL_UNKNOWN_KIND', `no runs of kind ${kind} here`, {
        values: { kind },
        nextAction: `Kinds that this worker knows: ${[...this.#definitions.keys()].join(', ')}.`,
      });
    }
    const stored: unknown = jsonCopy(input ?? null);
    const createdAtMs = Math.round(this.#clock.wallMs());
    return {
      id: runId ?? `r_${ulid(createdAtMs, () => this.#random.below(2 ** 32) / 2 ** 32)}`,
      kind,
      resource: definition.resource(stored),
      input: stored,
      steps: storedSteps(definition),
      createdAtMs,
    };
  }

  #begin(header: RunHeader, started: JournalEvent): LiveRun {
    const history = applyEvent(newHistory(header), started);
    const run = this.#adopt({ header, holdsResource: true, history, damage: null });
    run.driven = true;
    this.#live.set(header.id, run);
    this.#logger.info({ runId: header.id, kind: header.kind, resource: header.resource }, 'a run starts');
    this.#notify(run, started);
    this.#schedule(run);
    return run;
  }

  #adopt(loaded: LoadedRun): LiveRun {
    const definition = this.#definitions.get(loaded.header.kind) ?? null;
    const misfit = loaded.damage ? loaded.damage : misfitOf(loaded.header, definition);
    const header = misfit || !definition ? loaded.header : withPatienceOf(definition, loaded.header);
    return {
      header,
      history: loaded.history ? { ...loaded.history, header } : newHistory(header),
      definition,
      parked: misfit && {
        message: misfit.message,
        nextAction: misfit.nextAction,
        sinceMs: this.#clock.wallMs(),
      },
      damage: loaded.damage,
      attempt: null,
      pace: null,
      pendingEnd: null,
      trouble: null,
      cancelTimer: null,
      backoff: null,
      scheduled: false,
      driven: false,
    };
  }

  /**
   * Lets the run's loop turn soon. Never at once: a caller or listener must not find the run changed under
   * its hands.
   */
  #schedule(run: LiveRun): void {
    if (run.scheduled || !run.driven || run.parked || this.#state !== 'open') return;
    run.scheduled = true;
    queueMicrotask(() => {
      run.scheduled = false;
      try {
        this.#advance(run);
      } catch (error) {
        this.#die(error);
      }
    });
  }

  #advance(run: LiveRun): void {
    run.cancelTimer?.();
    run.cancelTimer = null;
    while (this.#state === 'open') {
      if (run.pendingEnd && !this.#writeAttemptEnd(run, run.pendingEnd)) return;
      // The log knows of an attempt that is not ours: the process that made it is gone.
      if (run.history.inFlight && !run.attempt) {
        if (!this.#tryAppend(run, [{ type: 'resumed', step: run.history.cursor }])) return;
      }
      const action = decide(run.history, this.#now(run));
      if (!this.#apply(run, action)) return;
    }
  }

  /** True when `decide` is to be asked again at once. */
  #apply(run: LiveRun, action: Action): boolean {
    switch (action.type) {
      case 'rest':
        return false;
      case 'sleep': {
        const { failure, cursor } = run.history;
        if (
          failure !== null &&
          run.backoff?.failure === failure &&
          this.#clock.monotonicMs() >= run.backoff.dueMs
        )
          return this.#tryAppend(run, [{ type: 'nudged', step: cursor }]);
        this.#wakeAt(run, action.untilMs);
        if (run.backoff?.failure !== failure)
          run.backoff = {
            failure,
            dueMs: this.#clock.monotonicMs() + Math.max(0, action.untilMs - this.#clock.wallMs()),
          };
        return false;
      }
      case 'await':
        if (action.stop && run.attempt) {
          const reason = GodwitError.fromWire(action.stop);
          // A signal aborts once: who was told for being quiet is told of a person's word all the same.
          if (reason.code !== 'JOURNAL_STEP_QUIET') run.attempt.calledOff.abort(reason);
          run.attempt.controller.abort(reason);
        }
        if (action.wakeAtMs !== null) this.#wakeAt(run, action.wakeAtMs);
        return false;
      case 'append':
        if (!this.#tryAppend(run, [action.body])) return false;
        if (action.body.type === 'step-started' || action.body.type === 'undo-started')
          this.#launch(run, action.body);
        return true;
    }
  }

  #now(run: LiveRun): Now {
    const pace = this.#paceOf(run);
    const monotonicMs = this.#clock.monotonicMs();
    return {
      wallMs: this.#clock.wallMs(),
      quietMs: monotonicMs - pace.advancedMs,
      attemptQuietMs: monotonicMs - pace.attemptMs,
    };
  }

  #paceOf(run: LiveRun): Pace {
    const { phase, cursor } = run.history;
    if (run.pace?.phase === phase && run.pace.cursor === cursor) return run.pace;
    const nowMs = this.#clock.monotonicMs();
    const advancedMs = nowMs - this.#quietBefore(run);
    run.pace = { phase, cursor, advancedMs, workedMs: advancedMs, attemptMs: nowMs, progress: null };
    return run.pace;
  }

  /**
   * How long the step at the cursor was quiet before this process looks at it for the first time. An attempt
   * that died with its process may have been about to end: it begins anew. A step whose attempts failed has
   * had its time.
   */
  #quietBefore({ history }: LiveRun): number {
    const since = history.steps[history.cursor]?.startedAtMs ?? null;
    const inAttempt = history.failure === null;
    if (history.phase !== 'forward' || since === null || inAttempt) return 0;
    return Math.max(0, this.#clock.wallMs() - since);
  }

  #advanced(run: LiveRun, attempt: Attempt, pace: Pace, advance: Advance): void {
    // Work that a step left behind, or another one's.
    if (run.attempt !== attempt || run.pace !== pace) return;
    const nowMs = this.#clock.monotonicMs();
    const livesOnlyMs = run.definition?.steps[pace.cursor]?.livesOnlyMs ?? Number.POSITIVE_INFINITY;
    if (advance.livesOnly && nowMs - pace.workedMs >= livesOnlyMs) return;
    if (!advance.livesOnly) pace.workedMs = nowMs;
    pace.advancedMs = nowMs;
    pace.attemptMs = nowMs;
    pace.progress = addAdvance(pace.progress, advance, this.#clock.wallMs());
  }

  #wakeAt(run: LiveRun, atMs: number): void {
    const delayMs = Math.min(TIMER_MAX_MS, Math.max(1, atMs - this.#clock.wallMs()));
    const dueMs = this.#clock.monotonicMs() + delayMs;
    run.cancelTimer = this.#clock.timer(delayMs, () => {
      // This process was stopped, or had no processor: what advanced meanwhile is about to be read, and is
      // not held against the step.
      const lateMs = this.#clock.monotonicMs() - dueMs;
      if (lateMs > LATE_MS && run.pace) {
        const nowMs = this.#clock.monotonicMs();
        const asleepMs = lateMs + Math.min(delayMs, CATCH_UP_MS);
        run.pace.advancedMs = Math.min(nowMs, run.pace.advancedMs + asleepMs);
        run.pace.workedMs = Math.min(nowMs, run.pace.workedMs + asleepMs);
        run.pace.attemptMs = Math.min(nowMs, run.pace.attemptMs + asleepMs);
      }
      this.#schedule(run);
    });
  }

  /** Calls `do` or `undo`. */
  #launch(run: LiveRun, started: Extract<EventBody, { type: 'step-started' | 'undo-started' }>): void {
    const step = run.definition!.steps[started.step]!;
    const work = started.type === 'step-started' ? step.do : step.undo!;
    const controller = new AbortController();
    const { promise: settled, resolve } = Promise.withResolvers<void>();
    const attempt: Attempt = {
      controller,
      calledOff: new AbortController(),
      settled,
      appendError: null,
      questions: new Set(),
    };
    run.attempt = attempt;
    const pace = this.#paceOf(run);
    pace.attemptMs = this.#clock.monotonicMs();
    const listener = {
      advanced: (advance: Advance) => this.#advanced(run, attempt, pace, advance),
      asks: (question: Question) => {
        attempt.questions.add(question);
        return () => attempt.questions.delete(question);
      },
    };
    const context = this.#context(run, attempt, started);
    const ended = (thrown: { error: unknown } | null, values?: Record<string, unknown>) => {
      resolve();
      run.attempt = null;
      if (this.#state === 'closed') return;
      const failure = attempt.appendError ? { error: attempt.appendError } : thrown;
      const end = { ...this.#endOf(run, step, started, failure), ...(failure || !values ? {} : { values }) };
      if (this.#state === 'open') {
        run.pendingEnd = end;
        this.#schedule(run);
      } else if (!failure) {
        try {
          this.#writeAttemptEnd(run, end);
        } catch (error) {
          this.#die(error);
        }
      }
    };
    listening(listener, async () => work(context)).then(
      (values) => ended(null, started.type === 'step-started' ? (values ?? undefined) : undefined),
      (error: unknown) => ended({ error }),
    );
  }

  #context(
    run: LiveRun,
    attempt: Attempt,
    started: Extract<EventBody, { type: 'step-started' | 'undo-started' }>,
  ): StepContext<unknown> {
    const record = (body: EventBody) => {
      if (run.attempt !== attempt || this.#state === 'closed') {
        throw new GodwitError(
          'JOURNAL_STEP_OVER',
          'this attempt of the step has ended; it can record nothing any more',
          {
            values: { runId: run.header.id, step: started.step },
            nextAction: 'A step must not leave work behind when it ends.',
          },
        );
      }
      try {
        this.#append(run, [body]);
      } catch (error) {
        if (isGodwitError(error)) attempt.appendError = error;
        throw error;
      }
    };
    return {
      runId: run.header.id,
      input: run.header.input,
      get output() {
        return run.history.output;
      },
      attempt: started.attempt,
      signal: attempt.controller.signal,
      calledOff: attempt.calledOff.signal,
      put: (values) => {
        const stored = jsonCopy(values) as Record<string, unknown>;
        if (!isIn(run.history.output, stored)) record({ type: 'put', step: started.step, values: stored });
      },
      waiting: (message, nextAction) => {
        const { reason } = run.history;
        if (reason?.message === message && reason.nextAction === nextAction) return;
        record({ type: 'waiting', step: started.step, message, nextAction });
      },
    };
  }

  #endOf(
    run: LiveRun,
    step: StepDefinition<unknown>,
    started: Extract<EventBody, { type: 'step-started' | 'undo-started' }>,
    failure: { error: unknown } | null,
  ): AttemptEnd {
    const place = { step: started.step, attempt: started.attempt };
    const undo = started.type === 'undo-started';
    if (!failure)
      return { body: { type: undo ? 'undo-finished' : 'step-succeeded', ...place }, handoff: null };
    const { error } = failure;
    if (error instanceof Handoff && !undo)
      return { body: { type: 'step-succeeded', ...place }, handoff: error };
    const wire = wireOf(error);
    const afterMs =
      (error instanceof Retry ? error.afterMs : undefined) ??
      backoffMs(run.header.steps[started.step]!, started.attempt, this.#random);
    const { retryAtMs, retryDueMs } = this.#after(afterMs);
    this.#logger.warn(
      {
        runId: run.header.id,
        kind: run.header.kind,
        step: step.name,
        undo,
        attempt: started.attempt,
        error: wire,
        err: error,
      },
      undo ? 'an undo failed' : 'a step failed',
    );
    if (undo)
      return { body: { type: 'undo-failed', ...place, error: wire, retryAtMs }, handoff: null, retryDueMs };
    // Past the point of no return nothing is undone: an Abort there is one more failure.
    const side = sideOf(run.history);
    // In the step of the point of no return only an Abort means that nothing has gone over.
    const isHopeless = isGodwitError(error) && error.retry === 'never' && side === 'before';
    const aborts = isHopeless || (error instanceof Abort && side !== 'past');
    const outcome = aborts ? 'abort' : error instanceof Unrecoverable ? 'unrecoverable' : 'retry';
    return {
      body: { type: 'step-failed', ...place, outcome, error: wire, retryAtMs },
      handoff: null,
      retryDueMs,
    };
  }

  /**
   * Writes how the attempt ended, and in the same append what follows from it where that is the start of a
   * step: a step costs one write to the disk, not three. When that fails, the attempt has failed; false until
   * the journal could be told.
   */
  #writeAttemptEnd(run: LiveRun, end: AttemptEnd): boolean {
    const { handoff } = end;
    const body = this.#dueAgain(end);
    try {
      // A run that is to be undone does not hand over any more.
      if (handoff && run.history.cancelReason === null && run.history.forced === null) {
        this.#handOff(run, body, handoff);
        run.pendingEnd = null;
      } else {
        const put = this.#putOf(run, end);
        const next = this.#state === 'open' ? startAfter(run, [...put, body], this.#now(run)) : null;
        this.#append(run, [...put, body, ...(next ? [next] : [])]);
        run.pendingEnd = null;
        if (next) this.#launch(run, next);
      }
      return true;
    } catch (error) {
      const appendFailed = isGodwitError(error, 'JOURNAL_APPEND_FAILED');
      if (!isGodwitError(error) || !(appendFailed || handoff)) throw error;
      run.pendingEnd = this.#asFailure(run, end, error);
      if (this.#state !== 'open') return false;
      if (!appendFailed) return this.#writeAttemptEnd(run, run.pendingEnd);
      this.#inTrouble(run, error);
      return false;
    }
  }

  /** The `put` of what a step returned, unless all of it is there already. */
  #putOf(run: LiveRun, { body, values }: AttemptEnd): EventBody[] {
    if (!values || body.type !== 'step-succeeded') return [];
    const stored = jsonCopy(values) as Record<string, unknown>;
    return isIn(run.history.output, stored) ? [] : [{ type: 'put', step: body.step, values: stored }];
  }

  #after(delayMs: number): { retryAtMs: number; retryDueMs: number } {
    return {
      retryAtMs: this.#clock.wallMs() + delayMs,
      retryDueMs: this.#clock.monotonicMs() + delayMs,
    };
  }

  /** By the wall clock of now, which the event is written down with. */
  #dueAgain({ body, retryDueMs }: AttemptEnd): EventBody {
    if (retryDueMs === undefined || !('retryAtMs' in body)) return body;
    const leftMs = Math.max(0, retryDueMs - this.#clock.monotonicMs());
    return { ...body, retryAtMs: this.#clock.wallMs() + leftMs };
  }

  /** The end of an attempt whose good end could not be written. */
  #asFailure(run: LiveRun, end: AttemptEnd, error: GodwitError): AttemptEnd {
    const { body } = end;
    if (body.type !== 'step-succeeded' && body.type !== 'undo-finished') return { ...end, handoff: null };
    const { step, attempt } = body;
    const { retryAtMs, retryDueMs } = this.#after(backoffMs(run.header.steps[step]!, attempt, this.#random));
    const failed = { step, attempt, error: error.toWire(), retryAtMs };
    if (body.type === 'undo-finished')
      return { body: { type: 'undo-failed', ...failed }, handoff: null, retryDueMs };
    return { body: { type: 'step-failed', outcome: 'retry', ...failed }, handoff: null, retryDueMs };
  }

  #handOff(run: LiveRun, succeeded: EventBody, handoff: Handoff): void {
    const header = this.#newHeader(handoff.kind, handoff.input, handoff.runId);
    const other = [...this.#live.values()].find(
      (each) => each !== run && each.header.resource === header.resource,
    );
    if (other) {
      throw resourceBusy(header.resource, { ...other.header, end_state: other.history.end?.state ?? null });
    }
    if (this.#find(header.id)) {
      throw new GodwitError('JOURNAL_RUN_CONFLICT', `run ${header.id} exists already`, {
        values: { runId: header.id },
        nextAction: 'Hand over to a run id that is not taken.',
      });
    }
    const started: JournalEvent = { sequence: 0, atMs: header.createdAtMs, body: { type: 'started' } };
    const handedOffTo = { runId: header.id, kind: header.kind };
    this.#append(
      run,
      [succeeded, { type: 'finished', state: 'done', error: null, holdsResource: false, handedOffTo }],
      {
        header,
        started,
      },
    );
    this.#begin(header, started);
  }

  /** #append, with a second try later where it fails; false then. */
  #tryAppend(run: LiveRun, bodies: readonly EventBody[]): boolean {
    try {
      this.#append(run, bodies);
      return true;
    } catch (error) {
      if (!isGodwitError(error, 'JOURNAL_APPEND_FAILED')) throw error;
      this.#inTrouble(run, error);
      return false;
    }
  }

  #inTrouble(run: LiveRun, error: GodwitError): void {
    if (!run.trouble)
      this.#logger.error({ runId: run.header.id, error: error.toWire() }, 'the journal cannot be written');
    run.trouble ??= { message: error.message, nextAction: error.nextAction, sinceMs: this.#clock.wallMs() };
    this.#wake(this.#view(run));
    run.cancelTimer = this.#clock.timer(APPEND_RETRY_MS, () => this.#schedule(run));
  }

  /** The one place where a run changes: first on disk, then in memory. */
  #append(
    run: LiveRun,
    bodies: readonly EventBody[],
    successor?: { header: RunHeader; started: JournalEvent },
  ): void {
    let history = run.history;
    const atMs = this.#clock.wallMs();
    const events: JournalEvent[] = [];
    for (const body of bodies) {
      const event = { sequence: history.lastSequence + 1, atMs, body };
      history = applyEvent(history, event);
      events.push(event);
    }
    this.#crashable(() => {
      for (const body of bodies) this.#reached(run.header, 'before', body);
      this.#store.append(run.header.id, events, successor);
      run.history = history;
      run.trouble = null;
      for (const body of bodies) this.#reached(run.header, 'after', body);
    });
    const over = history.end && !history.end.holdsResource;
    if (over) this.#live.delete(run.header.id);
    if (history.end) {
      const { state, error } = history.end;
      this.#logger.info({ runId: run.header.id, kind: run.header.kind, state, error }, 'a run is over');
    }
    for (const event of events) this.#notify(run, event);
    if (over) this.#prune();
  }

  #reached(header: RunHeader, when: 'before' | 'after', body: EventBody): void {
    const step = 'step' in body ? header.steps[body.step]!.name : 'run';
    this.#crashPoints.reached(`${header.kind}:${step}:${when}-${CRASH_POINT_OF_EVENT[body.type]}-append`);
  }

  /** A Crash ends this journal on the spot, wherever it is thrown. */
  #crashable(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (error instanceof Crash) this.#shut();
      throw error;
    }
  }

  #notify(run: LiveRun, event: JournalEvent): void {
    const view = this.#view(run);
    this.#wake(view);
    if (this.#listeners.size === 0) return;
    queueMicrotask(() => {
      for (const listener of this.#listeners) {
        try {
          listener(view, event);
        } catch (error) {
          this.#logger.error({ runId: view.id, err: error }, 'a listener of the journal threw');
        }
      }
    });
  }

  #wake(view: RunView): void {
    for (const waiter of [...(this.#waiters.get(view.id) ?? [])]) {
      if (isOver(view.state) || waiter.until(view)) waiter.resolve(view);
    }
  }

  #view(run: LiveRun): RunView {
    if (run.damage) return viewOfDamaged(run.header, run.damage, 'waiting', null);
    const { attempt, pace, history } = run;
    const view = viewOf(history, run.parked ?? run.trouble, {
      progress: attempt ? (pace?.progress ?? null) : null,
      asks: attempt?.questions.values().next().value ?? null,
    });
    return this.#withWayBack(view, history);
  }

  /** What is forgotten and may be taken up again says so. */
  #withWayBack(view: RunView, history: History | null): RunView {
    if (history === null || !this.#mayBeTakenUp(view.kind, history)) return view;
    const nextAction = `\`godwit runs force ${view.id} forward --yes\` takes it up again where it stood. Until then neither the rest of its steps nor their undos are run: check by hand that its resource is in order.`;
    return { ...view, error: { ...view.error!, nextAction } };
  }

  #find(id: string): RunView | null {
    const run = this.#live.get(id);
    if (run) return this.#view(run);
    this.#mustNotBeClosed();
    const remembered = this.#over.get(id);
    if (remembered) return remembered;
    const loaded = this.#store.load(id);
    if (!loaded) return null;
    const view = this.#withWayBack(viewOfLoaded(loaded), loaded.history);
    if (!loaded.holdsResource && !loaded.damage) this.#remember(view);
    return view;
  }

  /** A run that is over and holds nothing never changes. */
  #remember(view: RunView): void {
    const oldest = this.#over.size >= REMEMBERED_MAX ? this.#over.keys().next().value : undefined;
    if (oldest !== undefined) this.#over.delete(oldest);
    this.#over.set(view.id, view);
  }

  /** A long history that is all of age goes in pieces, with room for everybody else in between. */
  #prune(): void {
    if (this.#cancelPrune !== null || this.#state !== 'open') return;
    const nowMs = this.#clock.wallMs();
    try {
      const pruned = this.#store.prune(
        (kind) => nowMs - (this.#definitions.get(kind)?.keepMs ?? KEEP_MS_DEFAULT),
        { keepRuns: this.#keepRuns, keepNewest: this.#keepNewest, runsMax: PRUNE_RUNS_MAX },
      );
      for (const id of pruned) this.#over.delete(id);
      this.#prunedRuns += pruned.length;
      if (pruned.length < PRUNE_RUNS_MAX) {
        if (this.#prunedRuns > 0) this.#logger.info({ pruned: this.#prunedRuns }, 'old runs were pruned');
        this.#prunedRuns = 0;
        return;
      }
      this.#cancelPrune = this.#clock.timer(PAUSE.prune.ms, () => {
        this.#cancelPrune = null;
        this.#prune();
      });
    } catch (error) {
      this.#logger.warn({ err: error }, 'old runs could not be pruned; it is tried again after the next run');
    }
  }

  // ---- the end ----

  /**
   * A broken promise of this code, or a Crash: nothing more is written. The former also ends the process: its
   * next start resumes.
   */
  #die(error: unknown): void {
    this.#shut();
    if (error instanceof Crash) return;
    queueMicrotask(() => {
      throw error;
    });
  }

  #shut(): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    for (const run of this.#live.values()) run.cancelTimer?.();
    this.#cancelPrune?.();
    const error = closedError();
    for (const waiters of [...this.#waiters.values()])
      for (const waiter of [...waiters]) waiter.reject(error);
    this.#store.close();
  }

  // ---- conditions ----

  #mustBeOpen(): void {
    if (this.#state !== 'open') throw closedError();
  }

  #mustNotBeClosed(): void {
    if (this.#state === 'closed') throw closedError();
  }

  #mustBeLive(id: string): LiveRun {
    this.#mustBeOpen();
    const run = this.#live.get(id);
    if (run) return run;
    const { state } = this.get(id);
    throw new GodwitError('JOURNAL_RUN_OVER', `run ${id} is over: ${state}`, {
      values: { runId: id, state },
      nextAction: 'Nothing is left to change; start another run.',
    });
  }

  /** A run that was forgotten and may be taken up again; null: it is none such. */
  #forgotten(id: string): LiveRun | null {
    this.#mustBeOpen();
    if (this.#live.has(id)) return null;
    const loaded = this.#store.load(id);
    if (!loaded?.history || !this.#mayBeTakenUp(loaded.header.kind, loaded.history)) return null;
    return this.#adopt(loaded);
  }

  #mayBeTakenUp(kind: string, history: History): boolean {
    return this.#definitions.get(kind)?.takenUp === true && wasForgotten(history);
  }

  #mustNotBeParked(run: LiveRun): void {
    if (!run.parked) return;
    throw new GodwitError(
      'JOURNAL_RUN_PARKED',
      `run ${run.header.id} cannot go on here: ${run.parked.message}`,
      {
        values: { runId: run.header.id, kind: run.header.kind },
        nextAction: run.parked.nextAction,
      },
    );
  }

  #mustBeForget(run: LiveRun, how: string): void {
    if (how !== 'forget') this.#mustNotBeParked(run);
  }
}

function checkDefinition({ kind, steps }: RunDefinition<never>): void {
  const name = /^[a-z0-9][a-z0-9-]*$/;
  assert(name.test(kind), `kind ${kind} is not lower-case words with hyphens`);
  assert(steps.length > 0, `${kind} has no steps`);
  assert(new Set(steps.map((step) => step.name)).size === steps.length, `${kind} has two steps of one name`);
  assert(steps.filter((step) => step.pointOfNoReturn).length <= 1, `${kind} has two points of no return`);
  for (const step of steps) {
    assert(name.test(step.name) && step.name !== 'run', `step ${kind}:${step.name} has no proper name`);
    assert(
      step.quietMs > 0 && Number.isFinite(step.quietMs),
      `step ${kind}:${step.name} may be quiet for ever`,
    );
  }
}

function storedSteps({ steps }: RunDefinition<unknown>): StoredStep[] {
  return steps.map((step) => ({
    name: step.name,
    pointOfNoReturn: step.pointOfNoReturn ?? false,
    undo: step.undo !== undefined,
    deadlineMs: step.quietMs,
    ...(step.whenQuiet === 'wait' && { whenQuiet: step.whenQuiet }),
    retryInitialMs: step.retry?.initialMs ?? RETRY_DEFAULT.initialMs,
    retryMaxMs: step.retry?.maxMs ?? RETRY_DEFAULT.maxMs,
  }));
}

/**
 * A run waits as long as the code that carries it on says: what an earlier version called the deadline of a
 * step ended also one that advanced.
 */
function withPatienceOf(definition: RunDefinition<unknown>, header: RunHeader): RunHeader {
  const today = storedSteps(definition);
  const steps = header.steps.map(({ whenQuiet: _then, ...step }, index) => {
    const { deadlineMs, whenQuiet } = today[index]!;
    return { ...step, deadlineMs, ...(whenQuiet && { whenQuiet }) };
  });
  return { ...header, steps };
}

/**
 * Why a stored run cannot be carried on with this code, or null. Backoffs may differ: those of the start
 * hold.
 */
function misfitOf(header: RunHeader, definition: RunDefinition<unknown> | null): GodwitError | null {
  const nextAction = `Run the version of godwit that started run ${header.id} until it has ended, or put its resource in order by hand and force it with "forget".`;
  if (!definition) {
    return new GodwitError('JOURNAL_UNKNOWN_KIND', `this worker does not know runs of kind ${header.kind}`, {
      nextAction,
    });
  }
  const form = (steps: readonly StoredStep[]) =>
    steps.map((step) => `${step.name}${step.pointOfNoReturn ? '!' : ''}${step.undo ? '' : '*'}`).join(' ');
  const stored = form(header.steps);
  const known = form(storedSteps(definition));
  if (stored === known) return null;
  return new GodwitError(
    'JOURNAL_DEFINITION_CHANGED',
    `the steps of ${header.kind} have changed since the run started (then: ${stored}; now: ${known})`,
    { nextAction },
  );
}

function viewOfLoaded(loaded: LoadedRun): RunView {
  if (!loaded.damage) return viewOf(loaded.history);
  return viewOfDamaged(
    loaded.header,
    loaded.damage,
    loaded.holdsResource ? 'waiting' : 'failed',
    loaded.endedAtMs,
  );
}

function viewOfDamaged(
  header: RunHeader,
  damage: GodwitError,
  state: 'waiting' | 'failed',
  endedAtMs: number | null,
): RunView {
  const { message, nextAction } = damage;
  return {
    ...viewOf(newHistory(header)),
    state,
    step: null,
    reason: state === 'waiting' ? { message, nextAction, sinceMs: header.createdAtMs } : null,
    error: damage.toWire(),
    endedAtMs,
  };
}

function isOver(state: RunState): state is EndState {
  return state === 'done' || state === 'undone' || state === 'failed';
}

function wireOf(error: unknown): WireError {
  if (error instanceof Retry || error instanceof Abort || error instanceof Unrecoverable) return error.wire;
  return toWireError(error);
}

function unknownRun(id: string): GodwitError {
  return new GodwitError('JOURNAL_UNKNOWN_RUN', `no run ${id} in this journal`, {
    values: { runId: id },
    nextAction: 'Check the id and the worker; runs that ended long ago are pruned.',
  });
}

function closedError(): GodwitError {
  return new GodwitError('JOURNAL_CLOSED', 'the journal is closed: this worker is stopping', {
    nextAction: 'Ask again when the worker runs; open runs go on then.',
  });
}

function isIn(output: Readonly<Record<string, unknown>>, values: Readonly<Record<string, unknown>>): boolean {
  return Object.entries(values).every(
    ([key, value]) => Object.hasOwn(output, key) && canonical(output[key]) === canonical(value),
  );
}

/**
 * The start of a step or undo that `decide` asks for once `bodies` have happened, null when it asks for
 * something else.
 */
function startAfter(
  run: LiveRun,
  bodies: readonly EventBody[],
  now: Now,
): Extract<EventBody, { type: 'step-started' | 'undo-started' }> | null {
  let history = run.history;
  for (const body of bodies) {
    history = applyEvent(history, { sequence: history.lastSequence + 1, atMs: now.wallMs, body });
  }
  // The next step has not been quiet for a moment.
  const quiet = history.cursor === run.history.cursor ? now : { ...now, quietMs: 0, attemptQuietMs: 0 };
  const action = decide(history, quiet);
  if (action.type !== 'append') return null;
  return action.body.type === 'step-started' || action.body.type === 'undo-started' ? action.body : null;
}

/** What the database gives back for a value. */
function jsonCopy(value: unknown): unknown {
  const text = JSON.stringify(value);
  assert(text !== undefined, 'only JSON values go into the journal');
  return JSON.parse(text);
}

/** JSON with sorted keys, for comparison. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_key, each: unknown) =>
    typeof each === 'object' && each !== null && !Array.isArray(each)
      ? Object.fromEntries(Object.entries(each).sort(([a], [b]) => (a < b ? -1 : 1)))
      : each,
  );
}
