import assert from 'node:assert/strict';
import test from 'node:test';
import { type QueuedRequest, RequestQueue } from './request-queue.ts';

type Named = QueuedRequest & { name: string; ended: unknown };

function request(name: string, background = false): Named {
  const made: Named = {
    name,
    background,
    ended: null,
    resolve: () => {
      made.ended = 'resolved';
    },
    reject: (error) => {
      made.ended = error;
    },
  };
  return made;
}

const names = (requests: readonly Named[]) => requests.map(({ name }) => name);

test('guests go first, and the background leaves a quarter of the depth free', () => {
  const queue = new RequestQueue<Named>(4);
  for (const name of ['a', 'b', 'c', 'd']) queue.push(request(name, true));
  queue.push(request('guest'));
  assert.equal(queue.length, 5);
  assert.deepEqual(names(queue.waiting()), ['guest', 'a', 'b', 'c', 'd']);
  const taken = Array.from({ length: 4 }, () => queue.take()!);
  assert.deepEqual(names(taken), ['guest', 'a', 'b', 'c']);
  assert.equal(queue.take(), null, 'three of four are the background’s');
  queue.ended(taken[0]!);
  assert.equal(queue.take(), null, 'a guest’s place is not the background’s');
  queue.ended(taken[1]!);
  assert.equal(queue.take()?.name, 'd');
  assert.equal(queue.take(), null);
});

test('what was in flight goes back before all that waits, in its order', () => {
  const queue = new RequestQueue<Named>(8);
  for (const name of ['a', 'b', 'c']) queue.push(request(name, name === 'b'));
  const first = [queue.take()!, queue.take()!, queue.take()!];
  assert.deepEqual(names(first), ['a', 'c', 'b']);
  queue.push(request('d'));
  queue.allEnded();
  queue.putBack(first);
  assert.deepEqual(names(queue.drain()), ['a', 'c', 'd', 'b']);
  assert.equal(queue.length, 0);
});

test('an abort rejects what waits and leaves alone what was taken or has ended', async () => {
  const queue = new RequestQueue<Named>(2);
  const abort = new AbortController();
  const [taken, waiting] = [request('taken'), request('waiting')];
  for (const each of [taken, waiting]) {
    queue.push(each);
    queue.withdrawOnAbort(each, abort.signal);
  }
  assert.equal(queue.take(), taken);
  abort.abort(new Error('enough'));
  assert.equal((waiting.ended as Error).message, 'enough');
  assert.equal(taken.ended, null);
  taken.resolve();
  assert.equal(taken.ended, 'resolved');
  const late = request('late', true);
  queue.push(late);
  queue.withdrawOnAbort(late, abort.signal);
  const endedAtOnce: unknown = late.ended;
  assert.equal(endedAtOnce, null, 'not before the caller has its promise');
  await Promise.resolve();
  assert.equal((late.ended as unknown as Error).message, 'enough');
});
