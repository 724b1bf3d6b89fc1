import type { WireError } from '../base/errors.ts';
import type { TargetStatus } from '../contract/peer.ts';
import type { SourceSpec } from '../opening/spec.ts';
import type { OverrideNote } from './override-note.ts';
import type { Mended } from './prove.ts';
import type { MoveSubject } from './source-side.ts';

export type MigrateOutInput = {
  machineId: string;
  /** Null: the best offer. */
  targetWorker: string | null;
  /** `move` or `drain`; for the record. */
  requestedBy: string;
  /** An encrypted volume gets another key at the target. */
  rekey?: boolean;
};

/**
 * What the steps put down, and what reports are made of. Durations in milliseconds, times by the wall clock
 * of this host. Optional: not every move has it.
 */
export type OutNotes = {
  subject: MoveSubject;
  target: string;
  /** The target can fetch the blocks over TLS. */
  targetTls: boolean;
  /** What came later and it knows (`Endpoint.since`). */
  targetKnows: string[];
  source: SourceSpec | null;
  /** Regions that the target was told to bring first. */
  warmedRegions: number;
  stopStartedAtMs: number;
  stopMs: number;
  sealMs: number;
  /** Bytes of the volume that its filesystem did not use when it was sealed. */
  unusedBytes?: number;
  /** Why that is not known. */
  freeMapReason?: WireError | null;
  /** When the target said that the volume is open there. */
  handedOverAtMs: number;
  /** The target's clock when it made the answer that came at `handedOverAtMs`. */
  targetAnsweredAtMs: number;
  interruptionMs: Interruption | null;
  healthyAtMs: number;
  /** Bytes that the source has and that did not have to travel, because the filesystem did not use them. */
  bytesAvoided?: number;
  /** What had to be fetched again, because what had come or was stored was wrong. */
  mended?: Mended;
  /** Why the last attempt to prove the move found content that differs, and nothing is released. */
  disputed?: WireError | null;
  /** Root of the receipt. */
  root?: string;
  /** There will be none: an operator had the target do without it. The target's clock. */
  waivedAtMs?: number;
  /** Last status that the target gave. */
  last: TargetStatus;
  destroyAfterMs: number;
  /** On whose word an operator had the run go back after the handoff. */
  override: OverrideNote;
};

/** Of a run that may be anywhere. */
export type MigrateOutOutput = Partial<OutNotes>;

/**
 * From the stop signal to the first healthy answer, by phase. Each host times its own phases, so skewed
 * clocks do not matter.
 */
export type Interruption = Record<'stop' | 'seal' | 'handoff' | 'attach' | 'boot' | 'total', number>;

/**
 * `handoff` is what is left: export opened, request and answer on the way, and the journal. Null where the
 * machine was not running or a time is missing.
 */
export function interruption(output: MigrateOutOutput, times: TargetStatus['timesMs']): Interruption | null {
  const { stopStartedAtMs, handedOverAtMs, targetAnsweredAtMs, stopMs, sealMs } = output;
  const { handedOver, activated, attached, healthy } = times;
  if (
    stopStartedAtMs === undefined ||
    handedOverAtMs === undefined ||
    targetAnsweredAtMs === undefined ||
    stopMs === undefined ||
    sealMs === undefined
  ) {
    return null;
  }
  if (handedOver === null || activated === null || attached === null || healthy === null) return null;
  // The clocks of the two hosts meet in one answer: only its way back is counted twice.
  const total = handedOverAtMs - stopStartedAtMs + (healthy - targetAnsweredAtMs);
  const attach = attached - handedOver;
  const boot = healthy - attached;
  return {
    stop: stopMs,
    seal: sealMs,
    handoff: Math.max(0, total - stopMs - sealMs - attach - boot),
    attach,
    boot,
    total,
  };
}
