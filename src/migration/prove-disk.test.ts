import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { answering, ProofPair } from '../../test/support/proof-pair.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { systemClock } from '../base/clock.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { DiskProof } from '../kernel/disk-proof.ts';
import type { GuestWrites } from '../receipt/proof.ts';
import { RootHash } from '../receipt/root.ts';
import { RegionDigests } from '../volume/region-digests.ts';

/**
 * The proof of a move to the kernel plane: a sealed device, and one that the kernel is said to have made a
 * copy of.
 */
const MIB = 2 ** 20;
const BLOCK = 4096;
const LENGTH = 200 * MIB + 3 * BLOCK;
/** The second half of MiB 1: no file of the sealed filesystem. */
const FREE = { first: 384, end: 512 };
const DATA_BYTES = 4 * MIB;

const NOTHING: GuestWrites = { writes: 0, writeBytes: 0, discards: 0, discardBytes: 0, sectorBytes: 512 };
const written = (writes: number, bytes: number): GuestWrites => ({ ...NOTHING, writes, writeBytes: bytes });

/** 4 MiB of data, holes up to MiB 150, one block of data, holes, three blocks of data at the end. */
async function moved(t: TestContext, freeMap: string | null = 'bWFw') {
  const sealed = new MemoryDevice({ lengthBytes: LENGTH });
  const stored = new MemoryDevice({ lengthBytes: LENGTH });
  for (const [offset, bytes] of [
    [0, DATA_BYTES],
    [150 * MIB + BLOCK, BLOCK],
    [200 * MIB, 3 * BLOCK],
  ] as const) {
    const content = randomBytes(bytes);
    await sealed.write(offset, content);
    await stored.write(offset, content);
  }
  await stored.writeZeroes(FREE.first * BLOCK, (FREE.end - FREE.first) * BLOCK);
  const digests = await RegionDigests.open({
    device: sealed,
    path: join(scratchDir(t), 'region.digests'),
    ...{ volumeId: 'v_1', generation: 1, freeRuns: [FREE] },
    ...{ clock: systemClock, logger: silentLogger, bytesServed: () => 0 },
  });
  t.after(() => digests.close());
  const state = { guest: NOTHING as GuestWrites | null, questions: 0, before: async () => {}, lose: 0 };
  const disk = new DiskProof({
    lengthBytes: LENGTH,
    stored,
    extents: (...range) => stored.extents(...range),
    guestWrites: async () => state.guest,
  });
  const figures = async (freeMapDigest: string | null) =>
    (await disk.figures(freeMapDigest)) ?? {
      root: new RootHash(LENGTH, null).hex(),
      ...{ ranges: 0, comparedBytes: 0, fetchedBytes: 0 },
    };
  const target = answering({
    fetched: () => ({ ranges: [], next: 0, ended: true, untold: true }),
    unfetched: () => ({ ranges: [], next: null }),
    figures,
    compare: async (request) => {
      state.questions++;
      await state.before();
      const reply = await disk.compare(request);
      if (state.questions === state.lose)
        throw new GodwitError('API_UNREACHABLE', 'lost', { nextAction: 'wait' });
      return reply;
    },
  });
  const source = answering({
    stated: (cursor) => digests.stated(cursor),
    digests: async (ranges) => ({ digests: await digests.digestsOf(ranges) }),
  });
  const pair = new ProofPair({
    id: 'v_1',
    sourceStore: { get: async () => ({ name: 'db', lengthBytes: LENGTH }) },
    source,
    target,
    ...(freeMap && { freeMap }),
  });
  return { sealed, stored, state, pair };
}

const flip = async (device: MemoryDevice, offset: number) => {
  const block = Buffer.alloc(BLOCK);
  const start = offset - (offset % BLOCK);
  await device.read(start, block);
  block[offset % BLOCK]! ^= 0x10;
  await device.write(start, block);
};

