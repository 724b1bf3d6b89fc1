/**
 * The same move of the same few data at 10 GiB and up to 64 TiB: what of it follows the size. Volumes are on
 * XFS, because a file of ext4 ends below 16 TiB.
 *   node bench/sizes.ts [--rounds 3] [--sizes 10GiB,1TiB,16TiB,64TiB]
 */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { median } from '../demo/report.ts';
import { systemClock } from '../src/base/clock.ts';
import { formatSize, parseSize } from '../src/cli/units.ts';
import type { VolumeRecord } from '../src/volume/record.ts';
import type { VolumeStore } from '../src/volume/store.ts';
import { type Attachment, VolumeLab } from '../test/support/volume-lab.ts';

const MIB = 2 ** 20;
/** So many pieces of data, spread evenly. */
const PIECES = 16;
const PIECE_BYTES = 4 * MIB;
const DISK_BYTES = 4 * 2 ** 30;

export type SizeRow = {
  lengthBytes: number;
  /** Server, and the loop device over it. */
  attachMs: number;
  sealMs: number;
  /** The export and the clone say yes, with a machine waiting. */
  activateMs: number;
  wholeMs: number;
  /** From SIGKILL to the next answer, half hydrated. */
  reopenMs: number;
  /**
   * Of the two event loops from the handoff on, until all is whole and all digests of the source are taken:
   * the longest delay, and the most processor time of one turn.
   */
  sourceDelayMs: number;
  sourceTurnMs: number;
  targetDelayMs: number;
  targetTurnMs: number;
  /** Of the target's server, once whole, with its maps in memory that outlives it. */
  memoryMiB: number;
};

const probeDir = mkdtempSync(join(tmpdir(), 'gw-turns-'));
process.env.GODWIT_LOOP_DELAY_DIR = probeDir;
process.env.NODE_OPTIONS = `--import ${new URL('./loop-delay-probe.ts', import.meta.url).pathname}`;
process.env.NODE_COMPILE_CACHE ??= `${tmpdir()}/godwit-bench-compile-cache`;

function longestTurn(pid: number): { delayMs: number; longestMs: number } {
  return JSON.parse(readFileSync(join(probeDir, String(pid)), 'utf8'));
}

function resetTurns(pid: number): void {
  writeFileSync(join(probeDir, `${pid}.reset`), '');
}

async function timed<T>(work: () => Promise<T>): Promise<[T, number]> {
  const startedMs = performance.now();
  const result = await work();
  return [result, performance.now() - startedMs];
}

function memoryMiB(lab: VolumeLab, pid: number): number {
  const anonymous = /^RssAnon:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  const maps = readdirSync(lab.validityDir).map((name) => statSync(join(lab.validityDir, name)).blocks * 512);
  return Number(anonymous?.[1] ?? 0) / 1024 + maps.reduce((sum, bytes) => sum + bytes, 0) / MIB;
}

/** A volume with its few data, opened, sealed and exported by its source. */
async function sealed(lab: VolumeLab, store: VolumeStore, lengthBytes: number) {
  const made = await store.create({ name: 'data', lengthBytes, filesystem: 'none' });
  const file = await open(join(store.folder(made.id), 'data.raw'), 'r+');
  const step = Math.floor(lengthBytes / PIECES / PIECE_BYTES) * PIECE_BYTES;
  for (let piece = 0; piece < PIECES; piece++)
    await file.write(randomBytes(PIECE_BYTES), 0, PIECE_BYTES, piece * step);
  await file.close();
  const [attached, attachMs] = await timed(() => lab.attach(store, made, { access: 'writable' }));
  const [, sealMs] = await timed(async () => {
    await attached.server.call('seal');
    await store.apply(made.id, { kind: 'seal', generation: made.generation });
  });
  return { made, attachMs, sealMs };
}

async function handedOver(target: Attachment, store: VolumeStore, incoming: VolumeRecord): Promise<number> {
  const [, activateMs] = await timed(async () => {
    await store.apply(incoming.id, { kind: 'activate', generation: incoming.generation });
    await target.server.call('activate', { access: 'writable' });
  });
  return activateMs;
}

