import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { readProcessWork } from '../src/base/process-pace.ts';

/**
 * Our NBD server against the C ones: fio's nbd engine (libnbd) on one connection to
 *   godwit     src/nbd on a FileDevice
 *   nbdkit     its file plugin
 *   qemu-nbd   raw, cache=writeback
 * All serve the same file, in the page cache, on loopback TCP or on a unix socket. They stay up, and every
 * row runs them in turn, several rounds, so that drift of the machine hits all alike. The figures are
 * medians.
 */
const FILE_BYTES = 512 * 1024 ** 2;
const GIB = 1024 ** 3;

type Row = { name: string; rw: string; blockBytes: number; depth: number };
const ROWS: readonly Row[] = [1, 16, 64].flatMap((depth) => [
  { name: `4 KiB read, depth ${depth}`, rw: 'randread', blockBytes: 4096, depth },
  { name: `4 KiB write, depth ${depth}`, rw: 'randwrite', blockBytes: 4096, depth },
]);
const BIG_ROWS: readonly Row[] = [
  { name: '1 MiB read, depth 8', rw: 'read', blockBytes: 1024 ** 2, depth: 8 },
  { name: '1 MiB write, depth 8', rw: 'write', blockBytes: 1024 ** 2, depth: 8 },
];

export type Transport = 'unix' | 'tcp';
type ServerName = 'godwit' | 'nbdkit' | 'qemu-nbd';
type Server = { name: ServerName; uri: string; child: ChildProcess };
type Sample = { rate: number; cpuSecondsPerGib: number };

export type NbdBenchRow = {
  transport: Transport;
  name: string;
  unit: 'IOPS' | 'MiB/s';
  rates: Record<ServerName, number>;
  /** godwit / the better of the others; above 1 is faster. */
  ratio: number;
  cpuSecondsPerGib: Record<ServerName, number>;
};
export type NbdBench = {
  rows: NbdBenchRow[];
  rounds: number;
  runtimeSeconds: number;
  /** After the rows, and the most while 64 connections read. */
  residentBytes: Record<ServerName, { idle: number; at64: number }>;
};