test('a disk that has what was sealed: everything that may be in use is compared', async (t) => {
  const { pair, state } = await moved(t);
  const { version, bytes, disk, ranges } = await pair.prove();
  const freeBytes = (FREE.end - FREE.first) * BLOCK;
  // The block of data at MiB 150 is compared with the zeros of its region.
  const compared = DATA_BYTES - freeBytes + MIB + 3 * BLOCK;
  assert.equal(version, 2);
  assert.deepEqual(
    [bytes.total, bytes.compared, bytes.readBack, bytes.fetched, bytes.writtenSince],
    [LENGTH, compared, compared, compared, 0],
  );
  const empty = LENGTH - compared - freeBytes;
  assert.deepEqual(disk, { empty, changed: 0, cleared: 0, unused: freeBytes, guest: NOTHING });
  assert.equal(ranges, 6);
  assert.ok(state.questions > 2, 'more than one page');
});

test('one bit that is wrong where no guest wrote stops the proof, and is named', async (t) => {
  for (const offset of [3 * MIB + 77, 60 * MIB + 5 * BLOCK, LENGTH - 1]) {
    const { pair, stored } = await moved(t);
    await flip(stored, offset);
    await assert.rejects(pair.prove(), (error: unknown) => {
      assert.ok(isGodwitError(error, 'MIGRATION_CONTENT_UNEXPLAINED'));
      const { offsetBytes, unexplainedBytes, changedBytes } = error.values;
      assert.deepEqual(
        [offsetBytes, unexplainedBytes, changedBytes],
        [offset - (offset % BLOCK), BLOCK, BLOCK],
      );
      assert.match(
        error.message,
        new RegExp(
          `db on w2 are not what w1 sealed, most of them in a row in MiB ${Math.floor(offset / MIB)},`,
        ),
      );
      return true;
    });
  }
});

test('a block that never came is not explained by writes elsewhere', async (t) => {
  const { pair, stored, state } = await moved(t);
  await stored.writeZeroes(2 * MIB, 64 * BLOCK);
  state.guest = written(1, BLOCK);
  await assert.rejects(pair.prove(), (error: unknown) => {
    assert.ok(isGodwitError(error, 'MIGRATION_CONTENT_UNEXPLAINED'));
    assert.equal(error.values.offsetBytes, 2 * MIB);
    assert.equal(error.values.clearedBytes, 64 * BLOCK);
    return true;
  });
});

test('what the guest wrote and discarded is told from the rest', async (t) => {
  const { pair, stored, state } = await moved(t);
  await stored.write(MIB + 8 * BLOCK, randomBytes(8 * BLOCK));
  // Also where the source has holes, and where it was not used.
  await stored.write(50 * MIB, randomBytes(BLOCK));
  await stored.write(FREE.first * BLOCK, randomBytes(BLOCK));
  await stored.writeZeroes(3 * MIB, 4 * BLOCK);
  state.guest = { ...written(3, 10 * BLOCK), discards: 1, discardBytes: 4 * BLOCK };
  const { bytes, disk } = await pair.prove();
  assert.deepEqual([disk?.changed, disk?.cleared], [9 * BLOCK, 4 * BLOCK]);
  assert.deepEqual(disk?.guest, state.guest);
  assert.ok(bytes.compared > 3 * MIB);
});

test('a guest that writes during the comparison is counted when it has ended', async (t) => {
  const { pair, stored, state } = await moved(t);
  state.before = async () => {
    await stored.write(state.questions * BLOCK, randomBytes(BLOCK));
    state.guest = written(state.questions, state.questions * BLOCK);
  };
  const { disk } = await pair.prove();
  assert.ok(disk && disk.changed <= state.questions * BLOCK);
});

test('where the writes are not known the receipt says so, and what differs stops nothing', async (t) => {
  const { pair, stored, state } = await moved(t);
  await flip(stored, 2 * MIB);
  state.guest = null;
  const { disk } = await pair.prove();
  assert.deepEqual([disk?.changed, disk?.guest], [BLOCK, null]);
});

test('an attempt that was interrupted is begun anew', async (t) => {
  const { pair, state } = await moved(t);
  state.lose = 2;
  await assert.rejects(pair.prove(), (error) => isGodwitError(error, 'API_UNREACHABLE'));
  const { bytes } = await pair.prove();
  assert.ok(bytes.compared > 3 * MIB);
});

test('a free map that the export cannot read is not taken for damage at the target', async (t) => {
  const { pair } = await moved(t, null);
  await assert.rejects(pair.prove(), (error) => isGodwitError(error, 'MIGRATION_PROOF_DIFFERS'));
});
