import type { DatabaseSync } from 'node:sqlite';
import { GodwitError } from '../base/errors.ts';

/**
 * Whose a data folder is, in its `state.sqlite`: the records in it carry the name of the worker, and so do
 * those of other workers about it.
 *
 *   owner   id = 1, name
 *
 * A folder of a version that did not write it down gets the name of the first worker that is started on it.
 * Throws `WORKER_OTHER_DATA` for any other.
 */
export function claimDataFolder(state: DatabaseSync, name: string, dataDir: string): void {
  state.exec(
    'CREATE TABLE IF NOT EXISTS owner (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL) STRICT',
  );
  state.prepare('INSERT OR IGNORE INTO owner (id, name) VALUES (1, ?)').run(name);
  const { name: owner } = state.prepare('SELECT name FROM owner WHERE id = 1').get() as { name: string };
  if (owner === name) return;
  throw new GodwitError(
    'WORKER_OTHER_DATA',
    `${dataDir} is the data folder of ${owner}, and not of ${name}`,
    {
      values: { dataDir, owner, name },
      nextAction: `Start it with --name ${owner}, or with the --data of ${name}. A worker keeps its name for as long as it has machines or moves; to rename one, drain it and begin with an empty folder.`,
    },
  );
}
