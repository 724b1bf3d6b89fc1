import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { until } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { RegionDigests } from './region-digests.ts';

const MIB = 2 ** 20;
const BLOCK = 4096;
const LENGTH = 5 * MIB + 3 * BLOCK;

const sha = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

/** Data in MiB 0, in block 2 of MiB 2, and in the cut last one; MiB 0 is free from its block 128 on. */
async function open(
  t: TestContext,
  options: { generation?: number; path?: string; device?: MemoryDevice } = {},
) {
  const device = options.device ?? new MemoryDevice({ lengthBytes: LENGTH });
  if (!options.device) {
    await device.write(0, randomBytes(MIB));
    await device.write(2 * MIB + 2 * BLOCK, randomBytes(BLOCK));
    await device.write(5 * MIB, randomBytes(3 * BLOCK));
  }
  const path = options.path ?? join(scratchDir(t), 'region.digests');
  const digests = await RegionDigests.open({
    device,
    path,
    volumeId: 'v_1',
    generation: options.generation ?? 3,
    freeRuns: [{ first: 128, end: 256 }],
    clock: { ...systemClock, sleep: async () => {} },
    logger: silentLogger,
    bytesServed: () => 0,
  });
  t.after(() => digests.close());
  const content = async (first: number, blocks: number) => {
    const bytes = new Uint8Array(Math.min((first + blocks) * BLOCK, LENGTH) - first * BLOCK);
    await device.read(first * BLOCK, bytes);
    return bytes;
  };
  return { digests, device, path, content };
}

function entry(path: string, region: number): Buffer {
  const bytes = Buffer.alloc(32);
  const file = openSync(path, 'r');
  try {
    return bytes.subarray(0, readSync(file, bytes, 0, 32, 32 * (region + 1)));
  } finally {
    closeSync(file);
  }
}

test('regions with data are digested in the background, and the table outlives the process', async (t) => {
  const { digests, device, path, content } = await open(t);
  digests.start();
  await until('the last region', () => entry(path, 5).length === 32);
  assert.equal(entry(path, 0).toString('hex'), sha(await content(0, 256)));
  assert.equal(entry(path, 2).toString('hex'), sha(await content(512, 256)));
  assert.equal(entry(path, 5).toString('hex'), sha(await content(1280, 3)));
  for (const hole of [1, 3, 4]) assert.ok(entry(path, hole).every((byte) => byte === 0));
  await digests.close();
  // The next server believes the table, and the next generation does not.
  await device.write(0, randomBytes(512));
  const again = await open(t, { device, path });
  await assert.rejects(again.digests.digestsOf([{ first: 0, blocks: 1 }]), (error) =>
    isGodwitError(error, 'VOLUME_REGION_CHANGED'),
  );
  await again.digests.close();
  const next = await open(t, { device, path, generation: 5 });
  assert.deepEqual(await next.digests.digestsOf([{ first: 0, blocks: 1 }]), [sha(await content(0, 1))]);
});

test('of 64 TiB that are nearly empty only what is there is looked at', async (t) => {
  const device = new MemoryDevice({ lengthBytes: 64 * 2 ** 40 });
  const at = [0, 16 * 2 ** 40 - 4096, 16 * 2 ** 40, 40 * 2 ** 40 + 3 * 4096, 64 * 2 ** 40 - 4096];
  for (const offset of at) await device.write(offset, randomBytes(4096));
  let looks = 0;
  const extents = device.extents.bind(device);
  device.extents = (...range) => {
    looks++;
    return extents(...range);
  };
  const { digests, path } = await open(t, { device });
  digests.start();
  const last = 64 * 2 ** 20 - 1;
  await until('the last region', () => entry(path, last).length === 32);
  assert.ok(looks <= 2 * at.length, `${looks} looks`);
  for (const offset of at) {
    const region = Math.floor(offset / MIB);
    const bytes = new Uint8Array(MIB);
    await device.read(region * MIB, bytes);
    assert.equal(entry(path, region).toString('hex'), sha(bytes), `MiB ${region}`);
  }
  const owed = await digests.owed({ first: 0, blocks: 64 * 2 ** 28 }, 0);
  assert.deepEqual(
    owed.ranges.map(({ first }) => Math.floor((first * 4096) / MIB)),
    at.map((offset) => Math.floor(offset / MIB)),
  );
  assert.equal(owed.next, null);
});

test('a part of a region is digested after the region was found unchanged', async (t) => {
  const { digests, device, content } = await open(t);
  const ranges = [
    { first: 0, blocks: 256 },
    { first: 7, blocks: 3 },
    { first: 514, blocks: 1 },
    { first: 1281, blocks: 2 },
  ];
  const expected = await Promise.all(
    ranges.map(async ({ first, blocks }) => sha(await content(first, blocks))),
  );
  assert.deepEqual(await digests.digestsOf(ranges), expected);
  const byte = new Uint8Array(512);
  await device.read(600 * BLOCK, byte);
  byte[9]! ^= 4;
  await device.write(600 * BLOCK, byte);
  // Another part of the same MiB.
  await assert.rejects(digests.digestsOf([{ first: 514, blocks: 1 }]), (error: unknown) => {
    assert.ok(isGodwitError(error, 'VOLUME_REGION_CHANGED'));
    assert.equal(error.values.offsetBytes, 2 * MIB);
    return true;
  });
  for (const wrong of [
    { first: 255, blocks: 2 },
    { first: 1282, blocks: 2 },
    { first: 4000, blocks: 1 },
  ]) {
    await assert.rejects(digests.digestsOf([wrong]), (error) => isGodwitError(error, 'VOLUME_BAD_SPEC'));
  }
});

test('what did not travel is owed where the file has data that the free map does not name', async (t) => {
  const { digests, content } = await open(t);
  const owed = await digests.owed({ first: 100, blocks: 1183 }, 0);
  const parts = owed.ranges.map(({ first, blocks }) => [first, blocks]);
  assert.deepEqual(parts[0], [100, 28]);
  assert.deepEqual(parts.at(-1), [1280, 3]);
  const blocks = new Set(
    parts.flatMap(([first, count]) => Array.from({ length: count! }, (_, at) => first! + at)),
  );
  assert.ok(blocks.has(514), 'the one block of data in MiB 2');
  assert.ok(!blocks.has(128) && !blocks.has(255), 'the free map');
  assert.equal(owed.ranges[0]!.digest, sha(await content(100, 28)));
  assert.equal(owed.next, null);
  assert.deepEqual(await digests.owed({ first: 128, blocks: 384 }, 0), { ranges: [], next: null });
});

test('all that may be in use is stated in order, holes as zeros', async (t) => {
  const { digests, path, content } = await open(t);
  const stated = await digests.stated(0);
  assert.deepEqual(
    stated.ranges.map(({ first, blocks }) => [first, blocks]),
    [
      [0, 128],
      [256, 256],
      [512, 256],
      [768, 256],
      [1024, 256],
      [1280, 3],
    ],
  );
  for (const { first, blocks, digest } of stated.ranges)
    assert.equal(digest, sha(await content(first, blocks)));
  assert.equal(stated.next, null);
  for (const hole of [1, 3, 4])
    assert.ok(
      entry(path, hole).every((byte) => byte === 0),
      'was not read',
    );
  assert.deepEqual((await digests.stated(700)).ranges[0], {
    ...{ first: 700, blocks: 68 },
    digest: sha(await content(700, 68)),
  });
});
