import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { systemClock } from '../src/base/clock.ts';
import { attachLoop, detachLoop } from '../src/host/losetup.ts';
import { mustRun, systemTools } from '../src/host/tools.ts';
import { attachPlainVolume } from '../test/support/attached-volume.ts';
import { findProgram } from '../test/support/requires.ts';

/**
 * The attach path against the C stack and against no user-space server at all: fio on ext4 on a loop device
 * on
 *   godwit    our FUSE server, plain volume
 *   nbdfuse   nbdfuse -C 1 on nbdkit's file plugin (both in C)
 *   raw       the file itself
 *   encrypted our FUSE server with the ciphertext of LUKS2 below, in sectors of 4096 bytes; only with `encryption`
 * They stay attached, and every row runs them in turn, several rounds, so that drift of the machine hits all
 * alike. The figures are medians.
 */
const VOLUME_BYTES = 1024 ** 3;
const FILE_MIB = 384;

type Row = { name: string; rw: string; bs: string; depth: number; cold?: boolean };
const ROWS: readonly Row[] = [
  { name: '4k random read, depth 1', rw: 'randread', bs: '4k', depth: 1 },
  { name: '4k random read, depth 16', rw: 'randread', bs: '4k', depth: 16 },
  { name: '4k random write, depth 1', rw: 'randwrite', bs: '4k', depth: 1 },
  { name: '4k random write, depth 16', rw: 'randwrite', bs: '4k', depth: 16 },
  { name: '1 MiB sequential read, depth 4', rw: 'read', bs: '1m', depth: 4 },
  { name: '1 MiB sequential write, depth 4', rw: 'write', bs: '1m', depth: 4 },
  { name: '4k random read, depth 1, cold file', rw: 'randread', bs: '4k', depth: 1, cold: true },
  { name: '4k random read, depth 16, cold file', rw: 'randread', bs: '4k', depth: 16, cold: true },
];

type StackName = 'godwit' | 'encrypted' | 'nbdfuse' | 'raw';
type Stack = { name: StackName; loop: string; filePath: string; mountPoint: string; detach(): Promise<void> };

export type AttachBenchRow = {
  name: string;
  unit: 'IOPS' | 'MiB/s';
  godwit: number;
  encrypted: number | null;
  nbdfuse: number | null;
  raw: number;
  /** godwit / nbdfuse; above 1 is faster. null where the peer is not installed. */
  ratio: number | null;
};
export type AttachBench = {
  rows: AttachBenchRow[];
  rounds: number;
  runtimeSeconds: number;
  serverResidentBytes: number;
};

/** `encryption`: an encrypted volume against a plain one, instead of the C stack. */
export async function run(
  options: { quick?: boolean; only?: RegExp; encryption?: boolean } = {},
): Promise<AttachBench> {
  const rounds = options.quick ? 3 : 7;
  const runtimeSeconds = options.quick ? 1 : 2;
  const dir = mkdtempSync(join(tmpdir(), 'gw-bench-attach-'));
  const stacks: Stack[] = [];
  try {
    const godwit = await godwitStack(join(dir, 'godwit'));
    stacks.push(godwit.stack);
    if (options.encryption) {
      stacks.push((await godwitStack(join(dir, 'encrypted'), randomBytes(64))).stack);
    } else if (findProgram('nbdfuse') !== null && findProgram('nbdkit') !== null) {
      stacks.push(await nbdfuseStack(join(dir, 'nbdfuse')));
    }
    stacks.push(await rawStack(join(dir, 'raw')));
    await sleep(500);
    const serverResidentBytes = await godwit.residentBytes();
    for (const stack of stacks) await prepare(stack);
    const rows: AttachBenchRow[] = [];
    for (const row of ROWS.filter(({ name }) => options.only?.test(name) ?? true)) {
      const samples: Record<StackName, number[]> = { godwit: [], encrypted: [], nbdfuse: [], raw: [] };
      for (let round = 0; round < rounds; round++) {
        for (const stack of stacks) {
          if (row.cold) await evict(stack.filePath);
          else readThrough(stack.filePath);
          samples[stack.name].push(await fio(stack, row, runtimeSeconds));
        }
      }
      const nbdfuse = samples.nbdfuse.length === 0 ? null : median(samples.nbdfuse);
      rows.push({
        name: row.name,
        unit: row.bs === '4k' ? 'IOPS' : 'MiB/s',
        godwit: median(samples.godwit),
        encrypted: samples.encrypted.length === 0 ? null : median(samples.encrypted),
        nbdfuse,
        raw: median(samples.raw),
        ratio: nbdfuse === null ? null : median(samples.godwit) / nbdfuse,
      });
    }
    return { rows, rounds, runtimeSeconds, serverResidentBytes };
  } finally {
    for (const stack of stacks.reverse()) {
      await systemTools().run(['umount', stack.mountPoint], { deadlineMs: 20_000 });
      await stack.detach().catch((error: unknown) => console.error(error));
    }
    rmSync(dir, { recursive: true, force: true });
  }
}

