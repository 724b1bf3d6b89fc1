import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { isGodwitError } from '../../src/base/errors.ts';
import { seededRandom } from '../../src/base/random.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';

/**
 * The contract of BlockDevice as tests, for every device and layer: call `testConformance` at the top of the
 * test file. Not part of the product.
 */
export type ConformanceWant = {
  lengthBytes: number;
  writable: boolean;
  /** What the device holds from byte 0; null: zeros. */
  content: Uint8Array | null;
};

export type ConformanceOptions = {
  /**
   * Opens a device. It registers its own tear-down with `t.after` (closing the device too, which may be
   * closed already).
   */
  open: (t: TestContext, want: ConformanceWant) => Promise<BlockDevice>;
  /** `both` (default), or the only side that the device has. */
  access?: 'both' | 'readonly' | 'writable';
  /** Length of the device for the test of far offsets; null leaves it out. Default 6 GiB. */
  largeLengthBytes?: number | null;
  /** Random command sequences against the model. Default 60. */
  runs?: number;
};

const LENGTH_BYTES = 256 * 1024;

export function testConformance(name: string, options: ConformanceOptions): void {
  const access = options.access ?? 'both';
  test(`${name}: the block device contract`, async (t) => {
    if (access !== 'writable') await testReading(t, options);
    if (access !== 'readonly') await testWriting(t, options);
  });
}

async function testReading(t: TestContext, options: ConformanceOptions): Promise<void> {
  const content = seededRandom(1).bytes(LENGTH_BYTES);
  content.fill(0, 64 * 1024, 128 * 1024);
  const want: ConformanceWant = { lengthBytes: LENGTH_BYTES, writable: false, content };

  await t.test('read-only: shows the content, refuses every mutation and stays as it is', async (t) => {
    const device = await options.open(t, want);
    assert.equal(device.writable, false);
    const readOnly = (error: unknown) => isGodwitError(error, 'BLOCK_READ_ONLY');
    await assert.rejects(device.write(0, new Uint8Array(device.blockBytes)), readOnly);
    await assert.rejects(device.discard(0, device.blockBytes), readOnly);
    await assert.rejects(device.writeZeroes(0, device.blockBytes), readOnly);
    await device.flush();
    await assertContent(device, content);
  });

  await t.test('read-only: any aligned range reads right, into the middle of a buffer too', async (t) => {
    const device = await options.open(t, want);
    const random = seededRandom(2);
    for (let i = 0; i < 100; i++) {
      const [offset, length] = randomRange(random.below, device);
      const buffer = new Uint8Array(length + 64).fill(0xaa);
      await device.read(offset, buffer.subarray(32, 32 + length));
      assert.deepEqual(buffer.subarray(32, 32 + length), content.subarray(offset, offset + length));
      assert.ok(buffer.subarray(0, 32).every((byte) => byte === 0xaa));
      assert.ok(buffer.subarray(32 + length).every((byte) => byte === 0xaa));
    }
  });

  await t.test('read-only: reads in flight together do not mix', async (t) => {
    const device = await options.open(t, want);
    const random = seededRandom(3);
    await Promise.all(
      Array.from({ length: 64 }, async () => {
        const [offset, length] = randomRange(random.below, device);
        const into = new Uint8Array(length);
        await device.read(offset, into);
        assert.deepEqual(into, content.subarray(offset, offset + length));
      }),
    );
  });

  await t.test('read-only: extents', async (t) => assertExtents(await options.open(t, want), content));
  await t.test('read-only: bad ranges', async (t) => assertBadRanges(await options.open(t, want)));
  await t.test('read-only: close', async (t) => assertClose(await options.open(t, want)));
}

