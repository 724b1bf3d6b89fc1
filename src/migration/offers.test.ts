import assert from 'node:assert/strict';
import test from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { GodwitError } from '../base/errors.ts';
import { asking, type Endpoint, type Request } from '../contract/endpoint.ts';
import { type Offer, type OfferRequest, PEER, type Peer } from '../contract/peer.ts';
import { OfferDesk } from './offers.ts';

const REQUEST = { sourceWorker: 'a', planned: [] } as unknown as OfferRequest;

const offer = (worker: string, accepted: boolean): Offer => ({
  worker,
  accepted,
  reason: accepted ? 'room' : 'is full',
  score: accepted ? 1 : 0,
  freeMemoryBytes: 0,
  freeCpus: 0,
  freeDiskBytes: 0,
  groupMembers: 0,
});

/** `hangs`: until the test answers for it; it does not listen to signals either. */
function worker(name: string, how: 'accepts' | 'refuses' | 'hangs') {
  const asked: PromiseWithResolvers<Offer>[] = [];
  const peer = {
    name,
    offer: () => {
      const question = Promise.withResolvers<Offer>();
      asked.push(question);
      if (how !== 'hangs') question.resolve(offer(name, how === 'accepts'));
      return question.promise;
    },
  } as unknown as Peer;
  return { peer, asked };
}

function desk(...workers: { peer: Peer }[]) {
  const clock = new FakeClock();
  return {
    clock,
    desk: new OfferDesk({ peers: () => workers.map(({ peer }) => peer), clock, graceMs: 5_000 }),
  };
}

const saying = (offers: Offer[]) => offers.map(({ worker: name, reason }) => `${name} ${reason}`);

test('a worker that hangs is waited for once, is the one who is named, and is asked once at a time until it answers', async () => {
  const [b, c] = [worker('b', 'hangs'), worker('c', 'accepts')];
  const { clock, desk: offers } = desk(b, c);
  const first = offers.ask({ wanted: null, request: REQUEST });
  await clock.settle();
  clock.advance(5_000);
  assert.deepEqual(saying(await first), ['b does not answer: another worker accepted 5 s before', 'c room']);

  for (const forS of [1, 2]) {
    const next = offers.ask({ wanted: null, request: REQUEST });
    clock.advance(1_000);
    const [said] = saying(await next);
    assert.match(said!, new RegExp(`^b does not answer: it was silent before.*had not ${forS} s ago`));
  }
  assert.equal(b.asked.length, 2, 'one question beside the one that was given up');
  b.asked[1]!.resolve(offer('b', true));
  await clock.settle();
  const back = offers.ask({ wanted: null, request: REQUEST });
  b.asked[2]!.resolve(offer('b', false));
  assert.deepEqual(saying(await back), ['b is full', 'c room']);
});

test('a silence of a while ago is no reason to refuse a worker that answers, and takes more than a moment for it', async () => {
  const b = worker('b', 'hangs');
  const { clock, desk: offers } = desk(b);
  const first = offers.ask({ wanted: 'b', request: REQUEST });
  await clock.settle();
  const gone = new GodwitError('API_UNREACHABLE', 'no answer', { nextAction: 'look' });
  b.asked[0]!.reject(gone);
  assert.deepEqual(saying(await first), ['b does not answer: no answer']);

  clock.advance(2_000);
  const soon = offers.ask({ wanted: 'b', request: REQUEST });
  clock.advance(1_000);
  assert.match(saying(await soon)[0]!, /still is \(and had not 3 s ago\)$/);
  b.asked[1]!.reject(gone);
  await clock.settle();

  clock.advance(30_000);
  const later = offers.ask({ wanted: 'b', request: REQUEST });
  await clock.settle();
  clock.advance(1_000);
  b.asked[2]!.resolve(offer('b', true));
  assert.deepEqual(saying(await later), ['b room']);

  // It hangs again: whoever asks now and then, as a drain does, waits for seconds, not for as long as it lives.
  const hanging = offers.ask({ wanted: 'b', request: REQUEST });
  await clock.settle();
  b.asked[3]!.reject(gone);
  await hanging;
  clock.advance(30_000);
  const bounded = offers.ask({ wanted: 'b', request: REQUEST });
  await clock.settle();
  clock.advance(5_000);
  assert.match(saying(await bounded)[0]!, /still is/);
});

test('without another that accepts it is waited for as long as it lives; a plan has an end, and asks it once', async () => {
  const [b, c] = [worker('b', 'hangs'), worker('c', 'refuses')];
  const { clock, desk: offers } = desk(b, c);
  const dead = offers.ask({ wanted: null, request: REQUEST });
  clock.advance(60_000);
  await clock.settle();
  const gone = new GodwitError('API_UNREACHABLE', 'no answer', { nextAction: 'look' });
  b.asked[0]!.reject(gone);
  assert.deepEqual(saying(await dead), ['b does not answer: no answer', 'c is full']);

  const other = worker('d', 'hangs');
  const planned = desk(other, c);
  const silent = new Map<string, Offer>();
  const plan = { wanted: null, request: REQUEST, waitMs: 10_000, silent };
  const step = planned.desk.ask(plan);
  await planned.clock.settle();
  planned.clock.advance(10_000);
  assert.deepEqual(saying(await step), ['d does not answer: nothing within 10 s', 'c is full']);
  assert.deepEqual(saying(await planned.desk.ask(plan)), [
    'd does not answer: nothing within 10 s',
    'c is full',
  ]);
  assert.equal(other.asked.length, 1);
});

test('a worker that fails has answered; only those are asked that are wanted', async () => {
  const [b, c] = [worker('b', 'hangs'), worker('c', 'accepts')];
  const { desk: offers } = desk(b, c);
  const first = offers.ask({ wanted: 'b', request: REQUEST });
  b.asked[0]!.reject(new GodwitError('INTERNAL', 'a defect', { nextAction: 'report it' }));
  assert.deepEqual(saying(await first), ['b does not answer: a defect']);
  const next = offers.ask({ wanted: 'b', request: REQUEST });
  b.asked[1]!.resolve(offer('b', true));
  assert.deepEqual(saying(await next), ['b room']);
  assert.equal(c.asked.length, 0);
});

test('what came later is said to who knows it, and not any more when an earlier version has taken its place', async () => {
  const heard: string[] = [];
  let version: 'new' | 'old' = 'new';
  class Worker extends asking(PEER) {
    readonly name = 'b';
    override async call(_name: string, _endpoint: Endpoint, { body }: Request) {
      const { needs } = body as OfferRequest;
      heard.push(`${version}${needs ? ' with needs' : ''}`);
      if (version === 'old' && needs)
        throw new GodwitError('API_INVALID_REQUEST', 'unknown property', { nextAction: 'none' });
      if (version === 'old') return offer('b', true);
      return { ...offer('b', needs === undefined), knows: ['needs'] };
    }
  }
  const { desk: offers } = desk({ peer: new Worker() as unknown as Peer });
  const request = { ...REQUEST, needs: { config: {} } } as OfferRequest;
  const ask = async () => (await offers.ask({ wanted: null, request }))[0]!.accepted;
  assert.equal(await ask(), false, 'it cannot run it');
  assert.equal(await ask(), false);
  version = 'old';
  assert.equal(await ask(), true);
  assert.equal(await ask(), true);
  assert.deepEqual(heard, ['new', 'new with needs', 'new with needs', 'old with needs', 'old', 'old']);
});
