import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

/**
 * What an operation costs the servers of this checkout, against those of an earlier commit: processor time of
 * the server process for each operation, under the same client on the same file in the page cache, over
 * loopback TCP. Three processes of each kind stay up: of the earlier commit, of this checkout, and of this
 * checkout again, whose ratio to its twin says what the figures are worth. Each round runs them in turn,
 * every second one backwards, so that drift of the machine hits all alike.
 *
 *   npm run bench -- earlier --commit 917665f
 */
const CHECKOUT = fileURLToPath(new URL('..', import.meta.url));
const MIB = 2 ** 20;
const FILE_BYTES = 256 * MIB;
const TARGET_IQN = 'iqn.2026-01.dev.godwit:volume-1';
/** As which QEMU logs in. */
const QEMU_INITIATOR = 'iqn.2008-11.org.linux-kvm';

type Protocol = 'nbd' | 'iscsi';
type Row = { name: string; write: boolean; requestBytes: number; depth: number; count: number };
const ROWS: readonly Row[] = [false, true].flatMap((write) => {
  const verb = write ? 'write' : 'read';
  return [
    { name: `4 KiB ${verb}, depth 1`, write, requestBytes: 4096, depth: 1, count: 20_000 },
    { name: `4 KiB ${verb}, depth 16`, write, requestBytes: 4096, depth: 16, count: 100_000 },
    { name: `1 MiB ${verb}, depth 8`, write, requestBytes: MIB, depth: 8, count: 2_000 },
  ];
});

const NAMES = ['earlier', 'now', 'again'] as const;
type Name = (typeof NAMES)[number];
type Server = { child: ChildProcess; uri: string };
type Cost = { cpuUs: number; perSecond: number };

export type EarlierRow = {
  protocol: Protocol;
  name: string;
  /** Medians, in microseconds of processor time an operation. */
  cpuUs: Record<Name, number>;
  /** Of the rounds, now / earlier and again / now: quartiles. */
  cpuRatio: Quartiles;
  rateRatio: Quartiles;
  twinRatio: Quartiles;
};
type Quartiles = [lower: number, median: number, upper: number];

