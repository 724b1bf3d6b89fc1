import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { TestContext } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { seededRandom } from '../../src/base/random.ts';
import type { Peer } from '../../src/contract/peer.ts';
import { Crash, type CrashPoints, noCrashPoints } from '../../src/journal/crash-points.ts';
import { Journal } from '../../src/journal/journal.ts';
import type { RunDefinition, RunView } from '../../src/journal/run.ts';
import { MoveInbox } from '../../src/migration/inbox.ts';
import { migrateIn, targetRunId } from '../../src/migration/migrate-in.ts';
import { MIGRATE_OUT, migrateOut } from '../../src/migration/migrate-out.ts';
import { type Override, Overrides } from '../../src/migration/overrides.ts';
import { ReceiptBook } from '../../src/migration/receipt-book.ts';
import type { SourceSide } from '../../src/migration/source-side.ts';
import { TargetAnswers } from '../../src/migration/target-answers.ts';
import { MoveWorld } from './move-world.ts';
import { patient } from './patience.ts';
import { scratchDir } from './scratch.ts';
import { newWorkerKey } from './worker-keys.ts';

/**
 * Both workers of a move over the model of test/support/move-world.ts, each with a journal on disk that
 * outlives its "process".
 */
export class MovePair {
  readonly world = new MoveWorld();
  readonly #dir: string;
  readonly #inboxDatabase: DatabaseSync;
  source!: Journal;
  target!: Journal;
  #targetAnswers!: TargetAnswers;
  readonly #keys = { source: newWorkerKey(), target: newWorkerKey() };
  sourceReceipts!: ReceiptBook;
  targetReceipts!: ReceiptBook;
  inbox!: MoveInbox;
  /** Calls to the target whose answer gets lost, once each. */
  readonly loseAnswersOf = new Set<string>();

