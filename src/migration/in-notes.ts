import type { PrepareRequest, TargetPhase, TargetStatus } from '../contract/peer.ts';
import type { RunView } from '../journal/run.ts';
import type { OverrideNote } from './override-note.ts';

export type MigrateInInput = PrepareRequest;

/**
 * What the steps put down. Times by the wall clock of this host; only differences between them are used.
 * Optional: not every move has it.
 */
export type InNotes = {
  handedOverAtMs: number;
  activatedAtMs: number;
  attachedAtMs: number;
  bootedAtMs: number;
  healthyAtMs?: number;
  hydratedAtMs?: number;
  /** An operator did without the receipt, and there is none. */
  waivedAtMs?: number;
  /** Of the free map that came with the handoff, SHA-256 in hex; null: none came. */
  freeMapDigest: string | null;
  /**
   * The machine did not become healthy in time, or ended; the move went on, because there is no way back.
   * Null: it is now.
   */
  unhealthy?: string | null;
  hydration?: TargetStatus['hydration'];
  /** On whose word an operator had the run go back though the volume was open here. */
  override: OverrideNote;
};

/** Of a run that may be anywhere. */
export type MigrateInOutput = Partial<InNotes>;

/**
 * The target's answer to "where are you with this move?". `live` is the hydration as of now, if it is known.
 * Pure.
 */
export function targetStatus(
  moveId: string,
  phase: TargetPhase,
  run: RunView | null,
  live: TargetStatus['hydration'] | null,
  nowMs: number,
): TargetStatus {
  const output = (run?.output ?? {}) as MigrateInOutput;
  return {
    runId: moveId,
    phase,
    reason: run?.error?.message ?? run?.reason?.message ?? null,
    nextAction: run?.error?.nextAction ?? run?.reason?.nextAction ?? null,
    ...(run?.error?.retry && { retry: run.error.retry }),
    timesMs: {
      answered: nowMs,
      handedOver: output.handedOverAtMs ?? null,
      activated: output.activatedAtMs ?? null,
      attached: output.attachedAtMs ?? null,
      booted: output.bootedAtMs ?? null,
      healthy: output.healthyAtMs ?? null,
      hydrated: output.hydratedAtMs ?? null,
    },
    hydration: output.hydration ?? live,
    waivedAtMs: output.waivedAtMs ?? null,
    ...(output.unhealthy && { unhealthy: output.unhealthy }),
  };
}
