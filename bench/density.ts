/**
 * What an idle machine costs its host, and how fast machines are made: so many of them on one worker, each
 * with a volume of its own and one process that sleeps. Memory is that of godwit for them, shims and volume
 * servers, per machine: what is its own (private pages), and with its share of what processes have together
 * (PSS). What runs in the machine is not counted, and the worker is told apart.
 *   node bench/density.ts [--counts 50,200]
 */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { DemoFleet } from '../demo/fleet.ts';
import { median } from '../demo/report.ts';
import { systemClock } from '../src/base/clock.ts';
import { readProcessWork } from '../src/base/process-pace.ts';
import { parseStat } from '../src/host/process-identity.ts';

export type DensityRow = {
  machines: number;
  /** Per machine. */
  privateMiB: number;
  /** Of that, the shim. */
  shimPrivateMiB: number;
  pssMiB: number;
  workerMiB: number;
  /** `createMachine` with a new volume, one after the other. */
  createMs: { median: number; first: number; last: number };
  allCreatedMs: number;
  /** Processor time of all of it while nothing happens, as a share of one processor, and per machine. */
  idleShare: number;
};

const VOLUME_BYTES = 16 * 2 ** 20;
/** After its start a process gives back what it needed for that. */
const SETTLE_MS = 10_000;
const IDLE_MS = 20_000;
const WORKER = 'worker-1';

export async function measureDensity(counts: readonly number[]): Promise<DensityRow[]> {
  // As the package has them, each program is one file.
  execFileSync(join(import.meta.dirname, '..', 'scripts', 'bundle'));
  const rows: DensityRow[] = [];
  for (const machines of counts) {
    const fleet = await DemoFleet.start(1);
    try {
      rows.push(await measure(fleet, machines));
    } finally {
      await fleet.down({ keep: false });
    }
  }
  return rows;
}

async function measure(fleet: DemoFleet, machines: number): Promise<DensityRow> {
  const durationsMs: number[] = [];
  const startedMs = performance.now();
  for (let number = 0; number < machines; number++) {
    const beganMs = performance.now();
    await create(fleet, `m${number}`);
    durationsMs.push(performance.now() - beganMs);
  }
  const allCreatedMs = performance.now() - startedMs;
  await systemClock.sleep(SETTLE_MS);
  const { shims, servers, worker } = processesOf(fleet.dir);
  const own = [...shims, ...servers];
  const beforeMs = processorMsOf([...own, ...worker]);
  await systemClock.sleep(IDLE_MS);
  const usedMs = processorMsOf([...own, ...worker]) - beforeMs;
  const perMachine = (pids: readonly number[], of: 'privateMiB' | 'pssMiB') =>
    pids.reduce((sum, pid) => sum + memoryMiB(pid)[of], 0) / machines;
  return {
    machines,
    privateMiB: perMachine(own, 'privateMiB'),
    shimPrivateMiB: perMachine(shims, 'privateMiB'),
    pssMiB: perMachine(own, 'pssMiB'),
    workerMiB: worker.reduce((sum, pid) => sum + memoryMiB(pid).pssMiB, 0),
    createMs: { median: median(durationsMs), first: durationsMs[0]!, last: durationsMs.at(-1)! },
    allCreatedMs,
    idleShare: usedMs / IDLE_MS / machines,
  };
}

async function create(fleet: DemoFleet, name: string): Promise<void> {
  const client = fleet.client(WORKER);
  const volume = await client.createVolume({
    name,
    lengthBytes: VOLUME_BYTES,
    filesystem: 'ext4',
    encrypted: false,
  });
  await client.createMachine({
    name,
    start: true,
    config: {
      command: ['sleep', 'infinity'],
      env: {},
      volume: { volumeId: volume.id, mountPath: '/data' },
      restart: { policy: 'no', retriesMax: 0 },
      stop: { signal: 'SIGKILL', timeoutMs: 1_000 },
      resources: {},
      network: 'none',
      metadata: {},
    },
  });
}

/** Of this fleet: shims and the volume servers that are their children; and the worker. */
function processesOf(dir: string): { shims: number[]; servers: number[]; worker: number[] } {
  const all = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => ({ pid: Number(pid), words: commandOf(pid) }));
  const has = (words: readonly string[], end: string) => words.some((word) => word.endsWith(end));
  const ours = all.filter(({ words }) => words.some((word) => word.startsWith(`${dir}/`)));
  const pidsOf = (those: typeof all) => those.map(({ pid }) => pid);
  const shims = pidsOf(ours.filter(({ words }) => has(words, '/shim.js')));
  const servers = all.filter(
    ({ pid, words }) => has(words, '/volume/server.js') && shims.includes(parentOf(pid)),
  );
  return {
    shims,
    servers: pidsOf(servers),
    worker: pidsOf(ours.filter(({ words }) => words.includes('worker'))),
  };
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    // It has ended meanwhile.
    return '';
  }
}

function commandOf(pid: string): string[] {
  return read(`/proc/${pid}/cmdline`).split('\0');
}

function parentOf(pid: number): number {
  return parseStat(read(`/proc/${pid}/stat`))?.parentPid ?? 0;
}

function processorMsOf(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + (readProcessWork(pid)?.processorMs ?? 0), 0);
}

function memoryMiB(pid: number): { privateMiB: number; pssMiB: number } {
  const rollup = read(`/proc/${pid}/smaps_rollup`);
  const field = (name: string) =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(rollup)?.[1] ?? 0) / 1024;
  return { privateMiB: field('Private_Clean') + field('Private_Dirty'), pssMiB: field('Pss') };
}

export function densityTable(rows: readonly DensityRow[]): string {
  return [
    '| machines | own memory of each | of that the shim | with its share of what is common (PSS) | the worker | `createMachine` with a volume: first, median, last | all of them | processor time of each, idle |',
    '|---|---|---|---|---|---|---|---|',
    ...rows.map((row) => {
      const { machines, privateMiB, shimPrivateMiB, pssMiB, workerMiB, createMs, allCreatedMs, idleShare } =
        row;
      const times = [createMs.first, createMs.median, createMs.last].map((ms) => ms.toFixed(0)).join(', ');
      return `| ${machines} | ${privateMiB.toFixed(1)} MiB | ${shimPrivateMiB.toFixed(1)} MiB | ${pssMiB.toFixed(1)} MiB | ${workerMiB.toFixed(0)} MiB | ${times} ms | ${(allCreatedMs / 1000).toFixed(1)} s | ${(100 * idleShare).toFixed(2)} % |`;
    }),
  ].join('\n');
}

if (import.meta.filename === process.argv[1]) {
  const { values } = parseArgs({ options: { counts: { type: 'string', default: '50,200' } } });
  console.log(densityTable(await measureDensity(values.counts.split(',').map(Number))));
}
