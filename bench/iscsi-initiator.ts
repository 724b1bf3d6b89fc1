import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { systemClock } from '../src/base/clock.ts';
import { silentLogger } from '../src/base/logger.ts';
import { systemRandom } from '../src/base/random.ts';
import { IscsiInitiator } from '../src/iscsi/index.ts';
import { GRANT, INITIATOR_IQN, TARGET_IQN } from '../test/support/iscsi-pair.ts';
import { findProgram } from '../test/support/requires.ts';
import { startTgt } from '../test/support/tgt.ts';

/**
 * Our initiator against libiscsi, C, as `qemu-img bench` and `iscsi-perf` (reads only) use it. All of them
 * against the same target on the same file (page cache warm), once Debian's tgt and once ours, over loopback
 * TCP, in turns, several rounds; medians, and the median of the rounds' ratios to the better of the two.
 *
 *   node bench/iscsi-initiator.ts [--quick] [--json] [--only 'read, depth 1']
 */
const MIB = 2 ** 20;
const FILE_BYTES = 256 * MIB;
const QEMU_INITIATOR = 'iqn.2008-11.org.linux-kvm';
const PERF_INITIATOR = 'iqn.2010-11.iscsi-perf';

type Row = { name: string; write: boolean; requestBytes: number; depth: number; count: number };
const ROWS: readonly Row[] = [false, true].flatMap((write) => {
  const verb = write ? 'write' : 'read';
  return [
    { name: `4 KiB ${verb}, depth 1`, write, requestBytes: 4096, depth: 1, count: 8_000 },
    { name: `4 KiB ${verb}, depth 16`, write, requestBytes: 4096, depth: 16, count: 40_000 },
    { name: `4 KiB ${verb}, depth 64`, write, requestBytes: 4096, depth: 64, count: 40_000 },
    { name: `1 MiB ${verb}, depth 8`, write, requestBytes: MIB, depth: 8, count: 1_000 },
  ];
});

type Target = {
  name: 'tgt' | 'godwit';
  port: number;
  lun: number;
  chap: boolean;
  close: () => Promise<void>;
};

export type InitiatorBenchRow = {
  name: string;
  target: 'tgt' | 'godwit';
  unit: 'IOPS' | 'MiB/s';
  godwit: number;
  qemuImg: number;
  /** null: a row of writes, or the program is not there. */
  iscsiPerf: number | null;
  /** To the better of the peers. */
  ratio: number;
};

async function startGodwit(file: string): Promise<Target> {
  const script = fileURLToPath(new URL('../test/support/iscsi-target-process.ts', import.meta.url));
  const words = [file, String(FILE_BYTES), '0', 'bench', QEMU_INITIATOR, PERF_INITIATOR];
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', script, ...words], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = (await once(child.stdout!, 'data')) as [Buffer];
  const close = async (): Promise<void> => {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  };
  return { name: 'godwit', port: Number(line), lun: 0, chap: true, close };
}

/**
 * Requests a second. As `qemu-img bench` does it: one after the other through the file, from its beginning.
 */
async function ours(row: Row, target: Target): Promise<number> {
  const initiator = await IscsiInitiator.connect({
    portals: [{ host: '127.0.0.1', port: target.port }],
    ...{ targetIqn: TARGET_IQN, initiatorIqn: INITIATOR_IQN, chap: target.chap ? GRANT.chap : null },
    ...{ lun: target.lun, readOnly: !row.write, queueDepth: row.depth },
    ...{ clock: systemClock, random: systemRandom, logger: silentLogger },
  });
  try {
    let next = 0;
    const lane = async (): Promise<void> => {
      const buffer = Buffer.alloc(row.requestBytes);
      while (next < row.count) {
        const offsetBytes = (next * row.requestBytes) % FILE_BYTES;
        next += 1;
        if (row.write) await initiator.write(offsetBytes, buffer);
        else await initiator.read(offsetBytes, buffer);
      }
    };
    const startMs = performance.now();
    await Promise.all(Array.from({ length: row.depth }, lane));
    return (row.count / (performance.now() - startMs)) * 1000;
  } finally {
    await initiator.close();
  }
}

function urlOf(target: Target): string {
  return `iscsi://127.0.0.1:${target.port}/${TARGET_IQN}/${target.lun}`;
}

