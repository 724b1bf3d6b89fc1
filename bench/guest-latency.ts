import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { systemClock } from '../src/base/clock.ts';
import { silentLogger } from '../src/base/logger.ts';
import { systemRandom } from '../src/base/random.ts';
import { VolumeStore } from '../src/volume/store.ts';
import { type DiskSpeed, slowDisk } from '../test/support/backing-disk.ts';
import { until } from '../test/support/patience.ts';
import { tool, VolumeLab } from '../test/support/volume-lab.ts';
import { makeSource, type Source } from './hydration.ts';

/**
 * What a guest feels of the background copy at a data disk that is slower than the network: fsyncs after 4
 * KiB writes, reads of blocks that are here (not in the page cache), and reads of blocks that are not, all at
 * once; with the copy paused and with it running, on clones of their own. Beside it the same of QEMU: an
 * overlay with the source behind it, on the same disk, under block-stream. The disks queue as a disk does
 * (test/support/backing-disk.ts). Goals: p99 of fsyncs and of reads of blocks that are here at most 1.5 times
 * that of paused, none above a second, and the copy has at least 70 % of what dd writes there alone.
 */
const MIB = 2 ** 20;
/** Written by the guest first. */
const PRESENT_BYTES = 128 * MIB;

export const DISKS: readonly (DiskSpeed & { name: string })[] = [
  { name: '50 MB/s, 4 ms', bytesPerSecond: 50e6, latencyMs: 4 },
  { name: '100 MB/s, 2 ms', bytesPerSecond: 100e6, latencyMs: 2 },
  { name: '400 MB/s, 1 ms', bytesPerSecond: 400e6, latencyMs: 1 },
];

export const QUICK = { amount: { fsyncs: 100, reads: 1_000, coldReads: 40 }, lengthBytes: 512 * MIB };

export type Feel = {
  fsyncP99Ms: number;
  fsyncMaxMs: number;
  readP99Ms: number;
  readMaxMs: number;
  writeP99Ms: number;
  coldP99Ms: number;
  copiedMBps: number;
};
export type LatencyRow = { disk: string; alone: number; godwit: Pair; qemu: Pair | null };
type Pair = { paused: Feel; running: Feel };

/** Counts of requests a row. */
export type Amount = { fsyncs: number; reads: number; coldReads: number };
export const FULL: Amount = { fsyncs: 500, reads: 5_000, coldReads: 200 };

export async function benchGuestLatency(
  options: {
    disks?: readonly (DiskSpeed & { name: string })[];
    amount?: Amount;
    qemu?: boolean;
    lengthBytes?: number;
  } = {},
): Promise<LatencyRow[]> {
  const amount = options.amount ?? FULL;
  const rows: LatencyRow[] = [];
  for (const disk of options.disks ?? DISKS) {
    const lab = new VolumeLab();
    try {
      // Enough to copy for as long as the guest takes.
      const lengthBytes =
        options.lengthBytes ??
        Math.ceil(Math.min(4096 * MIB, Math.max(1024 * MIB, disk.bytesPerSecond * 25)) / (4 * MIB)) * 4 * MIB;
      const source = await makeSource(lab, lengthBytes);
      const { dir: place } = await slowDisk(lab, 'slow', lengthBytes + 1024 * MIB, disk);
      const alone = await diskAlone(place);
      const godwit = {
        paused: await godwitRow(source, place, true, amount),
        running: await godwitRow(source, place, false, amount),
      };
      const qemu =
        options.qemu === false
          ? null
          : {
              paused: await qemuRow(source, place, true, amount),
              running: await qemuRow(source, place, false, amount),
            };
      rows.push({ disk: disk.name, alone, godwit, qemu });
    } finally {
      await lab.close();
    }
  }
  return rows;
}

/** MB/s of a sequential write past the page cache. */
async function diskAlone(dir: string): Promise<number> {
  const path = join(dir, 'alone');
  const startMs = performance.now();
  const bytes = 128 * MIB;
  await tool(
    'dd',
    'if=/dev/zero',
    `of=${path}`,
    'bs=1M',
    `count=${bytes / MIB}`,
    'oflag=direct',
    'status=none',
  );
  const seconds = (performance.now() - startMs) / 1000;
  await tool('rm', path);
  return bytes / 1e6 / seconds;
}

