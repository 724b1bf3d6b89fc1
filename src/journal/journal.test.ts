import assert from 'node:assert/strict';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { type TestContext, test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { advanced, asks, lives, progressText } from '../base/progress.ts';
import { seededRandom } from '../base/random.ts';
import { Crash } from './crash-points.ts';
import { Journal, type JournalOptions } from './journal.ts';
import { Abort, Handoff, Retry, Unrecoverable } from './outcome.ts';
import type { RunDefinition, StepContext, StepDefinition } from './run.ts';

type Input = { machine: string; [key: string]: unknown };
type Do = (context: StepContext<Input>) => Promise<void> | void;

/** A fleet of one: a database that outlives journals, a clock, and a record of all that steps did. */
class Bench {
  readonly clock = new FakeClock();
  readonly path: string;
  readonly did: string[] = [];
  #open: Journal[] = [];

  constructor(t: TestContext) {
    this.path = join(scratchDir(t), 'journal.sqlite');
    t.after(async () => {
      for (const journal of this.#open) await this.clock.runUntil(journal.close());
    });
  }

  /** A journal on this bench's database; an earlier one must be closed. */
  journal(
    definitions: RunDefinition<Input>[],
    options: Partial<Pick<JournalOptions, 'crashPoints' | 'keepRuns' | 'keepNewest' | 'database'>> = {},
  ): Journal {
    const journal = new Journal({
      database: this.path,
      clock: this.clock,
      random: seededRandom(7),
      logger: silentLogger,
      definitions: definitions as RunDefinition<never>[],
      ...options,
    });
    this.#open.push(journal);
    return journal;
  }

  /** A step that notes its do and undo and is undone without trouble. */
  step(name: string, work: Do = () => {}, more: Partial<StepDefinition<Input>> = {}): StepDefinition<Input> {
    return {
      name,
      quietMs: 60_000,
      do: async (context) => {
        this.did.push(name);
        await work(context);
      },
      undo: async () => {
        this.did.push(`undo ${name}`);
      },
      ...more,
    };
  }

  end(journal: Journal, id: string) {
    return this.clock.runUntil(journal.wait(id));
  }
}

const kindOf = (kind: string, ...steps: StepDefinition<Input>[]): RunDefinition<Input> => ({
  kind,
  resource: ({ machine }) => `machine:${machine}`,
  steps,
});

const code = (expected: string) => (error: unknown) => isGodwitError(error, expected);

/** Never ends by itself; ends in the reason of its signal. */
const hang: Do = ({ signal }) =>
  new Promise((_resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  });

const never = (): never => {
  throw new Error('not now');
};

test('a run goes through its steps, puts what they find, and ends', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([
    kindOf(
      'move',
      bench.step('one', ({ put, input }) => put({ from: input.machine })),
      bench.step('two', ({ put, output }) => put({ seen: output.from })),
    ),
  ]);
  const events: string[] = [];
  journal.subscribe((_run, event) => events.push(event.body.type));
  const started = journal.start('move', { machine: 'a' });
  assert.equal(started.state, 'running');
  assert.deepEqual(bench.did, [], 'start returns before the first step');
  const run = await bench.end(journal, started.id);
  assert.equal(run.state, 'done');
  assert.deepEqual(run.output, { from: 'a', seen: 'a' });
  assert.deepEqual(
    run.steps.map((step) => step.state),
    ['done', 'done'],
  );
  await bench.clock.settle();
  assert.deepEqual(events, [
    'started',
    'step-started',
    'put',
    'step-succeeded',
    'step-started',
    'put',
    'step-succeeded',
    'finished',
  ]);
  assert.deepEqual(journal.get(run.id), run, 'the view from disk is the view from memory');
});

test('start with a run id is idempotent, and refuses another input', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([kindOf('move', bench.step('one'))]);
  journal.start('move', { machine: 'a', x: 1, y: 2 }, { runId: 'r_1' });
  assert.equal(journal.start('move', { y: 2, machine: 'a', x: 1 }, { runId: 'r_1' }).id, 'r_1');
  await bench.end(journal, 'r_1');
  assert.equal(journal.start('move', { machine: 'a', x: 1, y: 2 }, { runId: 'r_1' }).state, 'done');
  assert.throws(
    () => journal.start('move', { machine: 'a', x: 2 }, { runId: 'r_1' }),
    code('JOURNAL_RUN_CONFLICT'),
  );
  assert.throws(() => journal.start('fly', { machine: 'a' }), code('JOURNAL_UNKNOWN_KIND'));
  assert.deepEqual(bench.did, ['one']);
});

// ---- the eight defects of another FSM library; docs/journal.md lists them ----

test('defect 1: after a restart, two live runs of one kind do not share completed steps', async (t) => {
  const bench = new Bench(t);
  const steps = (stuck: boolean) =>
    kindOf(
      'move',
      bench.step('one', ({ input }) => void bench.did.push(`one ${input.machine}`)),
      bench.step('two', ({ input, signal }) => {
        if (stuck && input.machine === 'a') return hang({ signal } as StepContext<Input>);
        bench.did.push(`two ${input.machine}`);
      }),
      bench.step('three', ({ input }) => (stuck ? never() : void bench.did.push(`three ${input.machine}`))),
    );
  const first = bench.journal([steps(true)]);
  first.start('move', { machine: 'a' }, { runId: 'a' });
  first.start('move', { machine: 'b' }, { runId: 'b' });
  await bench.clock.run(10);
  assert.equal(first.get('a').step, 'two');
  assert.equal(first.get('b').step, 'three');
  await bench.clock.runUntil(first.close());

  bench.did.length = 0;
  const second = bench.journal([steps(false)]);
  second.resume();
  await bench.end(second, 'a');
  await bench.end(second, 'b');
  const own = (machine: string) => bench.did.filter((each) => each.endsWith(` ${machine}`));
  assert.deepEqual(own('a'), ['two a', 'three a']);
  assert.deepEqual(own('b'), ['three b']);
});

