import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { systemClock } from '../src/base/clock.ts';
import { silentLogger } from '../src/base/logger.ts';
import { readProcessWork } from '../src/base/process-pace.ts';
import { systemRandom } from '../src/base/random.ts';
import { IscsiInitiator } from '../src/iscsi/index.ts';
import { INITIATOR_IQN, TARGET_IQN } from '../test/support/iscsi-pair.ts';
import { startTgt } from '../test/support/tgt.ts';

/**
 * Our iSCSI target against Debian's tgt, each in a process of its own on one and the same file (page cache
 * warm), over loopback TCP.
 *   rate       `qemu-img bench` (libiscsi) as client of both, in turns, several rounds; medians, and the median of the rounds' ratios
 *   cpu        processor seconds of the target process a GiB served, from the same runs
 *   latency    4 KiB random reads, depth 1, our initiator as client of both
 *   memory     resident memory after the rate rows, and with 64 connections that have each read
 *
 *   node bench/iscsi.ts [--quick] [--json] [--only read]
 */
const MIB = 2 ** 20;
const GIB = 2 ** 30;
const FILE_BYTES = 256 * MIB;
const QEMU_INITIATOR = 'iqn.2008-11.org.linux-kvm';
const CONNECTIONS = 64;

type Row = { name: string; write: boolean; requestBytes: number; depth: number; count: number };
const ROWS: readonly Row[] = [false, true].flatMap((write) => {
  const verb = write ? 'write' : 'read';
  return [
    { name: `4 KiB ${verb}, depth 1`, write, requestBytes: 4096, depth: 1, count: 10_000 },
    { name: `4 KiB ${verb}, depth 16`, write, requestBytes: 4096, depth: 16, count: 40_000 },
    { name: `4 KiB ${verb}, depth 64`, write, requestBytes: 4096, depth: 64, count: 40_000 },
    { name: `1 MiB ${verb}, depth 8`, write, requestBytes: MIB, depth: 8, count: 1_000 },
  ];
});

export type RowResult = {
  name: string;
  unit: 'IOPS' | 'MiB/s';
  godwit: number;
  tgt: number;
  ratio: number;
  godwitCpuSecondsPerGib: number;
  tgtCpuSecondsPerGib: number;
};
export type LatencyResult = { godwitP50Us: number; godwitP99Us: number; tgtP50Us: number; tgtP99Us: number };
export type MemoryResult = {
  godwitMib: number;
  tgtMib: number;
  godwit64ConnectionsMib: number;
  tgt64ConnectionsMib: number;
};
export type IscsiBench = { rounds: number; rows: RowResult[]; latency: LatencyResult; memory: MemoryResult };

type Peer = { port: number; lun: number; pid: number };

async function startGodwit(file: string): Promise<{ child: ChildProcess; peer: Peer }> {
  const script = fileURLToPath(new URL('iscsi-target-process.ts', import.meta.url));
  const child = spawn(
    process.execPath,
    [...execArguments(), script, file, String(FILE_BYTES), TARGET_IQN, QEMU_INITIATOR, INITIATOR_IQN],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const [line] = (await once(child.stdout!, 'data')) as [Buffer];
  return { child, peer: { port: Number(line.toString()), lun: 0, pid: child.pid! } };
}

/** For profiles: GODWIT_BENCH_NODE_ARGS="--cpu-prof --cpu-prof-dir=DIR". */
function execArguments(): string[] {
  return (process.env.GODWIT_BENCH_NODE_ARGS ?? '').split(' ').filter((argument) => argument !== '');
}

async function rateOf(row: Row, peer: Peer): Promise<{ perSecond: number; cpuSecondsPerGib: number }> {
  const before = cpuSeconds(peer.pid);
  const { stdout } = await promisify(execFile)(
    'qemu-img',
    [
      ...['bench', '-f', 'raw', '-t', 'none', '-c', String(row.count), '-d', String(row.depth)],
      ...['-s', String(row.requestBytes), ...(row.write ? ['-w'] : [])],
      `iscsi://127.0.0.1:${peer.port}/${TARGET_IQN}/${peer.lun}`,
    ],
    { timeout: 120_000 },
  );
  const seconds = Number(/completed in ([\d.]+) seconds/.exec(stdout)![1]);
  const used = cpuSeconds(peer.pid) - before;
  return {
    perSecond: row.count / seconds,
    cpuSecondsPerGib: used / ((row.count * row.requestBytes) / GIB),
  };
}

/** User and system time, all threads. */
function cpuSeconds(pid: number): number {
  return readProcessWork(pid)!.processorMs / 1000;
}

function residentMib(pid: number): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))![1]) / 1024;
}

function connect(peer: Peer): Promise<IscsiInitiator> {
  return IscsiInitiator.connect({
    portals: [{ host: '127.0.0.1', port: peer.port }],
    targetIqn: TARGET_IQN,
    initiatorIqn: INITIATOR_IQN,
    lun: peer.lun,
    chap: null,
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
  });
}

async function latenciesUs(peer: Peer, count: number): Promise<number[]> {
  const initiator = await connect(peer);
  const into = Buffer.alloc(4096);
  const latencies: number[] = [];
  for (let index = 0; index < count; index += 1) {
    const offset = systemRandom.below(FILE_BYTES / 4096) * 4096;
    const startMs = performance.now();
    await initiator.read(offset, into);
    latencies.push((performance.now() - startMs) * 1000);
  }
  await initiator.close();
  return latencies;
}