export function format(result: AttachBench): string {
  const lines = [
    `| median of ${result.rounds} rounds of ${result.runtimeSeconds} s | godwit | nbdfuse + nbdkit | raw file | godwit / nbdfuse |`,
    '|---|---|---|---|---|',
  ];
  for (const row of result.rows) {
    const figure = (value: number | null) => (value === null ? '-' : `${Math.round(value)} ${row.unit}`);
    const ratio = row.ratio === null ? '-' : row.ratio.toFixed(2);
    lines.push(
      `| ${row.name} | ${figure(row.godwit)} | ${figure(row.nbdfuse)} | ${figure(row.raw)} | ${ratio} |`,
    );
  }
  lines.push('', `Idle volume server: ${(result.serverResidentBytes / 1024 ** 2).toFixed(0)} MiB resident`);
  return lines.join('\n');
}

export function formatEncrypted(result: AttachBench): string {
  const lines = [
    `| median of ${result.rounds} rounds of ${result.runtimeSeconds} s | encrypted | plain | encrypted / plain |`,
    '|---|---|---|---|',
  ];
  for (const { name, unit, encrypted, godwit } of result.rows) {
    const ratio = ((encrypted ?? Number.NaN) / godwit).toFixed(2);
    lines.push(
      `| ${name} | ${Math.round(encrypted ?? Number.NaN)} ${unit} | ${Math.round(godwit)} ${unit} | ${ratio} |`,
    );
  }
  return lines.join('\n');
}

async function godwitStack(
  dir: string,
  key?: Buffer,
): Promise<{ stack: Stack; residentBytes(): Promise<number> }> {
  const filePath = sparseFile(dir);
  const volume = await attachPlainVolume({
    dir,
    filePath,
    lengthBytes: VOLUME_BYTES,
    ...(key && { sectorBytes: 4096, env: { PLAIN_VOLUME_KEY: key.toString('hex') } }),
  });
  const stack: Stack = {
    name: key ? 'encrypted' : 'godwit',
    loop: volume.loop,
    filePath,
    mountPoint: join(dir, 'mnt'),
    detach: () => volume.detach(),
  };
  return {
    stack,
    residentBytes: async () => {
      // The second server: the first one of a version compiles everything, and leaves the result in the
      // compile cache.
      process.kill(volume.supervisor.state.serverPid!, 'SIGKILL');
      await sleep(500);
      const status = await volume.supervisor.call('status');
      return (status as { residentBytes: number }).residentBytes;
    },
  };
}

