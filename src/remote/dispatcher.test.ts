import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { GodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import type { Failure } from './dialect.ts';
import { type Carrier, Dispatcher } from './dispatcher.ts';
import { NO_BYTES, type RemoteCommand, RemoteRequest } from './request.ts';

const READ: RemoteCommand = { counts: 'read' };
const busy = new GodwitError('TEST_BUSY', 'busy', { nextAction: '-' });
const lost = new GodwitError('TEST_LOST', 'lost', { nextAction: '-' });
const LATER: Failure = { error: busy, again: 'later', endless: true };

type Request = RemoteRequest<RemoteCommand>;

/** A dispatcher, and a peer whose sessions write down what they get and answer when they are told to. */
function world(depth = 64) {
  const clock = new FakeClock();
  const outcomes = new Map<Request, string>();
  /** What no session takes. */
  const refused = new Set<Request>();
  const dispatcher = new Dispatcher<RemoteCommand>({
    ...{ clock, random: seededRandom(1), depth },
    look: async () => {},
    onDone: () => {},
    poisoned: () => new GodwitError('TEST_POISONED', 'poisoned', { nextAction: '-' }),
    notTaken: (made) => outcomes.set(made, 'not taken'),
  });
  const request = (signal?: AbortSignal): Request => {
    const made = new RemoteRequest(
      ...([READ, 0, 0, NO_BYTES, clock.monotonicMs()] as const),
      () => outcomes.set(made, 'done'),
      (error) => outcomes.set(made, (error as GodwitError).code ?? String(error)),
    );
    if (signal !== undefined) made.watch(signal, () => dispatcher.withdraw(made));
    return made;
  };
  const submit = (signal?: AbortSignal): Request => {
    const made = request(signal);
    dispatcher.submit(made);
    return made;
  };
  /** `answer` is asked for each request; undefined: it is never answered. */
  const join = (answer: (request: Request) => Failure | null | undefined = () => undefined) => {
    const got: Request[] = [];
    const probe = request();
    probe.isProbe = true;
    const own: { carrier: Carrier<RemoteCommand> | null } = { carrier: null };
    const session = {
      hasRoom: true,
      fails: 0,
      send: (sent: Request) => {
        got.push(sent);
        const failure = answer(sent);
        if (failure !== undefined) {
          clock.timer(1, () => {
            dispatcher.answered(own.carrier!, sent, failure);
            dispatcher.pump();
          });
        }
      },
      fail: () => {
        session.fails += 1;
        session.hasRoom = false;
      },
    };
    own.carrier = dispatcher.join(session, probe, (each) => !refused.has(each));
    dispatcher.pump();
    const carrier = own.carrier;
    return { carrier, got, probe, session, end: (byPeer = true) => dispatcher.leave(carrier, lost, byPeer) };
  };
  return { clock, dispatcher, outcomes, refused, submit, join };
}

test('what is put off for ever is asked for once a second at most, each by itself, and is over with the last timer', async () => {
  const { clock, dispatcher, submit, join } = world();
  const { got } = join(() => LATER);
  for (let count = 0; count < 100; count += 1) submit();
  await clock.run(10_000);
  assert.ok(got.length >= 100 * 8, `${got.length} requests`);
  assert.ok(got.length <= 100 * 25, `${got.length} requests`);
  dispatcher.end(lost);
  assert.equal(clock.pendingTimers, 0);
});

test('why a request waits is said while it does, whatever becomes of others, and no longer', async () => {
  const { clock, dispatcher, submit, join, outcomes } = world();
  const abort = new AbortController();
  const bad: Request[] = [];
  bad.push(submit(abort.signal));
  const { end } = join((request) => (bad.includes(request) ? LATER : null));
  assert.equal(dispatcher.trouble, null, 'for all that is known it is answered soon');
  for (let round = 0; round < 50; round += 1) {
    const good = submit();
    await clock.run(7);
    assert.equal(outcomes.get(good), 'done');
    assert.equal(dispatcher.trouble, busy);
  }
  abort.abort(new Error('not any more'));
  await clock.run(2_000);
  assert.equal(dispatcher.trouble, null, 'nobody waits');

  end();
  const waits = submit();
  bad.push(waits);
  const second = join((request) => (bad.includes(request) ? LATER : null));
  await clock.run(50);
  assert.equal(dispatcher.trouble, busy);
  second.end();
  assert.ok(dispatcher.trouble !== null);
  join(() => null);
  await clock.run(2_000);
  assert.equal(outcomes.get(waits), 'done');
  assert.equal(dispatcher.trouble, null);
});

test('a peer that fails a request for a moment, and goes on to: it fails in the end, and is no trouble then', async () => {
  const { clock, dispatcher, submit, join, outcomes } = world();
  join(() => ({ error: busy, again: 'later' }));
  const request = submit();
  await clock.run(30_000);
  assert.equal(outcomes.get(request), 'TEST_BUSY');
  assert.equal(dispatcher.trouble, null);
});

test('a session that the peer ends when it is asked anything has carried nothing, nor has one that only puts off', async () => {
  const { clock, submit, join, outcomes } = world();
  const request = submit();
  const first = join(() => ({ error: lost, again: 'nextSession' }));
  await clock.run(10);
  assert.equal(first.carrier.answers, 0);
  first.end();
  const second = join(() => LATER);
  await clock.run(1_000);
  assert.equal(second.carrier.answers, 0);
  second.end();
  const third = join(() => null);
  await clock.run(2_000);
  assert.equal(third.carrier.answers, 1);
  assert.equal(outcomes.get(request), 'done');
});

test('a read that nobody wants any more ends with its session, also when the peer hands it to the next one', async () => {
  const { clock, submit, join, outcomes } = world();
  const abort = new AbortController();
  const request = submit(abort.signal);
  join(() => ({ error: lost, again: 'nextSession' }));
  abort.abort(new Error('not any more'));
  await clock.run(10);
  assert.match(outcomes.get(request)!, /not any more/);
});

test('beside a session that answers, one that never does gets nothing that somebody waits for', async () => {
  const { clock, dispatcher, submit, join, outcomes } = world();
  const good = join(() => null);
  const first = submit();
  await clock.run(10);
  assert.equal(outcomes.get(first), 'done');
  const silent = join();
  const all = Array.from({ length: 32 }, () => submit());
  await clock.run(10);
  assert.deepEqual(silent.got, [silent.probe]);
  assert.ok(all.every((request) => outcomes.get(request) === 'done'));
  assert.equal(dispatcher.statistics.oldestWaitMs, 0, 'the probe is nobody’s');
  silent.end(false);
  assert.equal(dispatcher.statistics.replayed, 0);
  assert.equal(outcomes.get(silent.probe), undefined);

  const other = join(() => null);
  await clock.run(10);
  assert.deepEqual(other.got, [other.probe]);
  const before = good.got.length;
  for (let count = 0; count < 32; count += 1) submit();
  assert.equal(other.got.length - 1, 16);
  assert.equal(good.got.length - before, 16);
});

test('one that sends all to the next session is over with its probe, and the sessions beside it are not', async () => {
  const { clock, submit, join, outcomes } = world();
  const good = join(() => null);
  submit();
  await clock.run(10);
  const leaving = join(() => ({ error: lost, again: 'nextSession' }));
  const all = Array.from({ length: 32 }, () => submit());
  await clock.run(10);
  assert.deepEqual([leaving.got, leaving.session.fails], [[leaving.probe], 1]);
  assert.equal(leaving.carrier.proven, false);
  assert.equal(good.session.fails, 0);
  assert.ok(all.every((request) => outcomes.get(request) === 'done'));
});

test('a request that is never answered is alone for some seconds after its sessions ended, and then the others go on', async () => {
  const { clock, submit, join, outcomes } = world();
  const hung = submit();
  const answer = (request: Request) => (request === hung ? undefined : null);
  for (let count = 0; count < 3; count += 1) join(answer).end();
  const others = Array.from({ length: 8 }, () => submit());
  const { got, end } = join(answer);
  await clock.run(100);
  assert.deepEqual(got, [hung], 'it may be why they ended');
  await clock.run(3_000);
  assert.ok(others.every((request) => outcomes.get(request) === 'done'));
  end();
  const again = join(answer);
  const last = submit();
  await clock.run(10);
  assert.equal(outcomes.get(last), 'done', 'it was not why');
  assert.equal(again.got[0], hung);
});

test('one under which the peer ends each session fails by name, also when it takes some seconds to, and beside one that hangs', async () => {
  const { clock, submit, join, outcomes } = world();
  const hung = submit();
  const poison = submit();
  for (let count = 0; count < 60 && outcomes.get(poison) === undefined; count += 1) {
    const { got, end } = join((request) => (request === hung || request === poison ? undefined : null));
    // 5 s after it got it.
    for (let waited = 0; waited < 20 && !got.includes(poison); waited += 1) await clock.run(1_000);
    const good = submit();
    await clock.run(5_000);
    end();
    join(() => undefined).end(false);
    assert.ok(outcomes.get(good) === 'done' || got.includes(poison));
  }
  assert.equal(outcomes.get(poison), 'TEST_POISONED');
  assert.equal(outcomes.get(hung), undefined);
});

test('what a session does not take goes there neither at first nor when it is tried alone, and keeps nobody waiting', () => {
  const { dispatcher, outcomes, refused, submit, join } = world(1);
  const [first, second, third] = [submit(), submit(), submit()];
  for (let times = 0; times < 3; times += 1) {
    const { got, end } = join();
    assert.deepEqual(got, [first], 'one at a time');
    end();
  }
  // It is suspected now, and refused, as is the one behind it.
  refused.add(first).add(second);
  const { got } = join(() => null);
  assert.deepEqual(got, [third]);
  assert.deepEqual([outcomes.get(first), outcomes.get(second)], ['not taken', 'not taken']);
  assert.equal(dispatcher.statistics.queued, 0);
  assert.equal(dispatcher.statistics.inFlight, 1);
});
