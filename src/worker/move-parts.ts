import { PeerClient } from '../api/peer-client.ts';
import { isGodwitError, toWireError } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import { crashPointsFromEnvironment } from '../journal/crash-points.ts';
import { Journal } from '../journal/journal.ts';
import type { RunDefinition, RunView } from '../journal/run.ts';
import { DRAIN_LIMITS, DrainController } from '../migration/drain.ts';
import { FailedTargets } from '../migration/failed-targets.ts';
import { MoveInbox } from '../migration/inbox.ts';
import { MIGRATE_IN, migrateIn } from '../migration/migrate-in.ts';
import { MIGRATE_OUT, type MigrateOutOutput, migrateOut } from '../migration/migrate-out.ts';
import { ownsMachine } from '../migration/move-watch.ts';
import { noCapacity, OfferDesk, offerRequest } from '../migration/offers.ts';
import { chooseOffer } from '../migration/placement.ts';
import { ReceiptBook } from '../migration/receipt-book.ts';
import { Reservations } from '../migration/reservations.ts';
import { RunTimes } from '../migration/run-times.ts';
import { TargetAnswers } from '../migration/target-answers.ts';
import type { Condition } from './condition.ts';
import { drainConditions, drainOfMachine } from './drain-conditions.ts';
import { drainRuns } from './drain-runs.ts';
import { localMachines, volumesWithoutMachine } from './local-machines.ts';
import { exporterOf, LocalSourceSide } from './local-source-side.ts';
import { LocalTargetSide } from './local-target-side.ts';
import { DRAIN_METRICS, PEER_METRICS, RUN_METRICS } from './metric-rows.ts';
import type { PartTable } from './part.ts';
import type { Given, HostParts, MoveParts, SurfaceParts, WorkerParts } from './parts.ts';
import { MachineRecovery, recoveryConditions } from './recovery.ts';
import { runConditions } from './run-conditions.ts';
import { servingConditions } from './volume-conditions.ts';
import { serverConditions } from './volume-server-looks.ts';

const VERDICT_KEEP_MS = 90 * 24 * 3_600_000;
/**
 * A worker that is told to end lets steps come to a safe point for so long; they go on at the next start
 * anyway.
 */
const CLOSE_GRACE_MS = PATIENCE.workerClose.ms;