async function nbdfuseStack(dir: string): Promise<Stack> {
  const filePath = sparseFile(dir);
  const socket = join(dir, 'nbd.sock');
  const fusePath = join(dir, 'device');
  writeFileSync(fusePath, '');
  // Not in the foreground (-f): that nbdkit would end with the thread that started it.
  await succeed('nbdkit', ['-U', socket, '-P', join(dir, 'pid'), 'file', `file=${filePath}`]);
  const nbdfuse = spawn('nbdfuse', ['-C', '1', fusePath, `nbd+unix:///?socket=${socket}`], {
    stdio: 'ignore',
  });
  let loop: string | null = null;
  const detach = async () => {
    if (loop !== null) await detachLoop(loop, { clock: systemClock });
    await systemTools().run(['umount', fusePath], { deadlineMs: 10_000 });
    await ended(nbdfuse);
    await systemTools().run(['sh', '-c', `kill $(cat ${join(dir, 'pid')})`], { deadlineMs: 5_000 });
  };
  try {
    for (let attempt = 0; ; attempt++) {
      if ((await systemTools().run(['mountpoint', '-q', fusePath], { deadlineMs: 2_000 })).exitCode === 0)
        break;
      if (attempt === 100) throw new Error('nbdfuse does not mount');
      await sleep(50);
    }
    loop = await attachLoop({ filePath: fusePath });
  } catch (error) {
    await detach();
    throw error;
  }
  return { name: 'nbdfuse', loop, filePath, mountPoint: join(dir, 'mnt'), detach };
}

async function rawStack(dir: string): Promise<Stack> {
  const filePath = sparseFile(dir);
  const loop = await attachLoop({ filePath });
  return {
    name: 'raw',
    loop,
    filePath,
    mountPoint: join(dir, 'mnt'),
    detach: () => detachLoop(loop, { clock: systemClock }),
  };
}

function sparseFile(dir: string): string {
  mkdirSync(join(dir, 'mnt'), { recursive: true });
  const filePath = join(dir, 'data.raw');
  writeFileSync(filePath, '');
  truncateSync(filePath, VOLUME_BYTES);
  return filePath;
}

async function prepare(stack: Stack): Promise<void> {
  await succeed('mkfs.ext4', [
    '-q',
    '-b',
    '4096',
    '-E',
    'lazy_itable_init=0,lazy_journal_init=0',
    stack.loop,
  ]);
  await succeed('mount', [stack.loop, stack.mountPoint]);
  await succeed('dd', [
    ...['if=/dev/urandom', `of=${join(stack.mountPoint, 'file')}`],
    ...['bs=1M', `count=${FILE_MIB}`, 'conv=fsync'],
  ]);
}

async function fio(stack: Stack, row: (typeof ROWS)[number], runtimeSeconds: number): Promise<number> {
  const { stdout } = await promisify(execFile)(
    'fio',
    [
      ...['--name=bench', `--filename=${join(stack.mountPoint, 'file')}`, `--size=${FILE_MIB}m`],
      ...['--ioengine=libaio', '--direct=1', `--rw=${row.rw}`, `--bs=${row.bs}`, `--iodepth=${row.depth}`],
      ...['--time_based', `--runtime=${runtimeSeconds}`, '--ramp_time=0.3', '--output-format=json'],
    ],
    { timeout: 60_000 },
  );
  const job = JSON.parse(stdout).jobs[0];
  const side = row.rw.endsWith('read') ? job.read : job.write;
  return row.bs === '4k' ? side.iops : side.bw / 1024;
}

/** Brings the backing file into the page cache, so that the figures are of the path and not of the disk. */
function readThrough(filePath: string): void {
  const fd = openSync(filePath, 'r');
  const buffer = new Uint8Array(1024 ** 2);
  while (readSync(fd, buffer) > 0);
  closeSync(fd);
}

/**
 * The opposite: nothing of it is left in the page cache (posix_fadvise DONTNEED, which drops clean pages
 * only).
 */
async function evict(filePath: string): Promise<void> {
  await succeed('dd', [
    `of=${filePath}`,
    'oflag=nocache',
    'conv=notrunc,fdatasync',
    'count=0',
    'status=none',
  ]);
}

async function succeed(program: string, argv: string[]): Promise<void> {
  await mustRun(systemTools(), [program, ...argv], { deadlineMs: 60_000 });
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const timeout = setTimeout(() => child.kill('SIGKILL'), 5_000);
  await new Promise((resolve) => child.once('exit', resolve));
  clearTimeout(timeout);
}

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const result = await run({ quick: process.argv.includes('--quick') });
  console.log(format(result));
}
