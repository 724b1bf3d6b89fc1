import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { systemClock } from '../src/base/clock.ts';
import { silentLogger } from '../src/base/logger.ts';
import { systemRandom } from '../src/base/random.ts';
import { NbdClient } from '../src/nbd/client.ts';
import { findProgram } from '../test/support/requires.ts';

/**
 * Our NBD client against the C ones, all reading from one nbdkit (memory plugin, Unix socket, one
 * connection), one after the other in each round:
 *   godwit   src/nbd in a process of its own
 *   libnbd   through fio's nbd engine; for 1 MiB, nbdcopy to null:
 *   qemu     qemu-img bench
 *   node bench/nbd-client.ts [--rounds 5]
 */
const MIB = 1024 ** 2;
const DISK_BYTES = 512 * MIB;
const RUN_SECONDS = 1.5;

type Row = { name: string; blockBytes: number; depth: number };
const ROWS: readonly Row[] = [
  ...[1, 16, 64].map((depth) => ({ name: `4 KiB read, depth ${depth}`, blockBytes: 4096, depth })),
  { name: '1 MiB read, depth 8', blockBytes: MIB, depth: 8 },
];
type ClientName = 'godwit' | 'libnbd' | 'qemu';

export type NbdClientBenchRow = {
  name: string;
  unit: 'IOPS' | 'MiB/s';
  /** Medians. */
  rates: Record<ClientName, number>;
  /** godwit / the better of the others; above 1 is faster. */
  ratio: number;
};

export async function run(options: { rounds: number }): Promise<NbdClientBenchRow[]> {
  const dir = mkdtempSync(join(tmpdir(), 'gw-bench-nbd-client-'));
  const path = join(dir, 's');
  const server = spawn(findProgram('nbdkit') ?? 'nbdkit', ['-f', '-U', path, 'memory', String(DISK_BYTES)], {
    stdio: 'ignore',
  });
  try {
    while (!existsSync(path)) await sleep(20);
    await fill(path);
    const rows: NbdClientBenchRow[] = [];
    for (const row of ROWS) {
      const samples: Record<ClientName, number[]> = { godwit: [], libnbd: [], qemu: [] };
      for (let round = 0; round < options.rounds; round += 1) {
        samples.godwit.push(await godwit(path, row));
        samples.libnbd.push(row.blockBytes === MIB ? await nbdcopy(path, row) : await fio(path, row, dir));
        samples.qemu.push(await qemu(path, row, samples.godwit.at(-1)!));
      }
      const rates = {
        godwit: median(samples.godwit),
        libnbd: median(samples.libnbd),
        qemu: median(samples.qemu),
      };
      const ratio = rates.godwit / Math.max(rates.libnbd, rates.qemu);
      rows.push({ name: row.name, unit: row.blockBytes === MIB ? 'MiB/s' : 'IOPS', rates, ratio });
    }
    return rows;
  } finally {
    await stop(server);
    rmSync(dir, { recursive: true, force: true });
  }
}

export function format(rows: readonly NbdClientBenchRow[]): string {
  const lines = ['| | godwit | libnbd | qemu-img bench | godwit / best |', '|---|---|---|---|---|'];
  for (const { name, unit, rates, ratio } of rows) {
    const rate = (client: ClientName) => `${Math.round(rates[client])} ${unit}`;
    lines.push(`| ${name} | ${rate('godwit')} | ${rate('libnbd')} | ${rate('qemu')} | ${ratio.toFixed(2)} |`);
  }
  return lines.join('\n');
}

function connect(path: string): Promise<NbdClient> {
  return NbdClient.connect({
    address: { path },
    readOnly: false,
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
  });
}

async function fill(path: string): Promise<void> {
  const client = await connect(path);
  const block = Buffer.from(systemRandom.bytes(MIB));
  for (let at = 0; at < DISK_BYTES; at += MIB) await client.write(at, block);
  await client.close();
}

