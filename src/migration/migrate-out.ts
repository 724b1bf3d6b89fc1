import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf, type WireError } from '../base/errors.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { advanced } from '../base/progress.ts';
import { KNOWN, type Peer, type TargetPhase, type TargetStatus } from '../contract/peer.ts';
import { Abort } from '../journal/outcome.ts';
import type { RunDefinition, StepContext } from '../journal/run.ts';
import type { SourceSpec } from '../opening/spec.ts';
import { verifyReceipt, type WorkerKey } from '../receipt/envelope.ts';
import { orBack } from './obstacle.ts';
import { noCapacity, OfferDesk, offerRequest } from './offers.ts';
import { hasIt, type OverrideNote } from './override-note.ts';
import { chooseOffer } from './placement.ts';
import { type Mended, proveMove } from './prove.ts';
import type { ReceiptBook } from './receipt-book.ts';
import type { MoveSubject, SourceSide } from './source-side.ts';

/**
 * The source's run of a move.
 *
 *     choose → export → prepare → sync → stop → seal → open → handoff ─┐ → settle → detach → serve → prove → release
 *       ask     standby   target    dirty   the    g      blocks  the   │    the      our      until   what    keep the
 *       for     for one   does all  pages   machine       may be  point │    target   shim     it is   came    sealed file
 *       offers  grant     it can    out                   read    of no │    boots    ends     whole   is it   as a way back
 *                                                                 return
 * Everything before `stop` happens while the machine runs; from `stop` to the target's first healthy answer
 * it does not. Until `handoff` every failure unwinds: the target forgets, the volume is unsealed as g+2, and
 * the machine starts here again.
 *
 * `handoff` is where two hosts must agree. `open` asks the target for a sign of life first, so that a dead
 * one is found out while the run can still unwind. In the first attempt of `handoff` a request that certainly
 * never left (no connection came about) unwinds too. After any other failure, or the death of this process,
 * the request may have been delivered, and only the target's own word ends the doubt: a later phase, or
 * `forgotten`, which the target keeps for ever.
 */
export type MigrateOutInput = {
  machineId: string;
  /** Null: the best offer. */
  targetWorker: string | null;
  /** `move` or `drain`; for the record. */
  requestedBy: string;
  /** An encrypted volume gets another key at the target. */
  rekey?: boolean;
};

/** What the steps put down, and what reports are made of. Durations in milliseconds. */
export type MigrateOutOutput = {
  subject?: MoveSubject;
  target?: string;
  /** The target can fetch the blocks over TLS. */
  targetTls?: boolean;
  /** What it understands beyond the first version (`KNOWN`). */
  targetKnows?: string[];
  source?: SourceSpec | null;
  /** Wall clock of this host. */
  /** Regions that the target was told to bring first. */
  warmedRegions?: number;
  stopStartedAtMs?: number;
  stopMs?: number;
  sealMs?: number;
  /** Bytes of the volume that its filesystem did not use when it was sealed. */
  unusedBytes?: number;
  /** Why that is not known. */
  freeMapReason?: WireError | null;
  /** Bytes that the source has and that did not have to travel, because the filesystem did not use them. */
  bytesAvoided?: number;
  /** Wall clock of this host when the target said that the volume is open there. */
  handedOverAtMs?: number;
  /** The target's clock when it made the answer that came at `handedOverAtMs`. */
  targetAnsweredAtMs?: number;
  interruptionMs?: Interruption | null;
  healthyAtMs?: number;
  /** What had to be fetched again, because what had come or was stored was wrong. */
  mended?: Mended;
  /** Why the last attempt to prove the move found content that differs, and nothing is released. */
  disputed?: WireError | null;
  /** Root of the receipt. */
  root?: string;
  /** There will be none: an operator had the target do without it. The target's clock. */
  waivedAtMs?: number;
  /** Last status that the target gave. */
  last?: TargetStatus;
  destroyAfterMs?: number;
  /** On whose word an operator had the run go back after the handoff. */
  override?: OverrideNote;
};

/**
 * From the stop signal to the first healthy answer, by phase. Each host times its own phases, so skewed
 * clocks do not matter.
 */
export type Interruption = {
  stop: number;
  seal: number;
  handoff: number;
  attach: number;
  boot: number;
  total: number;
};

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

