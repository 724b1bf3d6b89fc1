import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { SourceSpec } from '../src/attach/server-spec.ts';
import { systemClock } from '../src/base/clock.ts';
import { silentLogger } from '../src/base/logger.ts';
import { systemRandom } from '../src/base/random.ts';
import { blockStatistics, kernelNameOf } from '../src/host/block-statistics.ts';
import { attachLoop, detachLoop } from '../src/host/losetup.ts';
import { parseCloneStatus, SECTOR_BYTES } from '../src/host/mapper-table.ts';
import { mustRun } from '../src/host/tools.ts';
import { KernelVolume } from '../src/plane/attached.ts';
import { KernelExport } from '../src/plane/exported.ts';
import { systemPlaneHost } from '../src/plane/host.ts';
import {
  attachSpec,
  cloneSpec,
  exportSpec,
  newGrant,
  sourceSpec,
  VolumeStore,
  writeFreeMap,
} from '../src/volume/index.ts';

/**
 * Program of a guest, for the measurement of scenarios/hydration.ts:
 *   source ADDRESS       makes a volume with files on it, seals and exports it; prints what the target needs
 *   target MODE PLAN     clones it under load, as MODE has it; prints a Result
 */
export type Plan = { source: SourceSpec; volumeId: string; lengthBytes: number; freeMap: string };
export type Mode = 'default' | 'tuned' | 'plane';
export type Result = {
  mode: Mode;
  /** From the moment that the source may be read to a mounted filesystem. */
  usableMs: number;
  /** Until nothing is only at the source and it is logged out of; null: not within the time. */
  releasedMs: number | null;
  /** Of the volume that was local when the time was over, 0 to 1. */
  localShare: number;
  wireBytes: number;
  readP50Ms: number;
  readP99Ms: number;
  readsPerSecond: number;
};

const MIB = 2 ** 20;
const LENGTH_BYTES = 512 * MIB;
const BALLAST_MIB = 96;
const TIME_MS = 90_000;
const DATA_DIR = '/var/lib/godwit';
const MOUNT = '/run/bench';
const STATUS_MS = 500;

const clock = systemClock;
const host = systemPlaneHost(clock);
const open = () => VolumeStore.open(DATA_DIR, { clock, random: systemRandom, logger: silentLogger });

async function source(address: string): Promise<Plan> {
  const volumes = await open();
  const record = await volumes.create({ name: 'bench', lengthBytes: LENGTH_BYTES, filesystem: 'ext4' });
  const volumeDir = volumes.folder(record.id);
  const volume = await KernelVolume.open(attachSpec(record, { volumeDir, access: 'writable' }), {
    host,
    clock,
    logger: silentLogger,
  });
  await mkdir(MOUNT, { recursive: true });
  await mustRun(host.tools, ['mount', volume.device!, MOUNT]);
  await mustRun(
    host.tools,
    [
      'dd',
      'if=/dev/urandom',
      `of=${MOUNT}/ballast`,
      'bs=1M',
      `count=${BALLAST_MIB}`,
      'conv=fsync',
      'status=none',
    ],
    { deadlineMs: 120_000 },
  );
  await mustRun(host.tools, ['umount', MOUNT]);
  await volumes.apply(record.id, { kind: 'seal', generation: record.generation });
  await volume.seal();
  await volume.sealFreeMap('ext4');
  const grant = newGrant(record, 'target', systemRandom);
  const spec = exportSpec(record, { volumeDir, access: 'readonly', listenHost: address, grants: [grant] });
  const { port } = await KernelExport.open(spec, { host, clock, logger: silentLogger });
  const freeMap = await readFile(join(volumeDir, 'free.map'));
  return {
    source: sourceSpec(record, grant, { host: address, port }),
    volumeId: record.id,
    lengthBytes: LENGTH_BYTES,
    freeMap: freeMap.toString('base64'),
  };
}

/** Random reads and writes of a file, as many at once as keep some always in flight. */
class Load {
  readonly #child: ChildProcess;
  readonly #output: Promise<string>;

