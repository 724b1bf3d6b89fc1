import assert from 'node:assert/strict';
import test from 'node:test';
import { FaultDevice } from '../../test/support/fault-device.ts';
import { until } from '../../test/support/patience.ts';
import { PowerSupply } from '../../test/support/power-supply.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { sha256 } from '../sys/sha256.ts';
import { CloneDevice, type CloneDeviceOptions } from './clone-device.ts';
import { FetchLog, fetchLogLengthBytes } from './fetch-log.ts';
import { heapLiveMap } from './live-map.ts';
import { HeapMapMemory, PAGE_BLOCKS } from './map-memory.ts';
import { CloneMetadata, metadataLengthBytes } from './metadata.ts';
import { ValidityMap } from './validity-map.ts';
import { ZeroLog } from './zero-log.ts';

const BLOCK = 4096;
const BLOCKS = 64;
const LENGTH = BLOCKS * BLOCK;

/** A source whose reads wait until the test lets them go, and which remembers what was asked of it. */
class HeldSource implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes = 512;
  readonly writable = false;
  readonly reads: { block: number; blocks: number }[] = [];
  readonly waiting: { proceed: () => void; fail: (error: Error) => void }[] = [];
  held: boolean;
  constructor(held = true, lengthBytes = LENGTH) {
    this.held = held;
    this.lengthBytes = lengthBytes;
  }
  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    this.reads.push({ block: offsetBytes / BLOCK, blocks: into.length / BLOCK });
    if (this.held) {
      await new Promise<void>((proceed, fail) => this.waiting.push({ proceed, fail }));
    }
    for (let index = 0; index < into.length; index++) into[index] = contentAt(offsetBytes + index);
  }
  async letGo(): Promise<void> {
    this.held = false;
    for (const each of this.waiting.splice(0)) each.proceed();
    await settle();
  }
  async fail(): Promise<void> {
    const error = new GodwitError('TEST_LOST', 'lost', { nextAction: 'None.' });
    for (const each of this.waiting.splice(0)) each.fail(error);
    await settle();
  }
  async write(): Promise<void> {
    assert.fail('the source is never written');
  }
  flush = this.write;
  discard = this.write;
  writeZeroes = this.write;
  async close(): Promise<void> {}
}

/** No timer ever fires on its own. */
class StoppedClock implements Clock {
  nowMs = 0;
  timers = new Set<{ atMs: number; callback: () => void }>();
  wallMs = () => this.nowMs;
  monotonicMs = () => this.nowMs;
  timer(delayMs: number, callback: () => void) {
    const timer = { atMs: this.nowMs + delayMs, callback };
    this.timers.add(timer);
    return () => void this.timers.delete(timer);
  }
  sleep = () => assert.fail('nothing sleeps');
  async advance(toMs: number): Promise<void> {
    for (;;) {
      const next = [...this.timers].sort((left, right) => left.atMs - right.atMs)[0];
      if (next === undefined || next.atMs > toMs) break;
      this.timers.delete(next);
      this.nowMs = next.atMs;
      next.callback();
      await settle();
    }
    this.nowMs = toMs;
  }
}

const contentAt = (offsetBytes: number) => 1 + (Math.floor(offsetBytes / 512) % 251);
const settle = () => new Promise<void>((resolve) => setImmediate(resolve));
const filled = (bytes: number, value: number) => new Uint8Array(bytes).fill(value);
const PAUSED = { paused: true, rateBytesPerSecondMax: 0 };
const RUNNING = { paused: false, rateBytesPerSecondMax: 0 };

async function cloneOf(source: BlockDevice, options: Partial<CloneDeviceOptions> = {}) {
  const clock = new StoppedClock();
  const metadataDevice = new MemoryDevice({ lengthBytes: metadataLengthBytes(source.lengthBytes) });
  const identity = { volumeId: 'v', generation: 2, lengthBytes: source.lengthBytes };
  const local = new FaultDevice({ lengthBytes: source.lengthBytes });
  const liveMap = heapLiveMap(source.lengthBytes);
  const clone = await CloneDevice.open({
    local,
    source,
    metadata: await CloneMetadata.create(metadataDevice, identity),
    ...liveMap,
    validityIsCurrent: false,
    clock,
    hydration: PAUSED,
    ...options,
  });
  clone.start();
  return { clone, local, clock, liveMap, metadataDevice, identity };
}

async function readOf(device: BlockDevice, offsetBytes: number, lengthBytes: number): Promise<Uint8Array> {
  const into = new Uint8Array(lengthBytes);
  await device.read(offsetBytes, into);
  return into;
}

function sourceContent(offsetBytes: number, lengthBytes: number): Uint8Array {
  return Uint8Array.from({ length: lengthBytes }, (_, index) => contentAt(offsetBytes + index));
}

test('a block crosses the wire once: who reads it meanwhile waits for the same fetch, later reads are local', async () => {
  const source = new HeldSource();
  const { clone } = await cloneOf(source);
  const reads = [readOf(clone, 512, 1024), readOf(clone, 0, BLOCK), readOf(clone, 3072, 1024)];
  await settle();
  assert.deepEqual(source.reads[0], { block: 0, blocks: 1 });
  assert.ok(!source.reads.slice(1).some(({ block }) => block === 0));
  await source.letGo();
  assert.deepEqual(await Promise.all(reads), [
    sourceContent(512, 1024),
    sourceContent(0, BLOCK),
    sourceContent(3072, 1024),
  ]);
  const readsBefore = source.reads.length;
  assert.deepEqual(await readOf(clone, 0, BLOCK), sourceContent(0, BLOCK));
  assert.equal(source.reads.length, readsBefore);
  await clone.close();
});