async function testWriting(t: TestContext, options: ConformanceOptions): Promise<void> {
  const want: ConformanceWant = { lengthBytes: LENGTH_BYTES, writable: true, content: null };

  await t.test('geometry: aligned length, block size of a power of two', async (t) => {
    const device = await options.open(t, want);
    assert.equal(device.lengthBytes, LENGTH_BYTES);
    assert.ok([512, 1024, 2048, 4096].includes(device.blockBytes));
    assert.equal(device.lengthBytes % device.blockBytes, 0);
    assert.equal(device.writable, true);
    await assertContent(device, new Uint8Array(LENGTH_BYTES));
  });

  await t.test('a settled write is seen, and its buffer is free again', async (t) => {
    const device = await options.open(t, want);
    const model = new Uint8Array(LENGTH_BYTES);
    const buffer = new Uint8Array(device.blockBytes * 3 + 64);
    for (let i = 1; i <= 20; i++) {
      const from = buffer.subarray(32, 32 + device.blockBytes * 3).fill(i);
      await device.write(i * device.blockBytes, from);
      model.set(from, i * device.blockBytes);
      buffer.fill(0xee);
    }
    await assertContent(device, model);
    await device.flush();
    await assertContent(device, model);
  });

  await t.test('calls of no length do nothing', async (t) => {
    const device = await options.open(t, want);
    for (const offset of [0, LENGTH_BYTES]) {
      await device.write(offset, new Uint8Array(0));
      await device.read(offset, new Uint8Array(0));
      await device.discard(offset, 0);
      await device.writeZeroes(offset, 0);
      if (device.extents) assert.deepEqual(await device.extents(offset, 0, 4), []);
    }
    await assertContent(device, new Uint8Array(LENGTH_BYTES));
  });

  await t.test('discarded and zeroed ranges read as zeros and their neighbours stay', async (t) => {
    const device = await options.open(t, want);
    const model = seededRandom(4).bytes(LENGTH_BYTES);
    for (const [call, offset] of [
      ['discard', 8192],
      ['writeZeroes', 65536],
    ] as const) {
      for (const [start, length] of [
        [device.blockBytes, device.blockBytes],
        [4096, 8192],
        [0, LENGTH_BYTES / 4],
      ] as const) {
        await device.write(0, model);
        await device[call](offset + start, length);
        await assertContent(device, model.slice().fill(0, offset + start, offset + start + length));
      }
      await device.write(0, model);
      await device[call](0, LENGTH_BYTES);
      await assertContent(device, new Uint8Array(LENGTH_BYTES));
      await device.write(0, model);
    }
    await device.flush();
    await assertContent(device, model);
  });

  await t.test('writes in flight together that do not overlap all land', async (t) => {
    const device = await options.open(t, want);
    const model = seededRandom(5).bytes(LENGTH_BYTES);
    const pieceBytes = 4096;
    const writes: Promise<void>[] = [];
    for (let at = 0; at < LENGTH_BYTES; at += pieceBytes) {
      writes.push(device.write(at, model.subarray(at, at + pieceBytes)));
      if (at % 65536 === 0) writes.push(device.flush());
    }
    await Promise.all(writes);
    await assertContent(device, model);
  });

  await t.test('extents', async (t) => {
    const device = await options.open(t, want);
    const model = new Uint8Array(LENGTH_BYTES);
    model.fill(1, 16384, 32768).fill(2, 131072, 131072 + 512 * 8);
    await device.write(16384, model.subarray(16384, 32768));
    await device.write(131072, model.subarray(131072, 131072 + 4096));
    await assertExtents(device, model);
    await device.discard(16384, 16384);
    await assertExtents(device, model.fill(0, 16384, 32768));
  });

  await t.test('bad ranges', async (t) => assertBadRanges(await options.open(t, want)));
  await t.test('close', async (t) => assertClose(await options.open(t, want)));

  const largeLengthBytes = options.largeLengthBytes === undefined ? 6 * 1024 ** 3 : options.largeLengthBytes;
  if (largeLengthBytes !== null) {
    await t.test('offsets beyond 32 bits do not wrap', async (t) => {
      const device = await options.open(t, { ...want, lengthBytes: largeLengthBytes });
      const offsets = [0, 2 ** 31, 2 ** 32, largeLengthBytes - 8192].filter(
        (at) => at + 8192 <= largeLengthBytes,
      );
      for (const [i, at] of offsets.entries()) await device.write(at, new Uint8Array(8192).fill(i + 1));
      await device.flush();
      for (const [i, at] of offsets.entries()) {
        const into = new Uint8Array(8192);
        await device.read(at, into);
        assert.deepEqual(into, new Uint8Array(8192).fill(i + 1), `at ${at}`);
      }
      await device.discard(offsets.at(-1)!, 4096);
      const into = new Uint8Array(8192).fill(9);
      await device.read(offsets.at(-1)!, into);
      assert.deepEqual(into, new Uint8Array(8192).fill(offsets.length).fill(0, 0, 4096));
    });
  }

  await t.test('random commands agree with a byte array', async (t) => testModel(t, options, want));
}

type Command = {
  kind: 'write' | 'discard' | 'writeZeroes' | 'read' | 'readNow' | 'flush' | 'extents';
  block: number;
  blocks: number;
  fill: number;
};

