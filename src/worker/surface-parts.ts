import type { ApiApp } from '../api/app.ts';
import { createApiServer } from '../api/server.ts';
import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { traceIdOf } from '../base/trace-context.ts';
import { answering } from '../contract/endpoint.ts';
import { PEER } from '../contract/peer.ts';
import type { RunView } from '../journal/run.ts';
import { MIGRATE_IN } from '../migration/migrate-in.ts';
import { MIGRATE_OUT, type MigrateOutInput } from '../migration/migrate-out.ts';
import { stepOf } from '../migration/move-watch.ts';
import { Overrides } from '../migration/overrides.ts';
import type { ShimStatus } from '../shim/protocol.ts';
import type { TlsIdentity } from '../sys/tls-identity.ts';
import { DownEvents, downConditions } from './down.ts';
import { EventBus } from './event-bus.ts';
import { expositionOf } from './metric.ts';
import { API_METRICS, EVENT_METRICS } from './metric-rows.ts';
import type { PartTable } from './part.ts';
import type { Given, HostParts, MoveParts, SurfaceParts, WorkerParts } from './parts.ts';
import { PlainPeerAnswers } from './plain-peer-answers.ts';
import { localService } from './service.ts';

const VOLUME_TELLS: Readonly<Record<string, string>> = {
  'no-room': 'the disk is full: what it writes anew waits for room, or fails',
  'room-again': 'there is room on the disk again',
};

/** A shim that ends by itself is looked for again after so long. */
const RECOVER_AFTER_MS = 500;

export const SURFACE_PARTS: PartTable<Given & HostParts & MoveParts, SurfaceParts> = {
  events: {
    needs: [],
    make: ({ options, clock }) => new EventBus(options.name, clock),
    metrics: EVENT_METRICS,
  },

  downs: {
    needs: ['events', 'journal', 'machines', 'drain', 'failedTargets', 'progress', 'recovery', 'meters'],
    make(parts) {
      const { events, journal, machines, drain, failedTargets, progress, meters, clock } = parts;
      const downs = new DownEvents((machineId, message, data) =>
        events.emit(data.down ? 'machine-down' : 'machine-up', machineId, message, data),
      );
      journal.subscribe((run, event) => {
        meters.note(run, event);
        downs.note(run, clock.wallMs());
        const message = `${run.kind} ${run.state}${run.step ? ` (${run.step})` : ''}`;
        events.emit('run-changed', run.id, message, {
          ...{ resource: run.resource, state: run.state, step: run.step },
          ...traceOf(run),
        });
        if (run.endedAtMs !== null && run.kind === MIGRATE_OUT) {
          failedTargets.learn(run);
          progress.delete(run.id);
          drain.wake();
          // Its shim may have died while the move had it, and nobody else looked then.
          if (run.state === 'undone') void startAgain(parts, (run.input as MigrateOutInput).machineId);
        }
        // The machine is healthy elsewhere: the next one may go.
        if (run.kind === MIGRATE_OUT && stepOf(run)?.phase === 'after') drain.wake();
      });
      machines.onEvent((machineId, event, data) => {
        tell(events, machineId, event, data);
        if (event === 'shim-closed') void recoverLater(parts, machineId);
        else if (event === 'workload' && (data as { state?: string } | null)?.state === 'stopped')
          void startAgain(parts, machineId);
      });
      return downs;
    },
    conditions: { down: (_, about) => (about.kind === 'machine' ? downConditions(about.view) : []) },
  },

  service: {
    needs: [
      ...(['recovery', 'key', 'receipts', 'machines', 'volumes', 'imports', 'serving', 'journal'] as const),
      ...(['drain', 'targetAnswers', 'source', 'peers', 'desk', 'check', 'load', 'events', 'downs'] as const),
      'openings',
    ],
    make(parts) {
      const { targetAnswers, journal, volumes, load, check, peers, options, version, clock } = parts;
      return localService({
        ...pick(parts, ['recovery', 'receipts', 'machines', 'volumes', 'imports', 'serving', 'journal']),
        ...pick(parts, ['openings', 'drain', 'source', 'desk', 'load', 'events', 'clock']),
        name: options.name,
        url: () => parts.api.url,
        version,
        startedAtMs: clock.wallMs(),
        keyFingerprint: parts.key.fingerprint,
        overrides: new Overrides({ journal, targetAnswers, peers: () => peers, clock }),
        conditions: (about) => parts.conditions(about),
        metrics: () => {
          // For who asks next: nobody waits for a machine.
          void parts.figures.wake();
          return expositionOf(parts.metrics());
        },
        answers: answering(PEER, targetAnswers, new PlainPeerAnswers({ load, check, volumes, journal })),
        peers: () => peers,
        keys: options.keys,
        plane: options.plane,
      });
    },
  },

  api: {
    needs: ['service', 'identity', 'events', 'meters'],
    make: (parts) => Api.make(parts),
    metrics: API_METRICS,
    start: (api, parts) => (api as Api).listen(parts),
    close: (api) => (api as Api).close(),
  },

  resumption: {
    needs: ['api', 'journal', 'targetAnswers', 'recovery', 'imports', 'drain', 'dirtyBound'],
    make: () => ({}),
    async start(_, { dirtyBound, targetAnswers, journal, recovery, imports, drain }) {
      // It asks every shim, which nobody who asks this worker need wait for.
      void dirtyBound.start();
      // Before the journal drops old runs.
      await targetAnswers.noteEnds();
      journal.resume();
      recovery.start();
      await imports.start();
      drain.wake();
    },
  },
};

