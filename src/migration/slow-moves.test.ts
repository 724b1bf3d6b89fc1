import assert from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import { type TestContext, test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { ModelPeer, MoveWorld } from '../../test/support/move-world.ts';
import { newWorkerKey } from '../../test/support/worker-keys.ts';
import { AnswerTime } from '../base/answer-time.ts';
import { GodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { PATIENCE } from '../base/patience.ts';
import { advanced } from '../base/progress.ts';
import { seededRandom } from '../base/random.ts';
import { whileAlive } from '../base/while-alive.ts';
import { Journal } from '../journal/journal.ts';
import type { RunDefinition, RunView } from '../journal/run.ts';
import { MoveInbox } from './inbox.ts';
import { migrateIn, targetRunId } from './migrate-in.ts';
import { MIGRATE_OUT, migrateOut } from './migrate-out.ts';
import { ReceiptBook } from './receipt-book.ts';
import { TargetAnswers } from './target-answers.ts';

/**
 * Moves on a virtual clock, on hosts where everything takes `factor` times as long as on a quick one, or
 * something hangs.
 */

/** On a quick host, in milliseconds. What is not here takes `OTHER_MS`. */
const USUAL_MS: Readonly<Record<string, number>> = {
  describe: 200,
  openExport: 1_000,
  syncEarly: 20_000,
  stop: 3_000,
  seal: 5_000,
  createVolume: 2_000,
  attachStandby: 8_000,
  activate: 300,
  boot: 4_000,
};
const OTHER_MS = 50;
const CALL_MS = 20;
/** Shims and volume servers are asked so often how they are, while they do something. */
const ANSWER_EVERY_MS = 5_000;

class SlowPair {
  readonly clock = new FakeClock();
  readonly world = new MoveWorld();
  readonly source: Journal;
  readonly target: Journal;
  /** What hangs, without a word, until it is let go: a method of a side, or `peer`. */
  readonly #hung = new Map<string, PromiseWithResolvers<void>>();
  readonly #factor: number;

  constructor(t: TestContext, factor: number) {
    this.#factor = factor;
    const { clock, world } = this;
    const database = new DatabaseSync(':memory:');
    const inbox = new MoveInbox(database, clock);
    const receipts = {
      source: new ReceiptBook(new DatabaseSync(':memory:')),
      target: new ReceiptBook(database),
    };
    const target = this.#slow(world.targetSide);
    this.target = this.#open(
      migrateIn({ target, inbox, receipts: receipts.target, clock }) as RunDefinition<never>,
    );
    const targetAnswers = new TargetAnswers({
      ...{ journal: this.target, inbox, target, clock, worker: 'w2' },
      ...{ key: newWorkerKey(), receipts: receipts.target },
    });
    const peer = this.#slowPeer(world.peer(() => targetAnswers));
    this.source = this.#open(
      migrateOut({
        ...{ source: this.#slow(world.sourceSide), peers: () => [peer], clock, key: newWorkerKey() },
        ...{ receipts: receipts.source, worker: { name: 'w1', url: 'model:' }, retentionMs: 1000 },
      }) as RunDefinition<never>,
    );
    world.sourceRunState = () => this.source.find({ kind: MIGRATE_OUT })[0] ?? null;
    t.after(async () => {
      this.letGo();
      await clock.runUntil(
        Promise.all([this.source.close({ graceMs: 1 }), this.target.close({ graceMs: 1 })]),
      );
    });
  }

  start(): RunView {
    const input = { machineId: 'm_1', targetWorker: null, requestedBy: 'test' };
    return this.source.start(MIGRATE_OUT, input, { runId: 'run1' });
  }

  hang(what: string): void {
    this.#hung.set(what, Promise.withResolvers());
  }

  letGo(): void {
    for (const { resolve } of this.#hung.values()) resolve();
    this.#hung.clear();
  }

  end(journal: Journal, id = 'run1'): Promise<RunView> {
    return this.clock.runUntil(journal.wait(id));
  }

  /** Lets a lot of time pass, in which the run is to wait. */
  async wait(ms: number): Promise<RunView> {
    await this.clock.run(ms);
    return this.source.get('run1');
  }

  #open(definition: RunDefinition<never>): Journal {
    const journal = new Journal({
      database: new DatabaseSync(':memory:'),
      ...{ clock: this.clock, random: seededRandom(1), logger: silentLogger, definitions: [definition] },
    });
    journal.resume();
    return journal;
  }

  /** Each method takes its time, and answers meanwhile, as whoever does the work on a real host. */
  #slow<Side extends object>(side: Side): Side {
    const at = (name: string) => (side as Record<string, (...args: unknown[]) => Promise<unknown>>)[name]!;
    return Object.fromEntries(
      Object.keys(side).map((name) => [
        name,
        async (...args: unknown[]) => {
          await this.#hung.get(name)?.promise;
          let leftMs = (USUAL_MS[name] ?? OTHER_MS) * this.#factor;
          for (; leftMs > 0; leftMs -= ANSWER_EVERY_MS) {
            await this.clock.sleep(Math.min(leftMs, ANSWER_EVERY_MS));
            advanced('answers of the shim');
          }
          return at(name)(...args);
        },
      ]),
    ) as Side;
  }

  /** As api/peer-client.ts: a call lasts while its worker answers. */
  #slowPeer(peer: ModelPeer): ModelPeer {
    const times = new AnswerTime({ floorMs: PATIENCE.peerAnswer.ms, ceilingMs: PATIENCE.peerAnswerMax.ms });
    const answer = async (signal: AbortSignal) => {
      const hung = this.#hung.get('peer')?.promise;
      if (hung !== undefined) await Promise.race([hung, aborted(signal)]);
      await this.clock.sleep(CALL_MS * this.#factor, signal);
    };
    return new ModelPeer((name, args, { signal }) =>
      whileAlive((stop) => answer(stop).then(() => peer.answer(name, args, {})), {
        who: 'w2',
        ask: answer,
        times,
        questionsMax: 3,
        pauseMs: 1_000,
        clock: this.clock,
        signal,
        silent: () =>
          new GodwitError('API_UNREACHABLE', 'w2 answers nothing', {
            values: { delivered: 'unknown' },
            nextAction: 'wait',
          }),
      }),
    );
  }
}

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
}