async function godwitRow(source: Source, place: string, paused: boolean, amount: Amount): Promise<Feel> {
  const folder = join(place, 'clone');
  const store = await VolumeStore.open(folder, {
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
  });
  const incoming = await store.createIncoming({
    id: source.id,
    name: 'data',
    lengthBytes: source.lengthBytes,
    filesystem: 'none',
    generation: 2,
  });
  const lab = new VolumeLab();
  try {
    const from = { access: 'standby', source: source.exported.source, paused: true } as const;
    const target = await lab.attach(store, incoming, from);
    await store.apply(source.id, { kind: 'activate', generation: 2 });
    await target.server.call('activate', { access: 'writable' });
    const data = join(store.folder(source.id), 'data.raw');
    const forget = ['oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none'];
    const guest: Guest = {
      flags: [`--filename=${target.loop}`, '--direct=1'],
      engine: 'libaio',
      forget: async () => void (await tool('dd', 'if=/dev/null', `of=${data}`, ...forget)),
      copy: async () =>
        void (await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 })),
      copiedBytes: async () => (await target.hydration()).wireBytes,
    };
    return await guestFeels(guest, source.lengthBytes, paused, amount);
  } finally {
    await lab.close();
    await tool('rm', '-rf', folder);
  }
}

type Guest = {
  flags: string[];
  engine: string;
  /** What is here is not in the page cache any more. */
  forget: () => Promise<void>;
  copy: () => Promise<void>;
  copiedBytes: () => Promise<number>;
};

async function guestFeels(guest: Guest, lengthBytes: number, paused: boolean, amount: Amount): Promise<Feel> {
  await fio(guest, [
    ...['--name=fill', '--rw=write', '--bs=1M', `--size=${PRESENT_BYTES}`, '--iodepth=4', '--end_fsync=1'],
  ]);
  await guest.forget();
  if (!paused) await guest.copy();
  const half = PRESENT_BYTES / 2;
  const startMs = performance.now();
  const before = await guest.copiedBytes();
  // Jobs side by side. The cold reads are from the end, where the linear copy comes last.
  const jobs = await fio(guest, [
    ...[
      '--name=fsync',
      '--rw=randwrite',
      '--bs=4k',
      '--fsync=1',
      `--size=${half}`,
      `--number_ios=${amount.fsyncs}`,
      '--thinktime=5000',
    ],
    ...[
      '--name=read',
      '--rw=randread',
      '--bs=4k',
      `--offset=${half}`,
      `--size=${half}`,
      `--number_ios=${amount.reads}`,
    ],
    ...[
      '--name=cold',
      '--rw=randread',
      '--bs=4k',
      `--offset=${lengthBytes - 64 * MIB}`,
      `--size=${64 * MIB}`,
    ],
    ...[`--number_ios=${amount.coldReads}`, '--thinktime=20000'],
  ]);
  const seconds = (performance.now() - startMs) / 1000;
  const copied = (await guest.copiedBytes()) - before;
  const [fsync, read, cold] = jobs;
  return {
    fsyncP99Ms: fsync!.sync.lat_ns.percentile['99.000000'] / 1e6,
    fsyncMaxMs: fsync!.sync.lat_ns.max / 1e6,
    writeP99Ms: fsync!.write.clat_ns.percentile['99.000000'] / 1e6,
    readP99Ms: read!.read.clat_ns.percentile['99.000000'] / 1e6,
    readMaxMs: read!.read.clat_ns.max / 1e6,
    coldP99Ms: cold!.read.clat_ns.percentile['99.000000'] / 1e6,
    copiedMBps: copied / 1e6 / seconds,
  };
}

type Latency = { max: number; percentile: { '99.000000': number } };
type FioJob = { sync: { lat_ns: Latency }; read: { clat_ns: Latency }; write: { clat_ns: Latency } };

async function fio({ flags, engine }: Guest, jobs: string[]): Promise<FioJob[]> {
  const { stdout } = await promisify(execFile)(
    'fio',
    ['--output-format=json', `--ioengine=${engine}`, ...flags, '--norandommap', ...jobs],
    { timeout: 300_000, killSignal: 'SIGKILL', maxBuffer: 16 * MIB },
  );
  return (JSON.parse(stdout.slice(stdout.indexOf('{'))) as { jobs: FioJob[] }).jobs;
}

/**
 * An overlay on the disk with the source behind it, served by qemu-storage-daemon; past the page cache, as a
 * production guest has it.
 */
