import assert from 'node:assert/strict';
import test from 'node:test';
import { MemoryDevice } from '../block/memory-device.ts';
import { BitCommitter } from './bit-committer.ts';
import { heapLiveMap } from './live-map.ts';
import { HeapMapMemory } from './map-memory.ts';
import { CloneMetadata, metadataLengthBytes, SECTOR_BLOCKS } from './metadata.ts';
import { blockCountOf, ValidityMap } from './validity-map.ts';

const LENGTH = 2 ** 30;

/** A committer whose steps are written down, and whose flushes of the data wait for the test. */
async function setUp(lengthBytes = LENGTH) {
  const steps: string[] = [];
  const held: { proceed: () => void; fail: (error: Error) => void }[] = [];
  const identity = { volumeId: 'v', generation: 1, lengthBytes };
  const disk = new MemoryDevice({ lengthBytes: metadataLengthBytes(lengthBytes) });
  const metadata = await CloneMetadata.create(disk, identity);
  const write = metadata.write.bind(metadata);
  metadata.write = (sectors, words) => {
    steps.push(`write ${sectors}`);
    return write(sectors, words);
  };
  metadata.flush = async () => void steps.push('flush bits');
  const local = new MemoryDevice({ lengthBytes });
  local.flush = () => {
    steps.push('flush data');
    return new Promise<void>((proceed, fail) => held.push({ proceed, fail }));
  };
  const blocks = blockCountOf(lengthBytes);
  const liveMap = heapLiveMap(lengthBytes);
  const validity = new ValidityMap(liveMap.validity, blocks);
  const committer = new BitCommitter(local, metadata, validity, liveMap.owed);
  // Long turns are cut (base/turn.ts), and on a busy machine any turn may be long.
  const settle = async () => {
    for (let turns = 0; turns < 8; turns++) await new Promise((resolve) => setImmediate(resolve));
  };
  const letGo = async () => {
    while (held.length === 0) await settle();
    held.shift()!.proceed();
    await settle();
  };
  return { steps, held, validity, committer, letGo, settle, metadata, local, liveMap };
}

test('data, then bits, then the answer; and flushes that come meanwhile share the next commit', async () => {
  const { steps, held, validity, committer, letGo, settle } = await setUp();
  committer.written(0, 1);
  validity.setRange(0, 1);
  const answers: string[] = [];
  const first = committer.flush().then(() => answers.push('first'));
  committer.written(SECTOR_BLOCKS, SECTOR_BLOCKS + 1);
  validity.setRange(SECTOR_BLOCKS, SECTOR_BLOCKS + 1);
  const others = [committer.flush(), committer.flush(), committer.flush()];
  await settle();
  assert.deepEqual(steps, ['flush data']);
  await letGo();
  assert.deepEqual(steps, ['flush data', 'write 0', 'flush bits', 'flush data']);
  assert.deepEqual(answers, ['first']);
  await letGo();
  await Promise.all([first, ...others]);
  assert.deepEqual(steps.slice(4), ['write 1', 'flush bits']);
  assert.equal(held.length, 0);
});

test('bits that are set while the data is flushed are not in that round', async () => {
  const { validity, committer, letGo, metadata } = await setUp();
  committer.written(0, 1);
  validity.setRange(0, 1);
  const flushing = committer.flush();
  committer.written(1, 2);
  validity.setRange(1, 2);
  await letGo();
  await flushing;
  let bits = 0;
  await metadata.load((_, words) => {
    bits = words[0]!;
  });
  assert.equal(bits, 1);
  assert.ok(committer.dirty);
});

test('a failed commit is told to those who waited, and its bits are owed to the next', async () => {
  const { steps, held, validity, committer, settle, letGo } = await setUp();
  committer.hydrated(0, 1);
  validity.setRange(0, 1);
  const failing = assert.rejects(committer.commitAll(), /disk gone/);
  await settle();
  const next = committer.flush();
  held.shift()!.fail(new Error('disk gone'));
  await failing;
  await settle();
  await letGo();
  await next;
  assert.deepEqual(steps, ['flush data', 'flush data', 'write 0', 'flush bits']);
  assert.ok(!committer.dirty);
});

