import assert from 'node:assert/strict';
import test from 'node:test';
import { RequestQueue } from './request-queue.ts';

type Named = { name: string; background: boolean };

const request = (name: string, background = false): Named => ({ name, background });
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
  for (const each of first) queue.ended(each);
  queue.putBack(first);
  assert.deepEqual(names(queue.drain()), ['a', 'c', 'd', 'b']);
  assert.equal(queue.length, 0);
});

test('what waits is taken out, and what was taken is not', () => {
  const queue = new RequestQueue<Named>(2);
  const [taken, waiting, late] = [request('taken'), request('waiting'), request('late', true)];
  for (const each of [taken, waiting, late]) queue.push(each);
  assert.equal(queue.take(), taken);
  assert.equal(queue.remove(taken), false);
  assert.equal(queue.remove(waiting), true);
  assert.equal(queue.remove(late), true);
  assert.equal(queue.length, 0);
});