/** Types of event of a run that say that something was undone or tried once more. */
function setbacks(journal: Journal, id: string): string[] {
  const bad = new Set(['undoing', 'step-failed', 'overdue']);
  return journal.events(id).flatMap(({ body }) => (bad.has(body.type) ? [body.type] : []));
}

for (const factor of [1, 10, 100]) {
  test(`everything takes ${factor} times as long: the move takes its time, and nothing is undone or begun again`, async (t) => {
    const pair = new SlowPair(t, factor);
    pair.start();
    const end = await pair.end(pair.source);
    assert.equal(end.state, 'done', end.error?.message);
    assert.equal((await pair.end(pair.target, targetRunId('run1'))).state, 'done');
    pair.world.assertMoved();
    assert.deepEqual(setbacks(pair.source, 'run1'), []);
    assert.deepEqual(setbacks(pair.target, targetRunId('run1')), []);
    assert.equal(pair.world.calls.filter((call) => call === 'stop').length, 1);
    assert.ok(pair.clock.monotonicMs() >= 40_000 * factor, `${pair.clock.monotonicMs()} ms`);
  });
}

test('a target that hangs wholly before the stop: the move ends with the reason, and the machine was never stopped', async (t) => {
  const pair = new SlowPair(t, 1);
  pair.start();
  await pair.clock.runUntil(pair.source.wait('run1', { until: ({ step }) => step === 'prepare' }));
  pair.hang('peer');
  const end = await pair.end(pair.source);
  assert.deepEqual([end.state, end.error?.code], ['undone', 'JOURNAL_STEP_QUIET']);
  assert.match(end.error!.message, /nothing advanced in step prepare for 120 s; last: .*w2 answers nothing/);
  pair.world.assertUndone();
  assert.ok(!pair.world.calls.includes('stop'));
});

