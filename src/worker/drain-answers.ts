import { isInClear } from '../api/peer-client.ts';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { Offer, Peer } from '../contract/peer.ts';
import type { DrainRequest, DrainStatus, Plan, PlanQuery } from '../contract/schemas.ts';
import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import type { MachineManager } from '../machine/manager.ts';
import type { DrainController } from '../migration/drain.ts';
import { MIGRATE_OUT, type MigrateOutOutput } from '../migration/migrate-out.ts';
import { isServing } from '../migration/move-watch.ts';
import { type OfferDesk, offerRequest } from '../migration/offers.ts';
import { type PlanSubject, planDrain } from '../migration/plan.ts';
import { planTargets } from '../migration/plan-targets.ts';
import type { SourceSide } from '../migration/source-side.ts';
import type { EventBus } from './event-bus.ts';
import { moveHistory } from './history.ts';
import { refuseTarget } from './move-target.ts';

export type DrainAnswersOptions = {
  name: string;
  peers: () => readonly Peer[];
  machines: MachineManager;
  source: SourceSide;
  desk: OfferDesk;
  journal: Journal;
  drain: DrainController;
  events: EventBus;
  clock: Clock;
};

/** What is asked of the drain. */
export class DrainAnswers {
  readonly #o: DrainAnswersOptions;

  constructor(options: DrainAnswersOptions) {
    this.#o = options;
  }

  drainStatus(): Promise<DrainStatus> {
    return this.#o.drain.status();
  }

  async drain(request: DrainRequest): Promise<DrainStatus> {
    refuseTarget(this.#o, request.target, 'what it has');
    this.#o.drain.request(request.target, request.rekey === undefined ? {} : { rekey: request.rekey });
    this.#o.events.emit('drain-requested', this.#o.name, 'drain requested');
    return this.drainStatus();
  }

  async undrain(): Promise<DrainStatus> {
    this.#o.drain.withdraw();
    this.#o.events.emit('drain-withdrawn', this.#o.name, 'drain withdrawn');
    return this.drainStatus();
  }

  async plan(query: PlanQuery): Promise<Plan> {
    refuseTarget(this.#o, query.target ?? null, 'what it has');
    const { machines, source, peers, desk, journal, name, clock } = this.#o;
    const silent = new Map<string, Offer>();
    const wanted = query.target ?? null;
    const question = { sourceWorker: name, wanted, waitMs: PATIENCE.planOffers.ms, silent };
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
      (asked) => planTargets({ desk, peers: peers(), clock }, question, asked),
      moveHistory(await journal.findInTurns({ kind: MIGRATE_OUT, state: 'done', limit: 100 })),
    );
    const targets = new Set(plan.steps.map(({ target }) => target));
    const inClear = peers()
      .filter((peer) => targets.has(peer.name) && isInClear(peer.url))
      .map(
        (peer) =>
          `${peer.name} is asked in the clear (${peer.url}): the token of the fleet and the secrets of moves can be read on the network.`,
      );
    // Also where all can go elsewhere: a drain that is begun waits for it as well.
    const served = journal.open({}).filter(isServing).map(stillServed);
    const warnings = [...served, ...[...silent.values()].map(withoutIt), ...inClear];
    return { ...plan, warnings, volumes: await this.#o.drain.leftVolumes() };
  }
}

/** Its machine is not here any more, and the plan does not name it. */
function stillServed(run: RunView): string {
  const { subject, target } = run.output as MigrateOutOutput;
  return `${subject?.machineName ?? run.resource} runs on ${target ?? 'its target'}, and blocks of its volume are still only here: keep this worker up until that move is over (godwit why ${run.id}).`;
}

function withoutIt({ worker, reason }: Offer): string {
  return `the plan is made without ${worker}, which ${reason}. Look whether it runs, or hangs.`;
}
