/**
 * What a worker asks its journal for all the time, with a history of 1,000, 10,000 and 100,000 finished
 * moves. On tmpfs: the processor is what counts here. Each size is measured in a process of its own, which
 * opens what another has filled.
 *   node bench/journal.ts [--rounds 15]
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { median } from '../demo/report.ts';
import { systemClock } from '../src/base/clock.ts';
import { silentLogger } from '../src/base/logger.ts';
import { systemRandom } from '../src/base/random.ts';
import { Journal } from '../src/journal/journal.ts';
import type { RunDefinition } from '../src/journal/run.ts';

/** Machines that are on the worker. */
const HERE = 25;
const STEPS = 12;
const KIND = 'move';
/** What is measured of pruning: so many runs that are too old. */
const PRUNED = 5_000;
/** When the originals were made, all copies were long over. */
const COPIES_BEFORE_MS = 3_600_000;

export type JournalRow = {
  finishedRuns: number;
  databaseBytes: number;
  /** Opening the journal and carrying on, as at a worker's start. */
  openMs: number;
  /** What one look of a drain at its journal costs. */
  tickMs: number;
  /** The same by reading all runs since the drain began, as it was once; measured up to 10,000. */
  walkMs: number | null;
  /** Its machines for `godwit drain`, of which HERE have left, when it is asked again. */
  statusMs: number;
  /** `godwit why MACHINE`: its open run, or its newest. */
  machineMs: number;
  /**
   * `godwit runs list --all` of 100 and of 1,000 runs that nobody asked for before, and the longest turn of
   * the event loop meanwhile.
   */
  list: { runs: number; wholeMs: number; turnMs: number }[];
  /** A run of one step, begun and ended, with the pruning after it. */
  runMs: number;
  /** What the open journal keeps in memory after all of this, collected. */
  keptBytes: number;
  /**
   * When PRUNED of them are, as after a month without a move: how long until they are gone, and the longest
   * turn. Null where there are no more.
   */
  prune: { wholeMs: number; turnMs: number } | null;
};

const definition: RunDefinition<{ machine: string; short?: boolean }> = {
  kind: KIND,
  resource: ({ machine }) => `machine:${machine}`,
  steps: Array.from({ length: STEPS }, (_, index) => ({
    name: `step${index}`,
    quietMs: 60_000,
    do: async ({ input, put }) => {
      if (!input.short) put({ [`value${index}`]: { bytes: index, name: 'x'.repeat(200) } });
    },
  })),
};

function openJournal(database: DatabaseSync, keepRuns = 1_000_000): Journal {
  return new Journal({
    database,
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
    definitions: [definition as RunDefinition<never>],
    keepRuns,
  });
}

/**
 * One run for each of `HERE` machines by the journal itself, and copies of them, half of the machines that
 * are here, half of machines that came and went.
 */
async function fill(database: DatabaseSync, finishedRuns: number): Promise<void> {
  const journal = openJournal(database);
  journal.resume();
  for (let index = 0; index < HERE; index++)
    await journal.wait(journal.start(KIND, { machine: `m${index}` }, { runId: `r${index}` }).id);
  await journal.close();
  // Copied from copies: a search for the originals in what grows would read all of it each time.
  database.exec(`
    CREATE TEMP TABLE run AS SELECT * FROM runs;
    CREATE TEMP TABLE event AS SELECT * FROM events;
    BEGIN`);
  const runs = database.prepare(`
    INSERT INTO runs (id, kind, resource, input, steps, created_at_ms, end_state, ended_at_ms, holds_resource)
      SELECT id || :tail, kind, resource || :of, input, steps, created_at_ms - :back, end_state, ended_at_ms - :back, 0 FROM temp.run`);
  const events = database.prepare(`
    INSERT INTO events SELECT run_id || :tail, sequence, at_ms - :back, type, step, attempt, data FROM temp.event`);
  for (let round = 1; round * HERE < finishedRuns; round++) {
    const [tail, back] = [`-${round}`, COPIES_BEFORE_MS + round * 100];
    runs.run({ tail, back, of: round % 2 ? '' : `-${round % 1000}` });
    events.run({ tail, back });
  }
  database.exec('COMMIT; DROP TABLE temp.run; DROP TABLE temp.event; PRAGMA wal_checkpoint(TRUNCATE)');
}

async function timeMs(rounds: number, work: () => unknown): Promise<number> {
  const times: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const startedMs = performance.now();
    await work();
    times.push(performance.now() - startedMs);
  }
  return median(times);
}

/** Of this thread: a turn in which others had the processor was not longer for it. */
function processorMs(): number {
  const { user, system } = process.threadCpuUsage();
  return (user + system) / 1000;
}

/**
 * How long work took, and what the longest turn of the event loop, in which nobody else got in, took of the
 * processor.
 */
async function turnsOf(work: () => Promise<unknown>): Promise<{ wholeMs: number; turnMs: number }> {
  let turnMs = 0;
  let lastMs = processorMs();
  let isOver = false;
  const look = () => {
    const nowMs = processorMs();
    turnMs = Math.max(turnMs, nowMs - lastMs);
    lastMs = nowMs;
    if (!isOver) setImmediate(look);
  };
  setImmediate(look);
  const startedMs = performance.now();
  await work();
  isOver = true;
  const wholeMs = performance.now() - startedMs;
  await new Promise((resolve) => setImmediate(resolve));
  return { wholeMs, turnMs };
}

