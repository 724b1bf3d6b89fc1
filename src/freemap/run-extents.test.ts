import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { BLOCK_BYTES, type Extent } from '../block/block-device.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import type { BlockRun } from './free-map.ts';
import { allocatedRuns } from './run-extents.ts';

const BLOCKS = 96;
const SECTORS = BLOCKS * 8;

/** A device whose 512-byte sectors are data or hole as `data` says. */
function deviceOf(data: readonly boolean[]) {
  const device = new MemoryDevice({ lengthBytes: BLOCKS * BLOCK_BYTES });
  const calls: number[] = [];
  device.extents = async (offsetBytes, lengthBytes, limitExtents) => {
    calls.push(limitExtents);
    const extents: Extent[] = [];
    for (let at = offsetBytes; at < offsetBytes + lengthBytes; at += 512) {
      const kind = data[at / 512] ? 'data' : 'hole';
      const last = extents.at(-1);
      if (last?.kind === kind) last.lengthBytes += 512;
      else if (extents.length === limitExtents) break;
      else extents.push({ offsetBytes: at, lengthBytes: 512, kind });
    }
    return extents;
  };
  return { device, calls };
}

const runsOf = (marks: readonly boolean[]): BlockRun[] => {
  const runs: BlockRun[] = [];
  marks.forEach((marked, block) => {
    if (!marked) return;
    const last = runs.at(-1);
    if (last?.end === block) last.end++;
    else runs.push({ first: block, end: block + 1 });
  });
  return runs;
};

test('what is left of the runs are their blocks with data, in part or whole', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.boolean(), fc.integer({ min: 1, max: 40 })), { minLength: 1, maxLength: 60 }),
      fc.array(fc.boolean(), { minLength: BLOCKS, maxLength: BLOCKS }),
      async (stretches, marks) => {
        const data = stretches
          .flatMap(([kind, length]) => Array<boolean>(length).fill(kind))
          .slice(0, SECTORS);
        while (data.length < SECTORS) data.push(false);
        const { device } = deviceOf(data);
        const expected = marks.map(
          (marked, block) => marked && data.slice(block * 8, block * 8 + 8).includes(true),
        );
        assert.deepEqual(await allocatedRuns(device, runsOf(marks), 10_000), runsOf(expected));
      },
    ),
  );
});

test('behind as many extents as it may look at, runs are answered as they came', async () => {
  const { device, calls } = deviceOf(Array.from({ length: SECTORS }, () => false));
  assert.deepEqual(await allocatedRuns(device, [{ first: 3, end: 9 }], 0), [{ first: 3, end: 9 }]);
  assert.deepEqual(calls, []);
});
