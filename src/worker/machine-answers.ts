import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { Peer } from '../contract/peer.ts';
import type {
  CreateMachineRequest,
  ExecReply,
  ExecRequest,
  ExecStart,
  LogsQuery,
  MachineView,
  MoveRequest,
} from '../contract/schemas.ts';
import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import type { MachineManager } from '../machine/manager.ts';
import type { MachineRecord } from '../machine/store.ts';
import type { DrainController } from '../migration/drain.ts';
import { MIGRATE_OUT, type MigrateOutInput } from '../migration/migrate-out.ts';
import { ownsMachine } from '../migration/move-watch.ts';
import type { SourceSide } from '../migration/source-side.ts';
import type { ExecSession, SessionOutput } from '../shim/exec-session.ts';
import type { VolumeStore } from '../volume/index.ts';
import type { Admission } from './admission.ts';
import type { EventBus } from './event-bus.ts';
import type { MachineMoves } from './machine-moves.ts';
import { refuseTarget } from './move-target.ts';
import type { Openings } from './openings.ts';
import type { MachineRecovery } from './recovery.ts';
import type { Views } from './views.ts';

/** How long a restart over the API waits for the machine to be healthy again. */
const RESTART_HEALTHY_MS = PATIENCE.restartHealthy.ms;

export type MachineAnswersOptions = {
  name: string;
  peers: () => readonly Peer[];
  machines: MachineManager;
  volumes: VolumeStore;
  openings: Openings;
  journal: Journal;
  drain: DrainController;
  recovery: MachineRecovery;
  source: SourceSide;
  admission: Admission;
  moves: MachineMoves;
  views: Views;
  events: EventBus;
  clock: Clock;
};

/** What is asked of machines. */
export class MachineAnswers {
  readonly #o: MachineAnswersOptions;

  constructor(options: MachineAnswersOptions) {
    this.#o = options;
  }

  async listMachines(): Promise<MachineView[]> {
    return (await this.#o.machines.list()).map((show) => this.#o.views.machine(show));
  }

  async createMachine(request: CreateMachineRequest): Promise<MachineView> {
    const { machines } = this.#o;
    // One that is not started takes nothing yet; `volume move` takes a volume away in the hands of one.
    const { name, config, start } = request;
    const make = async () => {
      const record = await machines.create({ name, config });
      this.#o.events.emit('machine-created', record.id, `created ${record.name}`);
      if (!start) return record;
      try {
        await machines.start(record.id);
      } catch (error) {
        throw await this.#unmade(record, error);
      }
      return record;
    };
    const { id } = await (start ? this.#o.admission.admitted({ id: null, name, config }, make) : make());
    return this.showMachine(id);
  }

  /**
   * A machine that could not be started is not made. The error of that; or, where something is left, what,
   * and how it goes.
   */
  async #unmade(record: MachineRecord, error: unknown): Promise<unknown> {
    const { machines, events } = this.#o;
    try {
      await machines.destroy(record.id, { force: true });
      events.emit('machine-not-made', record.id, `${record.name} could not be started, and was destroyed`);
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
    return this.#o.views.machine(await this.#o.machines.look(ref));
  }

  async destroyMachine(ref: string, options: { force: boolean }): Promise<void> {
    const { machines } = this.#o;
    const record = machines.get(ref);
    // A stop that has its time yet would keep the move from ending too.
    if (options.force && machines.endingSinceMs(record.id) !== null) await machines.kill(record.id);
    if (options.force) await this.#o.moves.endMove(record.id, 'its machine is being destroyed');
    this.#o.moves.refuseWhileMoving(record.id);
    await machines.destroy(record.id, options);
    this.#o.events.emit('machine-destroyed', record.id, `destroyed ${record.name}`);
    this.#o.drain.wake();
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
    return record.desired === 'running' ? start() : this.#o.admission.admitted(record, start);
  }

  async stopMachine(ref: string): Promise<MachineView> {
    const { id } = this.#o.machines.get(ref);
    const run = this.#o.moves.runsOf(id).find(({ endedAtMs }) => endedAtMs === null);
    // Past its point of no return a move goes on without the machine's running: it is its owner's. Before it,
    // the move is called off.
    const owned = run !== undefined && ownsMachine(run);
    if (run !== undefined && !owned) await this.#o.moves.endMove(id, 'its machine is being stopped');
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
    events.emit('machine-restarted', record.id, `restarted ${record.name}`, {
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
    const how = { command, terminal: terminal && { term: terminal.term } };
    return machines.session(ref, how, { size: terminal, onOutput, clock });
  }

  async machineLogs(ref: string, query: LogsQuery, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>> {
    this.#o.machines.get(ref);
    return this.#o.machines.logs(ref, { tailLines: query.lines, follow: query.follow, signal });
  }

  async moveMachine(ref: string, request: MoveRequest): Promise<RunView> {
    const record = this.#o.machines.get(ref);
    refuseTarget(this.#o, request.target, record.name);
    // What a run would find out in its first step is told to who asks.
    const open = this.#o.moves.openRunOf(record.id);
    // One that has arrived and is not whole is told what it waits for, and not which run has it.
    if (open === null || ownsMachine(open)) await this.#o.source.describe(record.id);
    if (request.rekey) await this.#refuseRekey(record);
    const input: MigrateOutInput = {
      machineId: record.id,
      targetWorker: request.target,
      requestedBy: 'move',
      ...(request.rekey && { rekey: true }),
    };
    return this.#o.journal.start(MIGRATE_OUT, input);
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

  /** Before the wish that it runs is written down: nobody would start it when the volume is free again. */
  async #refuseServed(ref: string): Promise<void> {
    const volumeId = this.#o.machines.get(ref).config.volume?.volumeId;
    if (volumeId !== undefined)
      await this.#o.openings.refuseKept(await this.#o.volumes.get(volumeId), 'attach');
  }
}
