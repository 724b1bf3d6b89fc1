import { isGodwitError } from '../base/errors.ts';
import type { Why } from '../contract/schemas.ts';
import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import type { MachineManager } from '../machine/manager.ts';
import type { MachineRecord } from '../machine/store.ts';
import type { DrainController, DrainView } from '../migration/drain.ts';
import { MIGRATE_OUT } from '../migration/migrate-out.ts';
import type { VolumeStore } from '../volume/index.ts';
import type { About, Condition } from './condition.ts';
import { findVolume } from './find-volume.ts';
import { type MachineMoves, namesOf } from './machine-moves.ts';
import type { Views } from './views.ts';

export type WhyAnswersOptions = {
  name: string;
  machines: MachineManager;
  volumes: VolumeStore;
  journal: Journal;
  drain: DrainController;
  moves: MachineMoves;
  views: Views;
  /** What the worker's parts say of it. */
  conditions: (about: About) => Promise<Condition[]>;
};

/** What a machine, a volume, a run or this worker waits for: finds what is meant, and asks the parts. */
export class WhyAnswers {
  readonly #o: WhyAnswersOptions;

  constructor(options: WhyAnswersOptions) {
    this.#o = options;
  }

  async why(ref: string): Promise<Why> {
    const { journal, machines, moves, views, name, conditions } = this.#o;
    const drain = await this.#o.drain.status();
    if (ref === name) {
      return {
        subject: name,
        state: drain.desired ? drain.state : 'open',
        conditions: await conditions({ kind: 'worker', drain }),
        runs: journal.open({ kind: MIGRATE_OUT }),
      };
    }
    const run = this.#findRun(ref);
    if (run) return this.#whyRun(`run ${run.id}`, run, drain);

    const record = machines.records().find(({ id, name }) => id === ref || name === ref);
    if (record) {
      const runs = moves.runsOf(record.id);
      const about = await this.#aboutMachine(record, runs, drain);
      return {
        subject: `machine ${record.name}`,
        state: about.view.state,
        ...(about.view.state === 'moved' && { gone: true as const }),
        conditions: await conditions(about),
        runs,
      };
    }
    // It may have gone from here, or be on its way in.
    const trace = (await journal.findInTurns({ limit: 200 })).find((each) => namesOf(each).includes(ref));
    if (trace) {
      const why = await this.#whyRun(`machine ${ref}`, trace, drain);
      return trace.endedAtMs === null ? why : { ...why, gone: true };
    }

    const volume = await findVolume(this.#o, ref);
    const view = await views.volume(volume);
    const runs = volume.machineId === null ? [] : moves.runsOf(volume.machineId);
    return {
      subject: `volume ${volume.name}`,
      state: volume.state,
      conditions: await conditions({ kind: 'volume', record: volume, view, runs }),
      runs,
      ...(volume.state === 'retained' && { gone: true as const }),
    };
  }

  async #whyRun(subject: string, run: RunView, drain: DrainView): Promise<Why> {
    const { machineId } = run.input as { machineId?: string };
    const record =
      run.endedAtMs === null ? this.#o.machines.records().find(({ id }) => id === machineId) : undefined;
    // What holds the machine up holds its run up, or is what its run cannot see.
    const about = record
      ? await this.#aboutMachine(record, [run], drain)
      : ({ kind: 'run', runs: [run] } as const);
    return { subject, state: run.state, conditions: await this.#o.conditions(about), runs: [run] };
  }

  async #aboutMachine(record: MachineRecord, runs: readonly RunView[], drain: DrainView) {
    const show = await this.#o.machines.look(record.id);
    const view = this.#o.views.machine(show);
    return { kind: 'machine', record, show, view, runs, drain } as const;
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
