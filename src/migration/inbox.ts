import type { DatabaseSync } from 'node:sqlite';

/**
 * The one message that a target waits for: "the volume is sealed, it is yours", or "forget it". Whichever is written first is
 * final, which is what makes a lost answer harmless: asking again gives the same answer, and a move that was forgotten can never be
 * activated by a handoff that was still on its way.
 */
export type Verdict = 'handed-over' | 'forgotten';

export class MoveInbox {
  readonly #database: DatabaseSync;
  readonly #waiters = new Map<string, Set<() => void>>();

  constructor(database: DatabaseSync) {
    this.#database = database;
    database.exec(
      `CREATE TABLE IF NOT EXISTS move_verdicts (
         run_id TEXT PRIMARY KEY,
         verdict TEXT NOT NULL CHECK (verdict IN ('handed-over', 'forgotten')),
         decided_at_ms INTEGER NOT NULL
       ) STRICT`,
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

  verdict(runId: string): { verdict: Verdict; decidedAtMs: number } | null {
    const row = this.#database
      .prepare('SELECT verdict, decided_at_ms FROM move_verdicts WHERE run_id = ?')
      .get(runId) as { verdict: Verdict; decided_at_ms: number } | undefined;
    return row ? { verdict: row.verdict, decidedAtMs: row.decided_at_ms } : null;
  }

  /** Resolves when a verdict is there or after `timeoutMs`, whichever is first. */
  async wait(runId: string, timeoutMs: number, signal: AbortSignal): Promise<void> {
    if (this.verdict(runId) || signal.aborted) return;
    await new Promise<void>((resolve) => {
      const waiters = this.#waiters.get(runId) ?? new Set();
      this.#waiters.set(runId, waiters);
      const done = () => {
        clearTimeout(timeout);
        signal.removeEventListener('abort', done);
        waiters.delete(done);
        if (waiters.size === 0) this.#waiters.delete(runId);
        resolve();
      };
      const timeout = setTimeout(done, timeoutMs);
      signal.addEventListener('abort', done, { once: true });
      waiters.add(done);
    });
  }

  /** Verdicts older than `beforeMs` of moves that ended long ago. */
  prune(beforeMs: number): void {
    this.#database.prepare('DELETE FROM move_verdicts WHERE decided_at_ms < ?').run(beforeMs);
  }
}