async function memoryWithConnections(peer: Peer): Promise<number> {
  const initiators: IscsiInitiator[] = [];
  for (let index = 0; index < CONNECTIONS; index += 1) initiators.push(await connect(peer));
  const into = Buffer.alloc(MIB);
  for (const initiator of initiators) await initiator.read(0, into);
  await Promise.all(initiators.map((initiator) => initiator.read(0, Buffer.alloc(64 * 1024))));
  const resident = residentMib(peer.pid);
  await Promise.all(initiators.map((initiator) => initiator.close()));
  return resident;
}

function median(values: number[]): number {
  return quantile(values, 0.5);
}
function quantile(values: number[], part: number): number {
  const sorted = [...values].sort((left, right) => left - right);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))]!;
}

export async function benchIscsi(options: { rounds: number; only?: string }): Promise<IscsiBench> {
  const { rounds } = options;
  const dir = mkdtempSync(join(tmpdir(), 'godwit-iscsi-'));
  const file = join(dir, 'unit.raw');
  const descriptor = openSync(file, 'wx');
  for (let at = 0; at < FILE_BYTES; at += MIB) writeSync(descriptor, systemRandom.bytes(MIB));
  closeSync(descriptor);
  const { child, peer: godwit } = await startGodwit(file);
  const daemon = await startTgt({ file }).catch((error: unknown) => {
    child.kill('SIGKILL');
    throw error;
  });
  const tgt: Peer = { port: daemon.port, lun: 1, pid: daemon.pid };
  try {
    const rows: RowResult[] = [];
    for (const row of ROWS.filter(({ name }) => name.includes(options.only ?? ''))) {
      const samples: { ours: Rate; theirs: Rate }[] = [];
      // The first round warms both up.
      for (let round = -1; round < rounds; round += 1) {
        const ours = await rateOf(row, godwit);
        const theirs = await rateOf(row, tgt);
        if (round >= 0) samples.push({ ours, theirs });
      }
      const scale = row.requestBytes >= MIB ? row.requestBytes / MIB : 1;
      rows.push({
        name: row.name,
        unit: row.requestBytes >= MIB ? 'MiB/s' : 'IOPS',
        godwit: median(samples.map(({ ours }) => ours.perSecond)) * scale,
        tgt: median(samples.map(({ theirs }) => theirs.perSecond)) * scale,
        ratio: median(samples.map(({ ours, theirs }) => ours.perSecond / theirs.perSecond)),
        godwitCpuSecondsPerGib: median(samples.map(({ ours }) => ours.cpuSecondsPerGib)),
        tgtCpuSecondsPerGib: median(samples.map(({ theirs }) => theirs.cpuSecondsPerGib)),
      });
    }
    const memory = { godwitMib: residentMib(godwit.pid), tgtMib: residentMib(tgt.pid) };
    const ours: number[] = [];
    const theirs: number[] = [];
    for (let round = 0; round < rounds; round += 1) {
      ours.push(...(await latenciesUs(godwit, 2000)));
      theirs.push(...(await latenciesUs(tgt, 2000)));
    }
    return {
      rounds,
      rows,
      latency: {
        godwitP50Us: quantile(ours, 0.5),
        godwitP99Us: quantile(ours, 0.99),
        tgtP50Us: quantile(theirs, 0.5),
        tgtP99Us: quantile(theirs, 0.99),
      },
      memory: {
        ...memory,
        godwit64ConnectionsMib: await memoryWithConnections(godwit),
        tgt64ConnectionsMib: await memoryWithConnections(tgt),
      },
    };
  } finally {
    child.kill('SIGTERM');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    await daemon.close();
    rmSync(dir, { recursive: true });
  }
}
type Rate = { perSecond: number; cpuSecondsPerGib: number };

export function iscsiTable({ rounds, rows, latency, memory }: IscsiBench): string {
  const lines = [
    `| median of ${rounds} rounds | godwit | tgt | godwit / tgt | CPU s/GiB godwit | tgt |`,
    '|---|---|---|---|---|---|',
  ];
  for (const row of rows) {
    const value = (number: number): string => `${number.toFixed(0)} ${row.unit}`;
    lines.push(
      `| ${row.name} | ${value(row.godwit)} | ${value(row.tgt)} | ${row.ratio.toFixed(2)} | ${row.godwitCpuSecondsPerGib.toFixed(2)} | ${row.tgtCpuSecondsPerGib.toFixed(2)} |`,
    );
  }
  lines.push(
    `| 4 KiB random read, depth 1, p50 | ${latency.godwitP50Us.toFixed(0)} us | ${latency.tgtP50Us.toFixed(0)} us | | | |`,
    `| the same, p99 | ${latency.godwitP99Us.toFixed(0)} us | ${latency.tgtP99Us.toFixed(0)} us | | | |`,
    `| resident memory after it all | ${memory.godwitMib.toFixed(0)} MiB | ${memory.tgtMib.toFixed(0)} MiB | | | |`,
    `| with ${CONNECTIONS} connections | ${memory.godwit64ConnectionsMib.toFixed(0)} MiB | ${memory.tgt64ConnectionsMib.toFixed(0)} MiB | | | |`,
  );
  return lines.join('\n');
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      only: { type: 'string' },
    },
  });
  const only = values.only === undefined ? {} : { only: values.only };
  const result = await benchIscsi({ rounds: values.quick ? 1 : 5, ...only });
  console.log(values.json ? JSON.stringify(result, null, 2) : iscsiTable(result));
}