export async function benchEarlier(commit: string, rounds: number): Promise<EarlierRow[]> {
  const dir = mkdtempSync(join(tmpdir(), 'gw-bench-earlier-'));
  try {
    const earlier = join(dir, 'earlier');
    checkOut(commit, earlier);
    const file = join(dir, 'disk');
    fill(file);
    const rows: EarlierRow[] = [];
    for (const protocol of ['nbd', 'iscsi'] as const)
      rows.push(...(await compare(protocol, earlier, file, rounds)));
    return rows;
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

export function earlierTable(rows: readonly EarlierRow[]): string {
  const three = ([lower, median, upper]: Quartiles) =>
    `${median.toFixed(3)} (${lower.toFixed(3)} to ${upper.toFixed(3)})`;
  return [
    '| | CPU µs an operation: earlier | now | now / earlier (quartiles) | again / now | rate, now / earlier |',
    '|---|---|---|---|---|---|',
    ...rows.map(
      ({ protocol, name, cpuUs, cpuRatio, twinRatio, rateRatio }) =>
        `| ${protocol}, ${name} | ${cpuUs.earlier.toFixed(1)} | ${cpuUs.now.toFixed(1)} | ${three(cpuRatio)} | ${three(twinRatio)} | ${three(rateRatio)} |`,
    ),
  ].join('\n');
}

async function compare(
  protocol: Protocol,
  earlier: string,
  file: string,
  rounds: number,
): Promise<EarlierRow[]> {
  const servers = {} as Record<Name, Server>;
  try {
    servers.earlier = await startServer(protocol, earlier, file);
    servers.now = await startServer(protocol, CHECKOUT, file);
    servers.again = await startServer(protocol, CHECKOUT, file);
    const rows: EarlierRow[] = [];
    for (const row of ROWS) {
      const costs: Record<Name, Cost>[] = [];
      // The first round warms all of them up.
      for (let round = -1; round < rounds; round += 1) {
        const costOf = {} as Record<Name, Cost>;
        for (const name of round % 2 === 0 ? NAMES : NAMES.toReversed())
          costOf[name] = await cost(servers[name], row);
        if (round >= 0) costs.push(costOf);
      }
      const ratio = (pick: (cost: Record<Name, Cost>) => number) => quartilesOf(costs.map(pick));
      const cpuUs = (name: Name) => quartilesOf(costs.map((each) => each[name].cpuUs))[1];
      rows.push({
        protocol,
        name: row.name,
        cpuUs: { earlier: cpuUs('earlier'), now: cpuUs('now'), again: cpuUs('again') },
        cpuRatio: ratio(({ now, earlier: before }) => now.cpuUs / before.cpuUs),
        rateRatio: ratio(({ now, earlier: before }) => now.perSecond / before.perSecond),
        twinRatio: ratio(({ again, now }) => again.cpuUs / now.cpuUs),
      });
    }
    return rows;
  } finally {
    for (const { child } of Object.values(servers)) child.kill('SIGKILL');
  }
}

/** The sources of that commit, on the packages of this checkout. */
function checkOut(commit: string, dir: string): void {
  mkdirSync(dir);
  const parts = ['package.json', 'src', 'bench', 'test/support'];
  const archive = execFileSync('git', ['-C', CHECKOUT, 'archive', commit, ...parts], { maxBuffer: 2 ** 28 });
  execFileSync('tar', ['-x', '-C', dir], { input: archive });
  symlinkSync(join(CHECKOUT, 'node_modules'), join(dir, 'node_modules'));
}

async function startServer(protocol: Protocol, checkout: string, file: string): Promise<Server> {
  const size = String(FILE_BYTES);
  const words =
    protocol === 'nbd'
      ? [join(checkout, 'test/support/nbd-server-process.ts'), '--file', file, '--bytes', size]
      : [join(checkout, 'bench/iscsi-target-process.ts'), file, size, TARGET_IQN, QEMU_INITIATOR];
  const child = spawn(process.execPath, words, { stdio: ['pipe', 'pipe', 'inherit'] });
  const [line] = (await Promise.race([
    once(child.stdout, 'data'),
    once(child, 'exit').then(([code]) => Promise.reject(new Error(`${words[0]} ended with ${code}`))),
  ])) as [Buffer];
  const port = protocol === 'nbd' ? (JSON.parse(String(line)) as { port: number }).port : Number(line);
  const uri = protocol === 'nbd' ? `nbd://127.0.0.1:${port}` : `iscsi://127.0.0.1:${port}/${TARGET_IQN}/0`;
  return { child, uri };
}

/** `qemu-img bench` speaks both protocols, by code of others. */
async function cost({ child, uri }: Server, { count, depth, requestBytes, write }: Row): Promise<Cost> {
  const words = [
    'bench',
    '-f',
    'raw',
    '-t',
    'none',
    '-c',
    `${count}`,
    '-d',
    `${depth}`,
    '-s',
    `${requestBytes}`,
  ];
  const beforeUs = cpuUsOf(child.pid!);
  const { stdout } = await promisify(execFile)('qemu-img', [...words, ...(write ? ['-w'] : []), uri], {
    timeout: 300_000,
  });
  const seconds = Number(/completed in ([\d.]+) seconds/.exec(stdout)![1]);
  return { cpuUs: (cpuUsOf(child.pid!) - beforeUs) / count, perSecond: count / seconds };
}

/**
 * Of all threads: proc(5), schedstat, whose first number is nanoseconds. The ticks of `stat` are too coarse
 * for a per cent.
 */
function cpuUsOf(pid: number): number {
  let ns = 0;
  for (const thread of readdirSync(`/proc/${pid}/task`))
    ns += Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1').split(' ')[0]);
  return ns / 1_000;
}

function quartilesOf(values: readonly number[]): Quartiles {
  const sorted = values.toSorted((left, right) => left - right);
  const at = (part: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))]!;
  return [at(0.25), at(0.5), at(0.75)];
}

function fill(file: string): void {
  const piece = Buffer.alloc(64 * 1024, 0x5a);
  const fd = openSync(file, 'w');
  for (let at = 0; at < FILE_BYTES; at += piece.length) writeSync(fd, piece, 0, piece.length, at);
  closeSync(fd);
}