export type MigrateOutOptions = {
  source: SourceSide;
  peers: () => readonly Peer[];
  /** That all who ask for offers share. Left out: one of its own. */
  desk?: OfferDesk;
  /**
   * Targets that failed this machine of late, with their reasons: they are taken only where no other accepts.
   */
  failedTargets?: (machineId: string) => ReadonlyMap<string, string>;
  clock: Clock;
  /** This worker. */
  worker: { name: string; url: string };
  /** Signs receipts. */
  key: WorkerKey;
  receipts: ReceiptBook;
  /** How long the sealed volume is kept after the move. */
  retentionMs: number;
  /**
   * How long a stopped machine waits for a target that cannot be asked, before it starts here again. Default
   * 15 s.
   */
  handoffPatienceMs?: number;
  /** Where the run's live view of the target goes (drain status, `top`); not durable. */
  onProgress?: (runId: string, status: TargetStatus) => void;
};

/** Name of the kind in the journal. */
export const MIGRATE_OUT = 'migrate-out';

/** A stop that takes longer says so. */
const STOP_SILENCE_MS = PAUSE.stopTold.ms;
const BEFORE_STOP = { quietMs: PATIENCE.observedStep.ms, livesOnlyMs: PATIENCE.livesOnly.ms };
/**
 * The machine is stopped: what cannot be done has a name and undoes the run, what is only slow never does.
 */
const STOPPED = { quietMs: PATIENCE.stoppedStep.ms, whenQuiet: 'wait' as const };
const FORWARD = { quietMs: PATIENCE.forwardStep.ms };
const LONG = { quietMs: PATIENCE.longStep.ms };

const UNEXPLAINED = 'MIGRATION_CONTENT_UNEXPLAINED';
/** Somebody has to look at a disk. */
const DISPUTES = new Set([UNEXPLAINED, 'MIGRATION_CONTENT_DIFFERS', 'VOLUME_REGION_CHANGED']);

const PHASES_IN_ORDER: readonly TargetPhase[] = [
  'preparing',
  'prepared',
  'handed-over',
  'activated',
  'booted',
  'healthy',
  'hydrated',
  'proven',
  'released',
];

/** True when the target is at `phase` or past it. `forgotten` is past nothing. */
export function reached(status: TargetStatus, phase: TargetPhase): boolean {
  return PHASES_IN_ORDER.indexOf(status.phase) >= PHASES_IN_ORDER.indexOf(phase);
}

/** No connection came about, or none with a peer that proved itself. */
function isCertainlyUndelivered(error: unknown): boolean {
  const noConnection = isGodwitError(error, 'API_UNREACHABLE') || isGodwitError(error, 'API_TLS_REFUSED');
  return noConnection && error.values.delivered === false;
}

