import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import type { DrainRuns } from '../migration/drain.ts';
import { MIGRATE_OUT } from '../migration/migrate-out.ts';

/** The moves of a drain, from the journal. */
export function drainRuns(journal: Journal): DrainRuns {
  const open = () => journal.open({ kind: MIGRATE_OUT });
  const withOpen = (newest: readonly RunView[]) => {
    const runs = new Map(newest.map((run) => [run.resource, run]));
    for (const run of open()) runs.set(run.resource, run);
    return [...runs.values()].sort((left, right) => left.createdAtMs - right.createdAtMs);
  };
  return {
    open,
    newest: (sinceMs) => withOpen(journal.newest(MIGRATE_OUT, sinceMs)),
    newestInTurns: async (sinceMs) => withOpen(await journal.newestInTurns(MIGRATE_OUT, sinceMs)),
    newestOf: (machineId, sinceMs) => {
      const resource = `machine:${machineId}`;
      const run = journal.find({ kind: MIGRATE_OUT, resource, limit: 1 })[0];
      if (!run || (run.createdAtMs < sinceMs && run.endedAtMs !== null)) return null;
      return { run, attempts: Math.max(1, journal.count(resource, MIGRATE_OUT, sinceMs)) };
    },
  };
}
