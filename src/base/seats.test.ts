import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Seat, Seats } from './seats.ts';

function crowd(seats: Seats) {
  const evicted: string[] = [];
  const come = (name: string, key: string, worth: number | null = 0): { seat: Seat; in: boolean } => {
    const seat: Seat = { key, worth: () => worth, evict: () => evicted.push(name) };
    return { seat, in: seats.take(seat) };
  };
  return { evicted, come };
}

test('who comes when all places are taken gets that of the one who came first', () => {
  const seats = new Seats({ max: 3, keyMax: 3 });
  const { evicted, come } = crowd(seats);
  for (const name of ['a', 'b', 'c', 'd', 'e']) assert.ok(come(name, 'x').in);
  assert.deepEqual(evicted, ['a', 'b']);
  assert.equal(seats.size, 3);
});

test('those with less to show go before those with more, however new they are', () => {
  const seats = new Seats({ max: 3, keyMax: 3 });
  const { evicted, come } = crowd(seats);
  come('talks', 'x', 1);
  come('proven', 'x', 2);
  come('silent', 'x', 0);
  come('silent too', 'x', 0);
  come('talks as well', 'x', 1);
  come('one more', 'x', 1);
  assert.deepEqual(evicted, ['silent', 'silent too', 'talks']);
});

test('an address has its share, and loses of its own when it wants more', () => {
  const seats = new Seats({ max: 4, keyMax: 3 });
  const { evicted, come } = crowd(seats);
  come('other', 'y');
  for (const name of ['a', 'b', 'c', 'd']) come(name, 'x');
  assert.deepEqual(evicted, ['a']);
  come('newcomer', 'z');
  assert.deepEqual(evicted, ['a', 'b'], 'the key with the most gives the place');
});

test('where nobody can be asked to leave there is no place', () => {
  const seats = new Seats({ max: 2, keyMax: 2 });
  const { evicted, come } = crowd(seats);
  const first = come('a', 'x', null);
  come('b', 'x', null);
  assert.equal(come('c', 'y').in, false);
  seats.leave(first.seat);
  seats.leave(first.seat);
  assert.equal(seats.size, 1);
  assert.ok(come('d', 'y').in);
  assert.deepEqual(evicted, []);
});
