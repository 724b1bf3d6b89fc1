import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import {
  corrupt,
  type EventBody,
  eventBodySchema,
  foldEvents,
  type History,
  type JournalEvent,
  type RunHeader,
  storedStepsSchema,
} from './history.ts';

/*
 * The journal on disk: SQLite in WAL mode with synchronous=FULL, so that a committed append survives power
 * loss.
 *
 *   runs    id, kind, resource, input (JSON), steps (JSON, StoredStep[]), created_at_ms,
 *           end_state, ended_at_ms   null while the run is open
 *           holds_resource           1 while the run is open, and for a run that failed where it cannot be undone
 *           unique (resource) where holds_resource = 1: the lock of "one run a resource, over all kinds"
 *           Also indexed for the questions that are asked all the time (INDEXES): none of them reads more with a longer history.
 *   events  run_id, sequence, at_ms, type, step, attempt, data (JSON of the other fields of the EventBody); never updated
 */

/**
 * Each entry brings the schema from its index to the next; `user_version` counts them. Entries are never
 * edited.
 */
const MIGRATIONS: readonly string[] = [
  `CREATE TABLE runs (
     id TEXT PRIMARY KEY,
     kind TEXT NOT NULL,
     resource TEXT NOT NULL,
     input TEXT NOT NULL,
     steps TEXT NOT NULL,
     created_at_ms INTEGER NOT NULL,
     end_state TEXT,
     ended_at_ms INTEGER,
     holds_resource INTEGER NOT NULL DEFAULT 1
   ) STRICT;
   CREATE UNIQUE INDEX runs_one_per_resource ON runs (resource) WHERE holds_resource = 1;
   CREATE INDEX runs_ended ON runs (ended_at_ms) WHERE holds_resource = 0;
   CREATE INDEX runs_resource ON runs (resource, created_at_ms);
   CREATE TABLE events (
     run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
     sequence INTEGER NOT NULL,
     at_ms REAL NOT NULL,
     type TEXT NOT NULL,
     step INTEGER,
     attempt INTEGER,
     data TEXT NOT NULL,
     PRIMARY KEY (run_id, sequence)
   ) STRICT, WITHOUT ROWID;`,
];

/**
 * What is asked all the time: the newest runs of a kind and of all, the newest of each resource since a time,
 * which are old. They change no meaning, so they are no migration: a version that does not know them keeps
 * them up to date as well.
 */
const INDEXES: readonly string[] = [
  'CREATE INDEX IF NOT EXISTS runs_created ON runs (created_at_ms)',
  'CREATE INDEX IF NOT EXISTS runs_made ON runs (resource)',
  'CREATE INDEX IF NOT EXISTS runs_kind ON runs (kind, created_at_ms, resource)',
  'CREATE INDEX IF NOT EXISTS runs_kind_ended ON runs (kind, ended_at_ms) WHERE holds_resource = 0',
];

/**
 * A step that is tried for days keeps its first and its latest attempts in the log; what lies between is
 * dropped as it goes, all but what it put and what people asked for.
 */
const ATTEMPTS_KEPT_FIRST = 8;
const ATTEMPTS_KEPT_LAST = 56;
/** A step that says anew every second what it waits for keeps its latest messages. */
const WAITS_KEPT = 64;

/** Result codes of SQLite (sqlite3.h). */
const SQLITE_BUSY = 5;
const SQLITE_CORRUPT = 11;
const SQLITE_NOTADB = 26;

type RunRow = {
  id: string;
  kind: string;
  resource: string;
  input: string;
  steps: string;
  created_at_ms: number;
  end_state: EndState | null;
  ended_at_ms: number | null;
  holds_resource: number;
};

/** A run as loaded: its history, or, where that is damaged, what is known and the JOURNAL_CORRUPT error. */
export type LoadedRun = { header: RunHeader; holdsResource: boolean } & (
  | { history: History; damage: null }
  | { history: null; damage: GodwitError; endState: RunRow['end_state']; endedAtMs: number | null }
);

export type RunFilter = {
  resource?: string;
  kind?: string;
  /** How it ended. Left out: however. */
  endStates?: readonly EndState[];
};

export type EndState = 'done' | 'undone' | 'failed';