function heapBytes(): number {
  globalThis.gc?.();
  return process.memoryUsage().heapUsed;
}

async function measure(path: string, finishedRuns: number, rounds: number): Promise<JournalRow> {
  const beforeBytes = heapBytes();
  const database = new DatabaseSync(path);
  const startedMs = performance.now();
  const journal = openJournal(database);
  journal.resume();
  const openMs = performance.now() - startedMs;
  const machines = Array.from({ length: HERE }, (_, index) => `machine:m${index}`);
  const sinceMs = systemClock.wallMs() - 60_000;
  const list: JournalRow['list'] = [];
  for (const runs of [100, 1_000])
    list.push({ runs, ...(await turnsOf(() => journal.findInTurns({ kind: KIND, limit: runs }))) });
  const tick = () => {
    journal.open({ kind: KIND });
    for (const resource of machines) {
      journal.find({ kind: KIND, resource, limit: 1 });
      journal.count(resource, KIND, sinceMs);
    }
    journal.open({ kind: KIND });
  };
  const row: JournalRow = {
    finishedRuns,
    databaseBytes: statSync(path).size,
    openMs,
    tickMs: await timeMs(rounds, tick),
    walkMs: null,
    statusMs: await timeMs(rounds, () => journal.newest(KIND, sinceMs)),
    machineMs: await timeMs(rounds, () => journal.find({ resource: machines[0]!, limit: 1 })),
    list,
    runMs: await timeMs(rounds, () =>
      journal.wait(journal.start(KIND, { machine: 'other', short: true }).id),
    ),
    keptBytes: heapBytes() - beforeBytes,
    prune: null,
  };
  if (finishedRuns <= 10_000) row.walkMs = await timeMs(1, () => journal.find({ kind: KIND, limit: 10_000 }));
  await journal.close();
  if (finishedRuns > PRUNED) row.prune = await measurePruning(database, finishedRuns - PRUNED);
  database.close();
  return row;
}

async function measurePruning(
  database: DatabaseSync,
  keepRuns: number,
): Promise<{ wholeMs: number; turnMs: number }> {
  const journal = openJournal(database, keepRuns);
  const count = database.prepare('SELECT count(*) AS runs FROM runs');
  const isOver = () => (count.get() as { runs: number }).runs <= keepRuns;
  const figures = await turnsOf(async () => {
    journal.resume();
    while (!isOver()) await systemClock.sleep(1_000);
  });
  await journal.close();
  return figures;
}

export function benchJournal(rounds = 15): JournalRow[] {
  return [1_000, 10_000, 100_000].map((finishedRuns) => {
    const folder = mkdtempSync('/dev/shm/gw-journal-');
    try {
      const program = fileURLToPath(import.meta.url);
      const path = join(folder, 'journal.sqlite');
      const ask = (what: string) =>
        execFileSync(process.execPath, ['--expose-gc', program, what, path, `${finishedRuns}`, `${rounds}`], {
          encoding: 'utf8',
          stdio: ['ignore', 'pipe', 'inherit'],
        });
      ask('fill');
      return JSON.parse(ask('measure')) as JournalRow;
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
}

export function journalTable(rows: readonly JournalRow[]): string {
  const ms = (value: number | null) => (value === null ? '-' : `${value.toFixed(value < 10 ? 2 : 0)} ms`);
  const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
  const turns = (figures: { wholeMs: number; turnMs: number } | null | undefined) =>
    figures ? `${ms(figures.wholeMs)} (${ms(figures.turnMs)})` : '-';
  const lines: [string, (row: JournalRow) => string][] = [
    ['its database', (row) => mib(row.databaseBytes)],
    ['opened, and runs carried on', (row) => ms(row.openMs)],
    ['a look of a drain of 25 machines', (row) => ms(row.tickMs)],
    ['the same by walking over all runs', (row) => ms(row.walkMs)],
    ['machines of a drain', (row) => ms(row.statusMs)],
    ['runs of a machine', (row) => ms(row.machineMs)],
    ['`runs list --all`: 100 runs (longest turn)', (row) => turns(row.list[0])],
    ['1,000 runs (longest turn)', (row) => turns(row.list[1])],
    ['a run of twelve steps, and a look for what is to be pruned', (row) => ms(row.runMs)],
    ['5,000 runs pruned (longest turn)', (row) => turns(row.prune)],
    ['kept in memory afterwards', (row) => mib(row.keptBytes)],
  ];
  return [
    `| finished runs | ${rows.map(({ finishedRuns }) => finishedRuns.toLocaleString('en')).join(' | ')} |`,
    `|---|${rows.map(() => '---|').join('')}`,
    ...lines.map(([name, cell]) => `| ${name} | ${rows.map(cell).join(' | ')} |`),
  ].join('\n');
}

if (import.meta.main) {
  const { values, positionals } = parseArgs({
    options: { rounds: { type: 'string', default: '15' } },
    allowPositionals: true,
  });
  const [what, path, finishedRuns, rounds] = positionals;
  if (what === undefined) process.stdout.write(`${journalTable(benchJournal(Number(values.rounds)))}\n`);
  else if (what === 'fill') {
    const database = new DatabaseSync(path!);
    await fill(database, Number(finishedRuns));
    database.close();
  } else process.stdout.write(JSON.stringify(await measure(path!, Number(finishedRuns), Number(rounds))));
}