export async function run(
  options: { quick?: boolean; only?: RegExp; transports?: readonly Transport[] } = {},
): Promise<NbdBench> {
  const rounds = options.quick ? 3 : 7;
  const runtimeSeconds = options.quick ? 1 : 2;
  const dir = mkdtempSync(join(tmpdir(), 'gw-bench-nbd-'));
  const file = join(dir, 'disk');
  const rows: NbdBenchRow[] = [];
  const residentBytes = {} as NbdBench['residentBytes'];
  fill(file);
  try {
    for (const transport of options.transports ?? (['unix', 'tcp'] as const)) {
      const servers: Server[] = [];
      try {
        // The first process of a version compiles everything, and leaves the result in the compile cache.
        servers.push(await startServer('godwit', transport, dir, file));
        await fio(servers[0]!, { name: 'warm', rw: 'randrw', blockBytes: 4096, depth: 4 }, 1, dir);
        await stop(servers.pop()!.child);
        for (const name of ['godwit', 'nbdkit', 'qemu-nbd'] as const) {
          servers.push(await startServer(name, transport, dir, file));
        }
        for (const row of [...ROWS, ...BIG_ROWS].filter(({ name }) => options.only?.test(name) ?? true)) {
          const samples: Record<ServerName, Sample[]> = { godwit: [], nbdkit: [], 'qemu-nbd': [] };
          for (let round = 0; round < rounds; round += 1) {
            for (const server of servers)
              samples[server.name].push(await fio(server, row, runtimeSeconds, dir));
          }
          rows.push(resultOf(transport, row, samples));
        }
        if (transport === 'unix') {
          for (const server of servers) {
            const idle = residentOf(server.child);
            residentBytes[server.name] = { idle, at64: await residentAt64(server, dir) };
          }
        }
      } finally {
        for (const { child } of servers) await stop(child);
      }
    }
    return { rows, rounds, runtimeSeconds, residentBytes };
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

export function format(result: NbdBench): string {
  const lines = [
    `| median of ${result.rounds} rounds of ${result.runtimeSeconds} s | godwit | nbdkit | qemu-nbd | godwit / best | CPU s per GiB: godwit | nbdkit | qemu-nbd |`,
    '|---|---|---|---|---|---|---|---|',
  ];
  for (const { transport, name, unit, rates, ratio, cpuSecondsPerGib } of result.rows) {
    const rate = (server: ServerName) => `${Math.round(rates[server])} ${unit}`;
    const cpu = (server: ServerName) => cpuSecondsPerGib[server].toFixed(2);
    lines.push(
      `| ${transport}, ${name} | ${rate('godwit')} | ${rate('nbdkit')} | ${rate('qemu-nbd')} | ${ratio.toFixed(2)} | ${cpu('godwit')} | ${cpu('nbdkit')} | ${cpu('qemu-nbd')} |`,
    );
  }
  lines.push('');
  for (const [name, { idle, at64 }] of Object.entries(result.residentBytes)) {
    const mib = (bytes: number) => (bytes / 1024 ** 2).toFixed(0);
    lines.push(
      `- ${name}: ${mib(idle)} MiB resident after the rows, ${mib(at64)} MiB with 64 connections that read`,
    );
  }
  return lines.join('\n');
}

function resultOf(transport: Transport, row: Row, samples: Record<ServerName, Sample[]>): NbdBenchRow {
  const by = (pick: (sample: Sample) => number): Record<ServerName, number> => ({
    godwit: median(samples.godwit.map(pick)),
    nbdkit: median(samples.nbdkit.map(pick)),
    'qemu-nbd': median(samples['qemu-nbd'].map(pick)),
  });
  const rates = by((sample) => sample.rate);
  return {
    transport,
    name: row.name,
    unit: row.blockBytes === 4096 ? 'IOPS' : 'MiB/s',
    rates,
    ratio: rates.godwit / Math.max(rates.nbdkit, rates['qemu-nbd']),
    cpuSecondsPerGib: by((sample) => sample.cpuSecondsPerGib),
  };
}

async function startServer(
  name: ServerName,
  transport: Transport,
  dir: string,
  file: string,
): Promise<Server> {
  const path = join(dir, `${name}.sock`);
  rmSync(path, { force: true });
  const port = transport === 'tcp' ? await freePort() : 0;
  const uri = transport === 'tcp' ? `nbd://127.0.0.1:${port}` : `nbd+unix:///?socket=${path}`;
  const child = spawn(...commandOf(name, { path, port, file }), {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, NODE_COMPILE_CACHE: join(dir, 'compile-cache') },
  });
  for (;;) {
    if (child.exitCode !== null) throw new Error(`${name} ended with ${child.exitCode}`);
    if (await answers(uri)) return { name, uri, child };
    await sleep(50);
  }
}

function commandOf(
  name: ServerName,
  { path, port, file }: { path: string; port: number; file: string },
): [string, string[]] {
  const tcp = port !== 0;
  switch (name) {
    case 'godwit': {
      const program = fileURLToPath(new URL('../test/support/nbd-server-process.ts', import.meta.url));
      const where = tcp ? ['--port', String(port)] : ['--socket', path];
      return [process.execPath, [program, '--file', file, '--bytes', String(FILE_BYTES), ...where]];
    }
    case 'nbdkit':
      return [
        'nbdkit',
        ['-f', ...(tcp ? ['-i', '127.0.0.1', '-p', String(port)] : ['-U', path]), 'file', `file=${file}`],
      ];
    case 'qemu-nbd': {
      const where = tcp ? ['-b', '127.0.0.1', '-p', String(port)] : ['-k', path];
      return ['qemu-nbd', ['-t', '-f', 'raw', '-e', '100', '--cache=writeback', ...where, file]];
    }
  }
}

async function answers(uri: string): Promise<boolean> {
  try {
    await promisify(execFile)('nbdinfo', ['--size', uri], { timeout: 5_000 });
    return true;
  } catch {
    return false;
  }
}

function fioArguments(server: Server, row: Row, runtimeSeconds: number): string[] {
  return [
    '--name=bench',
    '--ioengine=nbd',
    `--uri=${server.uri}`,
    `--rw=${row.rw}`,
    `--bs=${row.blockBytes}`,
    `--iodepth=${row.depth}`,
    `--size=${FILE_BYTES}`,
    '--time_based',
    `--runtime=${runtimeSeconds}`,
    '--randrepeat=0',
    '--output-format=json',
  ];
}

async function fio(server: Server, row: Row, runtimeSeconds: number, dir: string): Promise<Sample> {
  const cpuBefore = cpuSecondsOf(server.child);
  const { stdout } = await promisify(execFile)('fio', fioArguments(server, row, runtimeSeconds), {
    cwd: dir,
    timeout: 60_000,
    maxBuffer: 16 * 1024 ** 2,
  });
  const [job] = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs;
  if (job.error !== 0) throw new Error(`fio: error ${job.error} against ${server.name}`);
  const bytes = job.read.io_bytes + job.write.io_bytes;
  const seconds = Math.max(job.read.runtime, job.write.runtime) / 1000;
  const rate = row.blockBytes === 4096 ? bytes / 4096 / seconds : bytes / 1024 ** 2 / seconds;
  return { rate, cpuSecondsPerGib: (cpuSecondsOf(server.child) - cpuBefore) / (bytes / GIB) };
}

/** The most resident memory while 64 connections read 64 KiB at depth 4 each. */
async function residentAt64(server: Server, dir: string): Promise<number> {
  const row: Row = { name: '', rw: 'randread', blockBytes: 65_536, depth: 4 };
  const child = spawn(
    'fio',
    [...fioArguments(server, row, 3), '--numjobs=64', '--thread', '--group_reporting'],
    {
      cwd: dir,
      stdio: 'ignore',
    },
  );
  let most = 0;
  const timer = setInterval(() => {
    most = Math.max(most, residentOf(server.child));
  }, 100);
  await once(child, 'exit');
  clearInterval(timer);
  return most;
}

function cpuSecondsOf(child: ChildProcess): number {
  return readProcessWork(child.pid!)!.processorMs / 1000;
}

function residentOf(child: ChildProcess): number {
  const status = readFileSync(`/proc/${child.pid}/status`, 'utf8');
  return Number(/VmRSS:\s+(\d+)/.exec(status)![1]) * 1024;
}

/**
 * Written in pieces of 64 KiB, all alike: the page cache makes folios as large as the write that creates
 * them.
 */
function fill(file: string): void {
  const piece = Buffer.alloc(64 * 1024, 0x5a);
  const fd = openSync(file, 'w+');
  for (let at = 0; at < FILE_BYTES; at += piece.length) writeSync(fd, piece, 0, piece.length, at);
  for (let at = 0; at < FILE_BYTES; at += piece.length) readSync(fd, piece, 0, piece.length, at);
  closeSync(fd);
}

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  if (typeof address !== 'object' || address === null) throw new Error('no port');
  server.close();
  await once(server, 'close');
  return address.port;
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exit = once(child, 'exit');
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), 5_000);
  await exit;
  clearTimeout(timer);
}

function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)]!;
}
