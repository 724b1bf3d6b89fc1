import { DatabaseSync, type SQLInputValue } from 'node:sqlite';
import { Store } from '../../src/journal/store.ts';
import type { Verdict } from '../../src/migration/inbox.ts';
import type { Receipt } from '../../src/receipt/envelope.ts';
import type { MovePair } from './move-pair.ts';
import type { MoveWorld } from './move-world.ts';

/*
 * A move as a version of godwit wrote it down on both workers: rows of the two journals, and for the start of
 * each step how far both were then, and what their hosts looked like. Made by
 * `GODWIT_RECORD_MOVE=FILE node --test src/migration/recorded-moves.test.ts` with that version.
 */

type Row = Record<string, SQLInputValue>;
export type RecordedMove = {
  /** Commit whose sources wrote it. */
  commit: string;
  source: RecordedJournal;
  target: RecordedJournal;
  receipt: Receipt;
  cuts: Cut[];
};
type RecordedJournal = { run: Row; events: Row[] };

/** Both workers died just after `step` was written down as begun. */
export type Cut = {
  step: string;
  /** Events in each journal then. */
  events: { source: number; target: number };
  world: Pick<MoveWorld, 'source' | 'target' | 'fetchLog' | 'keptFreeMap'>;
  verdict: Verdict | null;
  receipts: { source: boolean; target: boolean };
};

export function readJournal(path: string): RecordedJournal {
  const database = new DatabaseSync(path, { readOnly: true });
  const run = database.prepare('SELECT * FROM runs').get() as Row;
  const events = database.prepare('SELECT * FROM events ORDER BY sequence').all() as Row[];
  database.close();
  return { run: { ...run, end_state: null, ended_at_ms: null, holds_resource: 1 }, events };
}

/** Puts both workers to where they were at `cut`, before their journals are opened. */
export function restoreAt(cut: Cut, { source, target, receipt }: RecordedMove, pair: MovePair, dir: string) {
  const { world } = pair;
  Object.assign(world.source, structuredClone(cut.world.source));
  Object.assign(world.target, structuredClone(cut.world.target));
  world.fetchLog = [...cut.world.fetchLog];
  world.keptFreeMap = cut.world.keptFreeMap;
  if (cut.verdict !== null) pair.inbox.decide('run1', cut.verdict, Date.now());
  if (cut.receipts.source) pair.sourceReceipts.keep(receipt);
  if (cut.receipts.target) pair.targetReceipts.keep(receipt);
  writeJournal(`${dir}/source.sqlite`, source, cut.events.source);
  if (cut.events.target > 0) writeJournal(`${dir}/target.sqlite`, target, cut.events.target);
}

function writeJournal(path: string, { run, events }: RecordedJournal, count: number): void {
  new Store(path).close();
  const database = new DatabaseSync(path);
  const agoMs = Date.now() - Number(run.created_at_ms);
  const insert = (table: string, row: Row) => {
    const names = Object.keys(row);
    const places = names.map(() => '?').join(', ');
    database
      .prepare(`INSERT INTO ${table} (${names.join(', ')}) VALUES (${places})`)
      .run(...Object.values(row));
  };
  insert('runs', { ...run, created_at_ms: Number(run.created_at_ms) + agoMs });
  for (const event of events.filter(({ sequence }) => Number(sequence) < count))
    insert('events', { ...event, at_ms: Number(event.at_ms) + agoMs });
  database.close();
}