async function qemuImg(row: Row, target: Target): Promise<number> {
  const { stdout } = await promisify(execFile)(
    'qemu-img',
    [
      ...['bench', '-f', 'raw', '-t', 'none', '-c', String(row.count), '-d', String(row.depth)],
      ...['-s', String(row.requestBytes), ...(row.write ? ['-w'] : []), urlOf(target)],
    ],
    { timeout: 120_000 },
  );
  const seconds = Number(/Run completed in ([\d.]+) seconds/.exec(stdout)?.[1]);
  return row.count / seconds;
}

/** The average that it prints at the end, of two seconds. */
async function iscsiPerf(row: Row, target: Target): Promise<number | null> {
  if (row.write || findProgram('iscsi-perf') === null) return null;
  const { stdout } = await promisify(execFile)(
    'iscsi-perf',
    [
      '-i',
      PERF_INITIATOR,
      '-m',
      String(row.depth),
      '-b',
      String(row.requestBytes / 512),
      '-t',
      '2',
      urlOf(target),
    ],
    { timeout: 60_000 },
  );
  const rates = [...stdout.matchAll(/iops average (\d+)/g)].map(([, rate]) => Number(rate));
  return rates.at(-1) ?? null;
}

export async function run(options: { quick?: boolean; only?: RegExp } = {}): Promise<InitiatorBenchRow[]> {
  const rounds = options.quick ? 3 : 7;
  const dir = mkdtempSync(join(tmpdir(), 'gw-bench-iscsi-'));
  const file = join(dir, 'unit.raw');
  writeFileSync(file, Buffer.alloc(FILE_BYTES, 0x5a));
  const targets: Target[] = [];
  const results: InitiatorBenchRow[] = [];
  try {
    if (findProgram('tgtd') !== null) {
      const tgt = await startTgt({ file });
      targets.push({ name: 'tgt', port: tgt.port, lun: 1, chap: false, close: tgt.close });
    }
    targets.push(await startGodwit(file));
    for (const target of targets) {
      // A volume server runs for weeks: what the compiler costs a young process is no part of a rate.
      await ours({ name: 'warm', write: false, requestBytes: 4096, depth: 1, count: 60_000 }, target);
      for (const row of ROWS.filter(({ name }) => options.only?.test(name) ?? true)) {
        const samples: [number, number, number | null][] = [];
        // The first round warms what compiles itself, and is not counted.
        for (let round = 0; round <= rounds; round += 1) {
          samples.push([await ours(row, target), await qemuImg(row, target), await iscsiPerf(row, target)]);
        }
        samples.shift();
        const perf = samples.flatMap(([, , rate]) => (rate === null ? [] : [rate]));
        results.push({
          name: row.name,
          target: target.name,
          unit: row.requestBytes === MIB ? 'MiB/s' : 'IOPS',
          godwit: median(samples.map(([mine]) => mine)),
          qemuImg: median(samples.map(([, qemu]) => qemu)),
          iscsiPerf: perf.length === 0 ? null : median(perf),
          ratio: median(samples.map(([mine, qemu, other]) => mine / Math.max(qemu, other ?? 0))),
        });
      }
    }
    return results;
  } finally {
    for (const target of targets) await target.close();
    rmSync(dir, { recursive: true, force: true });
  }
}

function median(values: number[]): number {
  return values.toSorted((left, right) => left - right)[Math.floor((values.length - 1) / 2)]!;
}

export function format(rows: readonly InitiatorBenchRow[]): string {
  const lines = [
    '| target | | our initiator | libiscsi, qemu-img bench | libiscsi, iscsi-perf | ours / better of them |',
    '|---|---|---|---|---|---|',
  ];
  for (const { target, name, unit, godwit, qemuImg, iscsiPerf, ratio } of rows) {
    const perf = iscsiPerf === null ? '-' : `${Math.round(iscsiPerf)} ${unit}`;
    lines.push(
      `| ${target} | ${name} | ${Math.round(godwit)} ${unit} | ${Math.round(qemuImg)} ${unit} | ${perf} | ${ratio.toFixed(2)} |`,
    );
  }
  return lines.join('\n');
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const { values } = parseArgs({
    options: { quick: { type: 'boolean' }, json: { type: 'boolean' }, only: { type: 'string' } },
  });
  const rows = await run({
    quick: values.quick === true,
    ...(values.only === undefined ? {} : { only: new RegExp(values.only) }),
  });
  process.stdout.write(`${values.json ? JSON.stringify(rows, null, 2) : format(rows)}\n`);
}