test('a guest read joins a background fetch of its block', async () => {
  const source = new HeldSource();
  const { clone } = await cloneOf(source, { hydration: RUNNING });
  await settle();
  const asked = source.reads.length;
  assert.ok(asked >= 1);
  const reading = readOf(clone, 3 * BLOCK, BLOCK);
  await settle();
  assert.equal(source.reads.length, asked);
  await source.letGo();
  assert.deepEqual(await reading, sourceContent(3 * BLOCK, BLOCK));
  await clone.close();
});

test('writes, zeroes and discards of whole blocks never ask the source, though it is unreachable', async () => {
  const source = new HeldSource();
  const { clone } = await cloneOf(source);
  await clone.write(2 * BLOCK, filled(3 * BLOCK, 9));
  await clone.discard(8 * BLOCK, 4 * BLOCK);
  await clone.writeZeroes(20 * BLOCK, BLOCK);
  await clone.flush();
  assert.deepEqual(await readOf(clone, 2 * BLOCK, 3 * BLOCK), filled(3 * BLOCK, 9));
  assert.deepEqual(await readOf(clone, 8 * BLOCK, 4 * BLOCK), filled(4 * BLOCK, 0));
  assert.deepEqual(await readOf(clone, 20 * BLOCK, BLOCK), filled(BLOCK, 0));
  assert.deepEqual(source.reads, []);
  await clone.close();
});

test('a sub-block write fetches that block only, and keeps the rest of it', async () => {
  for (const [op, value] of [
    ['write', 9],
    ['discard', 0],
    ['writeZeroes', 0],
  ] as const) {
    const source = new HeldSource(false);
    const { clone } = await cloneOf(source);
    // The last sector of block 4, all of block 5 and the first two sectors of block 6.
    const offset = 5 * BLOCK - 512;
    const length = 512 + BLOCK + 1024;
    await (op === 'write' ? clone.write(offset, filled(length, 9)) : clone[op](offset, length));
    assert.deepEqual(source.reads, [
      { block: 4, blocks: 1 },
      { block: 6, blocks: 1 },
    ]);
    const expected = sourceContent(4 * BLOCK, 3 * BLOCK);
    expected.fill(value, BLOCK - 512, BLOCK - 512 + length);
    assert.deepEqual(await readOf(clone, 4 * BLOCK, 3 * BLOCK), expected);
    await clone.close();
  }
});

test('a write to a block on the wire ends before the fetch does, and is not overwritten by it', async () => {
  const source = new HeldSource();
  const { clone } = await cloneOf(source);
  const early = readOf(clone, 0, 4 * BLOCK);
  await settle();
  await clone.write(BLOCK, filled(BLOCK, 7));
  assert.deepEqual(
    await readOf(clone, BLOCK, BLOCK),
    filled(BLOCK, 7),
    'read while the fetch is still on the wire',
  );
  await source.letGo();
  await early;
  await settle();
  const expected = sourceContent(0, 4 * BLOCK);
  expected.fill(7, BLOCK, 2 * BLOCK);
  assert.deepEqual(await readOf(clone, 0, 4 * BLOCK), expected);
  await clone.close();
});

test('two sub-block writes to one absent block both last', async () => {
  const source = new HeldSource();
  const { clone } = await cloneOf(source);
  const writes = [clone.write(0, filled(512, 7)), clone.write(1024, filled(512, 8))];
  await settle();
  assert.equal(source.reads.length, 1);
  await source.letGo();
  await Promise.all(writes);
  const expected = sourceContent(0, BLOCK);
  expected.fill(7, 0, 512);
  expected.fill(8, 1024, 1536);
  assert.deepEqual(await readOf(clone, 0, BLOCK), expected);
  await clone.close();
});

test('the source is silent: discards and zeroes that cut absent blocks have their answer, and the blocks get their zeros when they come', async () => {
  const source = new HeldSource();
  const log = new MemoryDevice({ lengthBytes: 64 * 1024 });
  const identity = { volumeId: 'v', generation: 2, lengthBytes: LENGTH };
  await ZeroLog.create(log, identity);
  const writtenBits = new HeapMapMemory(BLOCKS);
  const { clone } = await cloneOf(source, {
    zeroLog: await ZeroLog.open(log, identity),
    written: writtenBits,
    writtenIsCurrent: false,
  });
  const expected = sourceContent(0, LENGTH);
  const reading = readOf(clone, 3 * BLOCK, BLOCK); // its fetch is on the wire when the zeros come
  for (const [call, from, to] of [
    ['discard', 3.5, 6.25],
    ['writeZeroes', 10.125, 10.25],
    ['discard', 20.5, 40.5],
    ['writeZeroes', 50, 50.5],
    ['discard', 50.5, 51], // the other half: nothing of block 50 is needed any more
  ] as const) {
    await clone[call](from * BLOCK, (to - from) * BLOCK);
    expected.fill(0, from * BLOCK, to * BLOCK);
  }
  assert.deepEqual(await readOf(clone, 21 * BLOCK, 19 * BLOCK), expected.slice(21 * BLOCK, 40 * BLOCK));
  assert.deepEqual(await readOf(clone, 50 * BLOCK, BLOCK), expected.slice(50 * BLOCK, 51 * BLOCK));
  await clone.flush();
  assert.deepEqual([...(await ZeroLog.open(log, identity)).blocks], [3, 6, 10, 20, 40, 50]);
  await source.letGo();
  assert.deepEqual(await reading, expected.slice(3 * BLOCK, 4 * BLOCK));
  assert.deepEqual(await readOf(clone, 0, LENGTH), expected);
  const written = new ValidityMap(writtenBits, BLOCKS);
  for (const block of [3, 6, 10, 20, 40, 50]) assert.ok(written.has(block));
  await clone.close();
});