test('more sectors than a round holds are committed in rounds', async () => {
  const { steps, validity, committer, letGo, held, settle } = await setUp(300 * 2 ** 30);
  committer.written(0, validity.blockCount);
  validity.setRange(0, validity.blockCount);
  let done = false;
  const flushing = committer.flush().then(() => {
    done = true;
  });
  let rounds = 0;
  while (!done) {
    if (held.length === 0) {
      await settle();
      continue;
    }
    rounds++;
    await letGo();
  }
  await flushing;
  assert.equal(rounds, 3);
  assert.equal(steps.filter((step) => step === 'flush bits').length, 3);
  assert.ok(!committer.dirty);
});

test('what a dead process owed is owed to the first flush of the next one, wherever it died', async () => {
  const lengthBytes = 64 * 2 ** 40;
  const { committer, validity, held, letGo, settle, metadata, local, liveMap, steps } =
    await setUp(lengthBytes);
  const far = (16 * 2 ** 40) / 4096 + 5;
  const hydrated = [0, far + 3 * SECTOR_BLOCKS];
  for (const block of [far, validity.blockCount - 1]) {
    committer.written(block, block + 1);
    validity.setRange(block, block + 1);
  }
  const flushing = committer.flush();
  await letGo();
  await flushing;
  assert.deepEqual([...liveMap.owed.filter((byte) => byte !== 0)], [], 'nothing is owed after a flush');
  for (const block of hydrated) {
    committer.hydrated(block, block + 1);
    validity.setRange(block, block + 1);
  }
  committer.written(far, far + 2);
  validity.setRange(far + 1, far + 2);
  void committer.flush(); // dies in the middle
  await settle();
  held.length = 0;
  steps.length = 0;
  const next = new BitCommitter(local, metadata, validity, liveMap.owed);
  assert.ok(next.dirty);
  const flushed = next.flush();
  await letGo();
  await flushed;
  const sectors = [0, far, far + 3 * SECTOR_BLOCKS].map((block) => Math.floor(block / SECTOR_BLOCKS));
  assert.deepEqual(steps, ['flush data', `write ${sectors}`, 'flush bits']);
  assert.ok(!next.dirty);
  assert.ok(!new BitCommitter(local, metadata, validity, liveMap.owed).dirty);
});

test('a guest whose writes others make waits for bits of fetched blocks only where it wrote', async () => {
  const { steps, held, validity, committer, letGo, settle } = await setUp();
  const written = new ValidityMap(new HeapMapMemory(validity.blockCount), validity.blockCount);
  const fetched = (sector: number) => {
    committer.hydrated(sector * SECTOR_BLOCKS, sector * SECTOR_BLOCKS + 10);
    validity.setRange(sector * SECTOR_BLOCKS, sector * SECTOR_BLOCKS + 10);
  };
  fetched(0);
  fetched(1);
  written.setRange(5 * SECTOR_BLOCKS, 5 * SECTOR_BLOCKS + 1);
  const elsewhere = committer.flushWritten(written);
  await letGo();
  await elsewhere;
  assert.deepEqual(steps, ['flush data']);
  written.setRange(SECTOR_BLOCKS + 3, SECTOR_BLOCKS + 4);
  const there = committer.flushWritten(written);
  await letGo();
  await there;
  assert.deepEqual(steps.splice(0), ['flush data', 'flush data', 'write 1', 'flush bits']);
  // While a commit runs: only whoever wrote to what it has waits for its end.
  fetched(2);
  const commit = committer.commitAll();
  const aside = committer.flushWritten(written);
  assert.equal(held.length, 2);
  held.pop()!.proceed();
  await aside;
  written.setRange(2 * SECTOR_BLOCKS, 2 * SECTOR_BLOCKS + 1);
  let answered = false;
  const behind = committer.flushWritten(written).then(() => {
    answered = true;
  });
  await settle();
  assert.equal(held.length, 1);
  held[0]!.fail(new Error('the disk'));
  held.shift();
  await assert.rejects(commit, /the disk/);
  await settle();
  assert.equal(answered, false, 'the bits are not durable yet');
  await letGo();
  await behind;
  assert.deepEqual(steps.slice(-2), ['write 0,2', 'flush bits']);
});
