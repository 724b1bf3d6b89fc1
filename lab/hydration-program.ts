import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { systemClock } from '../src/base/clock.ts';
import { silentLogger } from '../src/base/logger.ts';
import { systemRandom } from '../src/base/random.ts';
import { blockStatistics, kernelNameOf } from '../src/host/block-statistics.ts';
import { attachLoop, detachLoop } from '../src/host/losetup.ts';
import { parseCloneStatus, SECTOR_BYTES } from '../src/host/mapper-table.ts';
import { mustRun } from '../src/host/tools.ts';
import { KernelVolume } from '../src/kernel/attached.ts';
import { KernelExport } from '../src/kernel/exported.ts';
import { systemKernelHost } from '../src/kernel/host.ts';
import type { CloneSpec, HydrationSettings, SourceSpec } from '../src/opening/spec.ts';
import type { HydrationStatus, VolumeServerStatus } from '../src/opening/status.ts';
import { userspaceBackend } from '../src/volume/backend.ts';
import {
  cloneSpec,
  exportSpec,
  newGrant,
  ownSpec,
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
export type Mode = 'default' | 'tuned' | 'kernel' | 'userspace';
export type Result = {
  mode: Mode;
  /** From the moment that the source may be read to a mounted filesystem. */
  usableMs: number;
  /** Until nothing is only at the source and it is logged out of; null: not within the time. */
  releasedMs: number | null;
  /** Of the volume that was local when the time was over, 0 to 1. */
  localShare: number;
  wireBytes: number;
  /** Of the first 30 s of the load. */
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
const RUNTIME_DIR = '/run/bench-shim';
/**
 * What the guest felt is taken over the same time of all ways: later, one that starves has overwritten all
 * the files and misses nothing any more.
 */
const MEASURED_MS = 30_000;
const STATUS_MS = 500;

const clock = systemClock;
const host = systemKernelHost(clock);
const openStore = () => VolumeStore.open(DATA_DIR, { clock, random: systemRandom, logger: silentLogger });

async function source(address: string): Promise<Plan> {
  const volumes = await openStore();
  const record = await volumes.create({ name: 'bench', lengthBytes: LENGTH_BYTES, filesystem: 'ext4' });
  const volumeDir = volumes.folder(record.id);
  const volume = await KernelVolume.open(ownSpec(record, { volumeDir, access: 'writable' }), {
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
  readonly #startedMs = clock.monotonicMs();

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
        ...['--output-format=json', `--status-interval=${MEASURED_MS / 1000}`, '--randseed=7'],
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    let output = '';
    this.#child.stdout!.on('data', (chunk) => (output += chunk));
    this.#output = new Promise((resolve) => this.#child.on('close', () => resolve(output)));
  }

  /** Figures of the first `MEASURED_MS`: fio reports its sums in between, each a JSON object of its own. */
  async end(): Promise<Pick<Result, 'readP50Ms' | 'readP99Ms' | 'readsPerSecond'>> {
    await clock.sleep(Math.max(0, this.#startedMs + MEASURED_MS + STATUS_MS - clock.monotonicMs()));
    this.#child.kill('SIGINT');
    const text = await this.#output;
    const { jobs } = JSON.parse(/^\{$.*?^\}$/ms.exec(text)![0]) as {
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

/** A way to clone, in the steps that all of them have. */
type Way = {
  /** The source may be read from here on: the device that a filesystem is mounted from. */
  activate(): Promise<string>;
  /** The filesystem is mounted: the background copy may begin. */
  hydrate(): Promise<void>;
  progress(): Promise<Progress>;
  /** Everything is local: the source is let go. */
  release(): Promise<void>;
  /** The filesystem is unmounted: nothing stays. */
  remove(): Promise<void>;
};
type Progress = { blocksTotal: number; blocksPresent: number; whole: boolean; wireBytes: number };

async function measure(mode: Mode, way: Way): Promise<Result> {
  const startedMs = clock.monotonicMs();
  const sinceMs = () => clock.monotonicMs() - startedMs;
  await mustRun(host.tools, ['mount', await way.activate(), MOUNT]);
  const usableMs = sinceMs();
  await way.hydrate();
  const load = new Load();
  let progress = await way.progress();
  while (!progress.whole && sinceMs() < TIME_MS) {
    await clock.sleep(STATUS_MS);
    progress = await way.progress();
  }
  let releasedMs: number | null = null;
  if (progress.whole) {
    await way.release();
    releasedMs = sinceMs();
  }
  const latencies = await load.end();
  await mustRun(host.tools, ['umount', MOUNT]);
  await way.remove();
  const { blocksPresent, blocksTotal, wireBytes } = progress;
  return { mode, usableMs, releasedMs, localShare: blocksPresent / blocksTotal, wireBytes, ...latencies };
}

/** dm-clone by hand, hydrating from the beginning: as its documentation has it. */
async function byHand(knobs: number, plan: Plan): Promise<Way> {
  const name = 'bench';
  const folder = join(DATA_DIR, name);
  await mkdir(folder);
  for (const [file, bytes] of [
    ['data', plan.lengthBytes],
    ['meta', 16 * MIB],
  ] as const) {
    await writeFile(join(folder, file), '');
    await truncate(join(folder, file), bytes);
  }
  const loops = [
    await attachLoop({ filePath: join(folder, 'data') }),
    await attachLoop({ filePath: join(folder, 'meta') }),
  ] as const;
  const sectors = plan.lengthBytes / SECTOR_BYTES;
  let disk = '';
  return {
    async activate() {
      disk = await host.iscsi.disk(await host.iscsi.login(plan.source));
      return host.mapper.create(name, {
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
    },
    async hydrate() {},
    async progress() {
      const { regionsHydrated, regionsTotal } = parseCloneStatus((await host.mapper.status(name)).text);
      const { readBytes } = await blockStatistics(kernelNameOf(disk));
      return {
        blocksTotal: regionsTotal,
        blocksPresent: regionsHydrated,
        whole: regionsHydrated === regionsTotal,
        wireBytes: readBytes,
      };
    },
    async release() {
      await host.mapper.suspend(name, { flush: true });
      await host.mapper.load(name, { target: 'linear', sectors, device: loops[0], startSector: 0 });
      await host.mapper.resume(name);
      await host.iscsi.logout(plan.source);
    },
    async remove() {
      await host.mapper.remove(name);
      await host.iscsi.logout(plan.source);
      for (const loop of loops) await detachLoop(loop, { clock });
      await rm(folder, { recursive: true });
    },
  };
}

/** What the shim of a target does in a move; `open` is that of the plane. */
async function byPlane(
  plan: Plan,
  open: (spec: CloneSpec) => Promise<{
    activate(): Promise<string>;
    configureHydration(settings: HydrationSettings): Promise<unknown>;
    hydration(): Promise<HydrationStatus>;
    finish(): Promise<unknown>;
    close(): Promise<void>;
  }>,
): Promise<Way> {
  const volumes = await openStore();
  const record = await volumes.createIncoming({
    id: plan.volumeId,
    name: 'bench',
    lengthBytes: plan.lengthBytes,
    filesystem: 'ext4',
    generation: 2,
  });
  const volumeDir = volumes.folder(record.id);
  await writeFreeMap(volumeDir, Buffer.from(plan.freeMap, 'base64'));
  const spec = cloneSpec(record, {
    volumeDir,
    access: 'standby',
    validityDir: '/dev/shm',
    source: plan.source,
    hydration: { paused: true, rateBytesPerSecondMax: 0 },
  });
  const volume = await open(spec);
  return {
    async activate() {
      await volumes.apply(record.id, { kind: 'activate', generation: 2 });
      return volume.activate();
    },
    async hydrate() {
      await volume.configureHydration({ paused: false, rateBytesPerSecondMax: 0 });
    },
    async progress() {
      const { blocksTotal, blocksPresent, state, wireBytes } = await volume.hydration();
      return { blocksTotal, blocksPresent, whole: state === 'complete', wireBytes };
    },
    async release() {
      await volume.finish();
    },
    async remove() {
      await volume.close();
      await volumes.destroy(record.id, { force: true });
    },
  };
}

function byKernelPlane(plan: Plan): Promise<Way> {
  return byPlane(plan, async (spec) => {
    const volume = await KernelVolume.open(spec, { host, clock, logger: silentLogger });
    return {
      async activate() {
        await volume.activate('writable');
        return volume.device!;
      },
      configureHydration: async (settings) => volume.configureHydration(settings),
      hydration: async () => volume.status().hydration!,
      finish: () => volume.finish(),
      close: () => volume.close(),
    };
  });
}

/** The volume server is a process of its own, as ever: this one holds /dev/fuse and uses the loop device. */
function byUserspacePlane(plan: Plan): Promise<Way> {
  return byPlane(plan, async (spec) => {
    await mkdir(RUNTIME_DIR, { recursive: true });
    const { open } = userspaceBackend({
      fuseDir: join(RUNTIME_DIR, 'fuse'),
      logPath: join(RUNTIME_DIR, 'volume-server.log'),
      clock,
      logger: silentLogger,
      onChange: () => {},
      onEvent: () => {},
      onLeft: () => {},
      // The guests have Linux 6.1; nobody kills the volume server here.
      resendRequired: false,
    });
    const opening = await open(spec);
    return {
      async activate() {
        await opening.ask('activate', { access: 'writable' });
        return opening.device!;
      },
      configureHydration: (settings) => opening.ask('hydration', settings),
      hydration: async () => ((await opening.ask('status', {})) as VolumeServerStatus).hydration!,
      finish: () => opening.ask('finish', {}),
      close: () => opening.close(),
    };
  });
}

const WAYS: Record<Mode, (plan: Plan) => Promise<Way>> = {
  default: (plan) => byHand(1, plan),
  tuned: (plan) => byHand(64, plan),
  kernel: byKernelPlane,
  userspace: byUserspacePlane,
};

const [role, first = '', planPath = ''] = process.argv.slice(2);
if (role === 'source') console.log(JSON.stringify(await source(first)));
else {
  await mkdir(MOUNT, { recursive: true });
  const mode = first as Mode;
  const plan = JSON.parse(await readFile(planPath, 'utf8')) as Plan;
  console.log(JSON.stringify(await measure(mode, await WAYS[mode](plan))));
}
process.exit(0);