test('the source is silent: what is zeroed in an absent block lasts over a restart, and the proof knows that the block differs', async () => {
  const log = new MemoryDevice({ lengthBytes: 64 * 1024 });
  const identity = { volumeId: 'v', generation: 2, lengthBytes: LENGTH };
  await ZeroLog.create(log, identity);
  const first = await cloneOf(new HeldSource(), { zeroLog: await ZeroLog.open(log, identity) });
  await first.clone.discard(7 * BLOCK + 512, 1024);
  await first.clone.flush();
  const writtenBits = new HeapMapMemory(BLOCKS);
  const again = await cloneOf(new HeldSource(false), {
    zeroLog: await ZeroLog.open(log, identity),
    written: writtenBits,
    writtenIsCurrent: false,
  });
  const expected = sourceContent(7 * BLOCK, BLOCK);
  expected.fill(0, 512, 1536);
  assert.deepEqual(await readOf(again.clone, 7 * BLOCK, BLOCK), expected);
  assert.ok(new ValidityMap(writtenBits, BLOCKS).has(7));
  await first.clone.close();
  await again.clone.close();
});

test('the source is silent: a write of a part of a block waits, and nothing waits for it', async () => {
  const source = new HeldSource();
  const { clone } = await cloneOf(source);
  const expected = sourceContent(0, LENGTH);
  const cut = clone.write(10.5 * BLOCK, filled(20 * BLOCK, 7)); // the ends are blocks 10 and 30
  await settle();
  // What it covers whole is here already.
  assert.deepEqual(await readOf(clone, 11 * BLOCK, 19 * BLOCK), filled(19 * BLOCK, 7));
  await clone.discard(12 * BLOCK, 2 * BLOCK);
  // Also the block that it waits for.
  await clone.write(10 * BLOCK, filled(BLOCK, 8));
  assert.deepEqual((await readOf(clone, 10 * BLOCK, BLOCK)).slice(0, 2048), filled(2048, 8));
  await clone.flush();
  await source.letGo();
  await cut;
  expected
    .fill(8, 10 * BLOCK, 10.5 * BLOCK)
    .fill(7, 10.5 * BLOCK, 30.5 * BLOCK)
    .fill(0, 12 * BLOCK, 14 * BLOCK);
  assert.deepEqual(await readOf(clone, 0, LENGTH), expected);
  await clone.close();
});

test('the source is silent: a read that waits for a block has what the guest writes there meanwhile', async () => {
  const source = new HeldSource();
  const { clone } = await cloneOf(source);
  const reading = readOf(clone, 5 * BLOCK, BLOCK);
  await settle();
  await clone.write(5 * BLOCK, filled(BLOCK, 9));
  assert.deepEqual(await reading, filled(BLOCK, 9));
  await source.letGo();
  await clone.close();
});

test('holes of the source are local without a fetch, and the clone completes', async () => {
  const source = new MemoryDevice({ lengthBytes: 2 ** 40 });
  await source.write(2 ** 39, filled(3 * BLOCK, 5));
  let hydrated = 0;
  const { clone } = await cloneOf(source, { hydration: RUNNING, onHydrated: () => hydrated++ });
  for (let round = 0; round < 1000 && !hydrated; round++) await settle();
  assert.equal(hydrated, 1);
  const status = clone.hydrationStatus();
  assert.equal(status.state, 'complete');
  assert.equal(status.wireBytes, 3 * BLOCK);
  assert.equal(status.exposedBytes, 0);
  assert.equal(status.blocksFetchedTwice, 0);
  await clone.finish();
  assert.deepEqual(await readOf(clone, 2 ** 39, 3 * BLOCK), filled(3 * BLOCK, 5));
  await clone.close();
});

test('no memory for the bits of holes for a minute: they are marked afterwards, and not fetched', async () => {
  const source = new MemoryDevice({ lengthBytes: 2 ** 40 });
  await source.write(2 ** 39, filled(3 * BLOCK, 5));
  const liveMap = heapLiveMap(2 ** 40);
  const { reserve } = HeapMapMemory.prototype;
  let full = true;
  liveMap.validity.reserve = (page) => {
    if (full) throw new GodwitError('VOLUME_NO_SPACE', 'the map is full', { nextAction: 'Wait.' });
    reserve.call(liveMap.validity, page);
  };
  const { clone, clock } = await cloneOf(source, { ...liveMap, hydration: RUNNING });
  await clock.advance(60_000);
  full = false;
  for (let second = 61; second < 100 && !clone.complete; second++) await clock.advance(second * 1_000);
  assert.ok(clone.complete);
  assert.equal(clone.hydrationStatus().wireBytes, 3 * BLOCK);
  await clone.close();
});

test('after a write that failed, holes are still marked and not fetched, but for what it left', async () => {
  const source = new MemoryDevice({ lengthBytes: 2 ** 40 });
  const local = new FaultDevice({ lengthBytes: 2 ** 40 });
  const looked = Promise.withResolvers<void>();
  const [extents, write] = [local.extents.bind(local), local.write.bind(local)];
  // The device has told its holes, and nobody has heard it yet.
  local.extents = async (...range) => {
    const found = await extents(...range);
    await looked.promise;
    return found;
  };
  local.write = async (offsetBytes, from) => {
    await write(offsetBytes, from.subarray(0, BLOCK));
    if (from[0] === 99) throw new GodwitError('BLOCK_IO', 'half of it', { nextAction: 'None.' });
  };
  const { clone } = await cloneOf(source, { local, hydration: RUNNING });
  await settle();
  await assert.rejects(clone.write(7 * BLOCK, filled(2 * BLOCK, 99)), { code: 'BLOCK_IO' });
  looked.resolve();
  for (let round = 0; round < 1000 && !clone.complete; round++) await settle();
  assert.deepEqual(await readOf(clone, 7 * BLOCK, 2 * BLOCK), filled(2 * BLOCK, 0));
  const { wireBytes, state } = clone.hydrationStatus();
  assert.equal(state, 'complete');
  assert.ok(wireBytes >= BLOCK && wireBytes <= 2 ** 20, `${wireBytes} bytes`);
  await clone.close();
});