test('a sync that does nothing ends the move, one that does a little for an hour does not', async (t) => {
  const pair = new SlowPair(t, 1);
  pair.hang('syncEarly');
  pair.start();
  await pair.clock.run(3_600_000);
  assert.match(
    pair.source.get('run1').reason!.message,
    /nothing advances in step sync, which was told to stop/,
  );
  pair.letGo();
  // It ended well after all: then that is what counts.
  assert.equal((await pair.end(pair.source)).state, 'done');
});

for (const [what, message] of [
  ['stop', /db is stopping|nothing advances in step stop/],
  ['seal', /nothing advances in step seal/],
  ['releaseExport', /nothing advances in step open/],
] as const) {
  test(`${what} hangs while the machine is stopped: the run waits with a reason and is not undone`, async (t) => {
    const pair = new SlowPair(t, 1);
    pair.hang(what);
    pair.start();
    const waiting = await pair.wait(7_200_000);
    assert.equal(waiting.state, 'waiting');
    assert.match(waiting.reason!.message, message);
    assert.deepEqual(
      pair.source.events('run1').filter(({ body }) => body.type === 'undoing'),
      [],
    );
    pair.letGo();
    assert.equal((await pair.end(pair.source)).state, 'done');
    pair.world.assertMoved();
  });
}

test('the target boots for half an hour: the source waits, and says for what', async (t) => {
  const pair = new SlowPair(t, 1);
  pair.hang('boot');
  pair.start();
  await pair.clock.runUntil(pair.source.wait('run1', { until: ({ step }) => step === 'settle' }));
  for (let look = 0; look < 3; look++) {
    const { state, reason } = await pair.wait(600_000);
    assert.equal(state, 'waiting');
    assert.match(reason!.message, /w2 boots the machine/);
  }
  pair.letGo();
  assert.equal((await pair.end(pair.source)).state, 'done');
  pair.world.assertMoved();
});

test('something holds the device of the stopped machine: it runs again at once, without waiting for that', async (t) => {
  const pair = new SlowPair(t, 1);
  pair.world.sourceSide.seal = async () => {
    throw new GodwitError('MACHINE_DEVICE_HELD', '/dev/loop3 is held by pid 4711', {
      nextAction: 'end it',
      retry: 'never',
    });
  };
  pair.start();
  const end = await pair.end(pair.source);
  assert.deepEqual([end.state, end.error?.code], ['undone', 'MACHINE_DEVICE_HELD']);
  pair.world.assertUndone();
  const step = (name: string) => end.steps.find((each) => each.name === name)!;
  assert.equal(step('seal').attempts, 1);
  assert.ok(
    step('stop').endedAtMs! - step('seal').startedAtMs! < 10_000,
    'the machine was down for a moment',
  );
});

test('what the target lacks ends the move at the first try, and both sides say so; what may pass is tried again', async (t) => {
  for (const retry of ['never', 'later'] as const) {
    const pair = new SlowPair(t, 1);
    let attempts = 0;
    const { attachStandby } = pair.world.targetSide;
    pair.world.targetSide.attachStandby = async (input) => {
      attempts += 1;
      if (attempts > 3) return attachStandby(input);
      throw new GodwitError('HOST_LACKS_IT', 'no such thing here', { nextAction: 'add it', retry });
    };
    pair.start();
    const end = await pair.end(pair.source);
    if (retry === 'later') {
      assert.deepEqual([end.state, attempts], ['done', 4]);
      continue;
    }
    assert.deepEqual([end.state, attempts], ['undone', 1]);
    const { code, message, nextAction } = end.error!;
    assert.deepEqual([code, nextAction, end.error?.retry], ['MIGRATION_TARGET_FORGOT', 'add it', 'never']);
    assert.match(message, /no such thing here/);
    const inside = await pair.end(pair.target, targetRunId('run1'));
    assert.deepEqual([inside.state, inside.error?.code], ['undone', 'HOST_LACKS_IT']);
  }
});
