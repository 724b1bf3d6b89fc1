import type { Clock } from '../base/clock.ts';
import { GodwitError, messageOf } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { Peer, TargetStatus } from '../contract/peer.ts';
import { Abort } from '../journal/outcome.ts';
import type { WorkerKey } from '../receipt/envelope.ts';
import { stepsOf, type Waiting } from './move-step.ts';
import type { OfferDesk } from './offers.ts';
import type { MigrateOutInput, OutNotes } from './out-notes.ts';
import type { ReceiptBook } from './receipt-book.ts';
import type { RunTimes } from './run-times.ts';
import type { MoveSubject, SourceSide } from './source-side.ts';

/** What the steps of the source's run work with. */
export type OutTools = {
  source: SourceSide;
  peers: () => readonly Peer[];
  desk: OfferDesk;
  /**
   * Targets that failed this machine of late, with their reasons: they are taken only where no other accepts.
   */
  failedTargets?: (machineId: string) => ReadonlyMap<string, string>;
  clock: Clock;
  /** For the interruption. */
  times: RunTimes;
  /** This worker. */
  worker: { name: string; url: string };
  /** Signs receipts. */
  key: WorkerKey;
  receipts: ReceiptBook;
  /** How long the sealed volume is kept after the move. */
  retentionMs: number;
  /** How long a stopped machine waits for a target that cannot be asked. */
  handoffPatienceMs: number;
  /** Where the run's live view of the target goes (drain status, `top`); not durable. */
  onProgress?: (runId: string, status: TargetStatus) => void;
};

export const outStep = stepsOf<OutTools, MigrateOutInput, OutNotes>();

/** How long nothing may advance in a step of the source's run. */
export const OUT_PATIENCE = {
  beforeStop: { quietMs: PATIENCE.observedStep.ms, livesOnlyMs: PATIENCE.livesOnly.ms },
  /**
   * The machine is stopped: what cannot be done has a name and undoes the run, what is only slow never does.
   */
  stopped: { quietMs: PATIENCE.stoppedStep.ms, whenQuiet: 'wait' },
  forward: { quietMs: PATIENCE.forwardStep.ms },
  long: { quietMs: PATIENCE.longStep.ms },
} as const;

/** Undefined: it is no peer of this worker any more. */
export function peerOf({ peers }: OutTools, name: string | undefined): Peer | undefined {
  return peers().find((candidate) => candidate.name === name);
}

/** Throws `MIGRATION_UNKNOWN_PEER`. */
export function targetOf(tools: OutTools, name: string): Peer {
  const peer = peerOf(tools, name);
  if (peer) return peer;
  throw new GodwitError(
    'MIGRATION_UNKNOWN_PEER',
    `worker ${name} is no longer among the peers of this worker`,
    {
      values: { worker: name },
      nextAction: `Start this worker with --peer ${name}=URL again.`,
    },
  );
}

/** The export is there and may be read, also when its shim has ended meanwhile. */
export async function keepExport(
  { source }: OutTools,
  runId: string,
  subject: MoveSubject,
  {
    target,
    targetTls,
    source: known,
  }: Pick<OutNotes, 'target'> & Partial<Pick<OutNotes, 'targetTls' | 'source'>>,
): Promise<void> {
  if (!subject.volume) return;
  await source.openExport(runId, subject, { worker: target, tls: targetTls === true }, known ?? null);
  await source.releaseExport(runId);
}

/**
 * What the target says, which is kept for whoever watches. Rejects `MIGRATION_TARGET_SILENT`, and
 * `MIGRATION_TARGET_STANDS_STILL` where somebody has to say there that it goes on.
 */
export async function watch(
  { onProgress }: OutTools,
  peer: Peer,
  { runId, signal }: Waiting,
  doing: string,
): Promise<TargetStatus> {
  let status: TargetStatus;
  try {
    status = await peer.status(runId, { signal });
  } catch (error) {
    throw new GodwitError(
      'MIGRATION_TARGET_SILENT',
      `${peer.name} ${doing} but does not answer: ${messageOf(error)}`,
      {
        values: { target: peer.name },
        nextAction: `Nothing is lost: the machine is ${peer.name}'s and the sealed volume stays here. Bring ${peer.name} back.`,
        cause: error,
      },
    );
  }
  onProgress?.(runId, status);
  if (status.standsStill || status.gone) throw standsStill(peer.name, status);
  return status;
}

/**
 * A pause, with the reason; an Abort when patience is over. Only while nothing was sent that the target could
 * act upon.
 */
export async function waitForTarget(
  { clock, handoffPatienceMs }: OutTools,
  peer: Peer,
  { signal, waiting }: Waiting,
  error: unknown,
  { untilMs, pause }: { untilMs: number; pause: (signal: AbortSignal) => Promise<void> },
): Promise<void> {
  signal.throwIfAborted();
  if (clock.monotonicMs() >= untilMs) {
    throw new Abort(
      new GodwitError('MIGRATION_TARGET_LOST', `${peer.name} does not answer: ${messageOf(error)}`, {
        values: { target: peer.name },
        nextAction: `The machine runs here again. See what is wrong with ${peer.name}, then move it again.`,
        cause: error,
      }),
    );
  }
  waiting(
    `${peer.name} does not answer: ${messageOf(error)}`,
    `The machine starts here again if ${peer.name} stays away for ${handoffPatienceMs / 1000} s.`,
  );
  await pause(signal);
}

function standsStill(target: string, { reason, nextAction }: TargetStatus): GodwitError {
  return new GodwitError(
    'MIGRATION_TARGET_STANDS_STILL',
    `nobody brings the move to its end on ${target}: ${reason ?? 'no reason given'}`,
    {
      values: { target },
      nextAction: nextAction ?? `See \`godwit why\` on ${target}; keep this worker up until then.`,
    },
  );
}

export function forgotten(target: string, status: TargetStatus): GodwitError {
  return new GodwitError(
    'MIGRATION_TARGET_FORGOT',
    `${target} gave the move up: ${status.reason ?? 'no reason given'}`,
    {
      values: { target },
      nextAction: status.nextAction ?? `See \`godwit why\` on ${target}; the machine stays here.`,
      ...(status.retry && { retry: status.retry }),
    },
  );
}
