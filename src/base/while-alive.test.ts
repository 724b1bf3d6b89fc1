import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { AnswerTime } from './answer-time.ts';
import { listening, type Question } from './progress.ts';
import { type WhileAlive, whileAlive } from './while-alive.ts';

/** A peer whose call takes `workMs` and whose answers `answerMs` (null: none comes). */
function peer(clock: FakeClock, answerMs: () => number | null) {
  const times = new AnswerTime({ floorMs: 1_000, ceilingMs: 60_000 });
  const asked: number[] = [];
  const options: WhileAlive = {
    who: 'w2',
    ask: async (signal) => {
      asked.push(clock.monotonicMs());
      const ms = answerMs();
      if (ms === null) return new Promise((_, reject) => signal.addEventListener('abort', () => reject()));
      await clock.sleep(ms, signal);
    },
    times,
    questionsMax: 3,
    pauseMs: 1_000,
    silent: (ms) => new Error(`silent for ${ms} ms`),
    clock,
  };
  const call = (workMs: number, signal?: AbortSignal) =>
    whileAlive((stop) => clock.sleep(workMs, stop).then(() => 'done'), { ...options, signal });
  return { times, asked, call };
}

test('a quick call asks nobody', async () => {
  const clock = new FakeClock();
  const { asked, call } = peer(clock, () => 1);
  assert.equal(await clock.runUntil(call(900)), 'done');
  await clock.run(60_000);
  assert.deepEqual([asked.length, clock.pendingTimers], [0, 0]);
});

test('a call of an hour is waited for while questions are answered, and each answer is an advance', async () => {
  const clock = new FakeClock();
  const { call, times } = peer(clock, () => 30);
  let advances = 0;
  const counting = listening({ advanced: () => advances++ }, () => call(3_600_000));
  assert.equal(await clock.runUntil(counting), 'done');
  assert.ok(advances > 3_000, `${advances}`);
  assert.equal(times.patienceMs, 1_000);
  await clock.settle();
  assert.equal(clock.pendingTimers, 0);
});

test('who answers nothing is silent after three questions, each waited for twice as long', async () => {
  const clock = new FakeClock();
  const { call, asked } = peer(clock, () => null);
  await assert.rejects(clock.runUntil(call(36_000_000)), /silent for 8000 ms/);
  assert.deepEqual(asked, [1_000, 2_000, 4_000]);
  assert.equal(clock.monotonicMs(), 8_000);
  await clock.settle();
  assert.equal(clock.pendingTimers, 0);
});

for (const factor of [10, 100]) {
  test(`answers ${factor} times as slow from one moment to the next: still alive`, async () => {
    const clock = new FakeClock();
    const slowAfterMs = 600_000;
    const { call, asked } = peer(clock, () => (clock.monotonicMs() < slowAfterMs ? 50 : 50 * factor));
    assert.equal(await clock.runUntil(call(1_800_000)), 'done');
    assert.ok(asked.length > 200);
  });
}

test('whoever listens knows who is asked, and since when, until the call is over', async () => {
  const clock = new FakeClock();
  const { call } = peer(clock, () => null);
  const open = new Set<Question>();
  const listener = {
    advanced: () => {},
    asks: (question: Question) => {
      open.add(question);
      return () => open.delete(question);
    },
  };
  await clock.run(500);
  const askedAtMs = clock.wallMs();
  const calling = listening(listener, () => call(36_000_000));
  await clock.run(3_000);
  assert.deepEqual([...open], [{ who: 'w2', sinceMs: askedAtMs }]);
  await assert.rejects(clock.runUntil(calling), /silent/);
  assert.equal(open.size, 0);
  const lively = peer(clock, () => 30);
  const working = listening(listener, () => lively.call(10_000));
  await clock.run(3_000);
  const [question] = open;
  assert.ok(question!.livesAtMs! > question!.sinceMs);
  await clock.runUntil(working);
});

test('the caller gives up: its own reason', async () => {
  const clock = new FakeClock();
  const { call } = peer(clock, () => 1);
  const giveUp = new AbortController();
  clock.timer(5_000, () => giveUp.abort(new Error('enough')));
  await assert.rejects(clock.runUntil(call(36_000_000, giveUp.signal)), /enough/);
});

test('time that passed while this process was stopped counts against nobody', async () => {
  const clock = new FakeClock();
  let listens = false;
  const { call, asked } = peer(clock, () => (listens ? 1 : null));
  const calling = call(3_600_000);
  await clock.run(1_500);
  assert.equal(asked.length, 1);
  // An hour of SIGSTOP: when it goes on, all timers are due.
  for (let stop = 0; stop < 5; stop++) {
    clock.skip(120_000);
    await clock.run(1);
  }
  listens = true;
  assert.equal(await clock.runUntil(calling), 'done');
});
