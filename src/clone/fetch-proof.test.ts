import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { type Clock, systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { RootHash } from '../receipt/root.ts';
import { sha256 } from '../sys/sha256.ts';
import { FetchLog, fetchLogLengthBytes } from './fetch-log.ts';
import { FetchProof } from './fetch-proof.ts';
import { HeapMapMemory } from './map-memory.ts';
import { ValidityMap } from './validity-map.ts';

const BLOCK = 4096;
const BLOCKS = 520;
const LENGTH = BLOCKS * BLOCK - 512;

/**
 * A clone that is whole: blocks 0 to 63 and the last two came, 64 to 79 were written by the guest, the rest
 * is zeros.
 */
async function makeClone(clock: Clock = systemClock, refetchedBytes = () => 0) {
  const source = new MemoryDevice({ lengthBytes: LENGTH });
  const local = new MemoryDevice({ lengthBytes: LENGTH });
  const logDevice = new MemoryDevice({ lengthBytes: fetchLogLengthBytes(LENGTH) });
  const identity = { volumeId: 'v_1', generation: 2, lengthBytes: LENGTH };
  await FetchLog.create(logDevice, identity);
  const log = await FetchLog.open(logDevice, identity, (_offset, bytes) => sha256(bytes));
  const writtenMemory = new HeapMapMemory(BLOCKS);
  const written = new ValidityMap(writtenMemory, BLOCKS, { counted: false });
  const held: string[] = [];
  const proof = new FetchProof({
    local,
    stored: local,
    source,
    log,
    written: writtenMemory,
    freeMapDigest: null,
    clock,
    refetchedBytes,
    exclusively: async (work) => {
      held.push('held');
      await work();
      held.push('let go');
    },
  });
  const fetch = async (first: number, end: number, damage = false) => {
    const content = randomBytes(Math.min(end * BLOCK, LENGTH) - first * BLOCK);
    await source.write(first * BLOCK, content);
    if (damage) content[5000]! ^= 1;
    await log.record(first, content);
    await local.write(first * BLOCK, content);
  };
  await fetch(0, 16);
  await fetch(16, 32, true);
  await fetch(32, 64);
  await fetch(BLOCKS - 2, BLOCKS);
  written.setRange(64, 80);
  const digestAt = async (first: number, end: number) => {
    const content = new Uint8Array(Math.min(end * BLOCK, LENGTH) - first * BLOCK);
    await source.read(first * BLOCK, content);
    return Buffer.from(await sha256(content)).toString('hex');
  };
  return { source, local, log, written, proof, held, digestAt, fetch };
}

test('what came is told with its digest, and whether it is still there', async () => {
  const { proof, local, written, digestAt } = await makeClone();
  await local.write(33 * BLOCK, randomBytes(512)); // behind everybody's back
  written.setRange(3, 4);
  await local.write(3 * BLOCK, randomBytes(BLOCK));
  const { ranges, ended } = await proof.fetched(0);
  assert.ok(ended);
  assert.deepEqual(
    ranges.map(({ first, blocks, stored }) => [first, blocks, stored]),
    [
      [0, 16, 'written'],
      [16, 16, 'same'],
      [32, 32, 'differs'],
      [BLOCKS - 2, 2, 'same'],
    ],
  );
  assert.equal(ranges[0]!.digest, await digestAt(0, 16));
  assert.notEqual(ranges[1]!.digest, await digestAt(16, 32), 'it was damaged on its way');
  assert.equal(ranges[3]!.digest, await digestAt(BLOCKS - 2, BLOCKS));
});

test('what is neither fetched nor written is told in runs', async () => {
  const { proof } = await makeClone();
  assert.deepEqual(await proof.unfetched(0), {
    ranges: [{ first: 80, blocks: BLOCKS - 82 }],
    next: null,
    garbage: [],
  });
  assert.deepEqual(await proof.unfetched(100), {
    ranges: [{ first: 100, blocks: BLOCKS - 102 }],
    next: null,
    garbage: [],
  });
  assert.deepEqual(await proof.unfetched(BLOCKS + 5), { ranges: [], next: null, garbage: [] });
});

test('a mend stores what the source states, but not where the guest has written, and replaces the record', async () => {
  const { proof, local, source, written, held, digestAt } = await makeClone();
  const own = randomBytes(BLOCK);
  written.setRange(20, 21);
  await local.write(20 * BLOCK, own);
  const [, wrong] = (await proof.fetched(0)).ranges;
  const digest = await digestAt(16, 32);
  const reply = await proof.mend({ ranges: [{ first: 16, blocks: 16, digest, position: wrong!.position }] });
  assert.deepEqual(reply.results, [{ mended: true, storedBytes: 15 * BLOCK, leftBytes: BLOCK }]);
  assert.deepEqual(held, ['held', 'let go']);
  for (let block = 16; block < 32; block++) {
    const [here, there] = [new Uint8Array(BLOCK), new Uint8Array(BLOCK)];
    await local.read(block * BLOCK, here);
    await source.read(block * BLOCK, there);
    assert.deepEqual(Buffer.from(here), block === 20 ? own : Buffer.from(there));
  }
  const { ranges } = await proof.fetched(0);
  assert.deepEqual(
    ranges.map(({ first }) => first),
    [0, 32, BLOCKS - 2, 16],
  );
  assert.equal(ranges[3]!.digest, digest);
  // A hole that should not be one.
  const stated = { first: 256, blocks: 8, digest: await digestAt(256, 264), position: null };
  assert.ok((await proof.mend({ ranges: [stated] })).results[0]!.mended);
  assert.deepEqual((await proof.unfetched(0)).ranges, [
    { first: 80, blocks: 176 },
    { first: 264, blocks: BLOCKS - 266 },
  ]);
});

test('a mended range has its new record on the disk before the old one is taken away', async () => {
  const { proof, log, local, digestAt } = await makeClone();
  const [, wrong] = (await proof.fetched(0)).ranges;
  const order: string[] = [];
  const note =
    (name: string, call: (...args: never[]) => Promise<unknown>) =>
    async (...args: never[]) => {
      order.push(name);
      return call(...args);
    };
  Object.assign(local, { flush: note('data', local.flush.bind(local)) });
  for (const name of ['append', 'flush', 'retire'] as const)
    Object.assign(log, { [name]: note(name, log[name].bind(log) as (...args: never[]) => Promise<unknown>) });
  const digest = await digestAt(16, 32);
  await proof.mend({ ranges: [{ first: 16, blocks: 16, digest, position: wrong!.position }] });
  // A power cut between any two leaves a record of blocks that are there.
  assert.deepEqual(order, ['data', 'append', 'flush', 'retire', 'flush']);
});

test('what comes again and is not what the source states is not stored', async () => {
  const { proof, local, held } = await makeClone();
  const before = new Uint8Array(16 * BLOCK);
  await local.read(16 * BLOCK, before);
  const stated = { first: 16, blocks: 16, digest: '0'.repeat(64), position: null };
  assert.deepEqual((await proof.mend({ ranges: [stated] })).results, [
    { mended: false, storedBytes: 0, leftBytes: 0 },
  ]);
  const after = new Uint8Array(16 * BLOCK);
  await local.read(16 * BLOCK, after);
  assert.deepEqual(after, before);
  assert.deepEqual(held, []);
  await assert.rejects(proof.mend({ ranges: [{ ...stated, first: BLOCKS - 1 }] }), (error) =>
    isGodwitError(error, 'CLONE_BAD_RANGE'),
  );
});

test('the figures are those of the log', async () => {
  const { proof } = await makeClone();
  const { ranges } = await proof.fetched(0);
  const root = new RootHash(LENGTH, new Uint8Array(32).fill(7));
  for (const { first, blocks, digest } of ranges)
    root.add({ first, blocks, digest: Buffer.from(digest, 'hex') });
  const bytes = 64 * BLOCK + 2 * BLOCK - 512;
  assert.deepEqual(await proof.figures('07'.repeat(32)), {
    root: root.hex(),
    ranges: 4,
    comparedBytes: bytes,
    fetchedBytes: bytes,
  });
  assert.notEqual((await proof.figures(null)).root, root.hex());
});

test('what came twice because a server was killed is in the figures', async () => {
  const { proof } = await makeClone(systemClock, () => 12_288);
  assert.equal((await proof.figures(null)).refetchedBytes, 12_288);
  assert.ok(!('refetchedBytes' in (await (await makeClone()).proof.figures(null))));
});

test('a log that takes longer than one question may is added up over several, once', async () => {
  // Every look at the clock is a minute later.
  let nowMs = 0;
  const slow: Clock = {
    ...systemClock,
    monotonicMs: () => {
      nowMs += 60_000;
      return nowMs;
    },
  };
  const { proof, log, fetch } = await makeClone(slow);
  for (let record = 0; record < 2500; record++)
    await log.append({ first: record % 32, blocks: 1, digest: new Uint8Array(32).fill(record) });
  let reads = 0;
  const read = log.read.bind(log);
  log.read = (...range) => {
    reads++;
    return read(...range);
  };
  const ask = async <T>(question: () => Promise<T>): Promise<{ answer: T; refusals: number }> => {
    for (let refusals = 0; ; refusals++) {
      try {
        return { answer: await question(), refusals };
      } catch (error) {
        assert.ok(isGodwitError(error, 'CLONE_PROOF_GOES_ON'), String(error));
      }
    }
  };
  const { refusals } = await ask(() => proof.unfetched(0));
  assert.ok(refusals >= 2, `${refusals} refusals`);
  const readsBefore = reads;
  const { answer, refusals: none } = await ask(() => proof.figures(null));
  assert.equal(none, 0);
  assert.equal(reads, readsBefore + 1, 'only what came since');
  assert.equal(answer.ranges, 2504);
  await fetch(40, 44);
  const more = await ask(() => proof.figures(null));
  assert.equal(more.answer.ranges, 2505);
  assert.notEqual(more.answer.root, answer.root);
  // The same as somebody gets who reads all of it at once, also under another map.
  for (const digest of [null, '07'.repeat(32)]) {
    const root = new RootHash(log.identity.lengthBytes, digest === null ? null : Buffer.from(digest, 'hex'));
    for (const record of (await read(0, 10_000)).records) root.add(record);
    assert.equal((await ask(() => proof.figures(digest))).answer.root, root.hex());
  }
});