test('defect 2: kinds do not resume each other; unknown kinds and steps wait and are never recorded complete', async (t) => {
  const bench = new Bench(t);
  const stop = (...names: string[]) => kindOf('stop', ...names.map((name) => bench.step(name)));
  const first = bench.journal([
    kindOf('stop', bench.step('halt', never)),
    kindOf('move', bench.step('go', never)),
  ]);
  first.start('stop', { machine: 'a' }, { runId: 'a' });
  first.start('move', { machine: 'b' }, { runId: 'b' });
  await bench.clock.run(10);
  await bench.clock.runUntil(first.close());

  bench.did.length = 0;
  const second = bench.journal([stop('halt', 'report')]);
  second.resume();
  await bench.clock.run(600_000);
  assert.deepEqual(bench.did, []);
  for (const id of ['a', 'b']) assert.equal(second.get(id).state, 'waiting');
  assert.match(second.get('a').reason!.message, /steps of stop have changed/);
  assert.match(second.get('b').reason!.message, /does not know runs of kind move/);
  assert.ok(
    second.events('a').every(({ body }) => body.type !== 'step-succeeded' && body.type !== 'finished'),
  );
  assert.throws(() => second.cancel('a', 'x'), code('JOURNAL_RUN_PARKED'));
  assert.throws(() => second.force('a', 'forward', 'me'), code('JOURNAL_RUN_PARKED'));
  assert.equal(second.force('a', 'forget', 'me').state, 'failed');
  await bench.clock.runUntil(second.close());

  const third = bench.journal([stop('halt'), kindOf('move', bench.step('go'))]);
  third.resume();
  // The deadline ran on while nobody knew the kind: 60 s of it are over.
  assert.equal((await bench.end(third, 'b')).error?.code, 'JOURNAL_STEP_QUIET');
  assert.deepEqual(bench.did, ['undo go']);
});

test('defect 3: an append that fails is a step that failed; the next step does not run', async (t) => {
  const bench = new Bench(t);
  const database = new DatabaseSync(':memory:');
  t.after(() => database.close());
  const journal = bench.journal(
    [
      kindOf(
        'move',
        bench.step('one'),
        bench.step('two', ({ put }) => {
          try {
            put({ x: 1 });
          } catch {
            // A step that swallows it has failed all the same.
          }
        }),
      ),
    ],
    { database },
  );
  const refuse = (type: string) =>
    database.exec(
      `CREATE TRIGGER full BEFORE INSERT ON events WHEN NEW.type = '${type}' BEGIN SELECT RAISE(ABORT, 'disk full'); END`,
    );
  const allow = () => database.exec('DROP TRIGGER full');

  refuse('step-succeeded');
  journal.start('move', { machine: 'a' }, { runId: 'a' });
  await bench.clock.run(2_000);
  assert.ok(!bench.did.includes('two'));
  assert.ok(bench.did.length > 1, 'the step was tried again');
  assert.equal(journal.get('a').reason!.message, 'the journal could not be written: disk full');
  assert.ok(
    journal
      .events('a')
      .some(({ body }) => body.type === 'step-failed' && body.error.code === 'JOURNAL_APPEND_FAILED'),
  );
  allow();
  refuse('step-started');
  bench.did.length = 0;
  await bench.clock.run(5_000);
  assert.equal(bench.did.length, 0, 'no step runs without its start on disk');
  assert.equal(journal.get('a').state, 'waiting');
  allow();
  refuse('put');
  await bench.clock.run(5_000);
  assert.ok(bench.did.includes('two'));
  assert.equal(journal.get('a').state, 'waiting');
  allow();
  assert.equal((await bench.end(journal, 'a')).output.x, 1);

  refuse('started');
  assert.throws(() => journal.start('move', { machine: 'b' }, { runId: 'b' }), code('JOURNAL_APPEND_FAILED'));
  assert.throws(() => journal.get('b'), code('JOURNAL_UNKNOWN_RUN'));
});

test('defect 4: attempts and deadline survive restarts, a step has a deadline, and there is an undo', async (t) => {
  const bench = new Bench(t);
  const attempts: number[] = [];
  const definition = kindOf(
    'move',
    bench.step('one'),
    bench.step(
      'two',
      ({ attempt }) => {
        attempts.push(attempt);
        throw new Error('always the same text');
      },
      { quietMs: 30_000, retry: { initialMs: 4_000, maxMs: 4_000 } },
    ),
  );
  const atMs = bench.clock.wallMs();
  for (let restart = 0; restart < 20; restart++) {
    const journal = bench.journal([definition]);
    if (restart === 0) journal.start('move', { machine: 'a' }, { runId: 'a' });
    else journal.resume();
    await bench.clock.run(3_000);
    if (restart === 4) assert.equal(journal.get('a').steps[1]!.attempts, attempts.at(-1));
    await bench.clock.runUntil(journal.close());
  }
  assert.deepEqual(
    attempts,
    attempts.map((_, index) => index + 1),
    'each attempt has its own number',
  );
  assert.ok(
    attempts.length >= 7 && attempts.length <= 15,
    `${attempts.length} attempts in 30 s, 2 to 4 s apart`,
  );
  const run = bench.journal([definition]).get('a');
  assert.equal(run.state, 'undone');
  assert.equal(run.error?.code, 'JOURNAL_STEP_QUIET');
  assert.equal(run.endedAtMs, atMs + 30_000);
  assert.deepEqual(bench.did.slice(-2), ['undo two', 'undo one']);
});

test('defect 5: stop and migrate of one machine cannot run together', async (t) => {
  const bench = new Bench(t);
  const database = new DatabaseSync(':memory:');
  t.after(() => database.close());
  const journal = bench.journal(
    [kindOf('move', bench.step('go', hang)), kindOf('stop', bench.step('halt'))],
    { database },
  );
  journal.start('move', { machine: 'a' }, { runId: 'a' });
  assert.throws(
    () => journal.start('stop', { machine: 'a' }),
    (error) =>
      error instanceof GodwitError &&
      error.code === 'JOURNAL_RESOURCE_BUSY' &&
      error.values.runId === 'a' &&
      error.values.kind === 'move',
  );
  assert.throws(
    () =>
      database.exec(
        "INSERT INTO runs (id, kind, resource, input, steps, created_at_ms) VALUES ('x', 'stop', 'machine:a', '{}', '[]', 0)",
      ),
    /UNIQUE/,
    'the table itself refuses it too',
  );
  const other = journal.start('stop', { machine: 'b' });
  assert.equal((await bench.end(journal, other.id)).state, 'done');
  journal.cancel('a', 'test');
  await bench.end(journal, 'a');
  assert.equal((await bench.end(journal, journal.start('stop', { machine: 'a' }).id)).state, 'done');
});

