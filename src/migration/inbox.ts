import type { DatabaseSync, StatementSync } from 'node:sqlite';
import type { Clock } from '../base/clock.ts';

/**
 * The one message that a target waits for: "the volume is sealed, it is yours", or "forget it". Whichever is
 * written first is final, which is what makes a lost answer harmless: asking again gives the same answer, and
 * a move that was forgotten can never be activated by a handoff that was still on its way.
 */
export type Verdict = 'handed-over' | 'forgotten';

/**
 * How the target's run of a move that was handed over ended. The journal forgets runs, and a source that was
 * away for a month asks all the same. `activated`: somebody ended the run, and the volume had been opened
 * here.
 */
export type Ending = {
  phase: 'released' | 'activated' | 'forgotten';
  /** Null: the machine has none. */
  volume: { volumeId: string; generation: number } | null;
};

type Row = {
  verdict: Verdict;
  decided_at_ms: number;
  ending: Ending['phase'] | null;
  volume_id: string | null;
  generation: number | null;
};

export class MoveInbox {
  readonly #database: DatabaseSync;
  readonly #clock: Clock;
  readonly #select: StatementSync;
  readonly #waiters = new Map<string, Set<() => void>>();

  constructor(database: DatabaseSync, clock: Clock) {
    this.#database = database;
    this.#clock = clock;
    database.exec(
      `CREATE TABLE IF NOT EXISTS move_verdicts (
         run_id TEXT PRIMARY KEY,
         verdict TEXT NOT NULL CHECK (verdict IN ('handed-over', 'forgotten')),
         decided_at_ms INTEGER NOT NULL,
         ending TEXT CHECK (ending IN ('released', 'activated', 'forgotten')),
         volume_id TEXT,
         generation INTEGER
       ) STRICT`,
    );
    const columns = database.prepare('PRAGMA table_info(move_verdicts)').all();
    const missing = ['ending TEXT', 'volume_id TEXT', 'generation INTEGER'].filter(
      (column) => !columns.some(({ name }) => name === column.split(' ')[0]),
    );
    for (const column of missing) database.exec(`ALTER TABLE move_verdicts ADD COLUMN ${column}`);
    this.#select = database.prepare(
      'SELECT verdict, decided_at_ms, ending, volume_id, generation FROM move_verdicts WHERE run_id = ?',
    );
  }

  /** Writes the verdict unless there is one, durably; answers the one that stands. */
  decide(runId: string, verdict: Verdict, nowMs: number): Verdict {
    this.#database
      .prepare('INSERT OR IGNORE INTO move_verdicts (run_id, verdict, decided_at_ms) VALUES (?, ?, ?)')
      .run(runId, verdict, nowMs);
    for (const wake of this.#waiters.get(runId) ?? []) wake();
    return this.verdict(runId)!.verdict;
  }

  verdict(runId: string): { verdict: Verdict; decidedAtMs: number; ending: Ending | null } | null {
    const row = this.#select.get(runId) as Row | undefined;
    if (!row) return null;
    const { verdict, decided_at_ms: decidedAtMs, ending: phase, volume_id: volumeId, generation } = row;
    const volume = volumeId === null || generation === null ? null : { volumeId, generation };
    return { verdict, decidedAtMs, ending: phase && { phase, volume } };
  }

  /**
   * Writes how the run of a move that was handed over ended, durably; the first word counts, but for a run
   * that somebody ended and took up again. Nothing to do for others.
   */
  end(runId: string, { phase, volume }: Ending): void {
    this.#database
      .prepare(
        `UPDATE move_verdicts SET ending = ?, volume_id = ?, generation = ?
         WHERE run_id = ? AND verdict = 'handed-over' AND (ending IS NULL OR ending = 'activated')`,
      )
      .run(phase, volume?.volumeId ?? null, volume?.generation ?? null, runId);
  }

  /** Moves that were handed over and whose end is not written down. */
  unended(): string[] {
    const rows = this.#database
      .prepare("SELECT run_id FROM move_verdicts WHERE verdict = 'handed-over' AND ending IS NULL")
      .all() as { run_id: string }[];
    return rows.map(({ run_id: runId }) => runId);
  }

  /** Resolves when a verdict is there or after `timeoutMs`, whichever is first. */
  async wait(runId: string, timeoutMs: number, signal: AbortSignal): Promise<void> {
    if (this.verdict(runId) || signal.aborted) return;
    await new Promise<void>((resolve) => {
      const waiters = this.#waiters.get(runId) ?? new Set();
      this.#waiters.set(runId, waiters);
      const done = () => {
        cancelTimer();
        signal.removeEventListener('abort', done);
        waiters.delete(done);
        if (waiters.size === 0) this.#waiters.delete(runId);
        resolve();
      };
      const cancelTimer = this.#clock.timer(timeoutMs, done);
      signal.addEventListener('abort', done, { once: true });
      waiters.add(done);
    });
  }

  /**
   * Drops what was forgotten before `beforeMs`: a move that nobody knows is forgotten anyway. What was handed
   * over is kept for ever (some 150 bytes each), because nothing but this word keeps a source that comes back
   * from starting the machine.
   */
  prune(beforeMs: number): void {
    this.#database
      .prepare("DELETE FROM move_verdicts WHERE verdict = 'forgotten' AND decided_at_ms < ?")
      .run(beforeMs);
  }
}
