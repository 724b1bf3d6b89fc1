import assert from 'node:assert/strict';
import { test } from 'node:test';
import { serialAdd, serialDistance } from './serial-number.ts';

test('serial numbers wrap around at 2^32', () => {
  assert.equal(serialAdd(0xffffffff, 1), 0);
  assert.equal(serialDistance(0, 0xffffffff), 1);
  assert.equal(serialDistance(0xfffffffe, 1), -3);
});
