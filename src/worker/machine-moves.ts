import { GodwitError, isGodwitError } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import type { MachineManager } from '../machine/manager.ts';
import { MIGRATE_IN } from '../migration/migrate-in.ts';
import { MIGRATE_OUT, type MigrateOutOutput } from '../migration/migrate-out.ts';
import { ownsMachine } from '../migration/move-watch.ts';

/** The moves that a machine is part of, and what they keep from being done with it. */
export class MachineMoves {
  readonly #journal: Journal;
  readonly #machines: MachineManager;

  constructor(options: { journal: Journal; machines: MachineManager }) {
    this.#journal = options.journal;
    this.#machines = options.machines;
  }

  /** Unfinished runs of a machine, or its last one. */
  runsOf(machineId: string): RunView[] {
    const resource = `machine:${machineId}`;
    const open = this.#journal.open({ resource });
    // Of those that are over, the newest: one that failed where it cannot be undone keeps the machine, so
    // none is newer.
    return open.length > 0 ? open : this.#journal.find({ resource, limit: 1 });
  }

  openRunOf(machineId: string | null): RunView | null {
    return machineId === null ? null : (this.#journal.open({ resource: `machine:${machineId}` })[0] ?? null);
  }

  refuseWhileMoving(machineId: string): void {
    const run = this.runsOf(machineId).find((candidate) => candidate.endedAtMs === null);
    if (!run) return;
    throw new GodwitError(
      'WORKER_MACHINE_MOVING',
      `the machine is part of a move that is not over (${run.kind}, step ${run.step})`,
      {
        values: { machineId, runId: run.id },
        nextAction: ownsMachine(run)
          ? `With --force it is stopped at once, and goes when its volume is whole: ask again then. To give the volume up too: \`godwit runs force ${run.id} forget --yes\`, then destroy it.`
          : `Wait for it (godwit why ${machineId}), or cancel it: \`godwit runs cancel ${moveIdOf(run)}\`; destroy --force does that.`,
      },
    );
  }

  /**
   * A machine is its owner's wherever it is: before its point of no return the move is called off; past it,
   * here, the machine is killed at once, and the move ends without it. What takes longer is told by whoever
   * looks next.
   */
  async endMove(machineId: string, reason: string): Promise<void> {
    const journal = this.#journal;
    const machines = this.#machines;
    const run = this.runsOf(machineId).find(({ endedAtMs }) => endedAtMs === null);
    if (!run) return;
    if (ownsMachine(run)) {
      await machines.kill(machineId);
      await machines.stop(machineId, { signal: 'SIGKILL', timeoutMs: 0 }, { moving: true });
    } else {
      if (run.kind !== MIGRATE_OUT) return;
      try {
        journal.cancel(run.id, reason);
      } catch (error) {
        if (!isGodwitError(error, 'JOURNAL_CANCEL_TOO_LATE')) throw error;
        return;
      }
    }
    await journal.wait(run.id, { timeoutMs: PATIENCE.destroyMoving.ms }).catch(() => null);
  }
}

/** What the source calls it. */
function moveIdOf(run: RunView): string {
  return run.kind === MIGRATE_IN ? ((run.input as { runId?: string }).runId ?? run.id) : run.id;
}

/** All that a person may call it by. */
export function namesOf(run: RunView): string[] {
  const output = run.output as MigrateOutOutput;
  const input = run.input as { machineId?: string; machineName?: string };
  return [input.machineId, input.machineName, output.subject?.machineName].filter(
    (name) => name !== undefined,
  );
}
