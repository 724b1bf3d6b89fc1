import { isGodwitError } from '../base/errors.ts';
import type { Why } from '../contract/schemas.ts';
import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import type { MachineManager } from '../machine/manager.ts';
import type { DrainController } from '../migration/drain.ts';
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
    if (run) return this.#whyRun(`run ${run.id}`, run);

    const record = machines.records().find(({ id, name }) => id === ref || name === ref);
    if (record) {
      const show = await machines.look(record.id);
      const [view, runs] = [views.machine(show), moves.runsOf(record.id)];
      return {
        subject: `machine ${record.name}`,
        state: view.state,
        conditions: await conditions({ kind: 'machine', record, show, view, runs, drain }),
        runs,
      };
    }
    // It may have gone from here, or be on its way in.
    const trace = (await journal.findInTurns({ limit: 200 })).find((each) => namesOf(each).includes(ref));
    if (trace) return this.#whyRun(`machine ${ref}`, trace);

    const volume = await findVolume(this.#o, ref);
    const view = await views.volume(volume);
    const runs = volume.machineId === null ? [] : moves.runsOf(volume.machineId);
    return {
      subject: `volume ${volume.name}`,
      state: volume.state,
      conditions: await conditions({ kind: 'volume', record: volume, view, runs }),
      runs,
    };
  }

  async #whyRun(subject: string, run: RunView): Promise<Why> {
    const conditions = await this.#o.conditions({ kind: 'run', runs: [run] });
    return { subject, state: run.state, conditions, runs: [run] };
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