test('what a crash left in an absent block is not taken for a hole', async () => {
  const source = new MemoryDevice({ lengthBytes: LENGTH });
  const local = new FaultDevice({ lengthBytes: LENGTH });
  await local.write(7 * BLOCK, filled(BLOCK, 99));
  const { clone } = await cloneOf(source, { local, hydration: RUNNING });
  for (let round = 0; round < 1000 && !clone.complete; round++) await settle();
  assert.deepEqual(await readOf(clone, 7 * BLOCK, BLOCK), filled(BLOCK, 0));
  await clone.close();
});

test('an outage: reads wait and report, writes go on, all resumes', async () => {
  const source = new HeldSource();
  const { clone, clock } = await cloneOf(source);
  const reading = readOf(clone, 0, BLOCK);
  await settle();
  await source.fail();
  assert.equal(clone.hydrationStatus().state, 'source-lost');
  assert.equal(clone.hydrationStatus().lastError, 'lost');
  await clone.write(9 * BLOCK, filled(BLOCK, 1));
  for (let second = 1; second <= 10; second++) {
    await clock.advance(second * 1000);
    await source.fail();
  }
  assert.equal(clone.hydrationStatus().sourceLostForMs, 10_000);
  await clock.advance(20_000);
  await source.letGo();
  assert.deepEqual(await reading, sourceContent(0, BLOCK));
  assert.equal(clone.hydrationStatus().state, 'paused');
  assert.equal(clone.hydrationStatus().lastError, null);
  await clone.close();
});

test('a source that is silent counts as lost though nothing failed', async () => {
  const source = new HeldSource();
  const { clone, clock } = await cloneOf(source);
  const reading = readOf(clone, 0, BLOCK);
  await clock.advance(3_000);
  assert.equal(clone.hydrationStatus().state, 'source-lost');
  assert.equal(clone.hydrationStatus().sourceLostForMs, 3_000);
  await source.letGo();
  await reading;
  await clone.close();
});

test('a source that takes 3 s a read is not lost between its answers, and is when it takes longer than they did', async () => {
  const source = new HeldSource(true, 2 ** 26);
  const { clone, clock } = await cloneOf(source);
  const read = (block: number) => {
    source.held = true;
    return readOf(clone, block * 2 ** 22, BLOCK);
  };
  for (let block = 0; block < 4; block++) {
    const reading = read(block);
    await clock.advance((block + 1) * 3_000);
    assert.ok(source.waiting.length > 0, 'it is not here yet');
    // Nothing is known of the first.
    if (block > 0) assert.equal(clone.hydrationStatus().sourceLostForMs, null);
    await source.letGo();
    await reading;
  }
  const last = read(4);
  await clock.advance(4 * 3_000 + 20_000);
  assert.equal(clone.hydrationStatus().sourceLostForMs, 20_000);
  await source.letGo();
  await last;
  await clone.close();
});

/** A source whose reads of any of the blocks [first, end) are refused. */
function badSource(lengthBytes: number, first: number, end: number): MemoryDevice {
  const source = new MemoryDevice({ lengthBytes });
  const read = source.read.bind(source);
  source.read = async (offsetBytes, into) => {
    if (offsetBytes < end * BLOCK && offsetBytes + into.length > first * BLOCK)
      throw new GodwitError('BLOCK_IO', 'bad sector', { nextAction: 'None.' });
    await read(offsetBytes, into);
  };
  return source;
}

test('a sector that the source cannot read holds its own block, and not what lies around it', async () => {
  const lengthBytes = 2 ** 24;
  const source = badSource(lengthBytes, 20, 21);
  await source.write(0, sourceContent(0, lengthBytes));
  const { clone, clock } = await cloneOf(source, { hydration: RUNNING });
  let isHere = false;
  const bad = readOf(clone, 20 * BLOCK, BLOCK).then(
    () => {
      isHere = true;
    },
    () => {},
  );
  for (const [first, blocks] of [
    [4, 16],
    [21, 40],
    [19, 1],
  ] as const)
    assert.deepEqual(
      await readOf(clone, first * BLOCK, blocks * BLOCK),
      sourceContent(first * BLOCK, blocks * BLOCK),
    );
  await clock.advance(120_000);
  const { blocksTotal, blocksPresent, state, lastError, sourceFails } = clone.hydrationStatus();
  assert.equal(blocksTotal - blocksPresent, 1, 'everything else is here');
  assert.deepEqual([state, lastError, isHere], ['source-lost', 'bad sector', false]);
  assert.equal(sourceFails, true, 'it is there, and says so itself');
  await clone.close();
  await bad;
});

test('a source that refuses everything is asked for what the guest reads, and not for each block of it', async () => {
  const lengthBytes = 2 ** 28;
  const source = badSource(lengthBytes, 0, lengthBytes / BLOCK);
  let reads = 0;
  const refuse = source.read.bind(source);
  source.read = (...args) => {
    reads++;
    return refuse(...args);
  };
  const { clone, clock } = await cloneOf(source, { hydration: RUNNING });
  const reading = Array.from({ length: 20 }, (_, index) =>
    readOf(clone, index * 2 ** 20, 2 ** 20).catch(() => {}),
  );
  await clock.advance(20_000);
  assert.ok(reads < 20 * 256 * 2, `${reads} reads in 20 s`);
  assert.equal(clone.hydrationStatus().state, 'source-lost');
  await clone.close();
  await Promise.all(reading);
});