export const MOVE_PARTS: PartTable<Given & HostParts & SurfaceParts, MoveParts> = {
  peers: {
    needs: ['identity', 'meters'],
    metrics: PEER_METRICS,
    make: ({ options: { peers, token }, identity, meters, edges, clock, logger }) =>
      peers.map(({ name, url }) => {
        const transport = edges.transport({ name, url, token, tls: identity });
        const onCalled = meters.peerCalled.bind(meters, name);
        return new PeerClient({ name, url, transport, clock, logger, onCalled });
      }),
  },

  desk: { needs: ['peers'], make: ({ peers, clock }) => new OfferDesk({ peers: () => peers, clock }) },

  inbox: {
    needs: ['state'],
    make({ state, clock }) {
      const inbox = new MoveInbox(state, clock);
      inbox.prune(clock.wallMs() - VERDICT_KEEP_MS);
      return inbox;
    },
  },

  receipts: { needs: ['state'], make: ({ state }) => new ReceiptBook(state) },
  reservations: { needs: [], make: ({ clock }) => new Reservations(clock) },
  times: { needs: [], make: ({ clock }) => new RunTimes(clock) },
  failedTargets: { needs: [], make: ({ clock }) => new FailedTargets(clock) },
  progress: { needs: [], make: () => new Map() },

  source: {
    needs: ['machines', 'openings', 'volumes'],
    make: ({ machines, openings, volumes, options: { iscsiHost, tls, plane }, clock, random, logger }) =>
      new LocalSourceSide({ machines, openings, volumes, random, clock, iscsiHost, tls, plane, logger }),
    conditions: {
      export: (_, about, parts) =>
        about.kind === 'machine' || about.kind === 'run' ? exportConditions(parts, about.runs) : [],
    },
  },

  target: {
    needs: ['check', 'machines', 'volumes', 'access', 'folder', 'load', 'peers'],
    make: ({ check, machines, volumes, access, folder, load, peers, options, clock }) =>
      new LocalTargetSide({
        check,
        machines,
        volumes,
        access,
        validityDir: folder.paths.validityDir,
        load,
        peers: () => peers,
        headerOf: async (sourceWorker, volumeId) => {
          const peer = peers.find(({ name }) => name === sourceWorker);
          if (!peer) throw new Error(`worker ${sourceWorker} is not among the peers of this worker`);
          return Buffer.from(await peer.volumeHeader(volumeId), 'base64');
        },
        keys: options.keys,
        hydrationRateBytesPerSecondMax: options.hydrationRateBytesPerSecondMax,
        clock,
      }),
  },

  journal: {
    needs: [
      ...(['source', 'target', 'peers', 'desk', 'failedTargets', 'key', 'receipts', 'inbox'] as const),
      ...(['times', 'progress'] as const),
    ],
    make(parts) {
      const { folder, machines, failedTargets, clock, random, logger, environment, edges } = parts;
      const journal = new Journal({
        database: edges.journal(folder.paths.journal),
        clock,
        random,
        logger,
        definitions: moves(parts),
        crashPoints: crashPointsFromEnvironment(environment),
      });
      for (const { id } of machines.records()) {
        const resource = `machine:${id}`;
        for (const run of journal.find({ kind: MIGRATE_OUT, resource, limit: 3 }).reverse())
          failedTargets.learn(run);
      }
      return journal;
    },
    close: (journal) => journal.close({ graceMs: CLOSE_GRACE_MS }),
    metrics: RUN_METRICS,
    conditions: {
      runs: (_, about, { clock }) =>
        about.kind === 'worker' ? [] : about.runs.flatMap((run) => runConditions(run, clock.wallMs())),
    },
  },

  drain: {
    needs: ['state', 'journal', 'machines', 'volumes', 'progress', 'source', 'desk'],
    make: (parts) => drainController(parts),
    rest: (drain) => drain.close(),
    metrics: DRAIN_METRICS,
    conditions: {
      drain(_, about) {
        if (about.kind === 'worker') return drainConditions(about.drain);
        return about.kind === 'machine' ? drainOfMachine(about.record, about.runs, about.drain) : [];
      },
    },
  },

  targetAnswers: {
    needs: ['journal', 'inbox', 'target', 'key', 'receipts', 'reservations', 'times'],
    make({ journal, inbox, target, key, receipts, reservations, times, options, clock, logger }) {
      const worker = options.name;
      const targetAnswers = new TargetAnswers({
        journal,
        inbox,
        target,
        clock,
        times,
        worker,
        key,
        receipts,
        reservations,
      });
      journal.subscribe((run) => {
        // One that is not noted now is at the next start.
        targetAnswers.noteEnd(run).catch((error: unknown) => {
          logger.error(
            { runId: run.id, error: toWireError(error) },
            'the end of a move was not written down',
          );
        });
      });
      return targetAnswers;
    },
  },

  recovery: {
    needs: ['machines', 'volumes', 'journal', 'source'],
    make: ({ machines, volumes, journal, source, options, clock, logger }) =>
      new MachineRecovery({
        machines,
        volumes,
        run: (id) => {
          try {
            return journal.get(id);
          } catch (error) {
            if (isGodwitError(error, 'JOURNAL_UNKNOWN_RUN')) return null;
            throw error;
          }
        },
        closeExport: (runId) => source.closeExport(runId),
        retentionMs: options.retainMs,
        clock,
        logger,
      }),
    // What is known of them is what the API tells: before it serves.
    async start(recovery, { machines, clock, logger }) {
      await recovery.freeVolumes();
      const recovering = machines.recover((recovered) => {
        const { machineId, outcome, error } = recovered;
        recovery.note(recovered);
        logger.info({ machineId, outcome, error: error?.toWire() }, 'recovered');
      });
      // A machine whose source is away, or whose shim hangs, takes as long as it takes; nobody else waits for
      // it, nor whoever asks this worker.
      await Promise.race([recovering, clock.sleep(PATIENCE.firstRecovery.ms)]);
    },
    rest: (recovery) => recovery.close(),
    conditions: {
      recovery: (recovery, about) =>
        about.kind === 'machine' ? recoveryConditions(recovery.trouble(about.record.id), about.record) : [],
    },
  },
};

