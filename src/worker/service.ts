import { join } from 'node:path';
import { isInClear } from '../api/peer-client.ts';
import type { WorkerService } from '../api/service.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { Offer, Peer, PeerAnswers, PlacementRequest } from '../contract/peer.ts';
import type {
  AcceptLossRequest,
  ApiEvent,
  CreateMachineRequest,
  CreateVolumeRequest,
  DrainRequest,
  DrainStatus,
  ExecReply,
  ExecRequest,
  ExecStart,
  ForceRunRequest,
  ImportVolumeRequest,
  LogsQuery,
  MachineState,
  MachineView,
  MoveRequest,
  Plan,
  PlanQuery,
  RecoverVolumeRequest,
  RunsQuery,
  ServeReply,
  ServeVolumeRequest,
  VolumeView,
  Why,
  WorkerView,
} from '../contract/schemas.ts';
import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import { ailmentOf } from '../machine/ailment.ts';
import { type ExecSession, type SessionOutput, startSession } from '../machine/exec-session.ts';
import type { MachineManager, MachineShow } from '../machine/manager.ts';
import type { MachineRecord } from '../machine/store.ts';
import type { DrainController, DrainView } from '../migration/drain.ts';
import { MIGRATE_IN, phaseOf } from '../migration/migrate-in.ts';
import { MIGRATE_OUT, type MigrateOutInput, type MigrateOutOutput } from '../migration/migrate-out.ts';
import type { MoveReceiver } from '../migration/move-receiver.ts';
import { type OfferDesk, offerRequest } from '../migration/offers.ts';
import type { Overrides } from '../migration/overrides.ts';
import { evaluateOffer, type HostLoad, unpromisedDiskBytes } from '../migration/placement.ts';
import { type PlanSubject, planDrain } from '../migration/plan.ts';
import type { ReceiptBook } from '../migration/receipt-book.ts';
import type { SourceSide } from '../migration/source-side.ts';
import type { Receipt } from '../receipt/envelope.ts';
import {
  diskReserveBytes,
  type KeySource,
  noKeysError,
  readDataLoss,
  VOLUME_FILES,
  type VolumeRecord,
  type VolumeServerStatus,
  type VolumeStore,
} from '../volume/index.ts';
import type { DiskLook } from './disk-look.ts';
import { downByMove, downByTrouble } from './down.ts';
import type { EventBus } from './event-bus.ts';
import { moveHistory } from './history.ts';
import type { HostCheck } from './host-check.ts';
import type { Imports } from './imports.ts';
import { placementOf } from './load.ts';
import type { WorkerOptions } from './options.ts';
import type { MachineRecovery } from './recovery.ts';
import type { Serving } from './serving.ts';
import { exportShimId } from './source-host.ts';
import { isAttached } from './volume-access.ts';
import { type ServerTrouble, VolumeServerLooks } from './volume-server-looks.ts';
import {
  beginningConditions,
  dataLossConditions,
  diskConditions,
  downConditions,
  drainConditions,
  machineConditions,
  noRoomConditions,
  recoveryConditions,
  runConditions,
  serverConditions,
  servingConditions,
  silentConditions,
  stoppingConditions,
  volumeConditions,
} from './why.ts';

const BLOCK_BYTES = 4096;
/** How long a restart over the API waits for the machine to be healthy again. */
const RESTART_HEALTHY_MS = PATIENCE.restartHealthy.ms;

/** How long an answer to a forced end is held back for what the run leaves behind to be given back. */
const FORGET_WAIT_MS = PATIENCE.forgetAnswer.ms;

export type ServiceOptions = {
  name: string;
  url: () => string;
  version: string;
  startedAtMs: number;
  /** Of the key that signs receipts. */
  keyFingerprint: string;
  receipts: ReceiptBook;
  machines: MachineManager;
  volumes: VolumeStore;
  imports: Imports;
  serving: Serving;
  journal: Journal;
  drain: DrainController;
  receiver: MoveReceiver;
  overrides: Overrides;
  recovery: MachineRecovery;
  source: SourceSide;
  /** What neighbours are answered. */
  answers: PeerAnswers;
  peers: () => readonly Peer[];
  desk: OfferDesk;
  check: HostCheck;
  disk: DiskLook;
  /** Of encrypted volumes; null: none. */
  keys: KeySource | null;
  plane: WorkerOptions['plane'];
  load: () => Promise<HostLoad>;
  events: EventBus;
  clock: Clock;
};

/** What this worker answers over HTTP. */
export class LocalService implements WorkerService {
  readonly #o: ServiceOptions;
  readonly peers: PeerAnswers;
  /** Machines, by name, that were admitted and are perhaps not among what the host's load counts yet. */
  readonly #beginning = new Map<string, PlacementRequest>();
  /** Names of volumes that are being made. */
  readonly #volumesBeingMade = new Set<string>();

  readonly #serverLooks: VolumeServerLooks;

  constructor(options: ServiceOptions) {
    this.#o = options;
    this.peers = options.answers;
    this.#serverLooks = new VolumeServerLooks(options.clock);
  }

