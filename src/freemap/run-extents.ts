import { assert } from '../base/assert.ts';
import type { BlockDevice, Extent } from '../block/block-device.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import type { BlockRun } from './free-map.ts';

/**
 * Cuts ascending runs where a device changes between data and holes, and asks it once for each of its extents. A block that is a hole in part
 * only is data. A device that cannot tell has data everywhere.
 */
export async function* extentsOfRuns(
  device: BlockDevice,
  runs: Iterable<BlockRun>,
): AsyncGenerator<BlockRun & { kind: Extent['kind'] }> {
  let extent: Extent = { offsetBytes: 0, lengthBytes: 0, kind: 'data' };
  for (const run of runs) {
    for (let first = run.first; first < run.end; ) {
      const offsetBytes = first * BLOCK_BYTES;
      if (offsetBytes >= extent.offsetBytes + extent.lengthBytes) {
        const lengthBytes = device.lengthBytes - offsetBytes;
        const [found] = device.extents
          ? await device.extents(offsetBytes, lengthBytes, 1)
          : [{ offsetBytes, lengthBytes, kind: 'data' as const }];
        assert(found !== undefined, 'a device says what a range holds');
        extent = found;
      }
      const extentEnd = Math.floor((extent.offsetBytes + extent.lengthBytes) / BLOCK_BYTES);
      const whole = extentEnd > first;
      const end = whole ? Math.min(run.end, extentEnd) : first + 1;
      yield { first, end, kind: whole ? extent.kind : 'data' };
      first = end;
    }
  }
}

const EXTENTS_AT_ONCE = 1024;

/**
 * The parts of ascending runs that the device holds data for: its holes need no map, because whoever copies sees them himself. Looks at no more than
 * `extentsMax` extents, since a machine may be waiting; what lies behind them is answered as it came.
 */
export async function allocatedRuns(
  device: BlockDevice,
  runs: Iterable<BlockRun>,
  extentsMax: number,
): Promise<BlockRun[]> {
  const found: BlockRun[] = [];
  if (!device.extents) return [...runs];
  let extents: Extent[] = [];
  let at = 0;
  let looked = 0;
  for (const run of runs) {
    for (let first = run.first; first < run.end; ) {
      while (at < extents.length && endOf(extents[at]!) <= first * BLOCK_BYTES) at++;
      if (at === extents.length && looked < extentsMax) {
        const offsetBytes = first * BLOCK_BYTES;
        extents = await device.extents(offsetBytes, device.lengthBytes - offsetBytes, EXTENTS_AT_ONCE);
        looked += extents.length;
        at = 0;
      }
      const extent = extents[at];
      // A block that is a hole in part only is data.
      const wholeEnd = extent === undefined ? run.end : Math.floor(endOf(extent) / BLOCK_BYTES);
      const end = Math.min(run.end, Math.max(first + 1, wholeEnd));
      if (extent?.kind !== 'hole' || wholeEnd <= first) {
        const last = found.at(-1);
        if (last?.end === first) last.end = end;
        else found.push({ first, end });
      }
      first = end;
    }
  }
  return found;
}

function endOf(extent: Extent): number {
  return extent.offsetBytes + extent.lengthBytes;
}

/** Bytes of the runs that the device holds data for. */
export async function allocatedBytes(device: BlockDevice, runs: Iterable<BlockRun>): Promise<number> {
  let bytes = 0;
  for await (const { first, end, kind } of extentsOfRuns(device, runs)) {
    if (kind === 'data') bytes += (end - first) * BLOCK_BYTES;
  }
  return bytes;
}
