import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { sha256 } from './sha256.ts';

test('sha256 says what node:crypto says, for any length and for many at once', async () => {
  const inputs = [0, 1, 16 * 1024, 16 * 1024 + 1, 65536, 2 ** 20].map((length) => randomBytes(length));
  const many = [...inputs, ...inputs, ...inputs];
  const digests = await Promise.all(many.map((input) => sha256(input)));
  for (const [index, input] of many.entries()) {
    assert.deepEqual(Buffer.from(digests[index]!), createHash('sha256').update(input).digest());
  }
});