  constructor() {
    this.#child = spawn(
      'fio',
      [
        ...[
          '--name=guest',
          `--filename=${MOUNT}/ballast`,
          '--rw=randrw',
          '--rwmixread=70',
          '--bs=4k',
          '--direct=1',
        ],
        ...[
          '--ioengine=psync',
          '--numjobs=4',
          '--group_reporting',
          '--time_based',
          `--runtime=${TIME_MS / 1000}`,
        ],
        ...['--output-format=json', '--randseed=7'],
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    let output = '';
    this.#child.stdout!.on('data', (chunk) => (output += chunk));
    this.#output = new Promise((resolve) => this.#child.on('close', () => resolve(output)));
  }

  async end(): Promise<Pick<Result, 'readP50Ms' | 'readP99Ms' | 'readsPerSecond'>> {
    this.#child.kill('SIGINT');
    const text = await this.#output;
    const { jobs } = JSON.parse(text.slice(text.indexOf('{'))) as {
      jobs: { read: { iops: number; clat_ns: { percentile?: Record<string, number> } } }[];
    };
    const read = jobs[0]!.read;
    const percentile = (name: string) => (read.clat_ns.percentile?.[name] ?? 0) / 1e6;
    return {
      readP50Ms: percentile('50.000000'),
      readP99Ms: percentile('99.000000'),
      readsPerSecond: read.iops,
    };
  }
}

/** dm-clone by hand, hydrating from the beginning: as its documentation has it. */
async function byHand(mode: 'default' | 'tuned', plan: Plan): Promise<Result> {
  const knobs = mode === 'default' ? 1 : 64;
  const folder = join(DATA_DIR, `bench-${mode}`);
  await mkdir(folder);
  for (const [name, bytes] of [
    ['data', plan.lengthBytes],
    ['meta', 16 * MIB],
  ] as const) {
    await writeFile(join(folder, name), '');
    await truncate(join(folder, name), bytes);
  }
  const loops = [
    await attachLoop({ filePath: join(folder, 'data') }),
    await attachLoop({ filePath: join(folder, 'meta') }),
  ] as const;
  const startedMs = clock.monotonicMs();
  const disk = await host.iscsi.disk(await host.iscsi.login(plan.source));
  const name = `bench-${mode}`;
  const sectors = plan.lengthBytes / SECTOR_BYTES;
  const device = await host.mapper.create(name, {
    target: 'clone',
    sectors,
    metadataDevice: loops[1],
    targetDevice: loops[0],
    sourceDevice: disk,
    regionSectors: 8,
    hydrating: true,
    hydrationThreshold: knobs,
    hydrationBatchRegions: knobs,
  });
  await mustRun(host.tools, ['mount', device, MOUNT]);
  const usableMs = clock.monotonicMs() - startedMs;
  const load = new Load();
  const look = async () => parseCloneStatus((await host.mapper.status(name)).text);
  let status = await look();
  while (status.regionsHydrated < status.regionsTotal && clock.monotonicMs() - startedMs < TIME_MS) {
    await clock.sleep(STATUS_MS);
    status = await look();
  }
  const whole = status.regionsHydrated === status.regionsTotal;
  const { readBytes: wireBytes } = await blockStatistics(kernelNameOf(disk));
  let releasedMs: number | null = null;
  if (whole) {
    await host.mapper.suspend(name, { flush: true });
    await host.mapper.load(name, { target: 'linear', sectors, device: loops[0], startSector: 0 });
    await host.mapper.resume(name);
    await host.iscsi.logout(plan.source);
    releasedMs = clock.monotonicMs() - startedMs;
  }
  const latencies = await load.end();
  await mustRun(host.tools, ['umount', MOUNT]);
  await host.mapper.remove(name);
  await host.iscsi.logout(plan.source);
  for (const loop of loops) await detachLoop(loop, { clock });
  await rm(folder, { recursive: true });
  const localShare = status.regionsHydrated / status.regionsTotal;
  return { mode, usableMs, releasedMs, localShare, wireBytes, ...latencies };
}

/** What a worker's shim does in a move. */
async function byPlane(plan: Plan): Promise<Result> {
  const volumes = await open();
  const record = await volumes.createIncoming({
    id: plan.volumeId,
    name: 'bench',
    lengthBytes: plan.lengthBytes,
    filesystem: 'ext4',
    generation: 2,
  });
  const volumeDir = volumes.folder(record.id);
  await writeFreeMap(volumeDir, Buffer.from(plan.freeMap, 'base64'));
  const clone = cloneSpec(record, { volumeDir, validityDir: '/dev/shm', source: plan.source });
  const paused = { paused: true, rateBytesPerSecondMax: 0 };
  const volume = await KernelVolume.open(
    attachSpec(record, { volumeDir, access: 'standby', clone: { ...clone, hydration: paused } }),
    { host, clock, logger: silentLogger },
  );
  const startedMs = clock.monotonicMs();
  await volumes.apply(record.id, { kind: 'activate', generation: 2 });
  await volume.activate('writable');
  await mustRun(host.tools, ['mount', volume.device!, MOUNT]);
  const usableMs = clock.monotonicMs() - startedMs;
  volume.configureHydration({ paused: false, rateBytesPerSecondMax: 0 });
  const load = new Load();
  let hydration = volume.status().hydration!;
  while (hydration.state !== 'complete' && clock.monotonicMs() - startedMs < TIME_MS) {
    await clock.sleep(STATUS_MS);
    hydration = volume.status().hydration!;
  }
  let releasedMs: number | null = null;
  if (hydration.state === 'complete') {
    await volume.finish();
    releasedMs = clock.monotonicMs() - startedMs;
    hydration = volume.status().hydration!;
  }
  const latencies = await load.end();
  await mustRun(host.tools, ['umount', MOUNT]);
  await volume.close();
  await volumes.destroy(record.id, { force: true });
  const localShare = hydration.blocksPresent / hydration.blocksTotal;
  return { mode: 'plane', usableMs, releasedMs, localShare, wireBytes: hydration.wireBytes, ...latencies };
}

const [role, first = '', planPath = ''] = process.argv.slice(2);
if (role === 'source') console.log(JSON.stringify(await source(first)));
else {
  await mkdir(MOUNT, { recursive: true });
  const plan = JSON.parse(await readFile(planPath, 'utf8')) as Plan;
  console.log(
    JSON.stringify(
      first === 'plane' ? await byPlane(plan) : await byHand(first as 'default' | 'tuned', plan),
    ),
  );
}
process.exit(0);
