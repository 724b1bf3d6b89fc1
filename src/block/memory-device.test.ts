import assert from 'node:assert/strict';
import { test } from 'node:test';
import { testConformance } from '../../test/support/block-conformance.ts';
import { isGodwitError } from '../base/errors.ts';
import { MemoryDevice } from './memory-device.ts';

for (const blockBytes of [512, 4096]) {
  testConformance(`memory, blocks of ${blockBytes}`, {
    open: async (_t, { lengthBytes, writable, content }) =>
      new MemoryDevice({ lengthBytes, blockBytes, writable, ...(content === null ? {} : { content }) }),
  });
}

test('a tebibyte costs what was written', async () => {
  const device = new MemoryDevice({ lengthBytes: 2 ** 40 });
  await device.write(2 ** 40 - 4096, new Uint8Array(4096).fill(1));
  assert.equal(device.allocatedBytes, 4096);
  assert.deepEqual(await device.extents(0, 2 ** 40, 8), [
    { offsetBytes: 0, lengthBytes: 2 ** 40 - 4096, kind: 'hole' },
    { offsetBytes: 2 ** 40 - 4096, lengthBytes: 4096, kind: 'data' },
  ]);
  await device.discard(0, 2 ** 40);
  assert.equal(device.allocatedBytes, 0);
});

test('impossible geometry is refused', () => {
  for (const [lengthBytes, blockBytes] of [
    [0, 512],
    [4097, 512],
    [4096, 8192],
    [4096, 513],
    [Number.NaN, 512],
    [-4096, 4096],
  ] as const) {
    assert.throws(
      () => new MemoryDevice({ lengthBytes, blockBytes }),
      (error) => isGodwitError(error, 'BLOCK_BAD_GEOMETRY'),
    );
  }
});
