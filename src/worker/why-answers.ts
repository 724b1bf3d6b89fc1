import type { Clock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import type { Why } from '../contract/schemas.ts';
import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import type { MachineManager, MachineShow } from '../machine/manager.ts';
import type { MachineRecord } from '../machine/store.ts';
import type { DrainController, DrainView } from '../migration/drain.ts';
import { MIGRATE_OUT, type MigrateOutOutput } from '../migration/migrate-out.ts';
import type { VolumeRecord, VolumeServerStatus, VolumeStore } from '../volume/index.ts';
import type { DiskLook } from './disk-look.ts';
import { findVolume } from './find-volume.ts';
import { type MachineMoves, namesOf } from './machine-moves.ts';
import type { MachineRecovery } from './recovery.ts';
import type { Serving } from './serving.ts';
import { exportShimId } from './source-host.ts';
import type { Views } from './views.ts';
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

export type WhyAnswersOptions = {
  name: string;
  machines: MachineManager;
  volumes: VolumeStore;
  serving: Serving;
  journal: Journal;
  drain: DrainController;
  recovery: MachineRecovery;
  moves: MachineMoves;
  views: Views;
  disk: DiskLook;
  clock: Clock;
};

/** What a machine, a volume, a run or this worker waits for. */
export class WhyAnswers {
  readonly #o: WhyAnswersOptions;
  readonly #looks: VolumeServerLooks;

  constructor(options: WhyAnswersOptions) {
    this.#o = options;
    this.#looks = new VolumeServerLooks(options.clock);
  }

  get #nowMs(): number {
    return this.#o.clock.wallMs();
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
      const conditions = [...(await this.#exportTrouble([run])), ...runConditions(run, this.#nowMs)];
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
        conditions: [...(await this.#exportTrouble(traces)), ...runConditions(trace, this.#nowMs)],
        runs: traces,
      };
    }
    return this.#whyVolume(await findVolume(this.#o, ref));
  }

  async #whyMachine(machine: MachineRecord, drain: DrainView): Promise<Why> {
    const { machines, volumes, recovery, name } = this.#o;
    const show = await machines.look(machine.id);
    const view = this.#o.views.machine(show);
    const runs = this.#o.moves.runsOf(machine.id);
    const runtimeDir = machines.runtimeDir(machine.id);
    const own = (await volumes.list()).volumes.filter(({ machineId }) => machineId === machine.id);
    return {
      subject: `machine ${machine.name}`,
      state: view.state,
      conditions: [
        ...downConditions(view),
        ...diskConditions(await this.#o.disk.look(), name),
        ...own.flatMap((record) =>
          dataLossConditions({ id: record.id, ...this.#o.views.dataLossOf(record) }),
        ),
        ...silentConditions(view, runtimeDir),
        ...serverConditions(await this.#serverTrouble(show), runtimeDir, machine.name),
        ...noRoomConditions(machine.name, show.shim?.volume?.status?.noRoom, name),
        ...(await this.#exportTrouble(runs)),
        ...stoppingConditions(view, machine.desired, machines.endingSinceMs(machine.id)),
        ...beginningConditions(machines.beginning(machine.id)),
        ...recoveryConditions(recovery.trouble(machine.id), machine.desired),
        ...machineConditions(view, runs, drain, this.#nowMs),
      ],
      runs,
    };
  }

  async #whyVolume(record: VolumeRecord): Promise<Why> {
    const { serving, name } = this.#o;
    const view = await this.#o.views.volume(record);
    const runs = record.machineId === null ? [] : this.#o.moves.runsOf(record.machineId);
    const { silentForMs, server } = await serving.trouble(record.id);
    return {
      subject: `volume ${record.name}`,
      state: record.state,
      conditions: [
        ...diskConditions(await this.#o.disk.look(), name),
        ...servingConditions(silentForMs, serving.runtimeDir(record.id), record.name, this.#nowMs),
        ...serverConditions(server, serving.runtimeDir(record.id), record.name),
        ...noRoomConditions(record.name, await this.#noRoomServing(record.id), name),
        ...volumeConditions(view, runs, this.#nowMs),
      ],
      runs,
    };
  }

  /**
   * Machines, and clients of volumes that are served, whose writes wait for room on the disk, or fail for
   * want of it.
   */
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
    return client && this.#looks.look(record.id, client, shim.volume.serverPid);
  }

  /**
   * Of moves away from here that need their export: that it hangs. Its target says only that the source does
   * not answer.
   */
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
            ? await this.#looks.look(shimId, client, status.volume.serverPid)
            : null;
        return [
          ...servingConditions(silentForMs, runtimeDir, name, this.#nowMs),
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

  #findRun(id: string): RunView | null {
    try {
      return this.#o.journal.get(id);
    } catch (error) {
      if (isGodwitError(error, 'JOURNAL_UNKNOWN_RUN')) return null;
      throw error;
    }
  }
}
