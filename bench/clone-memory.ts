import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { systemClock } from '../src/base/clock.ts';
import { FileDevice } from '../src/block/file-device.ts';
import { MemoryDevice } from '../src/block/memory-device.ts';
import { CloneDevice } from '../src/clone/clone-device.ts';
import { heapLiveMap } from '../src/clone/live-map.ts';
import { CloneMetadata, metadataLengthBytes } from '../src/clone/metadata.ts';

const MIB = 2 ** 20;

export type CloneMemory = {
  volumeBytes: number;
  /** Resident before anything was opened: Node and the modules. */
  baselineBytes: number;
  /** Fresh clone, opened. */
  openedBytes: number;
  /** The source's map of holes was read, and every bit of it made durable. */
  mappedBytes: number;
  /** The same clone opened again from its metadata, all bits set: the fullest that it gets. */
  reopenedBytes: number;
  openMs: number;
  reopenMs: number;
};

/**
 * Opens a clone of `volumeBytes` (sparse, a few MiB used) and measures the resident memory of this process.
 */
export async function measureCloneMemory(volumeBytes: number): Promise<CloneMemory> {
  const dir = mkdtempSync(join(tmpdir(), 'gw-clone-'));
  try {
    const baselineBytes = process.memoryUsage().rss;
    const source = new MemoryDevice({ lengthBytes: volumeBytes });
    await source.write(volumeBytes / 2, new Uint8Array(5 * MIB).fill(1));
    const openFile = (fresh: boolean, name: string, lengthBytes: number) => {
      const file = join(dir, name);
      return fresh ? FileDevice.create(file, { lengthBytes }) : FileDevice.open({ file, lengthBytes });
    };
    const identity = { volumeId: 'bench', generation: 2, lengthBytes: volumeBytes };
    const open = async (fresh: boolean) => {
      const device = await openFile(fresh, 'clone.meta', metadataLengthBytes(volumeBytes));
      const metadata = fresh
        ? await CloneMetadata.create(device, identity)
        : await CloneMetadata.open(device, identity);
      const hydrated = Promise.withResolvers<void>();
      const clone = await CloneDevice.open({
        local: await openFile(fresh, 'data.raw', volumeBytes),
        source,
        metadata,
        ...heapLiveMap(volumeBytes),
        validityIsCurrent: false,
        clock: systemClock,
        onHydrated: hydrated.resolve,
      });
      return { clone, hydrated: hydrated.promise };
    };
    const startedAtMs = performance.now();
    const first = await open(true);
    const openMs = performance.now() - startedAtMs;
    const openedBytes = process.memoryUsage().rss;
    first.clone.start();
    await first.hydrated;
    const mappedBytes = process.memoryUsage().rss;
    await first.clone.finish();
    await first.clone.close();
    const reopenedAtMs = performance.now();
    const second = await open(false);
    const reopenMs = performance.now() - reopenedAtMs;
    const reopenedBytes = process.memoryUsage().rss;
    await second.clone.close();
    return { volumeBytes, baselineBytes, openedBytes, mappedBytes, reopenedBytes, openMs, reopenMs };
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const result = await measureCloneMemory(2 ** 40);
  const mebibytes = (bytes: number) => `${(bytes / MIB).toFixed(0)} MiB`;
  console.log(`clone of ${result.volumeBytes / 2 ** 40} TiB, resident memory of the process`);
  console.log(`  before                    ${mebibytes(result.baselineBytes)}`);
  console.log(
    `  opened                    ${mebibytes(result.openedBytes)} (${result.openMs.toFixed(0)} ms)`,
  );
  console.log(`  holes known and durable   ${mebibytes(result.mappedBytes)}`);
  console.log(
    `  both maps in one process  ${mebibytes(result.reopenedBytes)} (reopened in ${result.reopenMs.toFixed(0)} ms)`,
  );
}