/**
 * Of moves away from here that need their export: that it hangs. Its target says only that the source does
 * not answer.
 */
async function exportConditions(
  { openings, looks, clock }: WorkerParts,
  runs: readonly RunView[],
): Promise<Condition[]> {
  const open = runs.filter(({ kind, endedAtMs }) => kind === MIGRATE_OUT && endedAtMs === null);
  const all = await Promise.all(
    open.map(async ({ id, output }) => {
      const exporter = exporterOf(id);
      const client = await openings.client(exporter);
      if (client === null) return [];
      const { status, silentForMs } = await openings.look(exporter);
      const name = `the export of ${(output as MigrateOutOutput).subject?.machineName ?? id}`;
      const runtimeDir = openings.runtimeDir(exporter);
      const answers = silentForMs === null && status?.volume;
      const server = answers ? await looks.look(id, client, answers.serverPid) : null;
      return [
        ...servingConditions(silentForMs, runtimeDir, name, clock.wallMs()),
        ...serverConditions(server, runtimeDir, name),
      ];
    }),
  );
  return all.flat();
}

function moves(parts: WorkerParts): RunDefinition<never>[] {
  const {
    source,
    target,
    peers,
    desk,
    failedTargets,
    key,
    receipts,
    inbox,
    times,
    progress,
    options,
    clock,
  } = parts;
  const worker = {
    name: options.name,
    get url() {
      return parts.api.url;
    },
  };
  return [
    migrateOut({
      source,
      peers: () => peers,
      desk,
      failedTargets: (machineId) => failedTargets.of(machineId),
      clock,
      worker,
      key,
      receipts,
      retentionMs: options.retainMs,
      onProgress: (runId, status) => progress.set(runId, status),
    }),
    migrateIn({ target, inbox, receipts, clock, times }),
  ] as RunDefinition<never>[];
}

function drainController(parts: WorkerParts): DrainController {
  const { state, journal, machines, volumes, progress, source, desk, options, clock, logger } = parts;
  return new DrainController({
    worker: options.name,
    database: state,
    clock,
    logger,
    limits: DRAIN_LIMITS,
    machines: async () => {
      const notYetOurs = new Set(
        journal
          .open({ kind: MIGRATE_IN })
          .filter((run) => !ownsMachine(run))
          .map((run) => (run.input as PrepareRequest).machineId),
      );
      const local = await localMachines(machines, volumes);
      return local.filter(({ machineId }) => !notYetOurs.has(machineId));
    },
    volumes: () => volumesWithoutMachine(machines, volumes),
    runs: drainRuns(journal),
    onEnded: () => parts.events.emit('drain-ended', options.name, 'drained'),
    live: (runId) => progress.get(runId) ?? null,
    precheck: async (machineId, wanted) => {
      const subject = await source.describe(machineId);
      const request = offerRequest(options.name, subject);
      const choice = chooseOffer(await desk.ask({ wanted, request }));
      if (!choice.chosen) throw noCapacity(subject.machineName, wanted, choice.reasons);
    },
    start: (machineId, targetWorker, { rekey }) =>
      journal.start(MIGRATE_OUT, {
        machineId,
        targetWorker,
        requestedBy: 'drain',
        ...(rekey && { rekey: true }),
      }),
  });
}