async function round(lengthBytes: number): Promise<SizeRow> {
  const lab = new VolumeLab();
  try {
    for (const name of ['source', 'target']) await lab.xfsDisk(name, DISK_BYTES);
    const [sourceStore, targetStore] = [await lab.store('source'), await lab.store('target')];
    const { made, attachMs, sealMs } = await sealed(lab, sourceStore, lengthBytes);
    const source = await lab.export(sourceStore, made.id, 'readonly');
    const incoming = await targetStore.createIncoming({ ...made, generation: made.generation + 1 });
    const target = await lab.attach(targetStore, incoming, {
      access: 'standby',
      source: source.source,
      paused: true,
    });
    const pidOf = (server: { state: { serverPid: number | null } }) => server.state.serverPid!;
    for (const server of [source.server, target.server]) resetTurns(pidOf(server));
    const activateMs = await handedOver(target, targetStore, incoming);
    const [, wholeMs] = await timed(async () => {
      await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
      await target.until('hydrated', ({ state }) => state === 'complete');
    });
    // The source digests for some seconds more.
    await systemClock.sleep(5_000);
    const [ofSource, ofTarget] = [longestTurn(pidOf(source.server)), longestTurn(pidOf(target.server))];
    const memory = memoryMiB(lab, pidOf(target.server));
    const [, reopenMs] = await timed(() => target.killServer());
    return {
      ...{ lengthBytes, attachMs, sealMs, activateMs, wholeMs, reopenMs },
      sourceDelayMs: ofSource.delayMs,
      sourceTurnMs: ofSource.longestMs,
      targetDelayMs: ofTarget.delayMs,
      targetTurnMs: ofTarget.longestMs,
      memoryMiB: memory,
    };
  } finally {
    await lab.close();
  }
}

/** The medians of the rounds, which go through all sizes one after the other. */
export async function benchSizes(sizes: readonly number[], rounds: number): Promise<SizeRow[]> {
  const found = new Map<number, SizeRow[]>(sizes.map((lengthBytes) => [lengthBytes, []]));
  try {
    // One for the caches.
    await round(sizes[0]!);
    for (let count = 0; count < rounds; count++)
      for (const lengthBytes of sizes) found.get(lengthBytes)!.push(await round(lengthBytes));
  } finally {
    rmSync(probeDir, { recursive: true, force: true });
  }
  return [...found.values()].map((rows) => {
    const row = { ...rows[0]! };
    for (const name of Object.keys(row) as (keyof SizeRow)[])
      row[name] = median(rows.map((each) => each[name]));
    return row;
  });
}

export function sizesTable(rows: readonly SizeRow[]): string {
  const head =
    '| | attach | seal | activate | whole | reopened after SIGKILL | longest turn, source (delay) | target (delay) | memory |';
  const body = rows.map((row) => {
    const times = [row.attachMs, row.sealMs, row.activateMs, row.wholeMs, row.reopenMs];
    const cells = [
      formatSize(row.lengthBytes),
      ...times.map((ms) => `${ms.toFixed(0)} ms`),
      `${row.sourceTurnMs.toFixed(0)} ms (${row.sourceDelayMs.toFixed(0)})`,
      `${row.targetTurnMs.toFixed(0)} ms (${row.targetDelayMs.toFixed(0)})`,
      `${row.memoryMiB.toFixed(0)} MiB`,
    ];
    return `| ${cells.join(' | ')} |`;
  });
  return [head, '|---|---|---|---|---|---|---|---|---|', ...body].join('\n');
}

export const SIZES = ['10GiB', '1TiB', '16TiB', '64TiB'];

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string', default: '3' },
      sizes: { type: 'string', default: SIZES.join(',') },
    },
  });
  const rows = await benchSizes(values.sizes.split(',').map(parseSize), Number(values.rounds));
  process.stdout.write(`${sizesTable(rows)}\n`);
}
