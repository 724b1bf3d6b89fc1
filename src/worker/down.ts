import type { MachineView } from '../contract/schemas.ts';
import { goesBack, type RunView } from '../journal/run.ts';
import { MIGRATE_IN, type MigrateInInput, type MigrateInOutput } from '../migration/migrate-in.ts';
import { MIGRATE_OUT, type MigrateOutOutput } from '../migration/migrate-out.ts';
import { isPast, isServing, isUndone, ownsMachine } from '../migration/move-watch.ts';
import type { Condition } from './condition.ts';
import type { Trouble } from './recovery.ts';

/**
 * A machine that its owner wants up, and that is down because of godwit. `sinceMs`: wall clock; `why`: the
 * end of a sentence that begins with "it".
 */
export type Down = { sinceMs: number; why: string };

/** By the move that has it, whichever side of it `run` is. Pure. */
export function downByMove(run: RunView): Down | null {
  if (run.endedAtMs !== null) return null;
  if (run.kind === MIGRATE_OUT) {
    const { subject, stopStartedAtMs, target } = run.output as MigrateOutOutput;
    // The undo of the stop is its start.
    if (!subject?.running || stopStartedAtMs === undefined || isServing(run) || isUndone(run, 'interruption'))
      return null;
    const why = run.state === 'undoing' || goesBack(run) ? 'comes back from its move' : 'moves';
    return {
      sinceMs: stopStartedAtMs,
      why: `${why}${target ? ` to ${target}` : ''} (step ${run.step ?? '?'})`,
    };
  }
  if (!ownsMachine(run) || isPast(run, 'interruption')) return null;
  const { startMachine, sourceWorker } = run.input as MigrateInInput;
  const { handedOverAtMs, activatedAtMs } = run.output as MigrateInOutput;
  const sinceMs = handedOverAtMs ?? activatedAtMs;
  if (!startMachine || sinceMs === undefined) return null;
  return { sinceMs, why: `arrives from ${sourceWorker} (step ${run.step ?? '?'})` };
}

/** It should run, and this worker could not start it again. Pure. */
export function downByTrouble(trouble: Trouble | null): Down | null {
  // A shim that hangs says nothing about its machine.
  if (trouble?.error.code === 'RPC_TIMEOUT') return null;
  return trouble && { sinceMs: trouble.sinceMs, why: `could not be started again (${trouble.error.code})` };
}

/** What its owner has to know before everything else. */
export function downConditions({ down, name, move }: MachineView): Condition[] {
  if (down === undefined) return [];
  return [
    {
      code: 'machine-down',
      holdsUp: `machine ${name}`,
      message: `it is down because of godwit: it ${down.why}`,
      sinceMs: down.sinceMs,
      whoCanClearIt:
        move === null ? 'an operator; it is tried again by itself' : 'what its move waits for, below',
      nextAction: move === null ? `godwit machine show ${name}` : `godwit runs show ${move.runId}`,
    },
  ];
}

type TellDown = (
  machineId: string,
  message: string,
  data: { down: boolean; runId: string; sinceMs?: number; forMs?: number },
) => void;

/** Tells when a machine goes down because of a move, and when it is up again, once each. */
export class DownEvents {
  readonly #tell: TellDown;
  readonly #downSinceMs = new Map<string, number>();

  constructor(tell: TellDown) {
    this.#tell = tell;
  }

  /** Whenever something of a run has changed; `nowMs` is wall clock. */
  note(run: RunView, nowMs: number): void {
    const { machineId } = run.input as { machineId?: string };
    if (machineId === undefined || (run.kind !== MIGRATE_OUT && run.kind !== MIGRATE_IN)) return;
    const key = `${run.kind} ${machineId}`;
    const sinceMs = this.#downSinceMs.get(key);
    const down = downByMove(run);
    if (down !== null && sinceMs === undefined) {
      this.#downSinceMs.set(key, down.sinceMs);
      this.#tell(machineId, `down: it ${down.why}`, { down: true, sinceMs: down.sinceMs, runId: run.id });
    } else if (down === null && sinceMs !== undefined) {
      this.#downSinceMs.delete(key);
      const forMs = Math.max(0, nowMs - sinceMs);
      this.#tell(machineId, 'not down because of godwit any more', { down: false, forMs, runId: run.id });
    }
  }
}