test('defect 6: parallel starts share nothing', async (t) => {
  const bench = new Bench(t);
  const definition = (kind: string) =>
    kindOf(
      kind,
      bench.step('mark', async ({ put, input, runId }) => {
        await bench.clock.sleep(Number(input.delayMs));
        put({ parent: input.parent, queue: input.queue, runId });
      }),
      bench.step('compare', async ({ output, input, runId }) => {
        await bench.clock.sleep(3);
        assert.deepEqual(output, { parent: input.parent, queue: input.queue, runId });
      }),
    );
  const journal = bench.journal([definition('move'), definition('stop')]);
  const runs = Array.from({ length: 40 }, (_, index) =>
    journal.start(
      index % 3 === 0 ? 'stop' : 'move',
      { machine: `m${index}`, parent: `p${index}`, queue: `q${index % 4}`, delayMs: (index * 7) % 11 },
      index % 2 === 0 ? { runId: `own-${index}` } : {},
    ),
  );
  const ended = await Promise.all(runs.map(({ id }) => bench.end(journal, id)));
  for (const [index, run] of ended.entries()) {
    assert.equal(run.state, 'done');
    assert.equal(run.steps[1]!.attempts, 1);
    assert.deepEqual(run.output, { parent: `p${index}`, queue: `q${index % 4}`, runId: run.id });
  }
});

test('defect 7: waiting for an unknown run is an error, and so is waiting too long', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([kindOf('move', bench.step('go', hang))]);
  await assert.rejects(journal.wait('r_none'), code('JOURNAL_UNKNOWN_RUN'));
  assert.throws(() => journal.get('r_none'), code('JOURNAL_UNKNOWN_RUN'));
  assert.throws(() => journal.cancel('r_none', 'x'), code('JOURNAL_UNKNOWN_RUN'));
  const { id } = journal.start('move', { machine: 'a' });
  await assert.rejects(
    bench.clock.runUntil(journal.wait(id, { timeoutMs: 50 })),
    code('JOURNAL_WAIT_TIMEOUT'),
  );
  const early = await bench.clock.runUntil(journal.wait(id, { until: (run) => run.step === 'go' }));
  assert.equal(early.state, 'running');
  const waiting = journal.wait(id);
  await bench.clock.runUntil(Promise.all([journal.close(), assert.rejects(waiting, code('JOURNAL_CLOSED'))]));
});

test('defect 8: history is pruned by age and by count, never what holds a resource', async (t) => {
  const bench = new Bench(t);
  const day = 24 * 60 * 60 * 1000;
  const definitions = [
    { ...kindOf('short', bench.step('go')), keepMs: day },
    kindOf('long', bench.step('go')),
    kindOf(
      'stuck',
      bench.step(
        'go',
        () => {
          throw new Unrecoverable(new Error('dead'), 'system');
        },
        { pointOfNoReturn: true },
      ),
    ),
  ];
  const journal = bench.journal(definitions, { keepRuns: 3, keepNewest: 0 });
  const run = async (kind: string, id: string) => {
    await bench.end(journal, journal.start(kind, { machine: id }, { runId: id }).id);
  };
  const ids = () => journal.find().map(({ id }) => id);
  await run('stuck', 's');
  await run('short', 'a');
  await run('long', 'b');
  await bench.clock.run(2 * day);
  await run('long', 'c');
  assert.deepEqual(ids(), ['s', 'c', 'b'], 'a was older than its kind is kept');
  for (const id of ['d', 'e']) {
    await bench.clock.run(1_000);
    await run('long', id);
  }
  assert.deepEqual(ids(), ['s', 'e', 'd', 'c'], 'b was one too many');
  await bench.clock.run(31 * day);
  await bench.clock.runUntil(journal.close());
  const next = bench.journal(definitions, { keepRuns: 3, keepNewest: 0 });
  next.resume();
  assert.deepEqual(
    next.find().map(({ id }) => id),
    ['s'],
  );
  await bench.clock.runUntil(next.close());
  const database = new DatabaseSync(bench.path);
  assert.deepEqual(
    database
      .prepare('SELECT DISTINCT run_id FROM events')
      .all()
      .map((row) => row.run_id),
    ['s'],
  );
  database.close();
});

test('a clock that jumps by a month, or back, takes no run that was made of late out of the history', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([kindOf('move', bench.step('go'))], { keepRuns: 4, keepNewest: 3 });
  const run = (id: string) => bench.end(journal, journal.start('move', { machine: id }, { runId: id }).id);
  const ids = () =>
    journal
      .find()
      .map(({ id }) => id)
      .sort()
      .join('');
  for (const id of 'abcd') await run(id);
  bench.clock.stepWall(31 * 24 * 60 * 60 * 1000);
  await run('e');
  assert.equal(ids(), 'cde', 'those that were made last');
  bench.clock.stepWall(-60 * 24 * 60 * 60 * 1000);
  for (const id of 'fgh') {
    await run(id);
    assert.equal(journal.get(id).state, 'done');
  }
  assert.equal(ids(), 'efgh');
});

test('a step that is tried for days keeps its first and latest attempts in the log, and loads again', async (t) => {
  const bench = new Bench(t);
  const definition = kindOf(
    'move',
    bench.step(
      'poll',
      ({ attempt, put, waiting }) => {
        put({ [`at${attempt % 10}`]: attempt });
        waiting(`attempt ${attempt}`, 'wait');
        throw new Retry(`still ${attempt}`, { afterMs: 1_000 });
      },
      { quietMs: 10_000_000 },
    ),
  );
  const journal = bench.journal([definition]);
  journal.start('move', { machine: 'a' }, { runId: 'a' });
  await bench.clock.run(1_000_000);
  const { attempts } = journal.get('a').steps[0]!;
  assert.ok(attempts >= 1_000);
  const kept = journal
    .events('a')
    .flatMap(({ body }) => (body.type === 'step-started' ? [body.attempt] : []));
  assert.deepEqual(kept.slice(0, 9), [1, 2, 3, 4, 5, 6, 7, 8, attempts - 56]);
  assert.equal(kept.at(-1), attempts);
  const before = journal.get('a');
  await bench.clock.runUntil(journal.close());
  assert.deepEqual({ ...bench.journal([definition]).get('a') }, before);
});

// ---- deadlines and the point of no return ----

test('deadline before the point of no return: the step is told to stop and the run is undone', async (t) => {
  const bench = new Bench(t);
  let told: unknown;
  const journal = bench.journal([
    kindOf(
      'move',
      bench.step('one'),
      bench.step(
        'two',
        async (context) => {
          context.waiting('worker-2 has not answered', 'Look at worker-2.');
          try {
            await hang(context);
          } catch (error) {
            told = error;
            throw error;
          }
        },
        { quietMs: 5_000 },
      ),
      bench.step('pivot', undefined, { pointOfNoReturn: true }),
    ),
  ]);
  const { id } = journal.start('move', { machine: 'a' });
  await bench.clock.run(1_000);
  assert.deepEqual(journal.get(id).reason, {
    message: 'worker-2 has not answered',
    nextAction: 'Look at worker-2.',
    sinceMs: journal.get(id).createdAtMs,
  });
  assert.equal(journal.get(id).state, 'waiting');
  const run = await bench.end(journal, id);
  assert.equal(run.state, 'undone');
  assert.ok(isGodwitError(told, 'JOURNAL_STEP_QUIET'));
  assert.equal(run.error?.code, 'JOURNAL_STEP_QUIET');
  assert.equal(run.endedAtMs! - run.createdAtMs, 5_000);
  assert.deepEqual(bench.did, ['one', 'two', 'undo two', 'undo one']);
});

