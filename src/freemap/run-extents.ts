import { assert } from '../base/assert.ts';
import { nextTurn, turnIsLong } from '../base/turn.ts';
import type { BlockDevice, Extent } from '../block/block-device.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import type { BlockRun } from './free-map.ts';

const EXTENTS_AT_ONCE = 256;

/**
 * Cuts ascending runs where a device changes between data and holes. A block that is a hole in part only is
 * data. A device that cannot tell has data everywhere, and so has what lies behind the first `extentsMax`
 * extents (and up to 256 more): a machine may be waiting. Between two runs others get their turn.
 */
export async function* extentsOfRuns(
  device: BlockDevice,
  runs: Iterable<BlockRun>,
  extentsMax = Number.POSITIVE_INFINITY,
): AsyncGenerator<BlockRun & { kind: Extent['kind'] }> {
  let extents: Extent[] = [];
  let at = 0;
  let looked = 0;
  for (const run of runs) {
    for (let first = run.first; first < run.end; ) {
      const offsetBytes = first * BLOCK_BYTES;
      while (at < extents.length && endOf(extents[at]!) <= offsetBytes) at++;
      if (at === extents.length && looked < extentsMax && device.extents) {
        extents = await device.extents(offsetBytes, device.lengthBytes - offsetBytes, EXTENTS_AT_ONCE);
        assert(extents.length > 0, 'a device says what a range holds');
        looked += extents.length;
        at = 0;
      }
      const extent = extents[at];
      const wholeEnd = extent === undefined ? run.end : Math.floor(endOf(extent) / BLOCK_BYTES);
      const end = Math.min(run.end, Math.max(first + 1, wholeEnd));
      yield { first, end, kind: wholeEnd > first ? (extent?.kind ?? 'data') : 'data' };
      first = end;
      if (turnIsLong()) await nextTurn();
    }
  }
}

function endOf(extent: Extent): number {
  return extent.offsetBytes + extent.lengthBytes;
}

/**
 * The parts of ascending runs that the device holds data for: its holes need no map, because whoever copies
 * sees them himself. What lies behind `extentsMax` extents is answered as it came.
 */
export async function allocatedRuns(
  device: BlockDevice,
  runs: Iterable<BlockRun>,
  extentsMax: number,
): Promise<BlockRun[]> {
  const found: BlockRun[] = [];
  for await (const { first, end, kind } of extentsOfRuns(device, runs, extentsMax)) {
    if (kind === 'hole') continue;
    const last = found.at(-1);
    if (last?.end === first) last.end = end;
    else found.push({ first, end });
  }
  return found;
}

/** Bytes of the runs that the device holds data for. */
export async function allocatedBytes(device: BlockDevice, runs: Iterable<BlockRun>): Promise<number> {
  let bytes = 0;
  for await (const { first, end, kind } of extentsOfRuns(device, runs)) {
    if (kind === 'data') bytes += (end - first) * BLOCK_BYTES;
  }
  return bytes;
}