async function testModel(t: TestContext, options: ConformanceOptions, want: ConformanceWant): Promise<void> {
  const lengthBytes = 64 * 1024;
  const device = await options.open(t, { ...want, lengthBytes });
  const blocksTotal = lengthBytes / device.blockBytes;
  const model = new Uint8Array(lengthBytes);
  const command: fc.Arbitrary<Command> = fc.record({
    kind: fc.constantFrom('write', 'write', 'discard', 'writeZeroes', 'read', 'readNow', 'flush', 'extents'),
    block: fc.nat(blocksTotal - 1),
    blocks: fc.oneof(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: blocksTotal })),
    fill: fc.integer({ min: 1, max: 255 }),
  });
  const seed = Date.now() >>> 0;
  t.diagnostic(`seed ${seed}`);
  // The commands of a batch are in flight together; its mutations do not overlap each other nor its reads.
  const property = fc.asyncProperty(
    fc.array(fc.array(command, { maxLength: 6 }), { maxLength: 12 }),
    async (batches) => {
      for (const batch of batches) await runBatch(device, model, batch);
      await assertContent(device, model);
      await assertExtents(device, model);
    },
  );
  await fc.assert(property, { seed, numRuns: options.runs ?? 60 });
}

async function runBatch(device: BlockDevice, model: Uint8Array, batch: readonly Command[]): Promise<void> {
  const before = model.slice();
  const taken: { start: number; end: number; mutates: boolean }[] = [];
  const calls: Promise<void>[] = [];
  for (const command of batch) {
    const mutates = command.kind === 'write' || command.kind === 'discard' || command.kind === 'writeZeroes';
    const start = command.block * device.blockBytes;
    const end = Math.min(start + command.blocks * device.blockBytes, device.lengthBytes);
    if (taken.some((other) => start < other.end && other.start < end && (mutates || other.mutates))) continue;
    taken.push({ start, end, mutates });
    calls.push(runCommand(device, before, command, start, end));
    if (command.kind === 'write') fillPattern(model.subarray(start, end), command.fill);
    else if (mutates) model.fill(0, start, end);
  }
  await Promise.all(calls);
}

async function runCommand(
  device: BlockDevice,
  model: Uint8Array,
  command: Command,
  start: number,
  end: number,
): Promise<void> {
  switch (command.kind) {
    case 'write': {
      const from = new Uint8Array(end - start);
      fillPattern(from, command.fill);
      return device.write(start, from);
    }
    case 'discard':
      return device.discard(start, end - start);
    case 'writeZeroes':
      return device.writeZeroes(start, end - start);
    case 'flush':
      return device.flush();
    case 'read': {
      const into = new Uint8Array(end - start).fill(0xaa);
      await device.read(start, into);
      assert.deepEqual(into, model.subarray(start, end));
      return;
    }
    case 'readNow': {
      const into = new Uint8Array(end - start).fill(0xaa);
      if (device.readNow?.(start, into)) assert.deepEqual(into, model.subarray(start, end));
      return;
    }
    case 'extents':
      await device.extents?.(start, end - start, 2);
      return;
  }
}

/** Not one byte repeated: a block that lands at the wrong place must show. */
function fillPattern(bytes: Uint8Array, fill: number): void {
  for (let i = 0; i < bytes.length; i++) bytes[i] = ((fill + (i >>> 9)) % 255) + 1;
}

function randomRange(
  below: (limit: number) => number,
  device: BlockDevice,
): [offset: number, length: number] {
  const blocksTotal = device.lengthBytes / device.blockBytes;
  const block = below(blocksTotal);
  const blocks =
    below(4) === 0 ? 1 + below(blocksTotal - block) : 1 + below(Math.min(8, blocksTotal - block));
  return [block * device.blockBytes, blocks * device.blockBytes];
}

/** The whole content by `read` is `expected`, and `readNow`, where it can, says the same. */
async function assertContent(device: BlockDevice, expected: Uint8Array): Promise<void> {
  const actual = new Uint8Array(expected.length).fill(0xaa);
  await device.read(0, actual);
  assertBytes(actual, expected, 'read');
  const now = new Uint8Array(expected.length).fill(0xaa);
  if (device.readNow?.(0, now)) assertBytes(now, expected, 'readNow');
}

function assertBytes(actual: Uint8Array, expected: Uint8Array, how: string): void {
  if (Buffer.compare(actual, expected) === 0) return;
  const at = actual.findIndex((byte, i) => byte !== expected[i]);
  assert.fail(`${how} differs from byte ${at} on: ${actual[at]} instead of ${expected[at]}`);
}