  async worker(): Promise<WorkerView> {
    const load = await this.#o.load();
    const memory = load.placed.reduce((sum, placed) => sum + placed.memoryBytes, 0);
    const cpus = load.placed.reduce((sum, placed) => sum + placed.cpus, 0);
    const { volumes } = await this.#o.volumes.list();
    return {
      name: this.#o.name,
      url: this.#o.url(),
      version: this.#o.version,
      pid: process.pid,
      startedAtMs: this.#o.startedAtMs,
      keyFingerprint: this.#o.keyFingerprint,
      draining: load.draining,
      capacity: { memoryBytes: load.memoryBytes, cpus: load.cpus, diskBytes: load.totalDiskBytes },
      free: {
        memoryBytes: Math.max(0, load.memoryBytes - memory),
        cpus: Math.max(0, load.cpus - cpus),
        diskBytes: Math.max(0, Math.floor(unpromisedDiskBytes(load))),
      },
      machines: this.#o.machines.records().length,
      volumes: volumes.length,
      peers: this.#o.peers().map(({ name, url }) => ({ name, url })),
    };
  }

  async listMachines(): Promise<MachineView[]> {
    return (await this.#o.machines.list()).map((show) => this.#machineView(show));
  }

  async createMachine(request: CreateMachineRequest): Promise<MachineView> {
    const { machines } = this.#o;
    // One that is not started takes nothing yet; `volume move` takes a volume away in the hands of one.
    const { name, config, start } = request;
    const make = async () => {
      const record = await machines.create({ name, config });
      this.#o.events.emit('machine', record.id, `created ${record.name}`);
      if (!start) return record;
      try {
        await machines.start(record.id);
      } catch (error) {
        throw await this.#unmade(record, error);
      }
      return record;
    };
    const { id } = await (start ? this.#admitted({ id: '', name, config }, make) : make());
    return this.showMachine(id);
  }

  /** `work`, which makes or starts the machine, where that is admitted; what is admitted meanwhile counts it. Rejects as `#admit` does. */
  async #admitted<T>(
    machine: Pick<MachineRecord, 'id' | 'name' | 'config'>,
    work: () => Promise<T>,
  ): Promise<T> {
    const placement = await this.#admit(machine);
    this.#beginning.set(machine.name, placement);
    try {
      return await work();
    } finally {
      if (this.#beginning.get(machine.name) === placement) this.#beginning.delete(machine.name);
    }
  }

  /**
   * As an offer to take the machine does, for what a person begins here: a worker that is being emptied takes nothing, memory and CPUs are promised once, and so
   * is the name. Its volume is here already, and its host is looked at when it is made. One that is here and is started has its place among those that are wanted
   * to run, and not among those that rest: two of which only one has room at a time may take turns. Rejects `WORKER_DRAINING`, `WORKER_NO_CAPACITY`,
   * `MACHINE_NAME_TAKEN`.
   */
  async #admit(machine: Pick<MachineRecord, 'id' | 'name' | 'config'>): Promise<PlacementRequest> {
    const load = await this.#o.load();
    this.#refuseDraining(load.draining);
    const arriving = load.placed.find(
      ({ machineName, machineId }) => machineName === machine.name && machineId !== machine.id,
    );
    if (arriving) {
      throw new GodwitError(
        'MACHINE_NAME_TAKEN',
        `${this.#o.name} has a machine called ${machine.name}, or one is on its way here`,
        {
          values: { name: machine.name, machineId: arriving.machineId },
          retry: 'never',
          nextAction: 'Choose another name.',
        },
      );
    }
    const records = this.#o.machines.records();
    const resting = records.filter(({ desired, claimedBy }) => desired !== 'running' && claimedBy === null);
    const uncounted = new Set(machine.id === '' ? [] : resting.map(({ id }) => id));
    const wanted = load.placed.filter(({ machineId }) => !uncounted.has(machineId));
    const placed = new Map([...wanted, ...this.#beginning.values()].map((each) => [each.machineName, each]));
    const host = { ...load, placed: [...placed.values()], reserved: [], limitsMissing: [] };
    const placement = placementOf(machine, null);
    const request = { sourceWorker: '', machine: placement, planned: [] };
    const { accepted, reason } = evaluateOffer({ ...host, freeDiskBytes: Number.POSITIVE_INFINITY }, request);
    if (accepted) return placement;
    throw new GodwitError(
      'WORKER_NO_CAPACITY',
      `${this.#o.name} has no room for ${machine.name}: ${reason}`,
      {
        values: { worker: this.#o.name, name: machine.name },
        nextAction: 'Ask for less, make room on this worker, or take another one (--worker).',
      },
    );
  }

  #refuseDraining(draining: boolean): void {
    if (!draining) return;
    throw new GodwitError('WORKER_DRAINING', `${this.#o.name} is being drained, and takes nothing new`, {
      values: { worker: this.#o.name },
      nextAction: `Take another worker, or end the drain: godwit undrain ${this.#o.name}.`,
    });
  }

  /** A new volume takes next to nothing: but not what is kept back, or promised. */
  async #refuseFull(name: string): Promise<void> {
    const load = await this.#o.load();
    this.#refuseDraining(load.draining);
    const freeBytes = unpromisedDiskBytes(load) - diskReserveBytes(load.totalDiskBytes);
    if (freeBytes > 0) return;
    throw new GodwitError(
      'WORKER_NO_CAPACITY',
      `${this.#o.name} has no room for ${name}: its data disk is full but for what is kept back`,
      {
        values: { worker: this.#o.name, name },
        nextAction: 'Make room on this worker, or take another one (--worker).',
      },
    );
  }

  /** A machine that could not be started is not made. The error of that; or, where something is left, what, and how it goes. */
  async #unmade(record: MachineRecord, error: unknown): Promise<unknown> {
    const { machines, events } = this.#o;
    try {
      await machines.destroy(record.id, { force: true });
      events.emit('machine', record.id, `${record.name} could not be started, and was destroyed`);
      return error;
    } catch (left) {
      return new GodwitError(
        isGodwitError(error) ? error.code : 'MACHINE_START_FAILED',
        `${messageOf(error)}; the machine ${record.name} is left behind: ${messageOf(left)}`,
        {
          values: { machineId: record.id },
          nextAction: `Clear that away, then: godwit machine destroy ${record.name} --force.`,
          cause: error,
        },
      );
    }
  }

  async showMachine(ref: string): Promise<MachineView> {
    return this.#machineView(await this.#o.machines.look(ref));
  }

  async destroyMachine(ref: string, options: { force: boolean }): Promise<void> {
    const { machines } = this.#o;
    const record = machines.get(ref);
    // A stop that has its time yet would keep the move from ending too.
    if (options.force && machines.endingSinceMs(record.id) !== null) await machines.kill(record.id);
    if (options.force) await this.#endMove(record.id, 'its machine is being destroyed');
    this.#refuseWhileMoving(record.id);
    await machines.destroy(record.id, options);
    this.#o.events.emit('machine', record.id, `destroyed ${record.name}`);
    this.#o.drain.wake();
  }

  /**
   * A machine is its owner's wherever it is: before its point of no return the move is called off; past it, here, the machine is killed at once, and the
   * move ends without it. What takes longer is told by whoever looks next.
   */
  async #endMove(machineId: string, reason: string): Promise<void> {
    const { journal, machines } = this.#o;
    const run = this.#runsOf(machineId).find(({ endedAtMs }) => endedAtMs === null);
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

  async startMachine(ref: string): Promise<MachineView> {
    await this.#refuseServed(ref);
    const record = this.#o.machines.get(ref);
    await this.#start(record);
    return this.showMachine(ref);
  }

  /** What is wanted to run runs, or is on its way: asking again is no news. */
  #start(record: MachineRecord): Promise<unknown> {
    const start = () => this.#o.machines.start(record.id);
    return record.desired === 'running' ? start() : this.#admitted(record, start);
  }

  async stopMachine(ref: string): Promise<MachineView> {
    const { id } = this.#o.machines.get(ref);
    const run = this.#runsOf(id).find(({ endedAtMs }) => endedAtMs === null);
    // Past its point of no return a move goes on without the machine's running: it is its owner's. Before it, the move is called off.
    const owned = run !== undefined && ownsMachine(run);
    if (run !== undefined && !owned) await this.#endMove(id, 'its machine is being stopped');
    await this.#o.machines.stop(id, {}, { moving: owned });
    return this.showMachine(id);
  }

  async restartMachine(ref: string): Promise<MachineView> {
    const { machines, events, clock } = this.#o;
    const record = machines.get(ref);
    const startedMs = clock.monotonicMs();
    let stoppedMs = startedMs;
    if (record.desired === 'running') await this.#restart(record.id, () => (stoppedMs = clock.monotonicMs()));
    else await this.#start(record);
    await machines.awaitHealthy(record.id, RESTART_HEALTHY_MS);
    const endedMs = clock.monotonicMs();
    events.emit('machine', record.id, `restarted ${record.name}`, {
      interruptionMs: { stop: stoppedMs - startedMs, boot: endedMs - stoppedMs, total: endedMs - startedMs },
    });
    return this.showMachine(record.id);
  }

  /**
   * One that stops and then cannot be started is tried again, as one that could not be found again: it is
   * wanted.
   */
  async #restart(machineId: string, onStopped: () => void): Promise<void> {
    let isStopped = false;
    try {
      await this.#o.machines.restart(machineId, () => {
        isStopped = true;
        onStopped();
      });
    } catch (error) {
      if (isStopped && isGodwitError(error)) this.#o.recovery.note({ machineId, outcome: 'failed', error });
      throw error;
    }
  }

  execInMachine(ref: string, request: ExecRequest): Promise<ExecReply> {
    return this.#o.machines.exec(ref, request.command, request.timeoutMs);
  }

  async execStream(
    ref: string,
    { command, terminal }: ExecStart,
    onOutput: SessionOutput,
  ): Promise<ExecSession> {
    const { machines, clock } = this.#o;
    const entrance = await machines.enter(ref, { command, terminal: terminal && { term: terminal.term } });
    return startSession(entrance, { size: terminal, onOutput, clock });
  }

  async machineLogs(ref: string, query: LogsQuery, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>> {
    this.#o.machines.get(ref);
    return this.#o.machines.logs(ref, { tailLines: query.lines, follow: query.follow, signal });
  }

  async moveMachine(ref: string, request: MoveRequest): Promise<RunView> {
    const record = this.#o.machines.get(ref);
    this.#refuseTarget(request.target, record.name);
    // What a run would find out in its first step is told to who asks.
    const moves = this.#runsOf(record.id).some(({ endedAtMs }) => endedAtMs === null);
    if (!moves) await this.#o.source.describe(record.id);
    if (request.rekey) await this.#refuseRekey(record);
    const input: MigrateOutInput = {
      machineId: record.id,
      targetWorker: request.target,
      requestedBy: 'move',
      ...(request.rekey && { rekey: true }),
    };
    return this.#o.journal.start(MIGRATE_OUT, input);
  }

  /** A target that no move can have, now or later. `what`: that which should go there. */
  #refuseTarget(target: string | null, what: string): void {
    if (target === null) return;
    const { name, peers } = this.#o;
    if (target === name) {
      throw new GodwitError('WORKER_MOVE_TO_ITSELF', `${what} is on ${name} already`, {
        values: { worker: name },
        nextAction: 'Name another worker, or none.',
      });
    }
    const names = peers().map((peer) => peer.name);
    if (names.includes(target)) return;
    throw new GodwitError('WORKER_PEER_NOT_FOUND', `${name} knows no worker ${target}`, {
      values: { worker: target },
      nextAction: `Its peers are: ${names.join(', ') || 'none'}.`,
    });
  }

  /** Who asks for another key wants to hear that there is none. */
  async #refuseRekey(machine: MachineRecord): Promise<void> {
    const volumeId = machine.config.volume?.volumeId;
    if (volumeId !== undefined && (await this.#o.volumes.get(volumeId)).encryption) return;
    throw new GodwitError('WORKER_NOT_ENCRYPTED', `${machine.name} has no encrypted volume`, {
      values: { machineId: machine.id },
      nextAction: 'Move it without --rekey.',
    });
  }

  async listVolumes(): Promise<VolumeView[]> {
    const { volumes } = await this.#o.volumes.list();
    return Promise.all(volumes.map((record) => this.#volumeView(record)));
  }

  async createVolume(request: CreateVolumeRequest): Promise<VolumeView> {
    return this.#underNewName(request.name, () => this.#createVolume(request));
  }

  async #createVolume(request: CreateVolumeRequest): Promise<VolumeView> {
    await this.#refuseFull(request.name);
    const lengthBytes = Math.ceil(request.lengthBytes / BLOCK_BYTES) * BLOCK_BYTES;
    const { encrypted, ...wanted } = request;
    const { keys } = this.#o;
    if (encrypted !== false && keys === null) throw noKeysError(request);
    const record = await this.#o.volumes.create({
      // Of its volumes the kernel plane opens these.
      ...(this.#o.plane === 'kernel' && { dmCrypt: true }),
      ...wanted,
      lengthBytes,
      ...(encrypted !== false && keys !== null && { keys }),
    });
    this.#o.events.emit('volume', record.id, `created ${record.name}`);
    return this.#volumeView(record);
  }

  async importVolume(request: ImportVolumeRequest): Promise<VolumeView> {
    return this.#underNewName(request.name, () => this.#importVolume(request));
  }

  async #importVolume(request: ImportVolumeRequest): Promise<VolumeView> {
    if (this.#o.keys !== null && request.encrypted !== false) {
      throw new GodwitError(
        'WORKER_IMPORT_REFUSED',
        'volumes of this worker are encrypted, and what is imported is kept as it comes',
        {
          values: { name: request.name },
          nextAction: 'Import it with --no-encryption, or on a worker without keys.',
        },
      );
    }
    this.#refuseDraining(this.#o.drain.desired);
    const record = await this.#o.imports.create(request);
    this.#o.events.emit('volume', record.id, `importing ${record.name}`);
    return this.#volumeView(record);
  }

  async showVolume(ref: string): Promise<VolumeView> {
    return this.#volumeView(await this.#volume(ref));
  }

  async recoverVolume(ref: string, request: RecoverVolumeRequest): Promise<VolumeView> {
    return this.#underNewName(request.name, () => this.#recoverVolume(ref, request));
  }

  async #recoverVolume(ref: string, request: RecoverVolumeRequest): Promise<VolumeView> {
    const { volumes } = await this.#o.volumes.list();
    const retained = volumes.find(
      ({ id, name, state }) => state === 'retained' && (id === ref || name === ref),
    );
    const record = await this.#o.volumes.recover(retained?.id ?? (await this.#volume(ref)).id, request.name);
    this.#o.events.emit('volume', record.id, `recovered ${record.name}`);
    return this.#volumeView(record);
  }

  async acceptLoss(ref: string, { atMs }: AcceptLossRequest): Promise<VolumeView> {
    const record = await this.#volume(ref);
    const { id, name, machineId } = record;
    if (machineId !== null) {
      this.#refuseWhileMoving(machineId);
      if (await isAttached(this.#o.machines, machineId)) {
        throw new GodwitError('WORKER_VOLUME_HELD', `volume ${name} is used by machine ${machineId}`, {
          values: { volumeId: id, machineId },
          nextAction: `Stop the machine first: godwit machine stop ${machineId}.`,
        });
      }
    }
    await this.#o.serving.refuseServed(record);
    const { reason } = await this.#o.volumes.acceptDataLoss(id, atMs);
    this.#o.events.emit('volume', id, `the loss of data of ${name} was accepted over the API: ${reason}`);
    return this.#volumeView(record);
  }

  async serveVolume(ref: string, request: ServeVolumeRequest): Promise<ServeReply> {
    const record = await this.#volume(ref);
    const reply = await this.#o.serving.serve(record, request);
    this.#o.events.emit('volume', record.id, `serving ${record.name} at ${reply.location}`);
    return reply;
  }

  async stopServing(ref: string): Promise<void> {
    const record = await this.#volume(ref);
    await this.#o.serving.stop(record.id);
    this.#o.events.emit('volume', record.id, `${record.name} is not served any more`);
  }

  async destroyVolume(ref: string, options: { force: boolean; copies?: boolean }): Promise<void> {
    const record = await this.#volume(ref);
    if (options.copies === true && record.state === 'retained') {
      await this.#destroyCopies(record);
      return;
    }
    if (record.machineId !== null && (await this.#isHeld(record.machineId))) {
      throw new GodwitError(
        'WORKER_VOLUME_HELD',
        `volume ${record.name} belongs to machine ${record.machineId}`,
        {
          values: { volumeId: record.id, machineId: record.machineId },
          nextAction: 'Destroy the machine first: godwit machine destroy.',
        },
      );
    }
    await this.#o.serving.refuseServed(record);
    const destroy = () => this.#o.volumes.destroy(record.id, options);
    await (this.#o.imports.isImporting(record.id) ? this.#o.imports.destroy(record.id, destroy) : destroy());
    this.#o.events.emit('volume', record.id, `destroyed ${record.name}`);
    if (options.copies === true) await this.#destroyCopies(record);
  }

  async #destroyCopies({ id, name }: VolumeRecord): Promise<void> {
    const copies = await this.#o.volumes.destroyCopies(id);
    if (copies > 0) this.#o.events.emit('volume', id, `destroyed what moves had left of ${name}`, { copies });
  }

  drainStatus(): Promise<DrainStatus> {
    return this.#o.drain.status();
  }

  async drain(request: DrainRequest): Promise<DrainStatus> {
    this.#refuseTarget(request.target, 'what it has');
    this.#o.drain.request(request.target, request.rekey === undefined ? {} : { rekey: request.rekey });
    this.#o.events.emit('drain', this.#o.name, 'drain requested');
    return this.drainStatus();
  }

  async undrain(): Promise<DrainStatus> {
    this.#o.drain.withdraw();
    this.#o.events.emit('drain', this.#o.name, 'drain withdrawn');
    return this.drainStatus();
  }

  async plan(query: PlanQuery): Promise<Plan> {
    this.#refuseTarget(query.target ?? null, 'what it has');
    const { machines, source, peers, desk, journal, name } = this.#o;
    const silent = new Map<string, Offer>();
    const subjects = await Promise.all(
      machines.records().map(async (record): Promise<PlanSubject> => {
        const subject = { machineId: record.id, name: record.name, running: record.desired === 'running' };
        try {
          const described = await source.describe(record.id);
          const { machine: placement, needs } = offerRequest(name, described);
          return { ...subject, placement, ...(needs && { needs }), obstacle: null };
        } catch (error) {
          const placement = {
            machineId: record.id,
            machineName: record.name,
            group: null,
            memoryBytes: 0,
            cpus: 0,
            volumeLengthBytes: 0,
            volumeUsedBytes: 0,
          };
          return { ...subject, placement, obstacle: messageOf(error) };
        }
      }),
    );
    const plan = await planDrain(
      name,
      subjects,
      (request) =>
        desk.ask({ wanted: query.target ?? null, request, waitMs: PATIENCE.planOffers.ms, silent }),
      moveHistory(await journal.findInTurns({ kind: MIGRATE_OUT, state: 'done', limit: 100 })),
    );
    const targets = new Set(plan.steps.map(({ target }) => target));
    const warnings = peers()
      .filter((peer) => targets.has(peer.name) && isInClear(peer.url))
      .map(
        (peer) =>
          `${peer.name} is asked in the clear (${peer.url}): the token of the fleet and the secrets of moves can be read on the network.`,
      );
    return { ...plan, warnings, volumes: await this.#o.drain.leftVolumes() };
  }

  async listRuns(query: RunsQuery): Promise<RunView[]> {
    const filter = {
      limit: query.limit,
      ...(query.resource === undefined ? {} : { resource: query.resource }),
    };
    return query.state === 'all' ? this.#o.journal.findInTurns(filter) : this.#o.journal.open(filter);
  }

  async showRun(id: string): Promise<RunView> {
    return this.#o.journal.get(id);
  }

  async cancelRun(id: string): Promise<RunView> {
    return this.#o.journal.cancel(id, 'cancelled over the API');
  }

  async nudgeRun(id: string): Promise<RunView> {
    return this.#o.journal.nudge(id);
  }

  async forceRun(id: string, { how, targetIsDestroyed = false }: ForceRunRequest): Promise<RunView> {
    const run = await this.#o.overrides.force(id, { how, targetIsDestroyed, by: 'the API' });
    if (how !== 'forget') return run;
    // What runs is told to stop. One that does not within that time is tidied up after when it has.
    const over = await this.#o.journal.wait(id, { timeoutMs: FORGET_WAIT_MS }).catch(() => null);
    if (over === null) return this.#o.journal.get(id);
    await this.#o.recovery.tidy();
    return over;
  }

  async why(ref: string): Promise<Why> {
    const { journal, machines, name } = this.#o;
    const drain = await this.#o.drain.status();
    if (ref === name) {
      return {
        subject: name,
        state: drain.desired ? drain.state : 'open',
        conditions: [
          ...diskConditions(await this.#o.disk.look(), name),
          ...(await this.#withoutRoom()),
          ...drainConditions(drain),
        ],
        runs: journal.open({ kind: MIGRATE_OUT }),
      };
    }
    const run = this.#findRun(ref);
    if (run) {
      const conditions = [...(await this.#exportTrouble([run])), ...runConditions(run)];
      return { subject: `run ${run.id}`, state: run.state, conditions, runs: [run] };
    }

    const machine = machines.records().find(({ id, name }) => id === ref || name === ref);
    if (machine) return this.#whyMachine(machine, drain);
    // It may have gone from here, or be on its way in.
    const traces = (await journal.findInTurns({ limit: 200 }))
      .filter((candidate) => namesOf(candidate).includes(ref))
      .slice(0, 1);
    const trace = traces[0];
    if (trace) {
      return {
        subject: `machine ${ref}`,
        state: trace.state,
        conditions: [...(await this.#exportTrouble(traces)), ...runConditions(trace)],
        runs: traces,
      };
    }
    return this.#whyVolume(await this.#volume(ref));
  }

  async #whyMachine(machine: MachineRecord, drain: DrainView): Promise<Why> {
    const { machines, volumes, recovery, name } = this.#o;
    const show = await machines.look(machine.id);
    const view = this.#machineView(show);
    const runs = this.#runsOf(machine.id);
    const runtimeDir = machines.runtimeDir(machine.id);
    const own = (await volumes.list()).volumes.filter(({ machineId }) => machineId === machine.id);
    return {
      subject: `machine ${machine.name}`,
      state: view.state,
      conditions: [
        ...downConditions(view),
        ...diskConditions(await this.#o.disk.look(), name),
        ...own.flatMap((record) => dataLossConditions({ id: record.id, ...this.#dataLossOf(record) })),
        ...silentConditions(view, runtimeDir),
        ...serverConditions(await this.#serverTrouble(show), runtimeDir, machine.name),
        ...noRoomConditions(machine.name, show.shim?.volume?.status?.noRoom, name),
        ...(await this.#exportTrouble(runs)),
        ...stoppingConditions(view, machine.desired, machines.endingSinceMs(machine.id)),
        ...beginningConditions(machines.beginning(machine.id)),
        ...recoveryConditions(recovery.trouble(machine.id), machine.desired),
        ...machineConditions(view, runs, drain),
      ],
      runs,
    };
  }

  async #whyVolume(record: VolumeRecord): Promise<Why> {
    const { serving, name } = this.#o;
    const view = await this.#volumeView(record);
    const runs = record.machineId === null ? [] : this.#runsOf(record.machineId);
    const { silentForMs, server } = await serving.trouble(record.id);
    return {
      subject: `volume ${record.name}`,
      state: record.state,
      conditions: [
        ...diskConditions(await this.#o.disk.look(), name),
        ...servingConditions(silentForMs, serving.runtimeDir(record.id), record.name),
        ...serverConditions(server, serving.runtimeDir(record.id), record.name),
        ...noRoomConditions(record.name, await this.#noRoomServing(record.id), name),
        ...volumeConditions(view, runs),
      ],
      runs,
    };
  }

  /** Machines, and clients of volumes that are served, whose writes wait for room on the disk, or fail for want of it. */
  async #withoutRoom(): Promise<Why['conditions']> {
    const { machines, volumes, name } = this.#o;
    const ofMachines = (await machines.list()).flatMap(({ record, shim }) =>
      noRoomConditions(record.name, shim?.volume?.status?.noRoom, name),
    );
    const served = await Promise.all(
      (await volumes.list()).volumes.map(async (record) =>
        noRoomConditions(record.name, await this.#noRoomServing(record.id), name),
      ),
    );
    return [...ofMachines, ...served.flat()];
  }

  /** Of a machine whose shim answers. */
  async #serverTrouble({ record, shim, silentForMs }: MachineShow): Promise<ServerTrouble | null> {
    if (silentForMs !== undefined || !shim?.volume) return null;
    const client = await this.#o.machines.client(record.id);
    return client && this.#serverLooks.look(record.id, client, shim.volume.serverPid);
  }

  /** Of moves away from here that need their export: that it hangs. Its target says only that the source does not answer. */
  async #exportTrouble(runs: readonly RunView[]): Promise<Why['conditions']> {
    const { machines } = this.#o;
    const open = runs.filter(({ kind, endedAtMs }) => kind === MIGRATE_OUT && endedAtMs === null);
    const all = await Promise.all(
      open.map(async ({ id, output }) => {
        const shimId = exportShimId(id);
        const client = await machines.client(shimId);
        if (client === null) return [];
        const { status, silentForMs } = await machines.shimLook(shimId);
        const name = `the export of ${(output as MigrateOutOutput).subject?.machineName ?? id}`;
        const runtimeDir = machines.runtimeDir(shimId);
        const server =
          silentForMs === null && status?.volume
            ? await this.#serverLooks.look(shimId, client, status.volume.serverPid)
            : null;
        return [
          ...servingConditions(silentForMs, runtimeDir, name),
          ...serverConditions(server, runtimeDir, name),
        ];
      }),
    );
    return all.flat();
  }

  /** A server that does not answer says nothing here. */
  #noRoomServing(volumeId: string): Promise<VolumeServerStatus['noRoom']> {
    return this.#o.serving.noRoom(volumeId).catch(() => undefined);
  }

  events(signal: AbortSignal): AsyncIterable<ApiEvent> {
    return this.#o.events.follow(signal);
  }

  async showReceipt(ref: string): Promise<Receipt> {
    const { name, receipts } = this.#o;
    const receipt = receipts.find(ref);
    if (receipt) return receipt;
    const waivedAtMs = receipts.waivedAtMs(ref);
    if (waivedAtMs !== null) {
      throw new GodwitError(
        'WORKER_RECEIPT_WAIVED',
        `${ref} ended without a receipt: an operator said so at ${new Date(waivedAtMs).toISOString()}`,
        {
          values: { ref, waivedAtMs },
          nextAction:
            'There will be none. While the source keeps the sealed volume, files can be compared with it: godwit volume recover.',
        },
      );
    }
    throw new GodwitError('WORKER_RECEIPT_NOT_FOUND', `${name} has no receipt of ${ref}`, {
      values: { ref },
      nextAction:
        'A receipt is there when all blocks have come and were compared (godwit top), and only for a move with a volume. Source and target have it.',
    });
  }

  #findRun(id: string): RunView | null {
    try {
      return this.#o.journal.get(id);
    } catch (error) {
      if (isGodwitError(error, 'JOURNAL_UNKNOWN_RUN')) return null;
      throw error;
    }
  }

  /** Unfinished runs of a machine, or its last one. */
  #runsOf(machineId: string): RunView[] {
    const resource = `machine:${machineId}`;
    const open = this.#o.journal.open({ resource });
    // Of those that are over, the newest: one that failed where it cannot be undone keeps the machine, so none is newer.
    return open.length > 0 ? open : this.#o.journal.find({ resource, limit: 1 });
  }

  #openRunOf(machineId: string | null): RunView | null {
    return machineId === null
      ? null
      : (this.#o.journal.open({ resource: `machine:${machineId}` })[0] ?? null);
  }

  #refuseWhileMoving(machineId: string): void {
    const run = this.#runsOf(machineId).find((candidate) => candidate.endedAtMs === null);
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

  /** Before the wish that it runs is written down: nobody would start it when the volume is free again. */
  async #refuseServed(ref: string): Promise<void> {
    const volumeId = this.#o.machines.get(ref).config.volume?.volumeId;
    if (volumeId !== undefined) await this.#o.serving.refuseServed(await this.#o.volumes.get(volumeId));
  }

  async #isHeld(machineId: string): Promise<boolean> {
    const { machines } = this.#o;
    return machines.records().some(({ id }) => id === machineId) || (await isAttached(machines, machineId));
  }

  /** `work` makes a volume of that name, which nobody else does meanwhile. Rejects `WORKER_VOLUME_NAME_TAKEN`. */
  async #underNewName<T>(name: string, work: () => Promise<T>): Promise<T> {
    if (this.#volumesBeingMade.has(name)) throw this.#nameTaken(name);
    this.#volumesBeingMade.add(name);
    try {
      const { volumes } = await this.#o.volumes.list();
      if (volumes.some((volume) => volume.name === name && volume.state !== 'retained'))
        throw this.#nameTaken(name);
      return await work();
    } finally {
      this.#volumesBeingMade.delete(name);
    }
  }

  #nameTaken(name: string): GodwitError {
    return new GodwitError('WORKER_VOLUME_NAME_TAKEN', `this worker has a volume ${name} already`, {
      values: { name },
      nextAction: 'Choose another name.',
    });
  }

  async #volume(ref: string): Promise<VolumeRecord> {
    const { volumes } = await this.#o.volumes.list();
    const byId = volumes.filter(({ id }) => id === ref);
    const newest = (records: VolumeRecord[]) =>
      records.sort((left, right) => right.generation - left.generation)[0];
    // A copy that a move left answers to its id only: its name is that of the volume that went.
    const named = volumes.filter(({ name, state }) => name === ref && state !== 'retained');
    const found = newest(byId) ?? newest(named);
    if (found) return found;
    throw new GodwitError('WORKER_NOT_FOUND', `${this.#o.name} knows nothing called ${ref}`, {
      values: { ref },
      nextAction: 'godwit machine list, godwit volume list and godwit runs list show what there is.',
    });
  }

  #machineView({ record, shim, silentForMs }: MachineShow): MachineView {
    const workload = shim?.workload ?? null;
    const run = this.#openRunOf(record.id);
    const noRoom = shim?.volume?.status?.noRoom;
    const trouble = record.desired === 'running' ? this.#o.recovery.trouble(record.id) : null;
    const down = (run && downByMove(run)) ?? downByTrouble(trouble);
    const ailment = record.desired === 'running' ? ailmentOf(workload, this.#o.clock.wallMs()) : null;
    return {
      id: record.id,
      name: record.name,
      worker: this.#o.name,
      state: machineState(
        record,
        // Its policy says that it has done what it was to do.
        workload?.state === 'exited' && workload.exitCode === 0 ? 'stopped' : (workload?.state ?? null),
        workload?.health.state ?? null,
        run,
        silentForMs !== undefined,
      ),
      ...(silentForMs !== undefined && { silentSinceMs: this.#o.clock.wallMs() - silentForMs }),
      health: workload?.health ?? { state: 'none', sinceMs: record.createdAtMs, message: '' },
      config: record.config,
      volumeId: record.config.volume?.volumeId ?? null,
      createdAtMs: record.createdAtMs,
      startedAtMs: workload?.startedAtMs ?? null,
      pid: workload?.pid ?? null,
      restarts: workload?.restarts ?? 0,
      move: run && {
        runId: run.id,
        phase: run.kind === MIGRATE_IN ? phaseOf(run) : (run.step ?? run.state),
        target: run.kind === MIGRATE_IN ? this.#o.name : ((run.output as MigrateOutOutput).target ?? null),
      },
      hydration: arriving(shim?.volume?.status, run),
      ...(down && { down }),
      ...(noRoom && { ioPaused: { sinceMs: noRoom.sinceMs, waiting: noRoom.waiting } }),
      ...(ailment && { ailment }),
    };
  }

  async #volumeView(record: VolumeRecord): Promise<VolumeView> {
    const volume =
      record.machineId === null
        ? null
        : await this.#o.machines.shimLook(record.machineId).then(
            ({ status }) => status?.volume ?? null,
            () => null,
          );
    const attached = volume?.spec.volumeId === record.id ? volume : null;
    const own = attached?.status ?? null;
    const status = own ?? (await this.#o.imports.status(record.id).catch(() => null))?.status ?? null;
    return {
      id: record.id,
      name: record.name,
      worker: this.#o.name,
      lengthBytes: record.lengthBytes,
      usedBytes: await this.#o.volumes.usedBytes(record.id).catch(() => 0),
      filesystem: record.filesystem,
      encrypted: record.encryption !== undefined,
      generation: record.generation,
      state: record.state,
      createdAtMs: record.createdAtMs,
      machineId: record.machineId,
      hydration: arriving(status, this.#openRunOf(record.machineId)),
      guest: status?.guest ?? null,
      served: own?.served
        ? { ...own.served, writable: own.access === 'writable' && attached?.spec.nbd?.client === 'guest' }
        : await this.#o.serving.view(record.id).catch(() => null),
      destroyAfterMs: record.destroyAfterMs,
      ...this.#dataLossOf(record, status?.dataLoss),
    };
  }

  /** From the file, so that it is told when no server runs; from the server while the disk refuses the file too. */
  #dataLossOf(record: VolumeRecord, told?: { atMs: number; reason: string }): Pick<VolumeView, 'dataLoss'> {
    const folder = this.#o.volumes.folder(record.id);
    const loss = readDataLoss(folder, { volumeId: record.id, generation: record.generation }) ?? told;
    if (!loss) return {};
    return { dataLoss: { atMs: loss.atMs, reason: loss.reason, file: join(folder, VOLUME_FILES.dataLoss) } };
  }
}

function namesOf(run: RunView): string[] {
  const output = run.output as MigrateOutOutput;
  const input = run.input as { machineId?: string; machineName?: string };
  return [input.machineId, input.machineName, output.subject?.machineName].filter(
    (name) => name !== undefined,
  );
}

/** What the source calls it. */
function moveIdOf(run: RunView): string {
  return run.kind === MIGRATE_IN ? ((run.input as { runId?: string }).runId ?? run.id) : run.id;
}

/**
 * How far a volume that arrives is. Its server remembers that to its end: when the move is over, nothing
 * arrives any more, whether the machine runs or was stopped. Pure.
 */
export function arriving(
  status: Pick<VolumeServerStatus, 'hydration'> | null | undefined,
  run: RunView | null,
): VolumeView['hydration'] {
  const hydration = status?.hydration ?? null;
  return hydration?.state === 'complete' && run?.kind !== MIGRATE_IN ? null : hydration;
}

/** Past its point of no return an incoming machine is this worker's. */
export function ownsMachine(run: RunView): boolean {
  return run.steps.some(({ name, state }) => name === 'activate' && state === 'done');
}

/** Pure. */
function machineState(
  record: { desired: 'running' | 'stopped' },
  workload: 'running' | 'restarting' | 'stopped' | 'exited' | 'failed' | null,
  health: 'none' | 'starting' | 'healthy' | 'unhealthy' | null,
  run: RunView | null,
  silent = false,
): MachineState {
  if (run?.kind === MIGRATE_OUT) return 'moving';
  if (run && !ownsMachine(run)) return 'incoming';
  if (silent) return 'silent';
  switch (workload) {
    case 'running':
      return health === 'starting' ? 'starting' : 'running';
    case 'restarting':
      return 'restarting';
    case 'failed':
      return 'failed';
    case 'exited':
      return record.desired === 'running' ? 'failed' : 'stopped';
    case 'stopped':
      return 'stopped';
    default:
      return record.desired === 'running' ? 'starting' : 'stopped';
  }
}