test('the policy can pass errors of the source on', async () => {
  const source = new HeldSource();
  const { clone } = await cloneOf(source, { sourceErrorPolicy: 'error' });
  const failing = [readOf(clone, 0, BLOCK), clone.write(512, filled(512, 1))];
  const checks = failing.map((each) =>
    assert.rejects(each, (error) => isGodwitError(error, 'CLONE_SOURCE_FAILED')),
  );
  await settle();
  await source.fail();
  await source.fail();
  await Promise.all(checks);
  await source.letGo();
  assert.deepEqual(await readOf(clone, 0, BLOCK), sourceContent(0, BLOCK));
  await clone.close();
});

test('a source that is given up: what waits for it fails, also between two attempts; what is local, and whole blocks, go on', async () => {
  const source = new HeldSource();
  const { clone } = await cloneOf(source);
  await clone.write(9 * BLOCK, filled(BLOCK, 1));
  const refused = (work: Promise<unknown>) =>
    assert.rejects(work, (error) => isGodwitError(error, 'CLONE_SOURCE_FAILED'));
  const betweenAttempts = refused(readOf(clone, 0, BLOCK));
  await settle();
  await source.fail();
  const onTheWire = refused(readOf(clone, 32 * BLOCK, BLOCK));
  await settle();
  clone.giveUpSource();
  await settle();
  // Its owner closes it.
  await source.fail();
  await Promise.all([betweenAttempts, onTheWire]);
  const later = refused(clone.write(48 * BLOCK + 512, filled(512, 1)));
  await settle();
  await source.fail();
  await later;
  assert.deepEqual(await readOf(clone, 9 * BLOCK, BLOCK), filled(BLOCK, 1));
  await clone.write(0, filled(BLOCK, 2));
  assert.deepEqual(await readOf(clone, 0, BLOCK), filled(BLOCK, 2));
  await clone.flush();
  await clone.close();
});

test('paused: nothing but misses; resumed: everything', async () => {
  const source = new HeldSource(false);
  const { clone, clock } = await cloneOf(source);
  await clock.advance(5_000);
  assert.equal(source.reads.length, 0);
  assert.equal(clone.hydrationStatus().state, 'paused');
  assert.equal(clone.hydrationStatus().etaMs, null);
  clone.configureHydration(RUNNING);
  assert.equal(clone.hydrationStatus().etaMs, null, 'nothing moves yet');
  await clock.advance(6_000);
  assert.ok(clone.complete);
  assert.equal(
    source.reads.map((each) => each.blocks).reduce((sum, blocks) => sum + blocks, 0),
    BLOCKS,
  );
  await clone.close();
});

test('a rate limit holds over time', async () => {
  const source = new HeldSource(false);
  const rate = 16 * BLOCK;
  const { clone, clock } = await cloneOf(source, {
    hydration: { paused: false, rateBytesPerSecondMax: rate },
  });
  await clock.advance(2_000);
  const bytes = clone.hydrationStatus().wireBytes;
  assert.ok(bytes >= rate && bytes <= 2 * rate + 64 * BLOCK, `${bytes} bytes in 2 s`);
  await clock.advance(10_000);
  assert.ok(clone.complete);
  await clone.close();
});

test('a full local disk: reads are answered from the source, hydration waits and goes on', async () => {
  const source = new HeldSource(false);
  const { clone, local, clock } = await cloneOf(source, { hydration: RUNNING });
  const full = new GodwitError('BLOCK_NO_SPACE', 'full', { nextAction: 'Make room.' });
  const stop = local.fail({ kinds: ['write'], times: Number.POSITIVE_INFINITY, error: full });
  await clock.advance(3_000);
  assert.deepEqual(await readOf(clone, 0, BLOCK), sourceContent(0, BLOCK));
  await assert.rejects(clone.write(0, filled(BLOCK, 1)), (error) => isGodwitError(error, 'BLOCK_NO_SPACE'));
  assert.match(clone.hydrationStatus().lastError ?? '', /full/);
  assert.ok(!clone.complete);
  stop();
  await clock.advance(20_000);
  assert.ok(clone.complete);
  assert.deepEqual(await readOf(clone, 0, LENGTH), sourceContent(0, LENGTH));
  await clone.close();
});

test('no memory for the bits: what came stays absent, whole and in part, and what the guest writes there lasts', async () => {
  const lengthBytes = 2 * PAGE_BLOCKS * BLOCK;
  const source = new HeldSource(false, lengthBytes);
  const liveMap = heapLiveMap(lengthBytes);
  const { reserve } = HeapMapMemory.prototype;
  let full = true;
  liveMap.validity.reserve = (page) => {
    if (full && page === 1)
      throw new GodwitError('VOLUME_NO_SPACE', 'the map is full', { nextAction: 'Wait.' });
    reserve.call(liveMap.validity, page);
  };
  const { clone, clock } = await cloneOf(source, liveMap);
  const border = PAGE_BLOCKS * BLOCK;
  await clone.write(border - 5 * BLOCK, filled(BLOCK, 7));
  // A page of the map that has memory, and one for which there is none.
  const around = () => readOf(clone, border - BLOCK, 2 * BLOCK);
  assert.deepEqual(await around(), sourceContent(border - BLOCK, 2 * BLOCK));
  await settle();
  assert.match(clone.hydrationStatus().lastError ?? '', /VOLUME_NO_SPACE: the map is full/);
  assert.deepEqual(await around(), sourceContent(border - BLOCK, 2 * BLOCK));
  await clone.write(border - BLOCK, filled(BLOCK, 9));
  await assert.rejects(clone.write(border, filled(BLOCK, 9)), { code: 'VOLUME_NO_SPACE' });
  const expected = sourceContent(border - BLOCK, 2 * BLOCK);
  expected.fill(9, 0, BLOCK);
  await clock.advance(10_000);
  assert.deepEqual(await around(), expected);
  full = false;
  await clock.advance(30_000);
  assert.equal(clone.hydrationStatus().lastError, null);
  assert.deepEqual(await around(), expected);
  await clone.close();
});