test('a step in which something advances is not ended for its length, and the run says how fast it is', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([
    kindOf(
      'move',
      bench.step(
        'slow',
        async ({ signal }) => {
          for (let part = 0; part < 1_000; part++) {
            const answered = asks({ who: 'w2', sinceMs: bench.clock.wallMs() });
            await bench.clock.sleep(4_900, signal);
            answered();
            advanced('dirty pages', 1_048_576, 'bytes');
          }
        },
        { quietMs: 5_000 },
      ),
    ),
  ]);
  const { id } = journal.start('move', { machine: 'a' });
  await bench.clock.run(3_600_000);
  const { state, progress, steps, asks: question } = journal.get(id);
  assert.deepEqual([question?.who, bench.clock.wallMs() - question!.sinceMs < 4_900], ['w2', true]);
  assert.deepEqual([state, steps[0]!.attempts, journal.events(id).length], ['running', 1, 2]);
  assert.match(
    progressText(progress!, bench.clock.wallMs()),
    /^dirty pages: 734\.0 MiB in 3595\.1 s, 0\.2 MiB a second, the last 3\.\d s ago$/,
  );
  const run = await bench.end(journal, id);
  assert.deepEqual([run.state, run.progress, run.asks, bench.did], ['done', undefined, undefined, ['slow']]);
});

test('work that goes on after its attempt has ended does not keep the next one', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([
    kindOf(
      'move',
      bench.step(
        'one',
        ({ signal, attempt }) => {
          if (attempt > 1) return hang({ signal } as StepContext<Input>);
          // In the context of the attempt, which a timer of this clock would not be in.
          const goOn = async (): Promise<never> => {
            for (;;) {
              advanced('a thing of the past');
              await bench.clock.sleep(1_000);
            }
          };
          void goOn();
          throw new Error('left something behind');
        },
        { quietMs: 30_000 },
      ),
    ),
  ]);
  const { id } = journal.start('move', { machine: 'a' });
  const run = await bench.end(journal, id);
  assert.equal(run.error?.code, 'JOURNAL_STEP_QUIET');
  assert.equal(run.endedAtMs! - run.createdAtMs, 30_000);
});

test('who answers that it lives, and does nothing else, is waited for with a bound; what works besides is not', async (t) => {
  for (const { worksToo, state } of [
    { worksToo: false, state: 'undone' },
    { worksToo: true, state: 'running' },
  ]) {
    const bench = new Bench(t);
    const journal = bench.journal([
      kindOf(
        'move',
        bench.step(
          'prepare',
          async ({ signal }) => {
            for (;;) {
              lives('answers of worker-2');
              if (worksToo && bench.clock.monotonicMs() % 500_000 === 0) advanced('copied', 1, 'bytes');
              await bench.clock.sleep(1_000, signal);
            }
          },
          { quietMs: 60_000, livesOnlyMs: 600_000 },
        ),
      ),
    ]);
    const { id } = journal.start('move', { machine: 'a' });
    await bench.clock.run(599_000);
    assert.equal(journal.get(id).state, 'running');
    await bench.clock.run(62_000);
    assert.equal(journal.get(id).state, state);
    assert.equal(journal.get(id).error?.code, worksToo ? undefined : 'JOURNAL_STEP_QUIET');
  }
});

test('a worker that is away in the middle of a step costs it no patience, and one that sets its clock neither', async (t) => {
  const bench = new Bench(t);
  const definition = kindOf('move', bench.step('one', hang, { quietMs: 60_000 }));
  const first = bench.journal([definition]);
  first.start('move', { machine: 'a' }, { runId: 'a' });
  await bench.clock.run(50_000);
  bench.clock.stepWall(7_200_000);
  await bench.clock.run(5_000);
  assert.equal(first.get('a').state, 'running');
  await bench.clock.runUntil(first.close());
  await bench.clock.run(3_600_000);

  const second = bench.journal([definition]);
  second.resume();
  await bench.clock.run(59_000);
  assert.equal(second.get('a').state, 'running');
  bench.clock.stepWall(-7_200_000);
  await bench.clock.run(2_000);
  assert.equal(second.get('a').state, 'undone');
});

test('a process that was stopped itself (SIGSTOP) holds the time against no step', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([kindOf('move', bench.step('one', hang, { quietMs: 60_000 }))]);
  const { id } = journal.start('move', { machine: 'a' });
  await bench.clock.run(50_000);
  bench.clock.skip(3_600_000);
  await bench.clock.run(9_000);
  assert.equal(journal.get(id).state, 'running');
  await bench.clock.run(61_000);
  assert.equal(journal.get(id).error?.code, 'JOURNAL_STEP_QUIET');
});

test('once the machine is stopped, silence undoes nothing: it is tried again, and a cancel still goes back', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([
    kindOf('move', bench.step('seal', hang, { quietMs: 10_000, whenQuiet: 'wait' })),
  ]);
  const { id } = journal.start('move', { machine: 'a' });
  await bench.clock.run(3_600_000);
  const { state, reason, steps } = journal.get(id);
  assert.equal(state, 'waiting');
  assert.match(reason!.message, /nothing advances? in step seal/);
  assert.ok(steps[0]!.attempts > 100);
  journal.cancel(id, 'enough');
  assert.equal((await bench.end(journal, id)).error?.code, 'JOURNAL_CANCELLED');
  assert.deepEqual(bench.did.slice(-1), ['undo seal']);
});

test('a run of an earlier version goes on with the patience of today: its stored deadline is none any more', async (t) => {
  const bench = new Bench(t);
  const old = kindOf('move', bench.step('prepare', hang, { quietMs: 1_000 }), bench.step('stop'));
  const first = bench.journal([old]);
  first.start('move', { machine: 'a' }, { runId: 'a' });
  await bench.clock.settle();
  await bench.clock.runUntil(first.close());
  // As 917665f wrote it: a deadline of one second from the first attempt, and no word on silence.
  const database = new DatabaseSync(bench.path);
  const steps = database.prepare("SELECT steps FROM runs WHERE id = 'a'").get()?.steps as string;
  database.close();
  assert.match(steps, /"deadlineMs":1000/);
  assert.doesNotMatch(steps, /whenQuiet/);
  await bench.clock.run(100_000);

  const slow: Do = async ({ signal }) => {
    for (let part = 0; part < 10; part++) {
      await bench.clock.sleep(4_000, signal);
      advanced('answers of worker-2');
    }
  };
  const second = bench.journal([
    kindOf(
      'move',
      bench.step('prepare', slow, { quietMs: 5_000 }),
      bench.step('stop', undefined, { whenQuiet: 'wait' }),
    ),
  ]);
  second.resume();
  assert.equal((await bench.end(second, 'a')).state, 'done');
});