async function godwit(path: string, row: Row): Promise<number> {
  const script = fileURLToPath(import.meta.url);
  const args = [script, '--load', path, '--block', String(row.blockBytes), '--depth', String(row.depth)];
  return Number(await output(process.execPath, ...args));
}

/** What `godwit` runs in its process: prints the rate. */
async function load(path: string, blockBytes: number, depth: number): Promise<void> {
  const client = await connect(path);
  const blocks = DISK_BYTES / blockBytes;
  let done = 0;
  const lane = async (untilMs: number): Promise<void> => {
    const buffer = Buffer.allocUnsafeSlow(blockBytes);
    while (performance.now() < untilMs) {
      await client.read(blockBytes * Math.floor(Math.random() * blocks), buffer);
      done += 1;
    }
  };
  const lanes = (seconds: number) => {
    const untilMs = performance.now() + 1000 * seconds;
    return Promise.all(Array.from({ length: depth }, () => lane(untilMs)));
  };
  // The compiler has its time, as the C programs had theirs.
  await lanes(0.7);
  done = 0;
  const startMs = performance.now();
  await lanes(RUN_SECONDS);
  const perSecond = (1000 * done) / (performance.now() - startMs);
  process.stdout.write(String(blockBytes === MIB ? perSecond * (blockBytes / MIB) : perSecond));
  await client.close();
}

async function fio(path: string, row: Row, dir: string): Promise<number> {
  const out = await output(
    'fio',
    ...['--name=bench', '--ioengine=nbd', `--uri=nbd+unix:///?socket=${path}`, '--rw=randread'],
    ...[`--bs=${row.blockBytes}`, `--iodepth=${row.depth}`, `--size=${DISK_BYTES}`, '--time_based'],
    ...[
      `--runtime=${Math.ceil(RUN_SECONDS)}`,
      '--output-format=json',
      `--aux-path=${dir}`,
      '--randrepeat=0',
      '--norandommap',
    ],
  );
  return JSON.parse(out.slice(out.indexOf('{'))).jobs[0].read.iops;
}

/** Copies the whole disk; MiB per second. */
async function nbdcopy(path: string, row: Row): Promise<number> {
  const startMs = performance.now();
  await output(
    'nbdcopy',
    ...['--connections=1', `--requests=${row.depth}`, `--request-size=${row.blockBytes}`, '--no-extents'],
    ...[`nbd+unix:///?socket=${path}`, 'null:'],
  );
  return DISK_BYTES / MIB / ((performance.now() - startMs) / 1000);
}

/** As many requests as take about as long; it reads in order. */
async function qemu(path: string, row: Row, expectedRate: number): Promise<number> {
  const count = Math.min(200_000, Math.max(100, Math.round(expectedRate * RUN_SECONDS)));
  const out = await output(
    'qemu-img',
    ...['bench', '-f', 'raw', '-c', String(count), '-d', String(row.depth), '-s', String(row.blockBytes)],
    ...['-t', 'none', `nbd+unix:///?socket=${path}`],
  );
  const seconds = Number(/Run completed in ([\d.]+) seconds/.exec(out)![1]);
  return (count / seconds) * (row.blockBytes === MIB ? row.blockBytes / MIB : 1);
}

async function output(program: string, ...args: string[]): Promise<string> {
  const found = program.includes('/') ? program : (findProgram(program) ?? program);
  return (await promisify(execFile)(found, args, { timeout: 60_000 })).stdout;
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null) return;
  const exited = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGTERM');
  await exited;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((left, right) => left - right);
  return sorted[Math.floor(sorted.length / 2)]!;
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string', default: '5' },
      load: { type: 'string' },
      block: { type: 'string', default: '4096' },
      depth: { type: 'string', default: '1' },
    },
  });
  if (values.load !== undefined) await load(values.load, Number(values.block), Number(values.depth));
  else process.stdout.write(`${format(await run({ rounds: Number(values.rounds) }))}\n`);
}
