import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { rangeBytes } from './range.ts';
import { RootHash } from './root.ts';

const digest = (byte: number) => new Uint8Array(32).fill(byte);

test('the root is the hash of the bytes that its layout says', () => {
  const lengthBytes = 5 * 4096 + 512;
  const root = new RootHash(lengthBytes, digest(9));
  root.add({ first: 1, blocks: 2, digest: digest(1) });
  root.add({ first: 4, blocks: 2, digest: digest(2) });
  const leaf = (first: number, bytes: number, content: Uint8Array) => {
    const numbers = Buffer.alloc(16);
    numbers.writeBigUInt64LE(BigInt(first), 0);
    numbers.writeBigUInt64LE(BigInt(bytes), 8);
    return Buffer.concat([Buffer.from([1]), numbers, content]);
  };
  const expected = Buffer.concat([
    Buffer.from('godwit receipt root v1\n'),
    Buffer.from([0]),
    digest(9),
    leaf(4096, 8192, digest(1)),
    leaf(4 * 4096, 4096 + 512, digest(2)),
  ]);
  assert.equal(root.hex(), createHash('sha256').update(expected).digest('hex'));
});

test('another order, range, digest or free map is another root', () => {
  const rootOf = (freeMap: Uint8Array | null, ...ranges: [number, number, number][]) => {
    const root = new RootHash(2 ** 30, freeMap);
    for (const [first, blocks, byte] of ranges) root.add({ first, blocks, digest: digest(byte) });
    return root.hex();
  };
  const roots = [
    rootOf(null),
    rootOf(digest(1)),
    rootOf(null, [0, 1, 1]),
    rootOf(null, [0, 1, 1], [1, 1, 1]),
    rootOf(null, [1, 1, 1], [0, 1, 1]),
    rootOf(null, [0, 2, 1]),
    rootOf(null, [0, 1, 2]),
  ];
  assert.equal(new Set(roots).size, roots.length);
  assert.equal(rangeBytes({ first: 255, blocks: 1 }, 255 * 4096 + 1), 1);
});
