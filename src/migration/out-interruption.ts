import { pauses } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import { PAUSE } from '../base/patience.ts';
import type { Peer, TargetStatus } from '../contract/peer.ts';
import { Abort } from '../journal/outcome.ts';
import type { Waiting } from './move-step.ts';
import { orBack } from './obstacle.ts';
import { interruption, type MigrateOutInput, type OutNotes } from './out-notes.ts';
import {
  forgotten,
  keepExport,
  OUT_PATIENCE,
  type OutTools,
  outStep,
  peerOf,
  targetOf,
  waitForTarget,
  watch,
} from './out-tools.ts';
import { hasIt } from './override-note.ts';
import type { MoveSubject, SourceSide } from './source-side.ts';
import { reached } from './target-phase.ts';

/*
 * The source's steps from the stop of the machine to its first healthy answer at the target.
 */

/** A stop that takes longer says so. */
const STOP_SILENCE_MS = PAUSE.stopTold.ms;
/** After the time of a stop, and between looks what the killed processes wait for. */
const STUCK_LOOK_MS = PAUSE.stuckLook.ms;
/** How long after a try that was not delivered the target is asked again, in milliseconds. */
const ASK_AGAIN = { firstMs: 50, maxMs: 1_000 };

export const stop = outStep({
  ...{ name: 'stop', phase: 'interruption', waitsFor: 'owner' },
  ...OUT_PATIENCE.stopped,
  needs: ['subject'],
  uses: ['stopStartedAtMs'],
  gives: ['stopMs'],
  async do({ source, clock, times }, context) {
    const { notes, runId } = context;
    const startedMs = clock.monotonicMs();
    const cancelSaying = clock.timer(STOP_SILENCE_MS, () => saySlowStop(notes.subject, context));
    const cancelLooking = sayStuck(source, clock, context);
    try {
      // Not when this process ends, since the next one takes the stop up where it is, and not because it is
      // slow: the machine has the time that its owner gave it.
      await source.stop(context.input.machineId, context.calledOff);
    } finally {
      cancelSaying();
      cancelLooking();
    }
    const thisTryMs = clock.monotonicMs() - startedMs;
    return { stopMs: notes.stopMs ?? Math.max(thisTryMs, sinceTheStop(times.nowMs(runId), notes)) };
  },
  async undo({ source }, { notes: { subject } }) {
    if (subject?.running) await source.start(subject);
  },
});

/** Each word in the log costs a write, and most machines are gone before. */
function saySlowStop({ machineName, config }: MoveSubject, { runId, waiting }: Waiting): void {
  try {
    waiting(
      `${machineName} is stopping: it has ${config.stop.timeoutMs / 1000} s from ${config.stop.signal} on, then it is killed`,
      `Nothing to do. \`godwit runs cancel ${runId}\` kills it now and starts it again here.`,
    );
  } catch {
    // The attempt knows by itself that its journal could not be written.
  }
}

/** Whatever its processes wait for once they were killed; looked for until the stop is over. */
function sayStuck(
  source: SourceSide,
  clock: Clock,
  {
    input,
    notes: { subject },
    waiting,
  }: Waiting & { input: MigrateOutInput; notes: Pick<OutNotes, 'subject'> },
): () => void {
  let cancel = () => {};
  let isOver = false;
  const look = async () => {
    const stuck = await source.stuck(input.machineId).catch(() => null);
    if (isOver) return;
    try {
      if (stuck !== null)
        waiting(`${subject.machineName} was killed, and does not end: ${stuck.message}`, stuck.nextAction);
    } catch {
      // As for a slow stop.
    }
    lookAfter(STUCK_LOOK_MS);
  };
  const lookAfter = (ms: number) => {
    cancel = clock.timer(ms, () => void look());
  };
  lookAfter(subject.config.stop.timeoutMs + STUCK_LOOK_MS);
  return () => {
    isOver = true;
    cancel();
  };
}

/**
 * Since the first stop signal, over all attempts: the machine has been down for so long, whichever of them
 * did it.
 */
function sinceTheStop(nowMs: number, { stopStartedAtMs }: Partial<OutNotes>): number {
  return nowMs - (stopStartedAtMs ?? nowMs);
}

export const seal = outStep({
  ...{ name: 'seal', phase: 'interruption', waitsFor: 'godwit' },
  ...OUT_PATIENCE.stopped,
  needs: ['subject'],
  uses: ['stopStartedAtMs', 'stopMs'],
  gives: ['sealMs', 'unusedBytes', 'freeMapReason'],
  async do({ source, clock, times }, { runId, input, attempt, notes }) {
    const { volume } = notes.subject;
    const startedMs = clock.monotonicMs();
    const report =
      volume && (await orBack(attempt, source.seal(input.machineId, volume.volumeId, volume.generation)));
    const thisTryMs = clock.monotonicMs() - startedMs;
    const sinceMs = sinceTheStop(times.nowMs(runId), notes) - (notes.stopMs ?? 0);
    return {
      sealMs: notes.sealMs ?? Math.max(thisTryMs, sinceMs),
      ...(report && { unusedBytes: report.unusedBytes, freeMapReason: report.reason }),
    };
  },
  async undo({ source }, { input, notes: { subject } }) {
    const volume = subject?.volume;
    if (volume) await source.unseal(input.machineId, volume.volumeId, volume.generation);
  },
});