async function qemuRow(source: Source, place: string, paused: boolean, amount: Amount): Promise<Feel> {
  const { lab } = source;
  const base = join(lab.dir, `source-${source.lengthBytes}`, 'volumes', source.id, 'data.raw');
  const overlay = join(place, 'overlay.qcow2');
  const socket = join(lab.dir, 'qemu.sock');
  const control = join(lab.dir, 'qmp.sock');
  const behind = join(lab.dir, 'behind.sock');
  await tool('rm', '-f', socket, control, behind);
  await tool('qemu-img', 'create', '-q', '-f', 'qcow2', overlay, String(source.lengthBytes));
  const server = spawn('nbdkit', ['--foreground', '--readonly', '--unix', behind, 'file', base], {
    stdio: 'ignore',
  });
  const daemon = spawn(
    'qemu-storage-daemon',
    [
      ...['--blockdev', `driver=nbd,node-name=far,server.type=unix,server.path=${behind},read-only=on`],
      ...['--blockdev', `driver=file,node-name=file,filename=${overlay},cache.direct=on`],
      ...['--blockdev', 'driver=qcow2,node-name=disk,file=file,backing=far,discard=unmap'],
      ...['--nbd-server', `addr.type=unix,addr.path=${socket},max-connections=8`],
      ...['--export', 'type=nbd,id=export,node-name=disk,name=disk,writable=on'],
      ...['--chardev', `socket,id=qmp,path=${control},server=on,wait=off`, '--monitor', 'chardev=qmp'],
    ],
    { stdio: ['ignore', 'ignore', 'inherit'] },
  );
  try {
    await until('the daemon serves', () => tool('nbdinfo', '--size', `nbd+unix:///disk?socket=${socket}`));
    const qmp = await Qmp.open(control);
    const guest: Guest = {
      flags: [`--uri=nbd+unix:///disk?socket=${socket}`],
      engine: 'nbd',
      forget: async () => {},
      copy: async () => void (await qmp.ask('block-stream', { 'job-id': 'copy', device: 'disk' })),
      copiedBytes: async () => {
        const [job] = (await qmp.ask('query-block-jobs')) as { offset: number }[];
        return job?.offset ?? (paused ? 0 : source.lengthBytes);
      },
    };
    const feel = await guestFeels(guest, source.lengthBytes, paused, amount);
    qmp.close();
    return feel;
  } finally {
    for (const child of [daemon, server]) {
      const exited = once(child, 'exit');
      child.kill('SIGKILL');
      await exited;
    }
    await tool('rm', '-f', overlay);
  }
}

/** As much of the QEMU monitor protocol as this needs: one question at a time. */
class Qmp {
  readonly #socket;
  readonly #answers: ((answer: { return?: unknown; error?: { desc: string } }) => void)[] = [];

  private constructor(path: string) {
    this.#socket = connect({ path });
    createInterface({ input: this.#socket }).on('line', (line) => {
      const message = JSON.parse(line);
      if ('return' in message || 'error' in message) this.#answers.shift()?.(message);
    });
  }

  static async open(path: string): Promise<Qmp> {
    const qmp = new Qmp(path);
    await once(qmp.#socket, 'connect');
    await qmp.ask('qmp_capabilities');
    return qmp;
  }

  async ask(execute: string, args: object = {}): Promise<unknown> {
    const answered = new Promise<{ return?: unknown; error?: { desc: string } }>((resolve) =>
      this.#answers.push(resolve),
    );
    this.#socket.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    const answer = await answered;
    if (answer.error) throw new Error(`${execute}: ${answer.error.desc}`);
    return answer.return;
  }

  close(): void {
    this.#socket.destroy();
  }
}

export function latencyTable(rows: readonly LatencyRow[]): string {
  const lines = [
    '| disk | | fsync p99, paused | hydrating | ratio | worst | read p99, paused | hydrating | ratio | worst | cold read p99, paused | hydrating | share of the disk |',
    '|---|---|---|---|---|---|---|---|---|---|---|---|---|',
  ];
  const ms = (value: number) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;
  for (const { disk, alone, ...systems } of rows) {
    for (const [name, pair] of Object.entries(systems)) {
      if (pair === null) continue;
      const { paused, running } = pair;
      const ratio = (key: 'fsyncP99Ms' | 'readP99Ms') => (running[key] / paused[key]).toFixed(2);
      lines.push(
        `| ${disk} | ${name} | ${ms(paused.fsyncP99Ms)} | ${ms(running.fsyncP99Ms)} | ${ratio('fsyncP99Ms')} | ${ms(running.fsyncMaxMs)} | ${ms(paused.readP99Ms)} | ${ms(running.readP99Ms)} | ${ratio('readP99Ms')} | ${ms(running.readMaxMs)} | ${ms(paused.coldP99Ms)} | ${ms(running.coldP99Ms)} | ${((running.copiedMBps / alone) * 100).toFixed(0)} % |`,
      );
    }
  }
  return lines.join('\n');
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const { values } = parseArgs({
    options: {
      disk: { type: 'string' },
      quick: { type: 'boolean', default: false },
      'no-qemu': { type: 'boolean', default: false },
    },
  });
  const rows = await benchGuestLatency({
    disks: DISKS.filter(({ name }) => name.startsWith(values.disk ?? '')),
    ...(values.quick && QUICK),
    qemu: !values['no-qemu'],
  });
  console.log(latencyTable(rows));
  console.log(JSON.stringify(rows));
}
