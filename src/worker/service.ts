import type { WorkerService } from '../api/service.ts';
import type { Clock } from '../base/clock.ts';
import { answering } from '../contract/endpoint.ts';
import { OPERATOR } from '../contract/operator.ts';
import type { PeerAnswers } from '../contract/peer.ts';
import type { Journal } from '../journal/journal.ts';
import type { MachineManager } from '../machine/manager.ts';
import type { DrainController } from '../migration/drain.ts';
import { Admission } from './admission.ts';
import { DrainAnswers, type DrainAnswersOptions } from './drain-answers.ts';
import type { EventBus } from './event-bus.ts';
import { MachineAnswers, type MachineAnswersOptions } from './machine-answers.ts';
import { MachineMoves } from './machine-moves.ts';
import { RunAnswers, type RunAnswersOptions } from './run-answers.ts';
import { Views, type ViewsOptions } from './views.ts';
import { VolumeAnswers, type VolumeAnswersOptions } from './volume-answers.ts';
import { WhyAnswers, type WhyAnswersOptions } from './why-answers.ts';
import { WorkerAnswers, type WorkerAnswersOptions } from './worker-answers.ts';

type Made = 'admission' | 'moves' | 'views';
export type ServiceOptions = Omit<
  DrainAnswersOptions &
    MachineAnswersOptions &
    RunAnswersOptions &
    ViewsOptions &
    VolumeAnswersOptions &
    WhyAnswersOptions &
    WorkerAnswersOptions,
  Made
> & {
  /** What peers are answered. */
  answers: PeerAnswers;
  journal: Journal;
  machines: MachineManager;
  drain: DrainController;
  events: EventBus;
  clock: Clock;
  metrics: () => string;
};

/** What this worker answers over HTTP: a class for each noun, together. */
export function localService(options: ServiceOptions): WorkerService {
  const moves = new MachineMoves(options);
  const views = new Views({ ...options, moves });
  const all = { ...options, moves, views, admission: new Admission(options) };
  const machines = new MachineAnswers(all);
  const operator = answering(
    OPERATOR,
    new WorkerAnswers(all),
    new WhyAnswers(all),
    machines,
    new VolumeAnswers(all),
    new DrainAnswers(all),
    new RunAnswers(all),
  );
  return {
    ...operator,
    execStream: (ref, request, onOutput) => machines.execStream(ref, request, onOutput),
    machineLogs: (ref, query, signal) => machines.machineLogs(ref, query, signal),
    events: (signal) => options.events.follow(signal),
    metrics: options.metrics,
    peers: options.answers,
  };
}