export const open = outStep({
  ...{ name: 'open', phase: 'interruption', waitsFor: 'godwit', blamesTarget: true },
  ...OUT_PATIENCE.stopped,
  needs: ['subject', 'target'],
  uses: ['override', 'source', 'targetTls'],
  async do(tools, context) {
    const { subject, target } = context.notes;
    const { runId, attempt } = context;
    // Its shim may have died since, or its host: the machine is down, and nobody else opens it again.
    const opened = keepExport(tools, runId, subject, context.notes);
    await orBack(attempt, Promise.all([opened, signOfLife(tools, targetOf(tools, target), context)]));
  },
  async undo(tools, { runId, signal, notes: { target, override } }) {
    if (override === 'target-is-destroyed') {
      // One that was said to be destroyed and answers is asked once more before its blocks go.
      const status = await peerOf(tools, target)
        ?.cancel(runId, { signal })
        .catch(() => null);
      if (status && status.phase !== 'forgotten' && status.gone !== true)
        throw hasIt({ id: runId }, target ?? 'the target', status);
    }
    await tools.source.closeExport(runId);
  },
});

/** Waits until the target answers; unwinds when it does not for too long. */
async function signOfLife(tools: OutTools, peer: Peer, context: Waiting): Promise<void> {
  const untilMs = tools.clock.monotonicMs() + tools.handoffPatienceMs;
  const pause = pauses(tools.clock, ASK_AGAIN);
  for (;;) {
    try {
      const status = await peer.status(context.runId, { signal: context.signal });
      if (status.phase === 'forgotten') throw new Abort(forgotten(peer.name, status));
      return;
    } catch (error) {
      if (error instanceof Abort) throw error;
      await waitForTarget(tools, peer, context, error, { untilMs, pause });
    }
  }
}

/**
 * `handoff` is where two hosts must agree. `open` asks the target for a sign of life first, so that a dead
 * one is found out while the run can still unwind. In the first attempt of `handoff` a request that certainly
 * never left (no connection came about) unwinds too. After any other failure, or the death of this process,
 * the request may have been delivered, and only the target's own word ends the doubt: a later phase, or
 * `forgotten`, which the target keeps for ever.
 */
export const handoff = outStep({
  ...{ name: 'handoff', phase: 'interruption', waitsFor: 'peer', pointOfNoReturn: true, blamesTarget: true },
  ...OUT_PATIENCE.forward,
  retry: { initialMs: 50, maxMs: 2_000 },
  needs: ['subject', 'target'],
  gives: ['handedOverAtMs', 'targetAnsweredAtMs', 'last'],
  async do(tools, context) {
    const { subject, target } = context.notes;
    const peer = targetOf(tools, target);
    let status = await handOver(tools, peer, subject, context, context.attempt === 1);
    while (!reached(status, 'activated')) {
      if (status.phase === 'forgotten') throw new Abort(forgotten(peer.name, status));
      context.waiting(
        `${peer.name} has been told and is opening the volume${status.reason ? `: ${status.reason}` : ''}`,
        status.nextAction ?? 'Nothing to do yet.',
      );
      await tools.clock.sleep(50, context.signal);
      status = await handOver(tools, peer, subject, context, false);
    }
    return {
      handedOverAtMs: tools.times.nowMs(context.runId),
      targetAnsweredAtMs: status.timesMs.answered,
      last: status,
    };
  },
});

/** `first`: no handoff of this run has left before this one. */
async function handOver(
  tools: OutTools,
  peer: Peer,
  { volume }: MoveSubject,
  context: Waiting,
  first: boolean,
): Promise<TargetStatus> {
  const { runId, signal } = context;
  const untilMs = tools.clock.monotonicMs() + tools.handoffPatienceMs;
  let nothingSentYet = first;
  const freeMap = volume === null ? null : await tools.source.freeMap(volume.volumeId);
  const pause = pauses(tools.clock, ASK_AGAIN);
  for (;;) {
    try {
      return await peer.handoff(runId, { freeMap }, { signal });
    } catch (error) {
      nothingSentYet &&= isCertainlyUndelivered(error);
      if (nothingSentYet) {
        await waitForTarget(tools, peer, context, error, { untilMs, pause });
        continue;
      }
      throw new GodwitError(
        'MIGRATION_HANDOFF_UNCERTAIN',
        `${peer.name} does not answer, and it may have opened the volume: ${messageOf(error)}`,
        {
          values: { target: peer.name },
          nextAction:
            `Bring ${peer.name} back: it goes on by itself. If that host is lost for good, ` +
            `\`godwit runs force ${runId} undo --target-is-destroyed --yes\` starts the machine here from the sealed volume.`,
          cause: error,
        },
      );
    }
  }
}

/** No connection came about, or none with a peer that proved itself. */
function isCertainlyUndelivered(error: unknown): boolean {
  const noConnection = isGodwitError(error, 'API_UNREACHABLE') || isGodwitError(error, 'API_TLS_REFUSED');
  return noConnection && error.values.delivered === false;
}

export const settle = outStep({
  ...{ name: 'settle', phase: 'interruption', waitsFor: 'peer' },
  ...OUT_PATIENCE.forward,
  needs: ['subject', 'target'],
  uses: ['stopStartedAtMs', 'stopMs', 'sealMs', 'handedOverAtMs', 'targetAnsweredAtMs'],
  gives: ['interruptionMs', 'healthyAtMs', 'last'],
  async do(tools, context) {
    const { notes } = context;
    const peer = targetOf(tools, notes.target);
    const pause = pauses(tools.clock, { firstMs: 20, maxMs: 1_000 });
    for (;;) {
      const status = await watch(tools, peer, context, 'boots the machine');
      if (reached(status, 'healthy')) {
        return {
          interruptionMs: notes.subject.running ? interruption(notes, status.timesMs) : null,
          healthyAtMs: tools.clock.wallMs(),
          last: status,
        };
      }
      context.waiting(
        `${peer.name} boots the machine${status.reason ? `: ${status.reason}` : ''}`,
        status.nextAction ?? 'Nothing to do; the machine is on its way.',
      );
      await pause(context.signal);
    }
  },
});