/** Tables of the journal. Knows events and their form, not what they mean. */
export class Store {
  readonly #database: DatabaseSync;
  readonly #owned: boolean;
  readonly #statements: Record<
    | 'insertRun'
    | 'insertEvent'
    | 'endRun'
    | 'reopenRun'
    | 'thinAttempts'
    | 'thinWaits'
    | 'run'
    | 'events'
    | 'busyRun'
    | 'newestIds'
    | 'count'
    | 'kindsOver'
    | 'pruneOld'
    | 'pruneExcess'
    | 'newestRow',
    StatementSync
  >;

  /**
   * `database`: a path (created when missing; locked against other processes, JOURNAL_LOCKED), or an open
   * database that has nothing else in it and that the caller closes. Throws JOURNAL_CORRUPT where the file is
   * no sound database, JOURNAL_NEWER where a later version of godwit wrote it, JOURNAL_UNUSABLE where it
   * cannot be opened at all.
   */
  constructor(database: string | DatabaseSync) {
    this.#owned = typeof database === 'string';
    try {
      this.#database =
        typeof database === 'string' ? new DatabaseSync(database, { timeout: 1000 }) : database;
    } catch (error) {
      throw unusable(error);
    }
    try {
      if (this.#owned) this.#database.exec('PRAGMA locking_mode = EXCLUSIVE');
      this.#database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON');
      this.#migrate();
      for (const index of INDEXES) this.#database.exec(index);
      this.#statements = prepare(this.#database);
    } catch (error) {
      if (this.#owned) this.#database.close();
      throw isGodwitError(error) ? error : unusable(error);
    }
  }

  close(): void {
    if (this.#owned && this.#database.isOpen) this.#database.close();
  }

  #migrate(): void {
    const { user_version: version } = this.#database.prepare('PRAGMA user_version').get() as {
      user_version: number;
    };
    if (version > MIGRATIONS.length) {
      throw new GodwitError(
        'JOURNAL_NEWER',
        `the journal has schema ${version}; this godwit knows ${MIGRATIONS.length}`,
        {
          values: { schema: version, known: MIGRATIONS.length },
          nextAction: 'Run the version of godwit that wrote this journal, or a later one.',
        },
      );
    }
    for (let next = version; next < MIGRATIONS.length; next++) {
      this.#transaction(() => {
        this.#database.exec(MIGRATIONS[next]!);
        this.#database.exec(`PRAGMA user_version = ${next + 1}`);
      });
    }
  }

  #transaction(work: () => void): void {
    this.#database.exec('BEGIN IMMEDIATE');
    try {
      work();
      this.#database.exec('COMMIT');
    } catch (error) {
      if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
      throw error;
    }
  }

  /**
   * Writes events of one run, durably, all or none; with `successor` also the first event of another run.
   * Throws JOURNAL_APPEND_FAILED (nothing is written then) and, for the successor, JOURNAL_RESOURCE_BUSY.
   */
  append(
    runId: string,
    events: readonly JournalEvent[],
    successor?: { header: RunHeader; started: JournalEvent },
  ): void {
    this.#write(() => {
      for (const event of events) this.#insertEvent(runId, event);
      if (successor) this.#insertRun(successor.header, successor.started);
    }, runId);
  }

  /** Writes a new run with its first event. Throws JOURNAL_RESOURCE_BUSY, JOURNAL_APPEND_FAILED. */
  create(header: RunHeader, started: JournalEvent): void {
    this.#write(() => this.#insertRun(header, started), header.id);
  }

  #write(work: () => void, runId: string): void {
    try {
      this.#transaction(work);
    } catch (error) {
      if (isGodwitError(error)) throw error;
      throw new GodwitError(
        'JOURNAL_APPEND_FAILED',
        `the journal could not be written: ${messageOf(error)}`,
        {
          values: { runId },
          nextAction:
            "Look for a full disk or a failing device under the worker's data folder; it is tried again by itself.",
          cause: error,
        },
      );
    }
  }

  #insertRun(header: RunHeader, started: JournalEvent): void {
    this.#mustBeFree(header.resource, header.id);
    this.#statements.insertRun.run(
      header.id,
      header.kind,
      header.resource,
      JSON.stringify(header.input),
      JSON.stringify(header.steps),
      header.createdAtMs,
    );
    this.#insertEvent(header.id, started);
  }

  #insertEvent(runId: string, { sequence, atMs, body }: JournalEvent): void {
    const {
      type,
      step = null,
      attempt = null,
      ...data
    } = body as EventBody & { step?: number; attempt?: number };
    this.#statements.insertEvent.run(runId, sequence, atMs, type, step, attempt, JSON.stringify(data));
    if (type === 'finished') {
      const { state, holdsResource } = body as Extract<EventBody, { type: 'finished' }>;
      this.#statements.endRun.run(state, Math.round(atMs), holdsResource ? 1 : 0, runId);
    } else if (type === 'forced') {
      this.#reopen(runId);
    } else if (type === 'waiting') {
      this.#statements.thinWaits.run(runId, sequence - WAITS_KEPT);
    } else if (
      attempt !== null &&
      attempt > ATTEMPTS_KEPT_FIRST + ATTEMPTS_KEPT_LAST &&
      type.endsWith('-started')
    ) {
      this.#statements.thinAttempts.run({
        run: runId,
        type,
        step,
        first: ATTEMPTS_KEPT_FIRST,
        last: attempt - ATTEMPTS_KEPT_LAST,
      });
    }
  }

  /** One that holds its resource, or was forgotten and is taken up again. */
  #reopen(runId: string): void {
    const { resource } = this.#statements.run.get(runId) as RunRow;
    this.#mustBeFree(resource, runId);
    this.#statements.reopenRun.run(runId);
  }

  /** Throws JOURNAL_RESOURCE_BUSY where another run holds it. */
  #mustBeFree(resource: string, runId: string): void {
    const busyRun = this.#statements.busyRun.get(resource) as
      | { id: string; kind: string; end_state: string | null }
      | undefined;
    if (busyRun && busyRun.id !== runId) throw resourceBusy(resource, busyRun);
  }

  /** Ends a run whose events cannot be read: only its row is written. Throws JOURNAL_APPEND_FAILED. */
  endDamaged(runId: string, atMs: number): void {
    this.#write(() => this.#statements.endRun.run('failed', Math.round(atMs), 0, runId), runId);
  }

  load(runId: string): LoadedRun | null {
    const row = this.#statements.run.get(runId) as RunRow | undefined;
    return row ? this.#load(row) : null;
  }

  /**
   * Runs that hold their resource: the open ones, and those that failed where they cannot be undone. Oldest
   * first.
   */
  loadHeld(): LoadedRun[] {
    const rows = this.#database
      // By name: the index of times gives the order too, and a walk over all of history.
      .prepare(
        `SELECT * FROM runs INDEXED BY runs_one_per_resource WHERE holds_resource = 1 ORDER BY created_at_ms, id`,
      )
      .all() as RunRow[];
    return rows.map((row) => this.#load(row));
  }

  /**
   * Ids of runs that are over and hold nothing, newest first, one at a time: no more of the table is read
   * than is asked for.
   */
  *idsOver(filter: RunFilter): Generator<string> {
    const { resource, kind, endStates } = filter;
    const where = ['holds_resource = 0'];
    // What is not asked for is left out, and not compared with null: the index is chosen when the statement
    // is prepared.
    if (resource !== undefined) where.push('resource = :resource');
    // Of one resource there are few: its index is the one to use.
    if (kind !== undefined) where.push(resource === undefined ? 'kind = :kind' : '+kind = :kind');
    if (endStates) where.push(`end_state IN (${endStates.map((state) => `'${state}'`).join(', ')})`);
    const rows = this.#database
      .prepare(`SELECT id FROM runs WHERE ${where.join(' AND ')} ORDER BY created_at_ms DESC, rowid DESC`)
      .iterate({ ...(resource !== undefined && { resource }), ...(kind !== undefined && { kind }) });
    for (const row of rows) yield (row as { id: string }).id;
  }

  /**
   * Of each resource the newest run of a kind that was created at `sinceMs` or later: its id. No run is read.
   */
  newestIds(kind: string, sinceMs: number): string[] {
    const rows = this.#statements.newestIds.all(kind, Math.floor(sinceMs)) as { id: string }[];
    return rows.map(({ id }) => id);
  }

  /** How many runs of a kind a resource had since a time. */
  count(resource: string, kind: string, sinceMs: number): number {
    return (this.#statements.count.get(resource, kind, Math.floor(sinceMs)) as { runs: number }).runs;
  }

  /** The events of a run as stored, for printing. Throws JOURNAL_CORRUPT. */
  events(runId: string): JournalEvent[] {
    return (this.#statements.events.all(runId) as EventRow[]).map((row) => decodeEvent(runId, row));
  }

  #load(row: RunRow): LoadedRun {
    const holdsResource = row.holds_resource === 1;
    const header: RunHeader = {
      id: row.id,
      kind: row.kind,
      resource: row.resource,
      input: null,
      steps: [],
      createdAtMs: row.created_at_ms,
    };
    try {
      header.input = parseJson(row.id, 'input', row.input);
      const steps = parseJson(row.id, 'step list', row.steps);
      if (!storedStepsSchema.Check(steps)) throw corrupt(row.id, 'its step list has the wrong form');
      header.steps = steps;
      const history = foldEvents(header, this.events(row.id));
      if ((history.end?.holdsResource ?? true) !== holdsResource)
        throw corrupt(row.id, 'its lock does not fit its events');
      return { header, holdsResource, history, damage: null };
    } catch (error) {
      const damage = isGodwitError(error, 'JOURNAL_CORRUPT') ? error : corrupt(row.id, messageOf(error));
      return {
        header,
        holdsResource,
        history: null,
        damage,
        endState: row.end_state,
        endedAtMs: row.ended_at_ms,
      };
    }
  }

  /**
   * Deletes runs that are over and hold nothing: those that ended before `endedBeforeMs(kind)`, and those
   * beyond the newest `keepRuns`; none of the `keepNewest` that were made last, because what the times say is
   * what a clock said that may have been wrong. `runsMax` of them at most, because all of it is one turn of
   * the event loop. Returns their ids.
   */
  prune(
    endedBeforeMs: (kind: string) => number,
    { keepRuns, keepNewest, runsMax }: { keepRuns: number; keepNewest: number; runsMax: number },
  ): string[] {
    const pruned: string[] = [];
    const { newest } = this.#statements.newestRow.get() as { newest: number | null };
    const upToRow = (newest ?? 0) - keepNewest;
    const remove = (statement: StatementSync, ...values: (string | number)[]) => {
      const rows = statement.all(...values, runsMax - pruned.length) as { id: string }[];
      pruned.push(...rows.map(({ id }) => id));
    };
    this.#transaction(() => {
      for (const { kind } of this.#statements.kindsOver.all() as { kind: string }[])
        remove(this.#statements.pruneOld, kind, Math.floor(endedBeforeMs(kind)), upToRow);
      remove(this.#statements.pruneExcess, keepRuns - keepNewest, upToRow);
    });
    return pruned;
  }
}

type EventRow = {
  sequence: number;
  at_ms: number;
  type: string;
  step: number | null;
  attempt: number | null;
  data: string;
};

function decodeEvent(runId: string, row: EventRow): JournalEvent {
  const data = parseJson(runId, `event ${row.sequence}`, row.data);
  const body: unknown = {
    ...(typeof data === 'object' ? data : {}),
    type: row.type,
    ...(row.step === null ? {} : { step: row.step }),
    ...(row.attempt === null ? {} : { attempt: row.attempt }),
  };
  if (!eventBodySchema.Check(body)) {
    throw corrupt(runId, `event ${row.sequence} (${row.type}) has the wrong form`, {
      sequence: row.sequence,
      type: row.type,
    });
  }
  return { sequence: row.sequence, atMs: row.at_ms, body };
}

function parseJson(runId: string, what: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw corrupt(runId, `its ${what} is not JSON`);
  }
}

export function resourceBusy(
  resource: string,
  busyRun: { id: string; kind: string; end_state?: string | null },
): GodwitError {
  const failed = busyRun.end_state === 'failed';
  return new GodwitError(
    'JOURNAL_RESOURCE_BUSY',
    failed
      ? `run ${busyRun.id} (${busyRun.kind}) failed on ${resource} past its point of no return and keeps it locked`
      : `run ${busyRun.id} (${busyRun.kind}) works on ${resource}`,
    {
      values: { resource, runId: busyRun.id, kind: busyRun.kind },
      nextAction: failed
        ? `Look at run ${busyRun.id}, then force it: forward, undo or forget.`
        : `Wait for run ${busyRun.id} or cancel it, then start again.`,
    },
  );
}

function unusable(error: unknown): GodwitError {
  const resultCode = (error as { errcode?: number }).errcode;
  const options = { values: { systemMessage: messageOf(error) }, cause: error };
  if (resultCode === SQLITE_BUSY) {
    return new GodwitError('JOURNAL_LOCKED', 'another process has this journal open', {
      ...options,
      nextAction: 'Stop the other worker that runs on this data folder; there can be one.',
    });
  }
  if (resultCode === SQLITE_CORRUPT || resultCode === SQLITE_NOTADB) {
    return new GodwitError('JOURNAL_CORRUPT', `the journal is damaged: ${messageOf(error)}`, {
      ...options,
      nextAction:
        'Keep the file and look at the disk under it; put back a copy of the journal or clear up the runs by hand.',
    });
  }
  return new GodwitError('JOURNAL_UNUSABLE', `the journal cannot be opened: ${messageOf(error)}`, {
    ...options,
    nextAction: "Check rights and free space of the worker's data folder.",
  });
}

function prepare(database: DatabaseSync) {
  return {
    insertRun: database.prepare(
      'INSERT INTO runs (id, kind, resource, input, steps, created_at_ms) VALUES (?, ?, ?, ?, ?, ?)',
    ),
    insertEvent: database.prepare(
      'INSERT INTO events (run_id, sequence, at_ms, type, step, attempt, data) VALUES (?, ?, ?, ?, ?, ?, ?)',
    ),
    endRun: database.prepare(
      'UPDATE runs SET end_state = ?, ended_at_ms = ?, holds_resource = ? WHERE id = ?',
    ),
    reopenRun: database.prepare(
      'UPDATE runs SET end_state = NULL, ended_at_ms = NULL, holds_resource = 1 WHERE id = ?',
    ),
    thinAttempts: database.prepare(
      `DELETE FROM events WHERE run_id = :run AND type NOT IN ('put', 'overdue', 'cancel-requested', 'forced')
         AND sequence >= (SELECT min(sequence) FROM events WHERE run_id = :run AND type = :type AND step = :step AND attempt > :first)
         AND sequence < (SELECT min(sequence) FROM events WHERE run_id = :run AND type = :type AND step = :step AND attempt >= :last)`,
    ),
    thinWaits: database.prepare("DELETE FROM events WHERE run_id = ? AND type = 'waiting' AND sequence < ?"),
    run: database.prepare('SELECT * FROM runs WHERE id = ?'),
    events: database.prepare(
      'SELECT sequence, at_ms, type, step, attempt, data FROM events WHERE run_id = ? ORDER BY sequence',
    ),
    busyRun: database.prepare(
      'SELECT id, kind, end_state FROM runs WHERE resource = ? AND holds_resource = 1',
    ),
    // By rowid, which is the order in which they were made: the clock may have been set back in between.
    newestIds: database.prepare(
      `SELECT (SELECT id FROM runs AS newest WHERE newest.resource = each.resource AND +newest.kind = each.kind
                 ORDER BY rowid DESC LIMIT 1) AS id
         FROM (SELECT DISTINCT kind, resource FROM runs WHERE kind = ? AND created_at_ms >= ?) AS each`,
    ),
    count: database.prepare(
      'SELECT count(*) AS runs FROM runs WHERE resource = ? AND +kind = ? AND created_at_ms >= ?',
    ),
    // From one kind to the next by the index: DISTINCT would walk over all runs.
    kindsOver: database.prepare(
      `WITH RECURSIVE kinds (kind) AS (
         SELECT min(kind) FROM runs WHERE holds_resource = 0
         UNION ALL
         SELECT (SELECT min(runs.kind) FROM runs WHERE holds_resource = 0 AND runs.kind > kinds.kind)
           FROM kinds WHERE kinds.kind IS NOT NULL)
       SELECT kind FROM kinds WHERE kind IS NOT NULL`,
    ),
    pruneOld: database.prepare(
      `DELETE FROM runs WHERE rowid IN
         (SELECT rowid FROM runs WHERE holds_resource = 0 AND kind = ?1 AND ended_at_ms < ?2 AND +rowid <= ?3
          ORDER BY ended_at_ms LIMIT ?4)
       RETURNING id`,
    ),
    pruneExcess: database.prepare(
      `DELETE FROM runs WHERE rowid IN
         (SELECT rowid FROM runs WHERE holds_resource = 0 AND +rowid <= ?2
          ORDER BY ended_at_ms DESC, rowid DESC LIMIT ?3 OFFSET ?1)
       RETURNING id`,
    ),
    newestRow: database.prepare('SELECT max(rowid) AS newest FROM runs'),
  };
}
