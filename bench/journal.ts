/**
 * What a worker asks its journal for all the time, with a history of 1,000, 10,000 and 100,000 finished moves. On tmpfs: the processor is what counts here.
 *   node bench/journal.ts [--rounds 15]
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { parseArgs } from 'node:util';
import { median } from '../demo/report.ts';
import { systemClock } from '../src/base/clock.ts';
import { silentLogger } from '../src/base/logger.ts';
import { systemRandom } from '../src/base/random.ts';
import { Journal } from '../src/journal/journal.ts';
import type { RunDefinition } from '../src/journal/run.ts';

/** Machines that are on the worker, and machines that have left it. */
const HERE = 25;
const STEPS = 12;
const KIND = 'move';

export type JournalRow = {
  finishedRuns: number;
  /** What one look of a drain at its journal costs. */
  tickMs: number;
  /** The same by reading all runs since the drain began, as it was once; measured up to 10,000. */
  walkMs: number | null;
  /** Its machines for `godwit drain`, of which HERE have left, when it is asked again. */
  statusMs: number;
  /** `godwit why MACHINE`: its open run, or its newest. */
  machineMs: number;
  /** A run of one step, begun and ended, with the pruning after it. */
  runMs: number;
  openMs: number;
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

function openJournal(database: DatabaseSync): Journal {
  return new Journal({
    database,
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
    definitions: [definition as RunDefinition<never>],
    keepRuns: 1_000_000,
  });
}

/** One run for each of `HERE` machines by the journal itself, and copies of them for others. */
async function fill(database: DatabaseSync, finishedRuns: number): Promise<void> {
  const journal = openJournal(database);
  journal.resume();
  for (let index = 0; index < HERE; index++)
    await journal.wait(journal.start(KIND, { machine: `m${index}` }, { runId: `r${index}` }).id);
  await journal.close();
  database.exec('BEGIN');
  const runs = database.prepare(`
    INSERT INTO runs (id, kind, resource, input, steps, created_at_ms, end_state, ended_at_ms, holds_resource)
      SELECT id || :tail, kind, resource || :of, input, steps, created_at_ms - :back, end_state, ended_at_ms - :back, 0 FROM runs
        WHERE id NOT LIKE '%-%'`);
  const events = database.prepare(`
    INSERT INTO events SELECT run_id || :tail, sequence, at_ms - :back, type, step, attempt, data FROM events
      WHERE run_id NOT LIKE '%-%'`);
  for (let round = 1; round * HERE < finishedRuns; round++) {
    const [tail, back] = [`-${round}`, round * 100];
    // Half of them of the machines that are here, half of machines that came and went.
    runs.run({ tail, back, of: round % 2 ? '' : `-${round % 1000}` });
    events.run({ tail, back });
  }
  database.exec('COMMIT');
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

async function measure(finishedRuns: number, rounds: number): Promise<JournalRow> {
  const folder = mkdtempSync('/dev/shm/gw-journal-');
  const database = new DatabaseSync(join(folder, 'journal.sqlite'));
  try {
    await fill(database, finishedRuns);
    const startedMs = performance.now();
    const journal = openJournal(database);
    journal.resume();
    const openMs = performance.now() - startedMs;
    const machines = Array.from({ length: HERE }, (_, index) => `machine:m${index}`);
    const sinceMs = systemClock.wallMs() - 60_000;
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
      tickMs: await timeMs(rounds, tick),
      walkMs: null,
      statusMs: await timeMs(rounds, () => journal.newest(KIND, sinceMs)),
      machineMs: await timeMs(rounds, () => journal.find({ resource: machines[0]!, limit: 1 })),
      runMs: await timeMs(rounds, () =>
        journal.wait(journal.start(KIND, { machine: 'other', short: true }).id),
      ),
      openMs,
    };
    if (finishedRuns <= 10_000)
      row.walkMs = await timeMs(1, () => journal.find({ kind: KIND, limit: 10_000 }));
    await journal.close();
    return row;
  } finally {
    database.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

export async function benchJournal(rounds = 15): Promise<JournalRow[]> {
  const rows: JournalRow[] = [];
  for (const finishedRuns of [1_000, 10_000, 100_000]) rows.push(await measure(finishedRuns, rounds));
  return rows;
}

export function journalTable(rows: readonly JournalRow[]): string {
  const ms = (value: number | null) => (value === null ? '-' : value.toFixed(2));
  return [
    '| finished runs | a look of the drain | by walking over all | machines of a drain | runs of a machine | a whole run | open the journal |',
    '|---|---|---|---|---|---|---|',
    ...rows.map(
      (row) =>
        `| ${row.finishedRuns} | ${ms(row.tickMs)} ms | ${ms(row.walkMs)} ms | ${ms(row.statusMs)} ms | ${ms(row.machineMs)} ms | ${ms(row.runMs)} ms | ${ms(row.openMs)} ms |`,
    ),
  ].join('\n');
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { rounds: { type: 'string', default: '15' } } });
  process.stdout.write(`${journalTable(await benchJournal(Number(values.rounds)))}\n`);
}