test('a flush that finds no new bits of the guest writes no metadata', async () => {
  const source = new HeldSource(false);
  const { clone, metadataDevice, identity } = await cloneOf(source);
  const sectorsOnDisk = async () => {
    let count = 0;
    await (await CloneMetadata.open(metadataDevice, identity)).load(() => count++);
    return count;
  };
  await readOf(clone, 0, BLOCK);
  await clone.flush();
  assert.equal(await sectorsOnDisk(), 0, 'a hydrated block is no business of the guest');
  await clone.write(0, filled(512, 3));
  await clone.flush();
  assert.equal(await sectorsOnDisk(), 1, 'but a write on top of it is');
  await clone.close();
});

test('bits become durable without a flush, in time', async () => {
  const source = new HeldSource(false);
  const { clone, clock, metadataDevice, identity } = await cloneOf(source, { commitIntervalMs: 1_000 });
  await readOf(clone, 0, BLOCK);
  await clock.advance(1_500);
  let bits = 0;
  await (await CloneMetadata.open(metadataDevice, identity)).load((_, words) => {
    bits = words[0]!;
  });
  assert.equal(bits, 0xffff, 'the block that was read, and the 64 KiB that it lies in');
  await clone.close();
});

test('reopened with the live map, and with the durable one', async () => {
  const source = new HeldSource(false);
  const first = await cloneOf(source);
  await first.clone.write(0, filled(BLOCK, 1));
  await first.clone.flush();
  await first.clone.write(BLOCK, filled(BLOCK, 2));
  for (const [current, present] of [
    [true, 2],
    [false, 1],
  ] as const) {
    const again = await CloneDevice.open({
      local: first.local,
      source,
      metadata: await CloneMetadata.open(first.metadataDevice, first.identity),
      ...(current ? first.liveMap : heapLiveMap(source.lengthBytes)),
      validityIsCurrent: current,
      clock: new StoppedClock(),
    });
    assert.equal(again.hydrationStatus().blocksPresent, present);
  }
  await first.clone.close();
});

test('when what the guest wrote is lost, blocks that are not here are no more readable than those that are', async () => {
  const source = new HeldSource(false);
  let lost = false;
  const { clone } = await cloneOf(source, {
    checkGuest: () => {
      if (lost) throw new GodwitError('TEST_LOST', 'lost', { nextAction: 'None.' });
    },
  });
  await clone.write(0, filled(BLOCK, 7));
  lost = true;
  const refused = (error: unknown) => isGodwitError(error, 'TEST_LOST');
  await assert.rejects(readOf(clone, 0, BLOCK), refused);
  await assert.rejects(readOf(clone, 40 * BLOCK, BLOCK), refused);
  await assert.rejects(clone.write(40 * BLOCK, filled(BLOCK, 7)), refused);
  await assert.rejects(clone.writeZeroes(40 * BLOCK, 512), refused);
  await assert.rejects(clone.discard(40 * BLOCK, BLOCK), refused);
  await assert.rejects(clone.flush(), refused);
  assert.equal(source.reads.length, 0, 'the source has older content than the guest wrote');
  await clone.close();
});

test('close ends what waits for the source; finish refuses what is not whole', async () => {
  const source = new HeldSource();
  const { clone } = await cloneOf(source);
  const waiting = [
    readOf(clone, 0, BLOCK),
    clone.write(8 * BLOCK, filled(512, 1)),
    readOf(clone, 8 * BLOCK, 512),
  ];
  const checks = waiting.map((each) => assert.rejects(each, (error) => isGodwitError(error, 'BLOCK_CLOSED')));
  await assert.rejects(clone.finish(), (error) => isGodwitError(error, 'CLONE_NOT_COMPLETE'));
  await clone.close();
  await Promise.all(checks);
  await assert.rejects(clone.flush(), (error) => isGodwitError(error, 'BLOCK_CLOSED'));
  await source.letGo();
});

test('a sequential reader is read ahead for, a random one gets the 64 KiB around each miss', async () => {
  const source = new HeldSource(false);
  const sequential = await cloneOf(source);
  for (let block = 0; block < 8; block++) await readOf(sequential.clone, block * BLOCK, BLOCK);
  assert.ok(source.reads.length < 8, `${source.reads.length} reads of the source for 8 of the guest`);
  await sequential.clone.close();

  const large = new HeldSource(false, 2 ** 30);
  const random = await cloneOf(large);
  for (let index = 0; index < 20; index++) {
    await readOf(random.clone, ((index * 7919 * 16) % 262_144) * BLOCK, BLOCK);
    // What is around it comes behind the answer; of hints that wait only the latest are kept.
    for (let turn = 0; turn < 4; turn++) await settle();
  }
  assert.equal(random.clone.hydrationStatus().wireBytes, 20 * 16 * BLOCK);
  await random.clone.close();
});