  /** `before`: what is in the folder when the two workers start. */
  constructor(
    t: TestContext,
    crashPoints: { source?: CrashPoints; target?: CrashPoints } = {},
    before: (pair: MovePair, dir: string) => void = () => {},
  ) {
    this.#dir = scratchDir(t);
    this.#inboxDatabase = new DatabaseSync(join(this.#dir, 'inbox.sqlite'));
    this.sourceReceipts = new ReceiptBook(new DatabaseSync(':memory:'));
    this.targetReceipts = new ReceiptBook(this.#inboxDatabase);
    this.inbox = new MoveInbox(this.#inboxDatabase, systemClock);
    before(this, this.#dir);
    this.openTarget(crashPoints.target ?? noCrashPoints);
    this.openSource(crashPoints.source ?? noCrashPoints);
    this.world.sourceRunState = () => this.#run(this.source);
    t.after(async () => {
      await this.source.close({ graceMs: 100 });
      await this.target.close({ graceMs: 100 });
      this.#inboxDatabase.close();
    });
  }

  openSource(crashPoints: CrashPoints = noCrashPoints, source: SourceSide = this.world.sourceSide): void {
    const { peer } = this;
    const definition = migrateOut({
      source,
      peers: () => (this.peerIsRemoved ? [] : [peer]),
      clock: systemClock,
      key: this.#keys.source,
      receipts: this.sourceReceipts,
      worker: { name: 'w1', url: 'model:' },
      retentionMs: 1000,
      handoffPatienceMs: 50,
    });
    this.source = this.#open('source', quick(definition), crashPoints);
  }

  openTarget(crashPoints: CrashPoints = noCrashPoints, keepMs?: number): void {
    const inbox = new MoveInbox(this.#inboxDatabase, systemClock);
    const definition = migrateIn({
      target: this.world.targetSide,
      inbox,
      receipts: this.targetReceipts,
      clock: systemClock,
      sourceProbeMs: 20,
    });
    const kept = quick(definition);
    const target = this.#open('target', keepMs === undefined ? kept : { ...kept, keepMs }, crashPoints);
    this.target = target;
    this.inbox = inbox;
    const targetAnswers = this.targetAnswersOf(inbox);
    target.subscribe((run) => void targetAnswers.noteEnd(run));
    this.#targetAnswers = targetAnswers;
  }

  targetAnswersOf(inbox: MoveInbox): TargetAnswers {
    return new TargetAnswers({
      journal: this.target,
      inbox,
      target: this.world.targetSide,
      clock: systemClock,
      worker: 'w2',
      key: this.#keys.target,
      receipts: this.targetReceipts,
      handoffHoldMs: 100,
    });
  }

  /** The target's journal forgets all that is over, as it does after 30 days or 10,000 runs. */
  async forgetTargetRuns(): Promise<void> {
    await this.target.close({ graceMs: 100 });
    this.openTarget(noCrashPoints, -60_000);
  }

  get peer(): Peer {
    return this.world.peer(
      () => this.#targetAnswers,
      (call) => this.loseAnswersOf.delete(call),
    );
  }

  /** An operator's override at the source. */
  force(how: Override['how'], targetIsDestroyed = false): Promise<RunView> {
    const { source: journal, targetAnswers, peer } = this;
    const overrides = new Overrides({ journal, targetAnswers, peers: () => [peer], clock: systemClock });
    return overrides.force('run1', { how, targetIsDestroyed, by: 'a test' });
  }

  /**
   * Resolves when the source has handed over and the target, which has the volume open, goes on no further.
   */
  async heldAtTheTarget(): Promise<void> {
    let boots = false;
    const { boot } = this.world.targetSide;
    this.world.targetSide.boot = async (...args) => {
      if (!boots) throw new Error('it does not boot yet');
      await boot(...args);
    };
    this.letBoot = () => {
      boots = true;
    };
    this.start();
    await this.source.wait('run1', { timeoutMs: patient(20_000), until: ({ step }) => step === 'settle' });
  }

  letBoot: () => void = () => {};
  /** The source's worker was started without the target among its peers. */
  peerIsRemoved = false;

  get targetAnswers(): TargetAnswers {
    return this.#targetAnswers;
  }

  start(): RunView {
    return this.source.start(
      MIGRATE_OUT,
      { machineId: 'm_1', targetWorker: null, requestedBy: 'test' },
      { runId: 'run1' },
    );
  }

  async sourceEnd(): Promise<RunView> {
    return this.source.wait('run1', { timeoutMs: patient(20_000) });
  }

  async targetEnd(): Promise<RunView> {
    return this.target.wait(targetRunId('run1'), { timeoutMs: patient(20_000) });
  }

  /** Waits until the journal has died of a Crash, then opens it again and lets it go on. */
  async reopen(side: 'source' | 'target', died: Promise<void>): Promise<void> {
    await died;
    await this[side].close({ graceMs: 100 }).catch(() => {});
    if (side === 'source') this.openSource();
    else this.openTarget();
  }

  #open(name: string, definition: RunDefinition<never>, crashPoints: CrashPoints): Journal {
    const journal = new Journal({
      database: join(this.#dir, `${name}.sqlite`),
      clock: systemClock,
      random: seededRandom(1),
      logger: silentLogger,
      definitions: [definition],
      keepNewest: 0,
      crashPoints,
    });
    journal.resume();
    return journal;
  }

  #run(journal: Journal): { state: string } | null {
    try {
      return journal.get('run1');
    } catch {
      return null;
    }
  }
}

/** The same run with retries that do not make a test wait. */
function quick<Input>(definition: RunDefinition<Input>): RunDefinition<never> {
  return {
    ...definition,
    steps: definition.steps.map((step) => ({ ...step, retry: { initialMs: 1, maxMs: 20 } })),
  } as RunDefinition<never>;
}

/** Dies at the named point, once. */
export function crashAt(name: string): { points: CrashPoints; died: Promise<void>; reached: () => boolean } {
  let resolveDied!: () => void;
  const died = new Promise<void>((resolve) => {
    resolveDied = resolve;
  });
  let done = false;
  return {
    died,
    reached: () => done,
    points: {
      reached(point) {
        if (done || point !== name) return;
        done = true;
        resolveDied();
        throw new Crash(name);
      },
    },
  };
}
