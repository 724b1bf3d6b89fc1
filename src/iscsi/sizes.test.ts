import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { initiatorOptions, startTarget } from '../../test/support/iscsi-pair.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { IscsiInitiator } from './index.ts';

const TIB = 2 ** 40;
const LENGTH = 64 * TIB;

test('64 TiB over iSCSI: capacity, reads, writes and holes at the edges of 32 bits of blocks', async (t) => {
  const device = new MemoryDevice({ lengthBytes: LENGTH });
  const { target } = await startTarget(t, device);
  const initiator = await IscsiInitiator.connect(initiatorOptions(target.port), { timeoutMs: 60_000 });
  t.after(() => initiator.close());
  assert.equal(initiator.lengthBytes, LENGTH);
  // Of blocks of 512 bytes: 2^31, 2^32, and of 4096 bytes: 2^31, 2^32.
  const edges = [TIB, 2 * TIB, 8 * TIB, 16 * TIB, 32 * TIB, LENGTH - 4096];
  const written = new Map<number, Buffer>();
  for (const edge of edges) {
    const offset = edge === LENGTH - 4096 ? edge : edge - 4096;
    const bytes = randomBytes(edge === LENGTH - 4096 ? 4096 : 8192);
    await initiator.write(offset, bytes);
    written.set(offset, bytes);
  }
  const into = Buffer.alloc(8192);
  for (const [offset, bytes] of written) {
    const part = into.subarray(0, bytes.length);
    await initiator.read(offset, part);
    assert.deepEqual(part, bytes, `bytes from ${offset} on`);
    await device.read(offset, part);
    assert.deepEqual(part, bytes, `bytes from ${offset} on, of the device`);
  }
  const data: [number, number][] = [];
  for (let at = 0; at < LENGTH; ) {
    for (const extent of await initiator.extents(at, LENGTH - at, 3)) {
      assert.equal(extent.offsetBytes, at);
      at += extent.lengthBytes;
      if (extent.kind === 'data') data.push([extent.offsetBytes, extent.lengthBytes]);
    }
  }
  assert.deepEqual(
    data,
    [...written].map(([offset, bytes]) => [offset, bytes.length]),
  );
});
