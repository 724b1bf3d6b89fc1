import type { FitRequest, Offer, OfferNeeds, PlacementRequest } from '../contract/peer.ts';
import type { Plan } from '../contract/schemas.ts';
import { chooseOffer } from './placement.ts';

/** What a drain would do, found out by asking the same questions without doing it. */
export type PlanView = Omit<Plan, 'warnings' | 'volumes'>;

/** What earlier moves of this worker took; the defaults are for a worker that has not moved anything yet. */
export type MoveHistory = {
  /** Median interruption of earlier moves of this machine, else of all; null when there were none. */
  interruptionMs: (machineId: string) => number | null;
  bytesPerSecond: number | null;
};

/** Used until a move has been measured. */
export const DEFAULT_INTERRUPTION_MS = 2_000;
const DEFAULT_BYTES_PER_SECOND = 200 * 2 ** 20;
/** Work before the stop (files, login, early sync), during which the machine runs. */
const PREPARATION_MS = 500;

export type PlanSubject = {
  machineId: string;
  name: string;
  running: boolean;
  placement: PlacementRequest;
  /** What else its host must have. */
  needs?: OfferNeeds;
  /** Why it cannot move now, if so. */
  obstacle: string | null;
};

export type PlanMachine = FitRequest['machines'][number];

/** A worker that machines of a plan could go to. */
export type PlanTarget = {
  worker: string;
  /** For a machine of those that were asked about, beside those that the plan has put there before. */
  offer: (machine: PlanMachine, planned: PlacementRequest[]) => Promise<Offer>;
};

/**
 * Asks for offers in the order in which the drain would move the machines, counting what the plan has already
 * put on each worker. Interruptions follow one after the other; each hydration begins when its machine has
 * booted and they share the source's bandwidth.
 */
export async function planDrain(
  worker: string,
  subjects: readonly PlanSubject[],
  ask: (machines: readonly PlanMachine[]) => Promise<PlanTarget[]>,
  history: MoveHistory,
): Promise<PlanView> {
  const ordered = [...subjects].sort(
    (left, right) =>
      left.placement.volumeUsedBytes - right.placement.volumeUsedBytes || (left.name < right.name ? -1 : 1),
  );
  const machines = new Map(
    ordered
      .filter(({ obstacle }) => obstacle === null)
      .map((subject) => [
        subject,
        { machine: subject.placement, ...(subject.needs && { needs: subject.needs }) },
      ]),
  );
  const targets = await ask([...machines.values()]);
  const bytesPerSecond = history.bytesPerSecond ?? DEFAULT_BYTES_PER_SECOND;
  const placed = new Map<string, PlacementRequest[]>();
  const steps: PlanView['steps'] = [];
  let elapsedMs = 0;
  let wireFreeAtMs = 0;
  let complete = true;
  for (const [index, subject] of ordered.entries()) {
    const step = { order: index + 1, machineId: subject.machineId, name: subject.name };
    const machine = machines.get(subject);
    const choice = machine ? await choose(machine, targets, placed) : null;
    if (!choice?.chosen) {
      complete = false;
      const reason = subject.obstacle ?? describeRefusals(choice?.reasons ?? []);
      steps.push({
        ...step,
        target: null,
        reason,
        predictedInterruptionMs: null,
        bytes: 0,
        predictedHydrationMs: null,
      });
      continue;
    }
    const target = choice.chosen.worker;
    placed.set(target, [...(placed.get(target) ?? []), subject.placement]);
    const bytes = subject.placement.volumeUsedBytes;
    const interruptionMs = subject.running
      ? Math.round(history.interruptionMs(subject.machineId) ?? DEFAULT_INTERRUPTION_MS)
      : 0;
    const hydrationMs = Math.round((bytes / bytesPerSecond) * 1000);
    elapsedMs += PREPARATION_MS + interruptionMs;
    wireFreeAtMs = Math.max(wireFreeAtMs, elapsedMs) + hydrationMs;
    steps.push({
      ...step,
      target,
      reason: choice.chosen.reason,
      predictedInterruptionMs: interruptionMs,
      bytes,
      predictedHydrationMs: hydrationMs,
    });
  }
  return {
    worker,
    steps,
    totalBytes: steps.reduce((total, step) => total + step.bytes, 0),
    predictedFinishMs: complete ? Math.max(elapsedMs, wireFreeAtMs) : null,
  };
}

async function choose(
  machine: PlanMachine,
  targets: readonly PlanTarget[],
  placed: ReadonlyMap<string, PlacementRequest[]>,
) {
  const offers = targets.map((target) => target.offer(machine, placed.get(target.worker) ?? []));
  return chooseOffer(await Promise.all(offers));
}

function describeRefusals(reasons: readonly { worker: string; reason: string }[]): string {
  if (reasons.length === 0) return 'there is no other worker';
  return reasons.map(({ worker, reason }) => `${worker} ${reason}`).join('; ');
}