test('a step that ignores its signal delays its undo and says so; the two never run together', async (t) => {
  const bench = new Bench(t);
  const { promise, reject } = Promise.withResolvers<void>();
  const journal = bench.journal([
    kindOf(
      'move',
      bench.step('deaf', () => promise, { quietMs: 1_000 }),
    ),
  ]);
  const { id } = journal.start('move', { machine: 'a' });
  await bench.clock.run(3_600_000);
  assert.deepEqual(bench.did, ['deaf']);
  assert.match(journal.get(id).reason!.message, /nothing advances in step deaf, which was told to stop/);
  reject(new Error('at last'));
  assert.equal((await bench.end(journal, id)).state, 'undone');
  assert.deepEqual(bench.did, ['deaf', 'undo deaf']);
});

for (const [where, steps] of [
  ['at', ['one', 'pivot!', 'after']],
  ['after', ['one', 'before!', 'pivot']],
] as const) {
  test(`deadline ${where} the point of no return: the run waits with a reason, goes on trying, and is not undone`, async (t) => {
    const bench = new Bench(t);
    let heals = false;
    const journal = bench.journal([
      kindOf(
        'move',
        ...steps.map((name) =>
          bench.step(
            name.replace('!', ''),
            name.startsWith('pivot')
              ? (context) => {
                  if (heals) return;
                  // It takes both: attempts that hang to their limit and attempts that fail at once.
                  if (context.attempt % 2 === 1) return hang(context);
                  throw new GodwitError('PEER_SILENT', 'worker-2 is silent', {
                    nextAction: 'Look at worker-2.',
                  });
                }
              : undefined,
            { quietMs: 10_000, pointOfNoReturn: name.endsWith('!') },
          ),
        ),
      ),
    ]);
    const { id } = journal.start('move', { machine: 'a' });
    await bench.clock.run(9_000);
    assert.equal(journal.get(id).state, 'running');
    assert.throws(() => journal.cancel(id, 'too late'), code('JOURNAL_CANCEL_TOO_LATE'));
    await bench.clock.run(1_200);
    assert.match(
      journal.get(id).reason!.message,
      /nothing advances in step pivot, which .*: worker-2 is silent/,
    );
    assert.equal(journal.get(id).reason!.nextAction, 'Look at worker-2.');
    const tried = journal.get(id).steps.find((step) => step.name === 'pivot')!.attempts;
    await bench.clock.run(120_000);
    assert.equal(journal.get(id).state, 'waiting');
    assert.ok(journal.get(id).steps.find((step) => step.name === 'pivot')!.attempts > tried + 5);
    heals = true;
    const run = await bench.end(journal, id);
    assert.equal(run.state, 'done');
    assert.ok(bench.did.every((each) => !each.startsWith('undo')));
  });
}

test('Abort undoes, also in the step of the point of no return; past it, it is one more failure', async (t) => {
  const bench = new Bench(t);
  const abort: Do = ({ attempt }) => {
    if (attempt === 1)
      throw new Abort(new GodwitError('OTHER_SIDE_NO', 'not gone over', { nextAction: 'None.' }));
  };
  const pivot = { pointOfNoReturn: true };
  const journal = bench.journal([
    kindOf('at', bench.step('one'), bench.step('pivot', abort, pivot), bench.step('after')),
    kindOf('past', bench.step('one'), bench.step('pivot', undefined, pivot), bench.step('after', abort)),
  ]);
  const at = await bench.end(journal, journal.start('at', { machine: 'a' }).id);
  assert.deepEqual([at.state, at.error?.code], ['undone', 'OTHER_SIDE_NO']);
  assert.deepEqual(bench.did.splice(0), ['one', 'pivot', 'undo pivot', 'undo one']);
  const past = await bench.end(journal, journal.start('past', { machine: 'a' }).id);
  assert.equal(past.state, 'done');
  assert.equal(past.pastPointOfNoReturn, true);
  assert.deepEqual(bench.did, ['one', 'pivot', 'after', 'after']);
});

test('what trying again does not lift ends a step before the point of no return at once, and nothing after it', async (t) => {
  const bench = new Bench(t);
  const hopeless: Do = ({ attempt }) => {
    if (attempt === 1)
      throw new GodwitError('HOST_LACKS_IT', 'it is not here', { nextAction: 'Add it.', retry: 'never' });
  };
  const pivot = { pointOfNoReturn: true };
  const journal = bench.journal([
    kindOf('before', bench.step('one'), bench.step('two', hopeless), bench.step('pivot', undefined, pivot)),
    kindOf('at', bench.step('one'), bench.step('pivot', hopeless, pivot)),
    kindOf('past', bench.step('pivot', undefined, pivot), bench.step('after', hopeless)),
  ]);
  const before = await bench.end(journal, journal.start('before', { machine: 'a' }).id);
  assert.deepEqual(
    [before.state, before.error?.code, before.error?.retry],
    ['undone', 'HOST_LACKS_IT', 'never'],
  );
  assert.deepEqual(bench.did.splice(0), ['one', 'two', 'undo two', 'undo one']);
  assert.equal((await bench.end(journal, journal.start('at', { machine: 'a' }).id)).state, 'done');
  assert.deepEqual(bench.did.splice(0), ['one', 'pivot', 'pivot']);
  assert.equal((await bench.end(journal, journal.start('past', { machine: 'a' }).id)).state, 'done');
  assert.deepEqual(bench.did, ['pivot', 'after', 'after']);
});