async function assertExtents(device: BlockDevice, content: Uint8Array): Promise<void> {
  if (!device.extents) return;
  const whole = await device.extents(0, content.length, 10_000);
  assertExtentList(device, whole, content, 0, content.length, 10_000);
  const random = seededRandom(6);
  for (let i = 0; i < 10; i++) {
    const [offset, length] = randomRange(random.below, device);
    const end = Math.min(offset + length, content.length);
    if (offset >= end) continue;
    const limit = 1 + random.below(3);
    const some = await device.extents(offset, end - offset, limit);
    assertExtentList(device, some, content, offset, end, limit);
  }
}

function assertExtentList(
  device: BlockDevice,
  extents: Awaited<ReturnType<NonNullable<BlockDevice['extents']>>>,
  content: Uint8Array,
  start: number,
  end: number,
  limit: number,
): void {
  assert.ok(extents.length >= 1 && extents.length <= limit, `${extents.length} extents of at most ${limit}`);
  let at = start;
  let previous: string | undefined;
  for (const { offsetBytes, lengthBytes, kind } of extents) {
    assert.equal(offsetBytes, at, 'without gaps');
    assert.ok(lengthBytes > 0 && lengthBytes % device.blockBytes === 0, 'whole blocks');
    assert.notEqual(kind, previous, 'neighbours of one kind are merged');
    at += lengthBytes;
    if (kind === 'hole') {
      const zeros = content.subarray(offsetBytes, at).every((byte) => byte === 0);
      assert.ok(zeros, `the hole at ${offsetBytes} covers data`);
    }
    previous = kind;
  }
  assert.ok(at <= end, 'inside the range');
  if (extents.length < limit) assert.equal(at, end, 'the whole range');
}

async function assertBadRanges(device: BlockDevice): Promise<void> {
  const { lengthBytes, blockBytes } = device;
  const badRange = (error: unknown) => isGodwitError(error, 'BLOCK_BAD_RANGE');
  for (const [offset, length] of [
    [lengthBytes, blockBytes],
    [lengthBytes - blockBytes, 2 * blockBytes],
    [-blockBytes, blockBytes],
    [1, blockBytes],
    [0, blockBytes - 1],
    [0, lengthBytes + blockBytes],
    [2 ** 32, blockBytes],
    [2 ** 53, blockBytes],
    [Number.NaN, blockBytes],
    [Number.POSITIVE_INFINITY, blockBytes],
    [0.5, blockBytes],
  ] as const) {
    const bytes = new Uint8Array(length);
    await assert.rejects(device.read(offset, bytes), badRange, `read ${offset}+${length}`);
    if (device.readNow) assert.equal(device.readNow(offset, bytes), false, `readNow ${offset}+${length}`);
    if (device.extents)
      await assert.rejects(device.extents(offset, length, 4), badRange, `extents ${offset}`);
    if (!device.writable) continue;
    await assert.rejects(device.write(offset, bytes), badRange, `write ${offset}+${length}`);
    await assert.rejects(device.discard(offset, length), badRange, `discard ${offset}+${length}`);
    await assert.rejects(device.writeZeroes(offset, length), badRange, `writeZeroes ${offset}+${length}`);
  }
  if (device.extents) await assert.rejects(device.extents(0, blockBytes, 0), badRange, 'extents of limit 0');
}

async function assertClose(device: BlockDevice): Promise<void> {
  const bytes = new Uint8Array(device.blockBytes);
  const inFlight = device.read(0, bytes).catch((error: unknown) => {
    assert.ok(
      isGodwitError(error, 'BLOCK_CLOSED'),
      'a call in flight ends or says that the device was closed',
    );
  });
  await device.close();
  await inFlight;
  await device.close();
  const closed = (error: unknown) => isGodwitError(error, 'BLOCK_CLOSED');
  await assert.rejects(device.read(0, bytes), closed);
  await assert.rejects(device.flush(), closed);
  if (device.readNow) assert.equal(device.readNow(0, bytes), false);
  if (device.extents) await assert.rejects(device.extents(0, device.blockBytes, 1), closed);
  if (!device.writable) return;
  await assert.rejects(device.write(0, bytes), closed);
  await assert.rejects(device.discard(0, device.blockBytes), closed);
  await assert.rejects(device.writeZeroes(0, device.blockBytes), closed);
}
