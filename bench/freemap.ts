/**
 * What reading the free map costs after a machine was stopped: an ext4 that is nearly empty, its bitmaps read
 * while it was mounted, a few groups changed since. Beside it the same without the first pass, and
 * `dumpe2fs`, which reads the same bitmaps. Needs root.
 *   node bench/freemap.ts [--rounds 5]
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  fsyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { median } from '../demo/report.ts';
import { FileDevice } from '../src/block/file-device.ts';
import { FreeMapReader } from '../src/freemap/free-map-reader.ts';
import { encodeSealedMap } from '../src/freemap/sealed-map.ts';
import { mustRun, systemTools } from '../src/host/tools.ts';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const TOOL_TIMEOUT_MS = 120_000;

export type FreeMapBench = {
  lengthBytes: number;
  rounds: number;
  /** While the machine runs. */
  primeMs: number;
  /** After the stop: read again what changed, and encode. */
  finishMs: number;
  bitmapsReadAgain: number;
  /** After the stop, without a first pass. */
  unprimedMs: number;
  bitmapsRead: number;
  dumpe2fsMs: number;
  mapBytes: number;
};

export async function benchFreeMap(lengthBytes: number, rounds: number): Promise<FreeMapBench> {
  const dir = mkdtempSync(join(tmpdir(), 'gw-bench-'));
  const file = join(dir, 'image');
  const mountDir = join(dir, 'mnt');
  const mount = () => tool('mount', '-o', 'loop,noinit_itable', file, mountDir);
  const umount = () => tool('umount', mountDir);
  let mounted = false;
  let device: FileDevice | null = null;
  try {
    mkdirSync(mountDir);
    closeSync(openSync(file, 'w'));
    truncateSync(file, lengthBytes);
    await tool('mkfs.ext4', '-q', '-F', file);
    device = await FileDevice.open({ file, lengthBytes, blockBytes: 512, writable: false });
    const samples = { prime: [], finish: [], again: [], unprimed: [], all: [], dumpe2fs: [] } as Record<
      string,
      number[]
    >;
    let mapBytes = 0;
    for (let round = 0; round < rounds; round++) {
      await mount();
      mounted = true;
      writeFiles(mountDir, round, 'early');
      const reader = new FreeMapReader(device, 'ext4');
      samples.prime!.push(await timed(() => reader.prime()));
      writeFiles(mountDir, round, 'late');
      await umount();
      mounted = false;
      samples.finish!.push(
        await timed(async () => {
          mapBytes = await sealedBytes(reader, lengthBytes);
        }),
      );
      samples.again!.push(reader.bitmapsRead);
      const unprimed = new FreeMapReader(device, 'ext4');
      samples.unprimed!.push(await timed(() => sealedBytes(unprimed, lengthBytes)));
      samples.all!.push(unprimed.bitmapsRead);
      samples.dumpe2fs!.push(await timed(() => tool('dumpe2fs', file)));
    }
    const of = (name: string) => Math.round(median(samples[name]!) * 10) / 10;
    return {
      lengthBytes,
      rounds,
      primeMs: of('prime'),
      finishMs: of('finish'),
      bitmapsReadAgain: of('again'),
      unprimedMs: of('unprimed'),
      bitmapsRead: of('all'),
      dumpe2fsMs: of('dumpe2fs'),
      mapBytes,
    };
  } finally {
    await device?.close();
    if (mounted) await umount();
    rmSync(dir, { recursive: true, force: true });
  }
}

async function sealedBytes(reader: FreeMapReader, lengthBytes: number): Promise<number> {
  const result = await reader.finish();
  if (result.kind === 'none') throw result.reason;
  return encodeSealedMap({ volumeId: 'bench', generation: 1, lengthBytes }, () => result.map.runs()).length;
}

/** Eight files of 8 MiB, half of which are deleted again. */
function writeFiles(dir: string, round: number, when: string): void {
  for (let index = 0; index < 8; index++) {
    const path = join(dir, `${when}-${round}-${index}`);
    writeFileSync(path, randomBytes(8 * MIB));
    const descriptor = openSync(path, 'r');
    fsyncSync(descriptor);
    closeSync(descriptor);
    if (index % 2 === 1) rmSync(path);
  }
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const startedMs = performance.now();
  await work();
  return performance.now() - startedMs;
}

async function tool(program: string, ...argv: string[]): Promise<void> {
  await mustRun(systemTools(), [program, ...argv], { deadlineMs: TOOL_TIMEOUT_MS });
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { rounds: { type: 'string', default: '5' } } });
  for (const lengthBytes of [100 * GIB, 1024 * GIB]) {
    process.stdout.write(
      `${JSON.stringify(await benchFreeMap(lengthBytes, Number(values.rounds)), null, 2)}\n`,
    );
  }
}