test('Unrecoverable: undone and failed before the point of no return, failed and locked from it on', async (t) => {
  const bench = new Bench(t);
  let broken = true;
  const die: Do = () => {
    if (broken) throw new Unrecoverable(new Error('the volume is gone'), 'user');
  };
  const definitions = [
    kindOf('early', bench.step('one'), bench.step('two', die)),
    kindOf('late', bench.step('pivot', undefined, { pointOfNoReturn: true }), bench.step('after', die)),
  ];
  const journal = bench.journal(definitions);
  const early = await bench.end(journal, journal.start('early', { machine: 'a' }).id);
  assert.deepEqual([early.state, early.error?.values.blame], ['failed', 'user']);
  assert.deepEqual(bench.did.splice(0), ['one', 'two', 'undo two', 'undo one']);

  const late = await bench.end(journal, journal.start('late', { machine: 'a' }, { runId: 'late' }).id);
  assert.deepEqual([late.state, late.step], ['failed', 'after']);
  assert.throws(() => journal.start('early', { machine: 'a' }), code('JOURNAL_RESOURCE_BUSY'));
  await bench.clock.runUntil(journal.close());

  bench.did.length = 0;
  const next = bench.journal(definitions);
  next.resume();
  await bench.clock.run(600_000);
  assert.equal(next.get('late').state, 'failed');
  assert.deepEqual(bench.did, [], 'a failed run does nothing by itself');
  assert.throws(() => next.start('early', { machine: 'a' }), code('JOURNAL_RESOURCE_BUSY'));
  broken = false;
  assert.equal(next.force('late', 'forward', 'ann').state, 'running');
  assert.equal((await bench.end(next, 'late')).state, 'done');
  assert.ok(next.events('late').some(({ body }) => body.type === 'forced' && body.by === 'ann'));
  assert.equal((await bench.end(next, next.start('early', { machine: 'a' }).id)).state, 'done');
});

test('force undo goes back even past the point of no return; forget ends without undo and frees the resource', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([
    kindOf(
      'move',
      bench.step('one'),
      bench.step('pivot', undefined, { pointOfNoReturn: true }),
      bench.step('after', hang),
    ),
    kindOf('bad', bench.step('one', never, { undo: async () => never() })),
  ]);
  const { id } = journal.start('move', { machine: 'a' });
  await bench.clock.run(10);
  assert.equal(journal.get(id).pastPointOfNoReturn, true);
  journal.force(id, 'undo', 'ann');
  const run = await bench.end(journal, id);
  assert.deepEqual([run.state, run.error?.code], ['undone', 'JOURNAL_FORCED_UNDO']);
  assert.deepEqual(bench.did.splice(0), ['one', 'pivot', 'after', 'undo after', 'undo pivot', 'undo one']);
  assert.throws(() => journal.force(id, 'undo', 'ann'), code('JOURNAL_RUN_OVER'));

  const bad = journal.start('bad', { machine: 'a' });
  await bench.clock.run(10);
  journal.cancel(bad.id, 'x');
  await bench.clock.run(600_000);
  assert.equal(journal.get(bad.id).state, 'undoing');
  assert.equal(journal.get(bad.id).reason?.message, 'not now');
  assert.throws(() => journal.force(bad.id, 'forward', 'ann'), code('JOURNAL_FORCE_REFUSED'));
  journal.force(bad.id, 'forget', 'ann');
  assert.equal((await bench.end(journal, bad.id)).state, 'failed');
  assert.equal(journal.start('move', { machine: 'a' }).state, 'running');
});

test('what was forgotten past its point of no return is taken up again where its kind says so, and nothing else has its resource', async (t) => {
  const bench = new Bench(t);
  let goes = false;
  const after = (step: string) => bench.step(step, async (context) => (goes ? undefined : hang(context)));
  const pivot = () => bench.step('pivot', undefined, { pointOfNoReturn: true });
  const kinds = [
    { ...kindOf('move', bench.step('one'), pivot(), after('after'), bench.step('last')), takenUp: true },
    kindOf('plain', bench.step('one'), pivot(), after('after')),
    { ...kindOf('early', bench.step('one', hang), pivot()), takenUp: true },
  ];
  let journal = bench.journal(kinds);
  for (const kind of ['plain', 'early']) {
    const { id } = journal.start(kind, { machine: kind });
    await bench.clock.run(10);
    journal.force(id, 'forget', 'ann');
    assert.doesNotMatch((await bench.end(journal, id)).error!.nextAction, /forward/);
    assert.throws(() => journal.force(id, 'forward', 'ann'), code('JOURNAL_RUN_OVER'));
  }
  const { id } = journal.start('move', { machine: 'a' });
  await bench.clock.run(10);
  journal.force(id, 'forget', 'ann');
  assert.match((await bench.end(journal, id)).error!.nextAction, new RegExp(`force ${id} forward --yes`));
  await journal.close();
  goes = true;
  journal = bench.journal(kinds);
  journal.resume();
  const other = journal.start('plain', { machine: 'a' });
  assert.throws(() => journal.force(id, 'forward', 'ann'), code('JOURNAL_RESOURCE_BUSY'));
  assert.equal((await bench.end(journal, other.id)).state, 'done');
  bench.did.splice(0);
  assert.equal(journal.force(id, 'forward', 'ann').endedAtMs, null);
  assert.throws(() => journal.start('plain', { machine: 'a' }), code('JOURNAL_RESOURCE_BUSY'));
  assert.equal((await bench.end(journal, id)).state, 'done');
  assert.deepEqual(bench.did, ['after', 'last']);
});

test('an undo that was forced can be called off until the first undo has ended, over a restart too; a cancel cannot', async (t) => {
  const bench = new Bench(t);
  let undoable = false;
  let holds = true;
  const { undo: _none, ...after } = bench.step('after', async (context) =>
    holds ? hang(context) : undefined,
  );
  const move = {
    ...kindOf(
      'move',
      bench.step('one'),
      bench.step('pivot', undefined, {
        pointOfNoReturn: true,
        undo: async () => (undoable ? undefined : never()),
      }),
      after,
    ),
    turnsRound: true,
  };
  let journal = bench.journal([move]);
  const { id } = journal.start('move', { machine: 'a' });
  await bench.clock.run(10);
  journal.force(id, 'undo', 'ann', { because: 'destroyed' });
  await bench.clock.run(10_000);
  assert.deepEqual([journal.get(id).state, journal.get(id).output.because], ['undoing', 'destroyed']);
  await bench.clock.runUntil(journal.close());
  journal = bench.journal([move]);
  journal.resume();
  holds = false;
  journal.force(id, 'forward', 'ann');
  assert.equal((await bench.end(journal, id)).state, 'done');
  assert.deepEqual(bench.did.splice(0), ['one', 'pivot', 'after', 'after']);

  holds = true;
  undoable = true;
  const back = journal.start('move', { machine: 'b' });
  await bench.clock.run(10);
  journal.force(back.id, 'undo', 'ann');
  assert.equal((await bench.end(journal, back.id)).state, 'undone');

  const early = journal.start('move', { machine: 'c' }, { runId: 'c' });
  journal.cancel(early.id, 'x');
  assert.throws(() => journal.force('c', 'forward', 'ann'), code('JOURNAL_FORCE_REFUSED'));
  await bench.end(journal, 'c');
});

