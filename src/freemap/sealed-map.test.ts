import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32c } from '@node-rs/crc32';
import fc from 'fast-check';
import { testSeed } from '../../test/support/seed.ts';
import { isGodwitError } from '../base/errors.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import type { BlockRun } from './free-map.ts';
import { FreeMap } from './free-map.ts';
import { decodeSealedMap, encodeSealedMap, SEALED_MAP_BYTES_MAX } from './sealed-map.ts';

const seed = testSeed();
const identity = { volumeId: 'v_1', generation: 7, lengthBytes: 2 ** 45 };

/** Runs from alternating lengths of used and free blocks. */
function runsOf(lengths: readonly [used: number, free: number][]): BlockRun[] {
  let at = 0;
  return lengths.map(([used, free]) => {
    const first = at + used;
    at = first + free;
    return { first, end: at };
  });
}

function code(bytes: Uint8Array, expected = identity): string {
  try {
    decodeSealedMap(bytes, expected);
    return 'none';
  } catch (error) {
    assert.ok(isGodwitError(error), String(error));
    return error.code;
  }
}

function sealed(bytes: Buffer): Buffer {
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, bytes.length - 4)), bytes.length - 4);
  return bytes;
}

test('what is encoded comes back', () => {
  const length = fc.integer({ min: 1, max: 2 ** 30 });
  fc.assert(
    fc.property(fc.array(fc.tuple(length, length), { maxLength: 40 }), fc.boolean(), (lengths, fromZero) => {
      const runs = runsOf(lengths.map(([used, free], index) => [fromZero && index === 0 ? 0 : used, free]));
      const lengthBytes = Math.max(1, runs.at(-1)?.end ?? 0) * BLOCK_BYTES + 5;
      const bytes = encodeSealedMap({ ...identity, lengthBytes }, () => runs);
      assert.deepEqual(decodeSealedMap(bytes, { ...identity, lengthBytes }), runs);
    }),
    { seed },
  );
});

test('an empty volume is a few bytes, whatever its size', () => {
  const bytes = encodeSealedMap(identity, () => [{ first: 100, end: 2 ** 33 }]);
  assert.equal(bytes.length, 32 + 3 + 1 + 5 + 4);
});

test('too many runs: the shortest stay out, and nothing is free that was not', () => {
  const lengths = Array.from(
    { length: 5_000 },
    (_, index) => [1, index % 50 === 0 ? 64 : 1] as [number, number],
  );
  const runs = runsOf(lengths);
  const decoded = decodeSealedMap(
    encodeSealedMap(identity, () => runs, 600),
    identity,
  );
  assert.deepEqual(
    decoded,
    runs.filter(({ first, end }) => end - first === 64),
  );
  const alternating = runsOf(Array.from({ length: 400_000 }, () => [1, 1] as [number, number]));
  const bytes = encodeSealedMap(identity, () => alternating);
  assert.ok(bytes.length <= SEALED_MAP_BYTES_MAX);
  assert.deepEqual(decodeSealedMap(bytes, identity), []);
});

test('a map is of one volume, one generation and one length', () => {
  const bytes = encodeSealedMap(identity, () => [{ first: 0, end: 9 }]);
  assert.equal(code(bytes, { ...identity, volumeId: 'v_2' }), 'FREEMAP_WRONG_VOLUME');
  assert.equal(code(bytes, { ...identity, generation: 8 }), 'FREEMAP_WRONG_VOLUME');
  assert.equal(code(bytes, { ...identity, lengthBytes: 2 ** 44 }), 'FREEMAP_WRONG_VOLUME');
});

test('runs that lie, under a right checksum, are refused', () => {
  const small = { ...identity, lengthBytes: 10 * BLOCK_BYTES };
  const body = (count: number, ...numbers: number[]) => {
    const bytes = Buffer.concat([
      encodeSealedMap(small, () => []).subarray(0, 35),
      Buffer.from(numbers),
      Buffer.alloc(4),
    ]);
    bytes.writeUInt32LE(count, 12);
    return sealed(bytes);
  };
  assert.equal(code(body(1, 0, 10), small), 'none');
  assert.equal(code(body(1, 0, 11), small), 'FREEMAP_BAD_MAP');
  assert.equal(code(body(1, 5, 0), small), 'FREEMAP_BAD_MAP');
  assert.equal(code(body(2, 1, 2, 0, 2), small), 'FREEMAP_BAD_MAP');
  assert.equal(code(body(2, 1, 2), small), 'FREEMAP_BAD_MAP');
  assert.equal(code(body(0, 1, 2), small), 'FREEMAP_BAD_MAP');
  assert.equal(code(body(2 ** 32 - 1, 1, 2), small), 'FREEMAP_BAD_MAP');
  assert.equal(code(body(1, 0, 0x81, 0), small), 'FREEMAP_BAD_MAP');
  assert.equal(code(body(1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1), small), 'FREEMAP_BAD_MAP');
  assert.equal(code(body(1, 0, 0x85), small), 'FREEMAP_BAD_MAP');
});

test('any bytes end in runs or a typed error; every flipped bit is noticed', () => {
  const good = encodeSealedMap(identity, () =>
    runsOf([
      [3, 4],
      [500, 70_000],
      [1, 1],
    ]),
  );
  for (let bit = 0; bit < good.length * 8; bit++) {
    const bad = Buffer.from(good);
    bad[bit >>> 3]! ^= 1 << (bit & 7);
    assert.equal(code(bad), 'FREEMAP_BAD_MAP', `bit ${bit}`);
  }
  const runs = process.env.GODWIT_LONG === '1' ? 1_000_000 : 20_000;
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), fc.nat({ max: 60 }), fc.boolean(), (noise, from, fix) => {
      const bytes = Buffer.concat([good.subarray(0, from), noise]);
      code(fix && bytes.length >= 4 ? sealed(bytes) : bytes);
    }),
    { seed, numRuns: runs },
  );
});

test('a map answers as an array of booleans would', () => {
  const op = fc.record({ free: fc.boolean(), from: fc.nat({ max: 200 }), length: fc.nat({ max: 130 }) });
  fc.assert(
    fc.property(fc.nat({ max: 200 }), fc.array(op, { maxLength: 12 }), (blocks, ops) => {
      const map = new FreeMap(blocks * BLOCK_BYTES + 17);
      const model = new Uint8Array(blocks);
      for (const { free, from, length } of ops) {
        const first = Math.min(from, blocks);
        const end = Math.min(first + length, blocks);
        model.fill(free ? 1 : 0, first, end);
        if (free) map.markFree(first, end);
        else map.markUsed(first, end);
      }
      const found = new Uint8Array(blocks);
      for (const run of map.runs()) {
        assert.ok(run.first < run.end && found[run.first - 1] !== 1, 'runs are not empty and do not touch');
        found.fill(1, run.first, run.end);
      }
      assert.deepEqual(found, model);
      assert.equal(
        map.countFree(),
        model.reduce((sum, bit) => sum + bit, 0),
      );
      for (let block = -1; block <= blocks; block++) assert.equal(map.has(block), model[block] === 1);
    }),
    { seed },
  );
});