function pick<T, Key extends keyof T>(from: T, keys: readonly Key[]): Pick<T, Key> {
  return Object.fromEntries(keys.map((key) => [key, from[key]])) as Pick<T, Key>;
}

/** The worker's HTTP server, and where it is reached. */
class Api {
  url: string;
  readonly #app: ApiApp;

  private constructor(app: ApiApp, url: string) {
    this.#app = app;
    this.url = url;
  }

  static async make({
    service,
    identity,
    events,
    options,
    version,
    clock,
    logger,
    meters,
  }: WorkerParts): Promise<Api> {
    const app = await createApiServer({
      service,
      worker: options.name,
      token: options.token,
      logger,
      version,
      tls: identity && { identity, optional: options.tlsOptional },
      clock,
      onAnswered: meters.answered.bind(meters),
      onExhausted: (what) =>
        events.emit('worker-exhausted', options.name, 'the API has no room for more connections', what),
    });
    return new Api(app, options.advertiseUrl ?? '');
  }

  async listen({ options, identity, logger }: WorkerParts): Promise<void> {
    const { listenHost: host, listenPort } = options;
    await this.#app.listen({ host, port: listenPort });
    const address = this.#app.server.address();
    const port = typeof address === 'object' && address !== null ? address.port : listenPort;
    const listenUrl = `${identity ? 'https' : 'http'}://${host.includes(':') ? `[${host}]` : host}:${port}`;
    this.url = options.advertiseUrl ?? listenUrl;
    if (identity) warnOfFlaws(identity, [new URL(this.url).hostname, options.iscsiHost], logger);
  }

  close(): Promise<undefined> {
    return this.#app.close();
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

/**
 * Whoever had the machine has let it go, or has ended it for a restart and died then, and it is still wanted.
 */
async function startAgain({ machines, recovery }: WorkerParts, machineId: string): Promise<void> {
  const record = machines.records().find(({ id }) => id === machineId);
  const isWanted = record?.desired === 'running' && record.claimedBy === null;
  if (recovery.closed || !isWanted || machines.endingSinceMs(machineId) !== null) return;
  recovery.note(await machines.recoverOne(machineId));
}

/** A shim that ends by itself takes its machine with it: what should run is started again. */
async function recoverLater(parts: WorkerParts, machineId: string): Promise<void> {
  const { machines, recovery, clock, logger } = parts;
  if (recovery.closed || !machines.records().some(({ id }) => id === machineId)) return;
  await clock.sleep(RECOVER_AFTER_MS);
  if (recovery.closed) return;
  await machines
    .recover((recovered) => {
      recovery.note(recovered);
      const { error } = recovered;
      if (error) logger.error({ machineId, error: error.toWire() }, 'not recovered');
    })
    .catch((error: unknown) => logger.error({ machineId, reason: messageOf(error) }, 'recovery failed'));
}

/** The move that a run belongs to, on whichever side of it, and its trace. */
function traceOf(run: RunView): { moveId?: string; traceId: string } {
  const { runId = run.id } = run.kind === MIGRATE_IN ? (run.input as { runId?: string }) : {};
  const isMove = run.kind === MIGRATE_IN || run.kind === MIGRATE_OUT;
  return { ...(isMove && { moveId: runId }), traceId: traceIdOf(runId) };
}

/** What a shim tells of its machine. What a volume server tells of its disk is worth a sentence. */
function tell(events: EventBus, machineId: string, event: string, data: unknown): void {
  if (event === 'workload') {
    // Null: it has none, as one that only serves a volume.
    const { state, health, exitCode, exitSignal } = (data ?? {}) as Partial<
      NonNullable<ShimStatus['workload']>
    >;
    events.emit('machine-workload', machineId, event, { state, health, exitCode, exitSignal });
  } else if (event === 'volume') {
    const { event: told = '' } = (data ?? {}) as { event?: string };
    events.emit('machine-volume', machineId, VOLUME_TELLS[told] ?? event, { event: told });
  } else if (event === 'shim-closed') events.emit('machine-shim-closed', machineId, event);
}
