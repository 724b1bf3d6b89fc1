import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BufferPool } from './buffer-pool.ts';

test('a lease is released once, and its bytes are out of reach afterwards', () => {
  const pool = new BufferPool(2 ** 20);
  const lease = pool.lease(100_000);
  const { bytes } = lease;
  assert.equal(bytes.length, 131_072);
  assert.equal(BufferPool.sizeOf(100_000), 131_072);
  assert.equal(BufferPool.sizeOf(1), 65_536);
  lease.release();
  assert.throws(() => lease.bytes, /given back/);
  assert.throws(() => lease.release(), /given back/);
  assert.equal(pool.lease(131_072).bytes, bytes, 'it is used again');
});

test('a checked pool finds whoever writes to a buffer after it was given back', () => {
  const pool = new BufferPool(2 ** 20, { checked: true });
  const lease = pool.lease(65_536);
  const view = lease.bytes.subarray(10, 20);
  view.fill(1);
  lease.release();
  pool.check();
  view[3] = 1;
  assert.throws(() => pool.check(), /nobody writes/);
  assert.throws(() => pool.lease(65_536), /nobody writes/);
});

test('what does not fit into what is kept is left to the garbage collector', () => {
  const pool = new BufferPool(65_536);
  const leases = [pool.lease(1), pool.lease(1)];
  const buffers = leases.map((lease) => lease.bytes);
  for (const lease of leases) lease.release();
  assert.equal(pool.take(1), buffers[0]);
  assert.ok(!buffers.includes(pool.take(1)));
});
