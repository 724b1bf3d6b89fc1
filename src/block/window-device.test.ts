import assert from 'node:assert/strict';
import { test } from 'node:test';
import { testConformance } from '../../test/support/block-conformance.ts';
import { isGodwitError } from '../base/errors.ts';
import { MemoryDevice } from './memory-device.ts';
import { WindowDevice } from './window-device.ts';

const START_BYTES = 12 * 1024;

testConformance('WindowDevice', {
  open: async (t, want) => {
    const inner = new MemoryDevice({
      lengthBytes: START_BYTES + want.lengthBytes + 8192,
      writable: want.writable,
      ...(want.content && { content: Buffer.concat([new Uint8Array(START_BYTES), want.content]) }),
    });
    t.after(() => inner.close());
    return new WindowDevice(inner, START_BYTES, want.lengthBytes);
  },
});

test('nothing outside the window is touched', async () => {
  const inner = new MemoryDevice({ lengthBytes: 16 * 1024, content: new Uint8Array(16 * 1024).fill(7) });
  const window = new WindowDevice(inner, 4096, 8192);
  await window.write(0, new Uint8Array(8192).fill(1));
  await window.discard(0, 4096);
  const all = new Uint8Array(16 * 1024);
  await inner.read(0, all);
  const expected = new Uint8Array(16 * 1024).fill(7).fill(0, 4096, 8192).fill(1, 8192, 12288);
  assert.deepEqual(all, expected);
});

test('a window that does not fit is refused', () => {
  const inner = new MemoryDevice({ lengthBytes: 16 * 1024 });
  for (const [start, length] of [
    [8192, 8704],
    [-512, 1024],
    [256, 512],
    [0, 0],
    [2 ** 53, 512],
  ] as const) {
    assert.throws(
      () => new WindowDevice(inner, start, length),
      (error) => isGodwitError(error, 'BLOCK_BAD_GEOMETRY'),
    );
  }
});
