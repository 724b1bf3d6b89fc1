import type { DatabaseSync } from 'node:sqlite';
import { type Receipt, verifyReceipt } from '../receipt/envelope.ts';

/**
 * The receipts of this worker's moves, to and fro, and which moves an operator ended without one at their
 * target. Kept for ever: some 3 KiB each.
 */
export class ReceiptBook {
  readonly #database: DatabaseSync;

  constructor(database: DatabaseSync) {
    this.#database = database;
    database.exec(
      `CREATE TABLE IF NOT EXISTS receipts (
         move_id TEXT PRIMARY KEY,
         machine_id TEXT NOT NULL,
         machine_name TEXT NOT NULL,
         proven_at_ms INTEGER NOT NULL,
         receipt TEXT NOT NULL
       ) STRICT;
       CREATE TABLE IF NOT EXISTS waived_receipts (
         move_id TEXT PRIMARY KEY,
         waived_at_ms INTEGER NOT NULL
       ) STRICT`,
    );
  }

  /** Durably: the move ends without a receipt. The first time counts. */
  waive(moveId: string, nowMs: number): void {
    this.#database
      .prepare('INSERT OR IGNORE INTO waived_receipts (move_id, waived_at_ms) VALUES (?, ?)')
      .run(moveId, Math.round(nowMs));
  }

  /** When the receipt of the move was waived, wall clock; null: it was not. */
  waivedAtMs(moveId: string): number | null {
    const row = this.#database
      .prepare('SELECT waived_at_ms FROM waived_receipts WHERE move_id = ?')
      .get(moveId) as { waived_at_ms: number } | undefined;
    return row?.waived_at_ms ?? null;
  }

  /**
   * Durably, unless there is one of this move; answers the one that stands. The receipt is complete and
   * holds.
   */
  keep(receipt: Receipt): Receipt {
    const { moveId, machine, timesMs } = verifyReceipt(receipt);
    this.#database
      .prepare(
        'INSERT OR IGNORE INTO receipts (move_id, machine_id, machine_name, proven_at_ms, receipt) VALUES (?, ?, ?, ?, ?)',
      )
      .run(moveId, machine.id, machine.name, timesMs.proven, JSON.stringify(receipt));
    return this.get(moveId)!;
  }

  get(moveId: string): Receipt | null {
    return this.#one('SELECT receipt FROM receipts WHERE move_id = ?', [moveId]);
  }

  /** By the move's id, or the latest of a machine by its id or name. */
  find(ref: string): Receipt | null {
    return (
      this.get(ref) ??
      this.#one(
        'SELECT receipt FROM receipts WHERE machine_id = ? OR machine_name = ? ORDER BY proven_at_ms DESC, move_id DESC LIMIT 1',
        [ref, ref],
      )
    );
  }

  #one(query: string, values: string[]): Receipt | null {
    const row = this.#database.prepare(query).get(...values) as { receipt: string } | undefined;
    return row ? (JSON.parse(row.receipt) as Receipt) : null;
  }
}