export function migrateOut(options: MigrateOutOptions): RunDefinition<MigrateOutInput> {
  const { source, clock } = options;
  const desk = options.desk ?? new OfferDesk({ peers: options.peers, clock });
  const patienceMs = options.handoffPatienceMs ?? PATIENCE.targetLost.ms;
  type Context = StepContext<MigrateOutInput>;
  const out = (context: Context) => context.output as MigrateOutOutput;

  const subjectOf = (context: Context): MoveSubject => {
    const { subject } = out(context);
    if (!subject)
      throw new GodwitError('MIGRATION_NO_SUBJECT', 'the run has no subject', {
        nextAction: 'Cancel the run and start the move again.',
      });
    return subject;
  };
  const peerOf = (context: Context): Peer | undefined => {
    const name = out(context).target;
    return options.peers().find((candidate) => candidate.name === name);
  };
  const targetOf = (context: Context): Peer => {
    const name = out(context).target;
    const peer = peerOf(context);
    if (!peer) {
      throw new GodwitError(
        'MIGRATION_UNKNOWN_PEER',
        `worker ${name} is no longer among the peers of this worker`,
        {
          values: { worker: name ?? null },
          nextAction: `Start this worker with --peer ${name}=URL again.`,
        },
      );
    }
    return peer;
  };

  const knows = (context: Context, what: string) => out(context).targetKnows?.includes(what) === true;
  const exportedTo = (context: Context) => ({
    worker: targetOf(context).name,
    tls: out(context).targetTls === true,
  });

  return {
    kind: MIGRATE_OUT,
    resource: (input) => `machine:${input.machineId}`,
    turnsRound: true,
    steps: [
      {
        name: 'choose',
        ...BEFORE_STOP,
        async do(context) {
          if (out(context).target) return;
          const subject = await source.describe(context.input.machineId);
          if (context.input.rekey) subject.placement.userspaceOnly = 'gets another key on the way';
          const wanted = context.input.targetWorker;
          const offers = await desk.ask({
            wanted,
            request: offerRequest(options.worker.name, subject),
            signal: context.signal,
          });
          const choice = chooseOffer(offers, options.failedTargets?.(context.input.machineId));
          if (!choice.chosen) throw new Abort(noCapacity(subject.machineName, wanted, choice.reasons));
          await source.claim(context.input.machineId, context.runId);
          const { worker, tls, knows = [] } = choice.chosen;
          context.put({ subject, target: worker, targetTls: tls === true, targetKnows: knows });
        },
        async undo(context) {
          await source.claim(context.input.machineId, null);
        },
      },
      {
        name: 'export',
        ...BEFORE_STOP,
        async do(context) {
          const subject = subjectOf(context);
          if (!subject.volume) return { source: null };
          context.put({
            source: await source.openExport(
              context.runId,
              subject,
              exportedTo(context),
              out(context).source ?? null,
            ),
          });
        },
        async undo(context) {
          await source.closeExport(context.runId);
        },
      },
      {
        name: 'prepare',
        ...BEFORE_STOP,
        async do(context) {
          const subject = subjectOf(context);
          const peer = targetOf(context);
          let status = await peer.prepare(
            {
              runId: context.runId,
              sourceWorker: options.worker.name,
              sourceUrl: options.worker.url,
              machineId: subject.machineId,
              machineName: subject.machineName,
              config: subject.config,
              placement: subject.placement,
              startMachine: subject.running,
              ...(subject.ailing !== undefined && knows(context, KNOWN.ailing) && { ailing: subject.ailing }),
              volume: subject.volume && {
                volumeId: subject.volume.volumeId,
                name: subject.volume.name,
                lengthBytes: subject.volume.lengthBytes,
                filesystem: subject.volume.filesystem,
                sealedGeneration: subject.volume.generation,
                ...(subject.volume.encryption && {
                  encryption: {
                    ...subject.volume.encryption,
                    ...(context.input.rekey && { rekey: true }),
                  },
                }),
                source: out(context).source!,
              },
            },
            { signal: context.signal },
          );
          while (!reached(status, 'prepared')) {
            if (status.phase === 'forgotten') throw new Abort(forgotten(peer.name, status));
            context.waiting(
              `${peer.name} is preparing${status.reason ? `: ${status.reason}` : ''}`,
              status.nextAction ?? 'Nothing to do; the machine still runs here.',
            );
            await clock.sleep(25, context.signal);
            status = await peer.status(context.runId, { signal: context.signal });
            advanced(`answers of ${peer.name}`);
          }
        },
        async undo(context) {
          // Best effort on purpose: the target was never told that the volume is its own, it asks for this
          // run itself, and it forgets when it hears that the run was undone. A target that is dead, or no
          // peer any more, must not keep the machine locked.
          const status = await peerOf(context)
            ?.cancel(context.runId, { signal: context.signal })
            .catch(() => null);
          // What an operator took back was made sure of before anything was undone.
          if (status && reached(status, 'activated') && out(context).override === undefined) {
            throw new GodwitError(
              'MIGRATION_ALREADY_ACTIVATED',
              `${out(context).target} has opened the volume although this run is being undone`,
              {
                values: { runId: context.runId, target: out(context).target ?? null },
                nextAction:
                  'Stop the machine on one of the two workers and compare; then report it: this must not happen.',
              },
            );
          }
        },
      },
      {
        name: 'sync',
        ...BEFORE_STOP,
        async do(context) {
          const subject = subjectOf(context);
          let warmedRegions = 0;
          if (subject.running) {
            await source.syncEarly(context.input.machineId);
            if (subject.volume) warmedRegions = await warmTarget(context);
          }
          return { warmedRegions, stopStartedAtMs: clock.wallMs() };
        },
      },
      {
        name: 'stop',
        ...STOPPED,
        async do(context) {
          const startedMs = clock.monotonicMs();
          const cancelSaying = sayLater(context);
          try {
            // Not when this process ends, since the next one takes the stop up where it is, and not because
            // it is slow: the machine has the time that its owner gave it.
            await source.stop(context.input.machineId, context.calledOff);
          } finally {
            cancelSaying();
          }
          return {
            stopMs: out(context).stopMs ?? Math.max(clock.monotonicMs() - startedMs, sinceTheStop(context)),
          };
        },
        async undo(context) {
          const { subject } = out(context);
          if (subject?.running) await source.start(subject);
        },
      },
      {
        name: 'seal',
        ...STOPPED,
        async do(context) {
          const { volume } = subjectOf(context);
          const startedMs = clock.monotonicMs();
          const report =
            volume &&
            (await orBack(
              context.attempt,
              source.seal(context.input.machineId, volume.volumeId, volume.generation),
            ));
          const thisTryMs = clock.monotonicMs() - startedMs;
          return {
            sealMs:
              out(context).sealMs ?? Math.max(thisTryMs, sinceTheStop(context) - (out(context).stopMs ?? 0)),
            ...(report ? { unusedBytes: report.unusedBytes, freeMapReason: report.reason } : {}),
          };
        },
        async undo(context) {
          const volume = out(context).subject?.volume;
          if (volume) await source.unseal(context.input.machineId, volume.volumeId, volume.generation);
        },
      },
      {
        name: 'open',
        ...STOPPED,
        async do(context) {
          await orBack(
            context.attempt,
            Promise.all([
              subjectOf(context).volume ? source.releaseExport(context.runId) : null,
              signOfLife(targetOf(context), context),
            ]),
          );
        },
        async undo(context) {
          await refuseWhenItAnswers(context);
          await source.closeExport(context.runId);
        },
      },
      {
        name: 'handoff',
        ...FORWARD,
        pointOfNoReturn: true,
        retry: { initialMs: 50, maxMs: 2_000 },
        async do(context) {
          const peer = targetOf(context);
          let status = await handOver(peer, context, context.attempt === 1);
          while (!reached(status, 'activated')) {
            if (status.phase === 'forgotten') throw new Abort(forgotten(peer.name, status));
            context.waiting(
              `${peer.name} has been told and is opening the volume${status.reason ? `: ${status.reason}` : ''}`,
              status.nextAction ?? 'Nothing to do yet.',
            );
            await clock.sleep(50, context.signal);
            status = await handOver(peer, context, false);
          }
          return {
            handedOverAtMs: clock.wallMs(),
            targetAnsweredAtMs: status.timesMs.answered,
            last: status,
          };
        },
      },
      {
        name: 'settle',
        ...FORWARD,
        async do(context) {
          const peer = targetOf(context);
          let pauseMs = 20;
          for (;;) {
            const status = await watch(peer, context, 'boots the machine');
            if (reached(status, 'healthy')) {
              return {
                interruptionMs: subjectOf(context).running
                  ? interruption(out(context), status.timesMs)
                  : null,
                healthyAtMs: clock.wallMs(),
                last: status,
              };
            }
            context.waiting(
              `${peer.name} boots the machine${status.reason ? `: ${status.reason}` : ''}`,
              status.nextAction ?? 'Nothing to do; the machine is on its way.',
            );
            await clock.sleep(pauseMs, context.signal);
            pauseMs = Math.min(pauseMs * 2, 1_000);
          }
        },
      },
      {
        name: 'detach',
        ...FORWARD,
        async do(context) {
          await source.detach(context.input.machineId);
        },
      },
      {
        name: 'serve',
        ...LONG,
        async do(context) {
          const peer = targetOf(context);
          const subject = subjectOf(context);
          let pauseMs = 20;
          for (;;) {
            await keepExport(context, subject);
            const status = await watch(peer, context, 'fetches the rest');
            if (reached(status, 'hydrated')) return { last: status };
            context.waiting(
              `${peer.name} fetches the blocks that are still only here`,
              'Nothing to do; keep this worker up until then.',
            );
            await clock.sleep(pauseMs, context.signal);
            pauseMs = Math.min(pauseMs * 2, 500);
          }
        },
      },
      {
        name: 'prove',
        ...LONG,
        retry: { initialMs: 500, maxMs: 60_000 },
        async do(context) {
          const subject = subjectOf(context);
          const { volume } = subject;
          // Nothing was fetched: there is nothing to prove.
          if (volume === null) return { bytesAvoided: 0 };
          const { waivedAtMs } = await watch(targetOf(context), context, 'has all blocks');
          if (waivedAtMs !== null) {
            options.receipts.waive(context.runId, waivedAtMs);
            return { waivedAtMs, disputed: null };
          }
          await keepExport(context, subject);
          const { handedOverAtMs, stopStartedAtMs, mended, disputed } = out(context);
          // Once is for good: the guest writes on, and its writes would soon seem to explain it.
          const known = disputed ? GodwitError.fromWire(disputed) : null;
          if (known?.retry === 'never') throw known;
          const bytesAvoided =
            out(context).bytesAvoided ?? (await source.bytesAvoided(volume.volumeId, volume.generation));
          const proving = proveMove({
            moveId: context.runId,
            subject: { ...subject, volume },
            worker: options.worker,
            key: options.key,
            peer: targetOf(context),
            source,
            receipts: options.receipts,
            bytesAvoided,
            times: {
              stopped: subject.running ? (stopStartedAtMs ?? null) : null,
              handedOver: handedOverAtMs ?? clock.wallMs(),
            },
            mended: mended ?? { ranges: 0, bytes: 0, leftBytes: 0 },
            onMended: (sums) => context.put({ mended: sums }),
            onProgress: (bytes) =>
              context.waiting(
                `holding what ${targetOf(context).name} has against the sealed volume`,
                `Nothing to do; keep both workers up until then. ${Math.floor(bytes / 2 ** 30)} GiB are compared.`,
              ),
            clock,
            signal: context.signal,
          });
          const receipt = await proving.catch((error: unknown) => {
            if (isGodwitError(error) && DISPUTES.has(error.code)) context.put({ disputed: error.toWire() });
            throw error;
          });
          return { bytesAvoided, root: verifyReceipt(receipt).root, disputed: null };
        },
      },
      {
        name: 'release',
        ...FORWARD,
        async do(context) {
          const peer = targetOf(context);
          let pauseMs = 20;
          for (;;) {
            const status = await watch(peer, context, 'takes the volume as its own');
            if (reached(status, 'released')) {
              context.put({ last: status });
              break;
            }
            context.waiting(
              `${peer.name} takes the volume as its own`,
              out(context).waivedAtMs === undefined
                ? 'Nothing to do; the receipt is signed.'
                : 'Nothing to do; an operator had it do without the receipt.',
            );
            await clock.sleep(pauseMs, context.signal);
            pauseMs = Math.min(pauseMs * 2, 500);
          }
          await source.closeExport(context.runId);
          const destroyAfterMs = out(context).destroyAfterMs ?? clock.wallMs() + options.retentionMs;
          context.put({ destroyAfterMs });
          await source.retain(
            context.input.machineId,
            subjectOf(context).volume?.volumeId ?? null,
            destroyAfterMs,
          );
        },
      },
    ],
  };

  /**
   * Since the first stop signal, over all attempts: the machine has been down for so long, whichever of them
   * did it.
   */
  function sinceTheStop(context: Context): number {
    return clock.wallMs() - (out(context).stopStartedAtMs ?? clock.wallMs());
  }

  /** A machine that takes its time to stop: each word in the log costs a write, and most are gone before. */
  function sayLater(context: Context): () => void {
    return clock.timer(STOP_SILENCE_MS, () => {
      const { machineName, config } = subjectOf(context);
      try {
        context.waiting(
          `${machineName} is stopping: it has ${config.stop.timeoutMs / 1000} s from ${config.stop.signal} on, then it is killed`,
          `Nothing to do. \`godwit runs cancel ${context.runId}\` kills it now and starts it again here.`,
        );
      } catch {
        // The attempt knows by itself that its journal could not be written.
      }
    });
  }

  /**
   * A target that was said to be destroyed and answers is asked once more before its blocks go. Rejects
   * `MIGRATION_TARGET_HAS_IT`.
   */
  async function refuseWhenItAnswers(context: Context): Promise<void> {
    if (out(context).override !== 'target-is-destroyed') return;
    const status = await peerOf(context)
      ?.cancel(context.runId, { signal: context.signal })
      .catch(() => null);
    if (status && status.phase !== 'forgotten' && status.gone !== true)
      throw hasIt({ id: context.runId }, out(context).target ?? 'the target', status);
  }

  /** The export is there and may be read, also when its shim has ended meanwhile. */
  async function keepExport(context: Context, subject: MoveSubject): Promise<void> {
    if (!subject.volume) return;
    await source.openExport(context.runId, subject, exportedTo(context), out(context).source ?? null);
    await source.releaseExport(context.runId);
  }

  /** Waits until the target answers; unwinds when it does not for too long. */
  async function signOfLife(peer: Peer, context: Context): Promise<void> {
    const untilMs = clock.monotonicMs() + patienceMs;
    for (let pauseMs = 50; ; pauseMs = Math.min(pauseMs * 2, 1_000)) {
      try {
        const status = await peer.status(context.runId, { signal: context.signal });
        if (status.phase === 'forgotten') throw new Abort(forgotten(peer.name, status));
        return;
      } catch (error) {
        if (error instanceof Abort) throw error;
        await waitForTarget(peer, context, error, untilMs, pauseMs);
      }
    }
  }

  /**
   * The target brings what the machine reads at its boot before it asks. A hint: nothing is lost when it does
   * not arrive.
   */
  async function warmTarget(context: Context): Promise<number> {
    const signal = AbortSignal.any([context.signal, AbortSignal.timeout(PATIENCE.warm.ms)]);
    try {
      const heat = await source.heat(context.input.machineId);
      await targetOf(context).warm(context.runId, heat, { signal });
      return heat.regions.length;
    } catch {
      context.signal.throwIfAborted();
      return 0;
    }
  }

  /** `first`: no handoff of this run has left before this one. */
  async function handOver(peer: Peer, context: Context, first: boolean): Promise<TargetStatus> {
    const untilMs = clock.monotonicMs() + patienceMs;
    let nothingSentYet = first;
    const volume = out(context).subject?.volume ?? null;
    const freeMap = volume === null ? null : await source.freeMap(volume.volumeId);
    for (let pauseMs = 50; ; pauseMs = Math.min(pauseMs * 2, 1_000)) {
      try {
        return await peer.handoff(context.runId, { freeMap }, { signal: context.signal });
      } catch (error) {
        nothingSentYet &&= isCertainlyUndelivered(error);
        if (nothingSentYet) {
          await waitForTarget(peer, context, error, untilMs, pauseMs);
          continue;
        }
        throw new GodwitError(
          'MIGRATION_HANDOFF_UNCERTAIN',
          `${peer.name} does not answer, and it may have opened the volume: ${messageOf(error)}`,
          {
            values: { target: peer.name },
            nextAction:
              `Bring ${peer.name} back: it goes on by itself. If that host is lost for good, ` +
              `\`godwit runs force ${context.runId} undo --target-is-destroyed --yes\` starts the machine here from the sealed volume.`,
            cause: error,
          },
        );
      }
    }
  }

  /**
   * A pause, with the reason; an Abort when patience is over. Only while nothing was sent that the target
   * could act upon.
   */
  async function waitForTarget(
    peer: Peer,
    context: Context,
    error: unknown,
    untilMs: number,
    pauseMs: number,
  ): Promise<void> {
    context.signal.throwIfAborted();
    if (clock.monotonicMs() >= untilMs) {
      throw new Abort(
        new GodwitError('MIGRATION_TARGET_LOST', `${peer.name} does not answer: ${messageOf(error)}`, {
          values: { target: peer.name },
          nextAction: `The machine runs here again. See what is wrong with ${peer.name}, then move it again.`,
          cause: error,
        }),
      );
    }
    context.waiting(
      `${peer.name} does not answer: ${messageOf(error)}`,
      `The machine starts here again if ${peer.name} stays away for ${patienceMs / 1000} s.`,
    );
    await clock.sleep(pauseMs, context.signal);
  }

  async function watch(peer: Peer, context: Context, doing: string): Promise<TargetStatus> {
    let status: TargetStatus;
    try {
      status = await peer.status(context.runId, { signal: context.signal });
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
    options.onProgress?.(context.runId, status);
    return status;
  }
}

function forgotten(target: string, status: TargetStatus): GodwitError {
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
