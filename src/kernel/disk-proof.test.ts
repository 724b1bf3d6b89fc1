import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { isGodwitError } from '../base/errors.ts';
import type { GuestWrites } from '../receipt/proof.ts';
import { openDiskProof } from './disk-proof.ts';

const BLOCK = 4096;
const sha = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest();
const isOutOfStep = (error: unknown) => isGodwitError(error, 'RECEIPT_OUT_OF_STEP');
const NOTHING: GuestWrites = { writes: 0, writeBytes: 0, discards: 0, discardBytes: 0, sectorBytes: 512 };

/** Two blocks of data and a hole of two. */
async function open(t: TestContext, guestWrites: () => Promise<GuestWrites | null> = async () => NOTHING) {
  const dir = scratchDir(t);
  const content = Buffer.concat([randomBytes(2 * BLOCK), Buffer.alloc(2 * BLOCK)]);
  await writeFile(join(dir, 'data.raw'), content.subarray(0, 2 * BLOCK));
  const { truncate } = await import('node:fs/promises');
  await truncate(join(dir, 'data.raw'), content.length);
  const { proof, close } = await openDiskProof(dir, content.length, guestWrites);
  t.after(close);
  const ask = async (from: number, ranges: { first: number; blocks: number; digests: Buffer }[]) => {
    const texts = ranges.map((range) => ({ ...range, digests: range.digests.toString('base64') }));
    const { found } = await proof.compare({ from, freeMapDigest: null, ranges: texts });
    return found.map((text) => Buffer.from(text, 'base64'));
  };
  const piece = (first: number, blocks: number) => content.subarray(first * BLOCK, (first + blocks) * BLOCK);
  return { dir, proof, content, ask, piece };
}

test('says what the disk has, by ranges and by blocks, and adds up what is there', async (t) => {
  let counted = 0;
  const { proof, ask, piece } = await open(t, async () => {
    counted++;
    return { ...NOTHING, writes: 2, writeBytes: 8192 };
  });
  assert.equal(await proof.figures(null), null, 'nothing was compared');
  const found = await ask(0, [
    { first: 0, blocks: 2, digests: sha(piece(0, 1)) },
    { first: 2, blocks: 2, digests: sha(piece(2, 2)) },
  ]);
  assert.deepEqual(found, [sha(piece(0, 2)), sha(piece(2, 2))]);
  const other = sha(Buffer.from('other'));
  const byBlocks = { first: 0, blocks: 2, digests: Buffer.concat([sha(piece(0, 1)), other]) };
  assert.deepEqual(await ask(2, [byBlocks]), [Buffer.concat([sha(piece(0, 1)), sha(piece(1, 1))])]);
  assert.deepEqual(await ask(2, [byBlocks]), await ask(2, [byBlocks]), 'an answer that was lost');
  const figures = await proof.figures(null);
  assert.deepEqual([figures?.ranges, figures?.comparedBytes, figures?.fetchedBytes], [1, BLOCK, BLOCK]);
  assert.deepEqual(figures?.disk, {
    emptyBytes: 2 * BLOCK,
    changedBytes: BLOCK,
    clearedBytes: 0,
    unusedBytes: 0,
    guest: { ...NOTHING, writes: 2, writeBytes: 8192 },
  });
  assert.deepEqual(await proof.figures(null), figures);
  assert.equal(counted, 1, 'what is signed is what was counted');
  assert.equal(await proof.figures('a'.repeat(64)), null, 'of another free map');
});

test('a question that does not follow the last one is refused, and the first one begins anew', async (t) => {
  const { proof, ask, piece } = await open(t);
  const first = { first: 0, blocks: 1, digests: sha(piece(0, 1)) };
  const second = { first: 1, blocks: 1, digests: sha(piece(1, 1)) };
  await assert.rejects(ask(1, [second]), isOutOfStep);
  await ask(0, [first]);
  await assert.rejects(ask(2, [second]), isOutOfStep);
  await ask(0, [first]);
  await ask(1, [second]);
  assert.equal((await proof.figures(null))?.comparedBytes, 2 * BLOCK);
  await ask(0, [first]);
  assert.equal((await proof.figures(null))?.comparedBytes, BLOCK);
  await assert.rejects(ask(1, [{ first: 4, blocks: 1, digests: sha(piece(0, 1)) }]), isOutOfStep);
  assert.equal(await proof.figures(null), null);
});