test('what is said to be warm comes first and in that order, though the copy is paused; what is no part of the device is left out', async () => {
  const source = new HeldSource(false);
  const { clone } = await cloneOf(source);
  const range = (block: number, blocks: number) => ({
    offsetBytes: block * BLOCK,
    lengthBytes: blocks * BLOCK,
  });
  clone.warm([range(12, 2), range(3, 1), range(LENGTH / BLOCK, 4), range(12, 4)]);
  await settle();
  assert.deepEqual(source.reads, [
    { block: 12, blocks: 2 },
    { block: 3, blocks: 1 },
    { block: 14, blocks: 2 },
  ]);
  await clone.close();
});

test('a paused copy that brings warm blocks leaves the holes between them', async () => {
  const source = new HeldSource(false) as HeldSource & { extents: NonNullable<BlockDevice['extents']> };
  source.extents = async () => [
    { offsetBytes: 0, lengthBytes: 2 * BLOCK, kind: 'data' },
    { offsetBytes: 2 * BLOCK, lengthBytes: 3 * BLOCK + 512, kind: 'hole' },
    { offsetBytes: 5 * BLOCK + 512, lengthBytes: LENGTH - 5 * BLOCK - 512, kind: 'data' },
  ];
  const { clone } = await cloneOf(source);
  clone.warm([{ offsetBytes: BLOCK, lengthBytes: 6 * BLOCK }]);
  await settle();
  assert.deepEqual(source.reads, [
    { block: 1, blocks: 1 },
    { block: 5, blocks: 2 },
  ]);
  assert.equal(clone.hydrationStatus().blocksPresent, 3);
  await clone.close();
});

test('a source or local device of another length is refused', async () => {
  const short = new MemoryDevice({ lengthBytes: LENGTH });
  await assert.rejects(
    cloneOf(new HeldSource(), { local: new MemoryDevice({ lengthBytes: LENGTH / 2 }) }),
    (error) => isGodwitError(error, 'CLONE_WRONG_LENGTH'),
  );
  await assert.rejects(cloneOf(short, { source: new MemoryDevice({ lengthBytes: 2 * LENGTH }) }), (error) =>
    isGodwitError(error, 'CLONE_WRONG_LENGTH'),
  );
});

test('with real time, hydration of 64 MiB completes and equals the source', async () => {
  const source = new MemoryDevice({ lengthBytes: 64 * 2 ** 20, chunkBytes: 65_536 });
  const content = Uint8Array.from({ length: 2 ** 20 }, (_, index) => (index * 7 + (index >>> 9)) & 255);
  for (let mebibyte = 0; mebibyte < 64; mebibyte++) await source.write(mebibyte * 2 ** 20, content);
  const { promise, resolve } = Promise.withResolvers<void>();
  const keepAlive = setInterval(() => {}, 1000);
  const { clone, local } = await cloneOf(source, {
    hydration: RUNNING,
    clock: systemClock,
    onHydrated: resolve,
  });
  await promise;
  clearInterval(keepAlive);
  await clone.finish();
  for (let mebibyte = 0; mebibyte < 64; mebibyte++) {
    assert.ok(Buffer.from(await readOf(local, mebibyte * 2 ** 20, 2 ** 20)).equals(content));
  }
  assert.equal(clone.hydrationStatus().blocksFetchedTwice, 0);
  await clone.close();
});

test('bits that a dead process wrote and did not flush are durable before a flush of the next process is answered', async () => {
  for (let seed = 0; seed < 20; seed++) {
    const power = new PowerSupply(seededRandom(seed));
    const source = new HeldSource(false);
    const identity = { volumeId: 'v', generation: 2, lengthBytes: LENGTH };
    const local = new FaultDevice({ lengthBytes: LENGTH, power });
    const metadataDevice = new FaultDevice({ lengthBytes: metadataLengthBytes(LENGTH), power });
    await CloneMetadata.create(metadataDevice, identity);
    const liveMap = heapLiveMap(LENGTH);
    const open = async (disk: FaultDevice, current: boolean) =>
      CloneDevice.open({
        local,
        source,
        metadata: await CloneMetadata.open(disk, identity),
        ...(current ? liveMap : heapLiveMap(LENGTH)),
        validityIsCurrent: current,
        clock: new StoppedClock(),
      });
    const first = await open(metadataDevice, true);
    await first.write(0, filled(BLOCK, 1));
    metadataDevice.stall(['flush']);
    void first.flush().catch(() => {}); // its process dies in the last step
    await settle();
    const secondDisk = metadataDevice.reopen();
    const second = await open(secondDisk, true);
    await second.write(0, filled(BLOCK, 2));
    await second.flush();
    power.cut();
    power.restore();
    assert.deepEqual(await readOf(await open(secondDisk, false), 0, BLOCK), filled(BLOCK, 2));
  }
});

