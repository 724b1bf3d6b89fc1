import {
  DatabaseSync,
  type SQLInputValue,
  type StatementResultingChanges,
  type StatementSync,
} from 'node:sqlite';
import type { Disk } from './disk.ts';

const CHANGES = /^\s*(INSERT|UPDATE|DELETE|REPLACE)/i;
/** SQLITE_FULL and SQLITE_IOERR_FSYNC (sqlite3.h). */
const CODES = {
  ENOSPC: { errcode: 13, message: 'database or disk is full' },
  EIO: { errcode: 1034, message: 'disk I/O error' },
};

/**
 * SQLite on the disk of a simulated host: the files are real, and whether a change can be committed that
 * disk says. What cannot leaves nothing behind, as SQLite has it.
 */
export class Database extends DatabaseSync {
  readonly #disk: Disk;

  constructor(path: string, disk: Disk) {
    super(path);
    this.#disk = disk;
  }

  override exec(sql: string): void {
    if (sql === 'COMMIT' || (!this.isTransaction && CHANGES.test(sql))) this.#commit();
    super.exec(sql);
  }

  override prepare(sql: string): StatementSync {
    const statement = super.prepare(sql);
    if (!CHANGES.test(sql)) return statement;
    const run = statement.run.bind(statement) as (...values: SQLInputValue[]) => StatementResultingChanges;
    const checked = (...values: SQLInputValue[]) => {
      if (this.isTransaction) return run(...values);
      super.exec('BEGIN');
      try {
        const result = run(...values);
        if (result.changes > 0) this.#commit();
        super.exec('COMMIT');
        return result;
      } catch (error) {
        if (this.isTransaction) super.exec('ROLLBACK');
        throw error;
      }
    };
    return Object.assign(statement, { run: checked as StatementSync['run'] });
  }

  #commit(): void {
    const refusal = this.#disk.refusal();
    if (refusal === null) return;
    const { errcode, message } = CODES[refusal];
    throw Object.assign(new Error(message), { code: 'ERR_SQLITE_ERROR', errcode, errstr: message });
  }
}
