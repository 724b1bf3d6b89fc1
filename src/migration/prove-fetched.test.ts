import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { answering, ProofPair } from '../../test/support/proof-pair.ts';
import { systemClock } from '../base/clock.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { FetchLog, fetchLogLengthBytes } from '../clone/fetch-log.ts';
import { FetchProof } from '../clone/fetch-proof.ts';
import { HeapMapMemory } from '../clone/map-memory.ts';
import type { BlockRange } from '../receipt/proof.ts';
import { PROOF_RANGES_MAX } from '../receipt/range.ts';
import { sha256 } from '../sys/sha256.ts';

/** The proof of a move by what the target fetched, over pages of its log. */
const BLOCK = 4096;

/** A volume that is whole, each block in a fetch of its own; those of `damaged` were changed on their way. */
async function moved(blocks: number, damaged: number[], holes = 0, refetchedBytes = 0) {
  const lengthBytes = (blocks + holes) * BLOCK;
  const sealed = new MemoryDevice({ lengthBytes });
  const local = new MemoryDevice({ lengthBytes });
  const logDevice = new MemoryDevice({ lengthBytes: fetchLogLengthBytes(lengthBytes) });
  const identity = { volumeId: 'v_1', generation: 2, lengthBytes };
  await FetchLog.create(logDevice, identity);
  const log = await FetchLog.open(logDevice, identity, (_offset, bytes) => sha256(bytes));
  for (let block = 0; block < blocks; block++) {
    const content = randomBytes(BLOCK);
    await sealed.write(block * BLOCK, content);
    if (damaged.includes(block)) content[77]! ^= 1;
    await log.record(block, content);
    await local.write(block * BLOCK, content);
  }
  const proof = new FetchProof({
    ...{ local, stored: local, source: sealed, log, freeMapDigest: null, clock: systemClock },
    written: new HeapMapMemory(blocks + holes),
    refetchedBytes: () => refetchedBytes,
    exclusively: (work) => work(),
  });
  const digestOf = async ({ first, blocks: count }: BlockRange) => {
    const content = Buffer.alloc(count * BLOCK);
    await sealed.read(first * BLOCK, content);
    return createHash('sha256').update(content).digest('hex');
  };
  const target = answering({
    fetched: (cursor) => proof.fetched(cursor),
    unfetched: (cursor) => proof.unfetched(cursor),
    figures: (freeMapDigest) => proof.figures(freeMapDigest),
    mend: (request) => proof.mend(request),
  });
  const source = answering({
    owed: () => ({ ranges: [], next: null }),
    digests: async (ranges) => ({ digests: await Promise.all(ranges.map(digestOf)) }),
  });
  const pair = new ProofPair({
    id: 'v_1',
    sourceStore: { get: async () => ({ name: 'db', lengthBytes }) },
    source,
    target,
  });
  return { sealed, local, pair };
}

test('what is mended is counted wherever in the log it was, and however many pages follow', async () => {
  const lastOfPage = PROOF_RANGES_MAX - 1;
  for (const [blocks, damaged] of [
    [PROOF_RANGES_MAX / 2, [3]],
    [PROOF_RANGES_MAX * 1.5, [3]],
    [PROOF_RANGES_MAX * 1.5, [lastOfPage + 10]],
    [PROOF_RANGES_MAX * 3, [0, lastOfPage, PROOF_RANGES_MAX * 2 - 1, PROOF_RANGES_MAX * 3 - 1]],
  ] as const) {
    const { sealed, local, pair } = await moved(blocks, [...damaged]);
    const { bytes, ranges, rangesMended } = await pair.prove();
    assert.deepEqual([ranges, rangesMended], [blocks, damaged.length], `${blocks}, ${damaged}`);
    assert.equal(bytes.readBack, blocks * BLOCK);
    const [here, there] = [Buffer.alloc(blocks * BLOCK), Buffer.alloc(blocks * BLOCK)];
    await local.read(0, here);
    await sealed.read(0, there);
    assert.equal(here.compare(there), 0);
  }
});

test('what the disk of the target has in a hole of the source is found, and is zeros afterwards', async () => {
  const holes = 700;
  const { sealed, local, pair } = await moved(10, [], holes);
  // One block, a run over a region border, the last block; and zeros that have a place, which are no garbage.
  for (const [first, blocks] of [
    [12, 1],
    [250, 12],
    [10 + holes - 1, 1],
  ] as const)
    await local.write(first * BLOCK, randomBytes(blocks * BLOCK));
  await local.write(400 * BLOCK, Buffer.alloc(20 * BLOCK));
  const { bytes, rangesMended } = await pair.prove();
  assert.equal(rangesMended, 4, 'one of them crosses a region border');
  assert.equal(bytes.mended, 14 * BLOCK);
  const [here, there] = [Buffer.alloc((10 + holes) * BLOCK), Buffer.alloc((10 + holes) * BLOCK)];
  await local.read(0, here);
  await sealed.read(0, there);
  assert.equal(here.compare(there), 0);
});

test('the receipt says what came twice because a server of the target was killed', async () => {
  const { pair } = await moved(3, [], 0, 8192);
  assert.equal((await pair.prove()).bytes.refetched, 8192);
  assert.equal((await (await moved(3, [])).pair.prove()).bytes.refetched, undefined);
});
