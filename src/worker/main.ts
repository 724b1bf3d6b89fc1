import { closeSync, openSync, readFileSync, rmdirSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import pino from 'pino';
import { HttpPeer } from '../api/peer-client.ts';
import { createApiServer } from '../api/server.ts';
import { systemClock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf, toWireError } from '../base/errors.ts';
import { logDestination } from '../base/log-destination.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { systemRandom } from '../base/random.ts';
import { answering } from '../contract/endpoint.ts';
import { PEER, type PrepareRequest, type TargetStatus } from '../contract/peer.ts';
import { MountProof } from '../host/mount-proof.ts';
import { crashPointsFromEnvironment } from '../journal/crash-points.ts';
import { Journal } from '../journal/journal.ts';
import type { RunDefinition, RunView } from '../journal/run.ts';
import { MachineManager } from '../machine/manager.ts';
import { MachineStore } from '../machine/store.ts';
import { DRAIN_LIMITS, DrainController, type DrainRuns, type LocalMachine } from '../migration/drain.ts';
import { FailedTargets } from '../migration/failed-targets.ts';
import { MoveInbox } from '../migration/inbox.ts';
import { MIGRATE_IN, migrateIn } from '../migration/migrate-in.ts';
import { MIGRATE_OUT, migrateOut } from '../migration/migrate-out.ts';
import { MoveReceiver } from '../migration/move-receiver.ts';
import { noCapacity, OfferDesk, offerRequest } from '../migration/offers.ts';
import { Overrides } from '../migration/overrides.ts';
import { chooseOffer } from '../migration/placement.ts';
import { ReceiptBook } from '../migration/receipt-book.ts';
import { Reservations } from '../migration/reservations.ts';
import { openWorkerKey } from '../receipt/worker-key.ts';
import { lockExclusive } from '../sys/file-lock.ts';
import { fileSystemOf } from '../sys/file-system.ts';
import { keepOutOfDumps } from '../sys/secret-memory.ts';
import { TlsIdentity } from '../sys/tls-identity.ts';
import { VolumeStore } from '../volume/index.ts';
import { Ballast } from './ballast.ts';
import { claimDataFolder } from './data-owner.ts';
import { DirtyBound } from './dirty-bound.ts';
import { DownEvents } from './down.ts';
import { EventBus } from './event-bus.ts';
import { hostCheck } from './host-check.ts';
import { Imports } from './imports.ts';
import { requireKernelPlane } from './kernel-plane.ts';
import { hostLoad, lackingOnThisHost } from './load.ts';
import { Neighbour } from './neighbour.ts';
import { hiddenFolders, type RunningWorker, type WorkerOptions } from './options.ts';
import { makeFolders, workerPaths } from './paths.ts';
import { MachineRecovery } from './recovery.ts';
import { LocalService, ownsMachine } from './service.ts';
import { Serving } from './serving.ts';
import { SourceHost } from './source-host.ts';
import { TargetHost } from './target-host.ts';
import { VolumeAccess } from './volume-access.ts';

const clock = systemClock;
const random = systemRandom;
const SWEEP_MS = PAUSE.sweep.ms;
const VERDICT_KEEP_MS = 90 * 24 * 3_600_000;
/** A worker that is told to end lets steps come to a safe point for so long; they go on at the next start anyway. */
const CLOSE_GRACE_MS = PATIENCE.workerClose.ms;

/**
 * One worker, put together. Order matters: records, then shims that run, then the journal's runs, then the API; so that whoever can ask finds
 * everything in place. Rejects `WORKER_ALREADY_RUNS` when another process has the data folder.
 */
export async function startWorker(options: WorkerOptions): Promise<RunningWorker> {
  const logger: Logger = pino({ level: options.logLevel, base: { worker: options.name } }, logDestination(2));
  const startedAtMs = clock.wallMs();
  // New volumes and new keys: this process holds them while it makes the header.
  if (options.keys !== null) keepOutOfDumps();
  // Bad certificate files are found now and not in the middle of a move.
  const identity = options.tls && new TlsIdentity(options.tls, logger);
  if (options.plane === 'kernel') await requireKernelPlane();
  const paths = workerPaths(options.dataDir);
  makeFolders(paths);
  const lockFd = lockDataFolder(paths.lock, options.dataDir);

  const ballast = new Ballast({
    path: paths.ballast,
    look: () => fileSystemOf(options.dataDir),
    clock,
    logger,
  });
  await ballast.start();

  const state = new DatabaseSync(paths.state);
  state.exec('PRAGMA journal_mode = WAL');
  state.exec('PRAGMA synchronous = FULL');
  claimDataFolder(state, options.name, options.dataDir);
  const inbox = new MoveInbox(state);
  inbox.prune(clock.wallMs() - VERDICT_KEEP_MS);

  const receipts = new ReceiptBook(state);
  const key = openWorkerKey(paths.key);

  const { headerFileBytes } = options;
  const volumes = await VolumeStore.open(options.dataDir, { clock, random, logger, headerFileBytes });
  // The steps of the journal need the machines, and the machines need to know of the journal's runs.
  let journal: Journal | null = null;
  const openRuns = (kind: string): RunView[] => journal?.open({ kind }) ?? [];
  const incoming = (): PrepareRequest[] => openRuns(MIGRATE_IN).map((run) => run.input as PrepareRequest);
  const access = new VolumeAccess({
    volumes,
    validityDir: paths.validityDir,
    tls: options.tls,
    plane: options.plane,
    keys: options.keys,
    incoming: (volumeId) => incoming().find((request) => request.volume?.volumeId === volumeId) ?? null,
    hydrationRateBytesPerSecondMax: options.hydrationRateBytesPerSecondMax,
    whenFull: options.whenFull,
    beforeAttach: async (record) => {
      await serving.refuseServed(record);
      await imports.release(record.id);
    },
  });
  const hidden = hiddenFolders(options);
  const machines = await MachineManager.open({
    store: await MachineStore.open(options.dataDir),
    volumes: access,
    runtimeRoot: paths.runtimeRoot,
    hidden,
    clock,
    random,
    logger,
  });
  for (const { file, error } of machines.broken)
    logger.error({ file, error: error.toWire() }, 'a record cannot be read');

  const serving: Serving = new Serving({
    machines,
    volumes,
    keys: options.keys,
    whenFull: options.whenFull,
    tls: options.tls,
    hidden,
    random,
    clock,
    logger,
  });
  const imports: Imports = new Imports({
    machines,
    volumes,
    access,
    validityDir: paths.validityDir,
    hidden,
    load: () => load(),
    clock,
    random,
    logger,
    onWhole: (record) => events.emit('volume', record.id, `${record.name} is imported and whole`),
  });

  const peers = options.peers.map(
    ({ name, url }) => new HttpPeer({ name, url, token: options.token, tls: identity ?? undefined, logger }),
  );
  const desk = new OfferDesk({ peers: () => peers, clock });
  let url = options.advertiseUrl ?? '';
  const draining = () => drain?.desired === true;
  const reservations = new Reservations(clock);
  const load = (forRun?: string) =>
    hostLoad(
      { ...options, validityDir: paths.validityDir },
      machines,
      volumes,
      [...incoming(), ...reservations.held(forRun)],
      imports.arriving(),
      draining(),
      lackingOnThisHost,
    );
  const source = new SourceHost({
    machines,
    volumes,
    random,
    clock,
    iscsiHost: options.iscsiHost,
    tls: options.tls,
    plane: options.plane,
    logger,
  });
  const check = hostCheck({ machines, proof: new MountProof({ dir: paths.mountProofs, clock }), logger });
  const target = new TargetHost({
    check,
    machines,
    volumes,
    access,
    validityDir: paths.validityDir,
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
  });
  const progress = new Map<string, TargetStatus>();
  const failedTargets = new FailedTargets(clock);
  const worker = {
    name: options.name,
    get url() {
      return url;
    },
  };
  const definitions = [
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
    migrateIn({ target, inbox, receipts, clock }),
  ] as RunDefinition<never>[];
  journal = new Journal({
    database: paths.journal,
    clock,
    random,
    logger,
    definitions,
    crashPoints: crashPointsFromEnvironment(process.env),
  });
  const runs = journal;
  for (const { machineId } of machines.records().map(({ id }) => ({ machineId: id }))) {
    const resource = `machine:${machineId}`;
    for (const run of runs.find({ kind: MIGRATE_OUT, resource, limit: 3 }).reverse())
      failedTargets.learn(run);
  }

  const drain: DrainController = new DrainController({
    worker: options.name,
    database: state,
    clock,
    logger,
    limits: DRAIN_LIMITS,
    machines: async () => {
      const notYetOurs = new Set(
        openRuns(MIGRATE_IN)
          .filter((run) => !ownsMachine(run))
          .map((run) => (run.input as PrepareRequest).machineId),
      );
      const local = await localMachines(machines, volumes);
      return local.filter(({ machineId }) => !notYetOurs.has(machineId));
    },
    volumes: () => volumesWithoutMachine(machines, volumes),
    runs: drainRuns(runs),
    live: (runId) => progress.get(runId) ?? null,
    precheck: async (machineId, wanted) => {
      const subject = await source.describe(machineId);
      const request = offerRequest(options.name, subject);
      const choice = chooseOffer(await desk.ask({ wanted, request }));
      if (!choice.chosen) throw noCapacity(subject.machineName, wanted, choice.reasons);
    },
    start: (machineId, targetWorker, { rekey }) =>
      runs.start(MIGRATE_OUT, {
        machineId,
        targetWorker,
        requestedBy: 'drain',
        ...(rekey && { rekey: true }),
      }),
  });

  const events = new EventBus(options.name, clock);
  const downs = new DownEvents((machineId, message, data) =>
    events.emit('machine', machineId, message, data),
  );
  runs.subscribe((run) => {
    downs.note(run, clock.wallMs());
    const message = `${run.kind} ${run.state}${run.step ? ` (${run.step})` : ''}`;
    events.emit('run', run.id, message, { resource: run.resource, state: run.state, step: run.step });
    if (run.endedAtMs !== null && run.kind === MIGRATE_OUT) {
      failedTargets.learn(run);
      progress.delete(run.id);
      drain.wake();
    }
    // The machine is healthy elsewhere: the next one may go.
    if (run.step === 'serve') drain.wake();
  });
  machines.onEvent((machineId, event, data) => {
    events.emit('machine', machineId, eventText(event, data));
    if (event === 'shim-closed') void recoverLater(machineId);
  });

  const receiver = new MoveReceiver({
    journal: runs,
    inbox,
    target,
    clock,
    worker: options.name,
    key,
    receipts,
    reservations,
  });
  runs.subscribe((run) => {
    // One that is not noted now is at the next start.
    receiver.noteEnd(run).catch((error: unknown) => {
      logger.error({ runId: run.id, error: toWireError(error) }, 'the end of a move was not written down');
    });
  });
  const recovery = new MachineRecovery({
    machines,
    volumes,
    run: (id) => {
      try {
        return runs.get(id);
      } catch (error) {
        if (isGodwitError(error, 'JOURNAL_UNKNOWN_RUN')) return null;
        throw error;
      }
    },
    closeExport: (runId) => source.closeExport(runId),
    retentionMs: options.retainMs,
    clock,
    logger,
  });
  const service = new LocalService({
    recovery,
    name: options.name,
    url: () => url,
    version: packageVersion(),
    startedAtMs,
    keyFingerprint: key.fingerprint,
    receipts,
    machines,
    volumes,
    imports,
    serving,
    journal: runs,
    drain,
    receiver,
    overrides: new Overrides({ journal: runs, receiver, peers: () => peers, clock }),
    source,
    answers: answering(PEER, receiver, new Neighbour({ load, check, volumes, journal: runs })),
    peers: () => peers,
    desk,
    check,
    keys: options.keys,
    plane: options.plane,
    load,
    events,
    clock,
  });
  const api = await createApiServer({
    service,
    worker: options.name,
    token: options.token,
    logger,
    version: packageVersion(),
    tls: identity && { identity, optional: options.tlsOptional },
    clock,
    onExhausted: (what) =>
      events.emit('worker', options.name, 'the API has no room for more connections', what),
  });

  await recovery.freeVolumes();
  const recovering = machines.recover((recovered) => {
    const { machineId, outcome, error } = recovered;
    recovery.note(recovered);
    logger.info({ machineId, outcome, error: error?.toWire() }, 'recovered');
  });
  // A machine whose source is away, or whose shim hangs, takes as long as it takes; nobody else waits for
  // it, nor whoever asks this worker.
  await Promise.race([recovering, clock.sleep(PATIENCE.firstRecovery.ms)]);
  const dirtyBound = new DirtyBound({
    look: () => fileSystemOf(options.dataDir),
    devices: async () =>
      (await machines.list()).flatMap(({ shim }) => (shim?.volume?.mounted && shim.volume.loopDevice) || []),
    clock,
    logger,
  });
  await api.listen({ host: options.listenHost, port: options.listenPort });
  // It asks every shim, which nobody who asks this worker need wait for.
  void dirtyBound.start();
  const address = api.server.address();
  const port = typeof address === 'object' && address !== null ? address.port : options.listenPort;
  const scheme = identity ? 'https' : 'http';
  const listenUrl = `${scheme}://${options.listenHost.includes(':') ? `[${options.listenHost}]` : options.listenHost}:${port}`;
  url = options.advertiseUrl ?? listenUrl;
  if (identity) warnOfFlaws(identity, [new URL(url).hostname, options.iscsiHost], logger);
  // Before the journal drops old runs.
  await receiver.noteEnds();
  runs.resume();
  recovery.start();
  await imports.start();
  drain.wake();

  const sweep = setInterval(() => {
    volumes
      .sweepRetained(options.retainMs)
      .catch((error: unknown) => logger.error({ error: toWireError(error) }, 'sweep failed'));
  }, SWEEP_MS);
  sweep.unref();
  logger.info({ url, dataDir: options.dataDir, keyFingerprint: key.fingerprint }, 'worker is up');

  let closing: Promise<void> | null = null;
  return {
    url,
    close: () => {
      closing ??= close();
      return closing;
    },
  };

  async function close(): Promise<void> {
    clearInterval(sweep);
    dirtyBound.close();
    ballast.close();
    imports.close();
    recovery.close();
    drain.close();
    await api.close();
    await runs.close({ graceMs: CLOSE_GRACE_MS });
    machines.close();
    state.close();
    // Nothing to do with it while clones are here; a worker without any leaves no trace outside of its data folder.
    try {
      rmdirSync(paths.validityDir);
    } catch {}
    closeSync(lockFd);
    logger.info({}, 'worker ends; machines go on');
  }

  /** A shim that ends by itself takes its machine with it: what should run is started again. */
  async function recoverLater(machineId: string): Promise<void> {
    if (closing !== null || !machines.records().some(({ id }) => id === machineId)) return;
    await clock.sleep(500);
    if (closing !== null) return;
    await machines
      .recover((recovered) => {
        recovery.note(recovered);
        const { error } = recovered;
        if (error) logger.error({ machineId, error: error.toWire() }, 'not recovered');
      })
      .catch((error: unknown) => logger.error({ machineId, reason: messageOf(error) }, 'recovery failed'));
  }
}

/** What a volume server tells of its disk is worth a sentence; the rest has its name. */
function eventText(event: string, data: unknown): string {
  if (event !== 'volume') return event;
  const told = (data as { event?: string } | null)?.event;
  if (told === 'no-room') return 'the disk is full: what it writes anew waits for room, or fails';
  if (told === 'room-again') return 'there is room on the disk again';
  return event;
}

/** The moves of a drain, from the journal. */
function drainRuns(journal: Journal): DrainRuns {
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

/** Those that count: not the copies that moves left behind, and not what is on its way. */
async function volumesWithoutMachine(
  machines: MachineManager,
  volumes: VolumeStore,
): Promise<{ volumeId: string; name: string; usedBytes: number }[]> {
  const owners = new Set(machines.records().map(({ id }) => id));
  const { volumes: all } = await volumes.list();
  const left = all.filter(
    ({ state, machineId }) =>
      (state === 'ready' || state === 'clone') && (machineId === null || !owners.has(machineId)),
  );
  return Promise.all(
    left.map(async ({ id, name }) => ({
      volumeId: id,
      name,
      usedBytes: await volumes.usedBytes(id).catch(() => 0),
    })),
  );
}

async function localMachines(machines: MachineManager, volumes: VolumeStore): Promise<LocalMachine[]> {
  return Promise.all(
    machines.records().map(async (record): Promise<LocalMachine> => {
      const volumeId = record.config.volume?.volumeId;
      const volume = volumeId === undefined ? null : await volumes.get(volumeId).catch(() => null);
      return {
        machineId: record.id,
        name: record.name,
        volumeBytes: volume?.lengthBytes ?? 0,
        usedBytes: volume ? await volumes.usedBytes(volume.id).catch(() => 0) : 0,
      };
    }),
  );
}

function lockDataFolder(path: string, dataDir: string): number {
  const fd = openSync(path, 'a', 0o600);
  try {
    lockExclusive(fd);
    return fd;
  } catch (error) {
    closeSync(fd);
    if (!isGodwitError(error, 'SYS_LOCKED')) throw error;
    throw new GodwitError('WORKER_ALREADY_RUNS', `another worker process has ${dataDir}`, {
      values: { dataDir },
      nextAction:
        'One data folder belongs to one worker: end the other process, or give this one another --data.',
      cause: error,
    });
  }
}

/** What peers will say about the certificate is better known before the first move. */
function warnOfFlaws(identity: TlsIdentity, hosts: readonly string[], logger: Logger): void {
  for (const host of new Set(hosts)) {
    const flaw = identity.flaw(host);
    if (flaw === null) continue;
    const { certFile } = identity.files;
    logger.warn({ certFile, host }, `other workers will refuse the certificate of this one: ${flaw}`);
  }
}

function packageVersion(): string {
  const manifest = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  return manifest.version;
}