test('unused blocks read as zeros, are never fetched, and last from the next flush on', async () => {
  const source = new HeldSource(false);
  const metadataDevice = new MemoryDevice({ lengthBytes: metadataLengthBytes(LENGTH) });
  const identity = { volumeId: 'v', generation: 2, lengthBytes: LENGTH };
  const local = new FaultDevice({ lengthBytes: LENGTH });
  // A write that a crash cut off: its bit was never set.
  await local.write(5 * BLOCK, filled(512, 7));
  const open = async (metadata: CloneMetadata) =>
    CloneDevice.open({
      local,
      source,
      metadata,
      ...heapLiveMap(LENGTH),
      validityIsCurrent: false,
      clock: new StoppedClock(),
      hydration: PAUSED,
    });
  const clone = await open(await CloneMetadata.create(metadataDevice, identity));
  const runs = [
    { first: 2, end: 8 },
    { first: 40, end: BLOCKS },
  ];
  assert.equal(await clone.markUnused(runs), 5 + 24, 'not the block with bytes in it');
  assert.equal(await clone.markUnused(runs), 0, 'again is nothing new');
  clone.start();
  assert.deepEqual(await readOf(clone, 2 * BLOCK, 3 * BLOCK), filled(3 * BLOCK, 0));
  assert.deepEqual(await readOf(clone, 5 * BLOCK, BLOCK), sourceContent(5 * BLOCK, BLOCK));
  assert.deepEqual(await readOf(clone, 40 * BLOCK, 24 * BLOCK), filled(24 * BLOCK, 0));
  const fetched = source.reads.flatMap(({ block, blocks }) =>
    Array.from({ length: blocks }, (_, index) => block + index),
  );
  const unused = (block: number) => runs.some(({ first, end }) => block >= first && block < end);
  assert.deepEqual(fetched.filter(unused), [5]);
  await assert.rejects(clone.markUnused(runs), /before anybody can read them/);
  await clone.flush();

  const readsBefore = source.reads.length;
  const again = await open(await CloneMetadata.open(metadataDevice, identity));
  assert.deepEqual(await readOf(again, 2 * BLOCK, 3 * BLOCK), filled(3 * BLOCK, 0));
  assert.equal(source.reads.length, readsBefore);
});

test('a clone is complete when nothing can be added to its log any more', async () => {
  const logDevice = new MemoryDevice({ lengthBytes: fetchLogLengthBytes(LENGTH) });
  await FetchLog.create(logDevice, { volumeId: 'v', generation: 2, lengthBytes: LENGTH });
  const digesting: (() => void)[] = [];
  const fetchLog = await FetchLog.open(
    logDevice,
    { volumeId: 'v', generation: 2, lengthBytes: LENGTH },
    async (_offset, bytes) => {
      await new Promise<void>((proceed) => digesting.push(proceed));
      return sha256(bytes);
    },
  );
  const source = new HeldSource();
  let told = 0;
  const { clone } = await cloneOf(source, {
    fetchLog,
    written: new HeapMapMemory(BLOCKS),
    onHydrated: () => told++,
  });
  const recorded = async () => (await fetchLog.read(0, 100)).records.map(({ first }) => first);
  // Arrived, and its digest is being taken while the guest writes all of it.
  const first = readOf(clone, 0, BLOCK);
  await settle();
  await source.letGo();
  assert.deepEqual(await first, sourceContent(0, BLOCK));
  source.held = true;
  // On the wire.
  const second = readOf(clone, 40 * BLOCK, BLOCK);
  await settle();
  await clone.write(0, filled(LENGTH, 7));
  assert.deepEqual(await second, filled(BLOCK, 7));
  assert.ok(!clone.complete && clone.hydrationStatus().state !== 'complete');
  assert.throws(
    () => clone.checkComplete(),
    (error) => isGodwitError(error, 'CLONE_NOT_COMPLETE'),
  );
  for (const proceed of digesting.splice(0)) proceed();
  await until('the clone to be complete', () => clone.complete && told === 1);
  const records = await recorded();
  assert.ok(records.includes(0) && records.every((block) => block < 16), String(records));
  await source.letGo();
  assert.equal(digesting.length, 0, 'what came too late is of no use, and is not recorded');
  await clone.finish();
  assert.equal(told, 1);
  await clone.close();
});

test('what is fetched is logged, what the guest changes is marked before it changes, and after a reboot all counts as changed', async () => {
  const source = new HeldSource(false);
  const logDevice = new MemoryDevice({ lengthBytes: fetchLogLengthBytes(LENGTH) });
  const identity = { volumeId: 'v', generation: 2, lengthBytes: LENGTH };
  await FetchLog.create(logDevice, identity);
  const openLog = () => FetchLog.open(logDevice, identity, (_offset, bytes) => sha256(bytes));
  const fetchLog = await openLog();
  let written = new HeapMapMemory(BLOCKS);
  const { clone, local, metadataDevice } = await cloneOf(source, { fetchLog, written });
  const marked = () => {
    const map = new ValidityMap(written, BLOCKS, { counted: false });
    return [...Array(BLOCKS).keys()].filter((block) => map.has(block));
  };
  await readOf(clone, 0, 4 * BLOCK);
  await settle();
  assert.deepEqual(marked(), []);
  const { records } = await fetchLog.read(0, 100);
  assert.ok(records.some(({ first, blocks }) => first === 0 && blocks >= 4));
  const writes: Promise<void>[] = [
    clone.write(BLOCK, filled(512, 7)), // local already
    clone.write(40 * BLOCK + 512, filled(512, 7)), // a part: the rest is fetched
    clone.discard(50 * BLOCK, 2 * BLOCK),
  ];
  assert.deepEqual(marked(), [1, 40, 50, 51], 'marked when the call is made');
  await Promise.all(writes);
  const after = (await fetchLog.read(0, 100)).records;
  assert.ok(
    after.some(({ first, blocks }) => first <= 40 && first + blocks > 40),
    'what was fetched for a part is logged too',
  );
  await clone.flush();

  written = new HeapMapMemory(BLOCKS);
  const again = await CloneDevice.open({
    local,
    source,
    metadata: await CloneMetadata.open(metadataDevice, identity),
    ...heapLiveMap(LENGTH),
    validityIsCurrent: false,
    fetchLog: await openLog(),
    written,
    writtenIsCurrent: false,
    clock: new StoppedClock(),
    hydration: PAUSED,
  });
  for (const block of [0, 1, 2, 3, 40, 50, 51])
    assert.ok(marked().includes(block), `block ${block} may have been written`);
  assert.ok(!marked().includes(60), 'what is not local was not');
  await again.close();
});