test('cancel: aborts the step and undoes; twice is once; over is over', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([
    kindOf(
      'move',
      bench.step('one'),
      bench.step('two', hang),
      bench.step('pivot', undefined, { pointOfNoReturn: true }),
    ),
  ]);
  const { id } = journal.start('move', { machine: 'a' });
  await bench.clock.run(10);
  assert.equal(journal.cancel(id, 'changed my mind').cancelRequested, true);
  journal.cancel(id, 'really');
  const run = await bench.end(journal, id);
  assert.deepEqual(
    [run.state, run.error?.code, run.error?.message],
    ['undone', 'JOURNAL_CANCELLED', 'cancelled: changed my mind'],
  );
  assert.deepEqual(bench.did, ['one', 'two', 'undo two', 'undo one']);
  assert.throws(() => journal.cancel(id, 'x'), code('JOURNAL_RUN_OVER'));
  assert.equal(journal.events(id).filter(({ body }) => body.type === 'cancel-requested').length, 1);
});

test('a cancel reaches a step that was told before that nothing advances in it', async (t) => {
  const bench = new Bench(t);
  const told: string[] = [];
  const stubborn: Do = ({ signal, calledOff }) =>
    new Promise((_resolve, reject) => {
      signal.addEventListener('abort', () => told.push(signal.reason.code));
      calledOff.addEventListener('abort', () => reject(calledOff.reason));
    });
  const journal = bench.journal([
    kindOf('move', bench.step('stop', stubborn, { quietMs: 10_000, whenQuiet: 'wait' })),
  ]);
  const { id } = journal.start('move', { machine: 'a' });
  await bench.clock.run(30_000);
  assert.deepEqual(told, ['JOURNAL_STEP_QUIET']);
  assert.equal(journal.get(id).state, 'waiting');
  journal.cancel(id, 'enough');
  assert.equal((await bench.end(journal, id)).error?.code, 'JOURNAL_CANCELLED');
});

test('cancel while the last step before the point of no return ends well: the point is not passed', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([
    kindOf(
      'move',
      bench.step('one', ({ runId }) => void journal.cancel(runId, 'now')),
      bench.step('pivot', undefined, { pointOfNoReturn: true }),
    ),
  ]);
  const run = await bench.end(journal, journal.start('move', { machine: 'a' }).id);
  assert.equal(run.state, 'undone');
  assert.deepEqual(bench.did, ['one', 'undo one']);
});

test('nudge tries again now', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([
    kindOf(
      'move',
      bench.step(
        'one',
        ({ attempt }) => {
          if (attempt === 1) throw new Retry('in an hour', { afterMs: 3_600_000, nextAction: 'Wait.' });
        },
        { quietMs: 7_200_000 },
      ),
    ),
  ]);
  const { id } = journal.start('move', { machine: 'a' });
  await bench.clock.run(1_000);
  assert.deepEqual(
    [journal.get(id).reason?.message, journal.get(id).reason?.nextAction],
    ['in an hour', 'Wait.'],
  );
  journal.nudge(id);
  const run = await bench.end(journal, id);
  assert.equal(run.endedAtMs! - run.createdAtMs, 1_000);
  assert.equal(journal.nudge(id).state, 'done');
});

test('a wall clock that is set back by a year delays no retry beyond its backoff', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([
    kindOf(
      'move',
      bench.step('one', ({ attempt }) => {
        if (attempt === 1) bench.clock.stepWall(-365 * 86_400_000);
        if (attempt < 4) never();
      }),
    ),
  ]);
  journal.start('move', { machine: 'a' }, { runId: 'a' });
  await bench.clock.run(10_000);
  assert.equal(journal.get('a').state, 'done');
});

test('a wall clock that is set back while a retry waits delays it no further, and nobody is asked again and again', async (t) => {
  const bench = new Bench(t);
  const step = bench.step('one', ({ attempt }) => (attempt === 1 ? never() : undefined), {
    retry: { initialMs: 4_000, maxMs: 4_000 },
  });
  const journal = bench.journal([kindOf('move', step)]);
  journal.start('move', { machine: 'a' }, { runId: 'a' });
  await bench.clock.run(1_000);
  bench.clock.stepWall(-2 * 3_600_000);
  await bench.clock.run(8_000);
  assert.equal(journal.get('a').state, 'done');
  assert.ok(journal.events('a').length < 10);
});

test('a wall clock that is set back while the journal cannot be written lengthens no backoff', async (t) => {
  for (const failsIn of ['the step', 'its undo', 'the end of the step', 'the end of its undo']) {
    const bench = new Bench(t);
    const database = new DatabaseSync(':memory:');
    t.after(() => database.close());
    const isOfUndo = failsIn.endsWith('undo');
    const isOfEnd = failsIn.startsWith('the end');
    const first = (attempt: number) => {
      if (attempt > 1) return;
      database.exec(
        "CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'disk full'); END",
      );
      if (!isOfEnd) never();
    };
    const step = bench.step('one', ({ attempt }) => (isOfUndo ? undefined : first(attempt)), {
      undo: async ({ attempt }) => first(attempt),
    });
    const steps = isOfUndo
      ? [
          step,
          bench.step('two', () => {
            throw new Abort(new Error('no'));
          }),
        ]
      : [step];
    const journal = bench.journal([kindOf('move', ...steps)], { database });
    journal.start('move', { machine: 'a' }, { runId: 'a' });
    await bench.clock.run(3_000);
    assert.equal(journal.get('a').state, 'waiting', failsIn);
    bench.clock.stepWall(-365 * 86_400_000);
    database.exec('DROP TRIGGER full');
    await bench.clock.run(8_000);
    assert.equal(journal.get('a').state, isOfUndo ? 'undone' : 'done', failsIn);
  }
});

test('handoff: the run ends done and the next one starts in the same transaction', async (t) => {
  const bench = new Bench(t);
  let target = 'nobody';
  const journal = bench.journal([
    kindOf(
      'prepare',
      bench.step('one', ({ input }) => {
        throw new Handoff(target, { machine: input.machine, from: 'prepare' }, { runId: 'next' });
      }),
      bench.step('unreached'),
    ),
    kindOf('move', bench.step('go')),
  ]);
  const { id } = journal.start('prepare', { machine: 'a' });
  await bench.clock.run(1_000);
  assert.match(
    journal.get(id).reason!.message,
    /no runs of kind nobody/,
    'a handoff that cannot be is a failed step',
  );
  target = 'move';
  const run = await bench.end(journal, id);
  assert.deepEqual([run.state, run.handedOffTo], ['done', { runId: 'next', kind: 'move' }]);
  const next = await bench.end(journal, 'next');
  assert.deepEqual([next.state, next.input], ['done', { machine: 'a', from: 'prepare' }]);
  assert.ok(!bench.did.includes('unreached'));
});

