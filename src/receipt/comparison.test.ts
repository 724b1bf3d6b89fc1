import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { testSeed } from '../../test/support/seed.ts';
import { isGodwitError } from '../base/errors.ts';
import { Comparison } from './comparison.ts';
import { rangeBytes } from './range.ts';
import { RootHash } from './root.ts';

const BLOCK = 4096;
const sha = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest();
const isOutOfStep = (error: unknown) => isGodwitError(error, 'RECEIPT_OUT_OF_STEP');

/** Content of so many blocks: one number a block, 0 for zeros. */
class Content {
  readonly #blocks: number[];
  readonly #lengthBytes: number;

  constructor(blocks: number[], lengthBytes: number) {
    this.#blocks = blocks;
    this.#lengthBytes = lengthBytes;
  }

  digest(first: number, blocks: number): Buffer {
    const bytes = Buffer.concat(
      this.#blocks.slice(first, first + blocks).map((value) => Buffer.alloc(BLOCK, value)),
    );
    return sha(bytes.subarray(0, rangeBytes({ first, blocks }, this.#lengthBytes)));
  }

  byBlocks(first: number, blocks: number): Buffer {
    return Buffer.concat(Array.from({ length: blocks }, (_, index) => this.digest(first + index, 1)));
  }
}

/** As the two workers do it. */
function compare(
  comparison: Comparison,
  source: Content,
  target: Content,
  ranges: readonly [number, number][],
): void {
  const differing = ranges.filter(
    ([first, blocks]) =>
      !comparison.add({ first, blocks }, source.digest(first, blocks), target.digest(first, blocks)),
  );
  for (const [first, blocks] of differing) {
    assert.equal(
      comparison.add({ first, blocks }, source.byBlocks(first, blocks), target.byBlocks(first, blocks)),
      true,
    );
  }
}

test('every block is compared, empty, changed, cleared or unused; what is the same makes the root', () => {
  //              compared   differs                   empty   unused  the end, cut
  const sealed = [1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 0, 0, 0, 0, 7, 7, 5, 6];
  const stored = [1, 2, 3, 4, 5, 8, 0, 1, 9, 10, 0, 0, 0, 0, 1, 2, 5, 6];
  const lengthBytes = 17 * BLOCK + 512;
  const comparison = new Comparison(lengthBytes, null);
  const source = new Content(sealed, lengthBytes);
  const target = new Content(stored, lengthBytes);
  compare(comparison, source, target, [
    [0, 4],
    [4, 5],
    [9, 1],
    [10, 4],
    [16, 2],
  ]);
  const root = new RootHash(lengthBytes, null);
  for (const [first, blocks] of [
    [0, 4],
    [9, 1],
    [16, 2],
    [4, 1],
    [8, 1],
  ] as const)
    root.add({ first, blocks, digest: source.digest(first, blocks) });
  assert.deepEqual(comparison.sums(), {
    root: root.hex(),
    ranges: 5,
    comparedBytes: 8 * BLOCK + 512,
    emptyBytes: 4 * BLOCK,
    changedBytes: 2 * BLOCK,
    clearedBytes: BLOCK,
    unusedBytes: 2 * BLOCK,
  });
  assert.deepEqual(comparison.longest, { first: 5, blocks: 3 });
});

test('the sums are those of the blocks, however the ranges are cut', () => {
  const seed = testSeed();
  let state = seed;
  const below = (bound: number) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return (state >>> 8) % bound;
  };
  for (let round = 0; round < 60; round++) {
    const blocks = 1 + below(40);
    const lengthBytes = blocks * BLOCK - 512 * below(8);
    const sealed = Array.from({ length: blocks }, () => below(3));
    const stored = sealed.map((value) => (below(4) === 0 ? below(3) : value));
    const ranges: [number, number][] = [];
    const expected = { sameBytes: 0, changedBytes: 0, clearedBytes: 0, unusedBytes: 0 };
    for (let first = 0; first < blocks; ) {
      const count = Math.min(blocks - first, 1 + below(8));
      const used = below(5) > 0;
      if (used) ranges.push([first, count]);
      for (let block = first; block < first + count; block++) {
        const kind = !used
          ? 'unusedBytes'
          : sealed[block] === stored[block]
            ? 'sameBytes'
            : stored[block] === 0
              ? 'clearedBytes'
              : 'changedBytes';
        expected[kind] += rangeBytes({ first: block, blocks: 1 }, lengthBytes);
      }
      first += count;
    }
    const comparison = new Comparison(lengthBytes, null);
    compare(comparison, new Content(sealed, lengthBytes), new Content(stored, lengthBytes), ranges);
    const { root: _root, ranges: _ranges, comparedBytes, emptyBytes, ...sums } = comparison.sums();
    // Zeros beside data in one range are compared with it.
    assert.deepEqual(
      { sameBytes: comparedBytes + emptyBytes, ...sums },
      expected,
      `seed ${seed}, round ${round}`,
    );
  }
});

test('nothing is counted twice, left open, or taken from outside of the volume', () => {
  const zeros = Buffer.alloc(32);
  const ones = Buffer.alloc(32, 1);
  const fresh = () => new Comparison(8 * BLOCK, null);
  const twice = fresh();
  twice.add({ first: 0, blocks: 2 }, ones, ones);
  assert.throws(() => twice.add({ first: 0, blocks: 2 }, ones, ones), isOutOfStep);
  assert.throws(() => twice.add({ first: 1, blocks: 2 }, ones, ones), isOutOfStep);
  assert.throws(() => fresh().add({ first: 7, blocks: 2 }, ones, ones), isOutOfStep);
  assert.throws(() => fresh().add({ first: 0, blocks: 2 }, ones, ones.subarray(1)), isOutOfStep);
  assert.throws(
    () => fresh().add({ first: 0, blocks: 2 }, Buffer.alloc(64), Buffer.alloc(64)),
    isOutOfStep,
    'blocks of a range that nobody found to differ',
  );
  const open = fresh();
  assert.equal(open.add({ first: 0, blocks: 2 }, ones, zeros), false);
  assert.throws(() => open.sums(), isOutOfStep);
  assert.throws(() => open.add({ first: 0, blocks: 2 }, ones, zeros), isOutOfStep, 'one digest for two');
  assert.equal(open.add({ first: 2, blocks: 2 }, ones, ones), true, 'others may come in between');
  assert.equal(open.add({ first: 0, blocks: 2 }, Buffer.alloc(64, 1), Buffer.alloc(64)), true);
  assert.equal(open.sums().changedBytes, 2 * BLOCK);
});
