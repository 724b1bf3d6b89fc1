import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { runView } from '../../test/support/fake-service.ts';
import { Meters } from './meters.ts';

type Event = Parameters<Meters['note']>[1];
const event = (body: object) => ({ sequence: 1, atMs: 0, body }) as Event;

test('a run counts when it is over, and the interruption of a move as soon as it is known', () => {
  const clock = new FakeClock();
  const meters = new Meters(clock);
  const run = runView({ kind: 'migrate-out', state: 'done', createdAtMs: clock.wallMs(), endedAtMs: 0 });
  meters.note(run, event({ type: 'started' }));
  clock.advance(2_000);
  const interruptionMs = { stop: 100, seal: 50, handoff: 20, attach: 30, boot: 300, total: 500 };
  meters.note(run, event({ type: 'put', step: 8, values: { interruptionMs } }));
  meters.note(run, event({ type: 'put', step: 11, values: { bytesAvoided: 4096 } }));
  assert.deepEqual(meters.runsEnded.read(), []);
  meters.note(run, event({ type: 'finished', state: 'done' }));
  assert.deepEqual(meters.runsEnded.read(), [{ labels: { kind: 'migrate-out', state: 'done' }, value: 1 }]);
  const [duration] = meters.runs.read();
  assert.ok(duration && 'sum' in duration && duration.sum === 2);
  const total = meters.interruptions.read().find(({ labels }) => labels.phase === 'total');
  assert.ok(total && 'sum' in total && total.sum === 0.5 && total.count === 1);
  assert.deepEqual(meters.bytesAvoided.read(), [{ labels: {}, value: 4096 }]);
});

test('a run lasts as long as it lasts, whatever is done to the clock of the host meanwhile', () => {
  const clock = new FakeClock();
  const meters = new Meters(clock);
  const hourMs = 3_600_000;
  const begun = (id: string, createdAtMs: number) =>
    runView({ id, kind: 'migrate-in', state: 'done', createdAtMs, endedAtMs: 0 });
  const here = begun('r_1', clock.wallMs());
  const earlier = begun('r_2', clock.wallMs() - hourMs);
  meters.note(here, event({ type: 'started' }));
  clock.stepWall(1_000 * hourMs);
  clock.advance(hourMs);
  const finished = event({ type: 'finished', state: 'done' });
  for (const run of [here, earlier]) meters.note(run, finished);
  const [durations] = meters.runs.read();
  assert.ok(durations && 'sum' in durations);
  assert.equal(durations.sum, 3 * 3_600);
});

test('who asks for what is not there has one set of labels, whatever he calls his question', () => {
  const meters = new Meters(new FakeClock());
  for (const method of ['GET', 'PROPFIND', 'M-SEARCH', 'UNLINK']) meters.answered(method, 'none', 401, 1);
  meters.answered('GET', '/metrics', 401, 1);
  assert.deepEqual(
    meters.requests.read().map(({ labels }) => labels),
    [
      { method: 'any', route: 'none', status: '4xx' },
      { method: 'GET', route: '/metrics', status: '4xx' },
    ],
  );
});

test('what the machine that did not run was not interrupted for is not counted', () => {
  const meters = new Meters(new FakeClock());
  meters.note(
    runView({ kind: 'migrate-out' }),
    event({ type: 'put', step: 8, values: { interruptionMs: null } }),
  );
  assert.deepEqual(meters.interruptions.read(), []);
});

test('failures of questions have the codes of errors, and foreign words none of their own', () => {
  const meters = new Meters(new FakeClock());
  meters.peerCalled('w2', 'status', 5, null);
  meters.peerCalled('w2', 'status', 5, 'API_UNREACHABLE');
  meters.peerCalled('w2', 'status', 5, 'say "this"\n');
  assert.deepEqual(
    meters.peerFailures.read().map(({ labels }) => labels.code),
    ['API_UNREACHABLE', 'other'],
  );
  const [calls] = meters.peerCalls.read();
  assert.ok(calls && 'count' in calls && calls.count === 3);
});