for (const point of ['before-done', 'after-done'] as const) {
  test(`handoff over a crash ${point}: exactly one successor`, async (t) => {
    const bench = new Bench(t);
    const definitions = [
      kindOf(
        'prepare',
        bench.step('one', ({ input }) => {
          throw new Handoff('move', { machine: input.machine });
        }),
      ),
      kindOf('move', bench.step('go')),
    ];
    const first = bench.journal(definitions, {
      crashPoints: {
        reached: (name) => {
          if (name === `prepare:one:${point}-append`) throw new Crash(name);
        },
      },
    });
    const { id } = first.start('prepare', { machine: 'a' });
    await assert.rejects(bench.clock.runUntil(first.wait(id)), code('JOURNAL_CLOSED'));
    const second = bench.journal(definitions);
    second.resume();
    const run = await bench.end(second, id);
    await bench.end(second, run.handedOffTo!.runId);
    assert.deepEqual(
      second.find({ kind: 'move' }).map(({ state }) => state),
      ['done'],
    );
  });
}

test('close stops steps by signal and leaves the run as it is; what ends well meanwhile has ended', async (t) => {
  const bench = new Bench(t);
  const definitions = [
    kindOf(
      'move',
      bench.step('one', ({ attempt, ...rest }) => (attempt === 1 ? hang({ attempt, ...rest }) : undefined)),
    ),
    kindOf(
      'good',
      bench.step('one', async (context) => {
        await Promise.resolve(hang(context)).catch(() => {});
      }),
    ),
  ];
  const first = bench.journal(definitions);
  first.start('move', { machine: 'a' }, { runId: 'a' });
  first.start('good', { machine: 'b' }, { runId: 'b' });
  await bench.clock.run(10);
  await bench.clock.runUntil(first.close());
  assert.equal(bench.clock.pendingTimers, 0);
  assert.throws(() => first.start('move', { machine: 'c' }), code('JOURNAL_CLOSED'));
  const second = bench.journal(definitions);
  assert.equal(second.get('b').steps[0]!.state, 'done');
  second.resume();
  assert.equal((await bench.end(second, 'a')).steps[0]!.attempts, 2);
  assert.equal((await bench.end(second, 'b')).steps[0]!.attempts, 1);
});

test('a second process cannot open the journal', (t) => {
  const bench = new Bench(t);
  bench.journal([kindOf('move', bench.step('one'))]);
  assert.throws(() => bench.journal([kindOf('move', bench.step('one'))]), code('JOURNAL_LOCKED'));
});

test('find by resource, kind and state', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([kindOf('move', bench.step('go')), kindOf('hold', bench.step('go', hang))]);
  await bench.end(journal, journal.start('move', { machine: 'a' }, { runId: '1' }).id);
  journal.start('hold', { machine: 'a' }, { runId: '2' });
  await bench.end(journal, journal.start('move', { machine: 'b' }, { runId: '3' }).id);
  const ids = (filter: Parameters<Journal['find']>[0]) =>
    journal
      .find(filter)
      .map(({ id }) => id)
      .sort();
  assert.deepEqual(ids({ resource: 'machine:a' }), ['1', '2']);
  assert.deepEqual(ids({ kind: 'move' }), ['1', '3']);
  assert.deepEqual(ids({ state: 'running' }), ['2']);
  assert.deepEqual(ids({ state: ['running', 'done'], resource: 'machine:b' }), ['3']);
  assert.equal(journal.find({ limit: 1 }).length, 1);
});

test('a run that was cancelled does not hand over', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([
    kindOf(
      'prepare',
      bench.step('one', ({ runId, input }) => {
        journal.cancel(runId, 'now');
        throw new Handoff('move', input);
      }),
    ),
    kindOf('move', bench.step('go')),
  ]);
  const run = await bench.end(journal, journal.start('prepare', { machine: 'a' }).id);
  assert.equal(run.state, 'undone');
  assert.deepEqual(journal.find({ kind: 'move' }), []);
});

test('a step that takes the end of the process for a reason to abort is tried again, not undone', async (t) => {
  const bench = new Bench(t);
  const definitions = [
    kindOf(
      'move',
      bench.step('one', async (context) => {
        if (context.attempt > 1) return;
        await Promise.resolve(hang(context)).catch((error) => {
          throw new Abort(error);
        });
      }),
    ),
  ];
  const first = bench.journal(definitions);
  first.start('move', { machine: 'a' }, { runId: 'a' });
  await bench.clock.run(10);
  await bench.clock.runUntil(first.close());
  const second = bench.journal(definitions);
  second.resume();
  assert.equal((await bench.end(second, 'a')).state, 'done');
});

test('a put of what is there and a wait for the same thing write nothing; many waits keep the latest', async (t) => {
  const bench = new Bench(t);
  const journal = bench.journal([
    kindOf(
      'move',
      bench.step('one', ({ put, waiting }) => {
        for (let round = 0; round < 5; round++) {
          put({ a: { b: 1, c: 2 } });
          put({ a: { c: 2, b: 1 } });
          waiting('for worker-2', 'Look.');
        }
        for (let round = 0; round < 500; round++) waiting(`round ${round}`, 'Look.');
      }),
    ),
  ]);
  const run = await bench.end(journal, journal.start('move', { machine: 'a' }).id);
  const types = journal.events(run.id).map(({ body }) => body.type);
  assert.equal(types.filter((type) => type === 'put').length, 1);
  assert.equal(types.filter((type) => type === 'waiting').length, 65);
});

test('a failed run that is forced forward is open again on disk too', async (t) => {
  const bench = new Bench(t);
  const database = new DatabaseSync(':memory:');
  t.after(() => database.close());
  const die: Do = ({ attempt, ...rest }) => {
    if (attempt === 1) throw new Unrecoverable(new Error('dead'), 'system');
    return hang({ attempt, ...rest });
  };
  const journal = bench.journal([kindOf('move', bench.step('pivot', die, { pointOfNoReturn: true }))], {
    database,
  });
  const { id } = journal.start('move', { machine: 'a' });
  await bench.end(journal, id);
  const row = () => ({ ...database.prepare('SELECT end_state, holds_resource FROM runs').get() });
  assert.deepEqual(row(), { end_state: 'failed', holds_resource: 1 });
  journal.force(id, 'forward', 'ann');
  assert.deepEqual(row(), { end_state: null, holds_resource: 1 });
  await bench.clock.run(10);
  journal.force(id, 'forget', 'ann');
  await bench.end(journal, id);
  assert.deepEqual(row(), { end_state: 'failed', holds_resource: 0 });
});
