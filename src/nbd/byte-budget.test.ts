import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ByteBudget } from './byte-budget.ts';

test('who gets nothing is called once when something is given back, in order', () => {
  const budget = new ByteBudget(100);
  const called: string[] = [];
  const retry = { a: () => called.push('a'), b: () => called.push('b'), c: () => called.push('c') };
  assert.ok(budget.take(80, retry.a));
  assert.ok(!budget.take(30, retry.b));
  assert.ok(!budget.take(30, retry.c));
  assert.ok(!budget.take(30, retry.b));
  budget.give(80);
  budget.give(0);
  assert.deepEqual(called, ['b', 'c']);
  assert.ok(budget.take(100, retry.a));
  assert.ok(!budget.take(1, retry.b));
  budget.forget(retry.b);
  budget.give(100);
  assert.deepEqual(called, ['b', 'c']);
  assert.equal(budget.bytesInUse, 0);
});
