import assert from 'node:assert/strict';
import test from 'node:test';
import { MemoryDevice } from '../block/memory-device.ts';
import { BitCommitter } from './bit-committer.ts';
import { CloneMetadata, metadataLengthBytes, SECTOR_BLOCKS } from './metadata.ts';
import { blockCountOf, ValidityMap, wordCountOf } from './validity-map.ts';

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
  const validity = new ValidityMap(new Uint32Array(wordCountOf(blocks)), blocks);
  const committer = new BitCommitter(local, metadata, validity);
  const settle = () => new Promise((resolve) => setImmediate(resolve));
  const letGo = async () => {
    held.shift()!.proceed();
    await settle();
  };
  return { steps, held, validity, committer, letGo, settle, metadata };
}

test('data, then bits, then the answer; and flushes that come meanwhile share the next commit', async () => {
  const { steps, held, validity, committer, letGo } = await setUp();
  validity.setRange(0, 1);
  committer.written(0, 1);
  const answers: string[] = [];
  const first = committer.flush().then(() => answers.push('first'));
  validity.setRange(SECTOR_BLOCKS, SECTOR_BLOCKS + 1);
  committer.written(SECTOR_BLOCKS, SECTOR_BLOCKS + 1);
  const others = [committer.flush(), committer.flush(), committer.flush()];
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
  validity.setRange(0, 1);
  committer.written(0, 1);
  const flushing = committer.flush();
  validity.setRange(1, 2);
  committer.written(1, 2);
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
  validity.setRange(0, 1);
  committer.hydrated(0, 1);
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
  const { steps, validity, committer, letGo, held } = await setUp(300 * 2 ** 30);
  validity.setRange(0, validity.blockCount);
  committer.written(0, validity.blockCount);
  let done = false;
  const flushing = committer.flush().then(() => {
    done = true;
  });
  let rounds = 0;
  while (!done && held.length > 0) {
    rounds++;
    await letGo();
  }
  await flushing;
  assert.equal(rounds, 3);
  assert.equal(steps.filter((step) => step === 'flush bits').length, 3);
  assert.ok(!committer.dirty);
});
