import type { Offer, OfferNeeds, OfferRequest, PlacementRequest } from '../contract/peer.ts';
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

/**
 * Asks for offers in the order in which the drain would move the machines, counting what the plan has already
 * put on each worker. Interruptions follow one after the other; each hydration begins when its machine has
 * booted and they share the source's bandwidth.
 */
export async function planDrain(
  worker: string,
  subjects: readonly PlanSubject[],
  ask: (request: OfferRequest) => Promise<Offer[]>,
  history: MoveHistory,
): Promise<PlanView> {
  const ordered = [...subjects].sort(
    (left, right) =>
      left.placement.volumeUsedBytes - right.placement.volumeUsedBytes || (left.name < right.name ? -1 : 1),
  );
  const bytesPerSecond = history.bytesPerSecond ?? DEFAULT_BYTES_PER_SECOND;
  const placed = new Map<string, PlacementRequest[]>();
  const steps: PlanView['steps'] = [];
  let elapsedMs = 0;
  let wireFreeAtMs = 0;
  let complete = true;
  for (const [index, subject] of ordered.entries()) {
    const step = { order: index + 1, machineId: subject.machineId, name: subject.name };
    const choice = subject.obstacle === null ? await choose(worker, subject, ask, placed) : null;
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
  worker: string,
  subject: PlanSubject,
  ask: (request: OfferRequest) => Promise<Offer[]>,
  placed: ReadonlyMap<string, PlacementRequest[]>,
) {
  // Each worker is asked with what the plan puts on it; the answers of the others in that round are not used.
  const names = new Set(placed.keys());
  const { placement: machine, needs } = subject;
  const request = { sourceWorker: worker, machine, ...(needs && { needs }) };
  const offers = new Map((await ask({ ...request, planned: [] })).map((offer) => [offer.worker, offer]));
  for (const name of names) {
    const answers = await ask({ ...request, planned: placed.get(name) ?? [] });
    const answer = answers.find((offer) => offer.worker === name);
    if (answer) offers.set(name, answer);
  }
  return chooseOffer([...offers.values()]);
}

function describeRefusals(reasons: readonly { worker: string; reason: string }[]): string {
  if (reasons.length === 0) return 'there is no other worker';
  return reasons.map(({ worker, reason }) => `${worker} ${reason}`).join('; ');
}
