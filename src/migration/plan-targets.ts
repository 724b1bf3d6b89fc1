import type { Clock } from '../base/clock.ts';
import { isGodwitError, messageOf } from '../base/errors.ts';
import type { HostRoom, Offer, OfferRequest, Peer } from '../contract/peer.ts';
import { type OfferDesk, refusalOf, until } from './offers.ts';
import { offerFrom } from './placement.ts';
import type { PlanMachine, PlanTarget } from './plan.ts';

export type PlanQuestion = {
  sourceWorker: string;
  /** Only this one; null: all. */
  wanted: string | null;
  /** Who has not answered one question by then counts as silent. */
  waitMs: number;
  /** Who was silent: filled here. */
  silent: Map<string, Offer>;
};

/** Machines of one question: the host is looked at for each, within `waitMs`. */
const MACHINES_MAX = 25;
/** Of one question's machines, far below what a worker reads of a body (api/server.ts). */
const QUESTION_BYTES_MAX = 256 * 1024;

/**
 * Asks all workers side by side about all machines of a plan, in as few questions as there is room in; what
 * the plan puts on each is then counted here, with the rule that they count with. One of an earlier version
 * is asked for each machine again.
 */
export async function planTargets(
  { desk, peers, clock }: { desk: OfferDesk; peers: readonly Peer[]; clock: Clock },
  question: PlanQuestion,
  machines: readonly PlanMachine[],
): Promise<PlanTarget[]> {
  const [first] = machines;
  if (first === undefined) return [];
  const { sourceWorker, wanted, waitMs, silent } = question;
  const ask = (to: string | null, machine: PlanMachine, planned: OfferRequest['planned']) =>
    desk.ask({ wanted: to, request: { sourceWorker, ...machine, planned }, waitMs, silent });
  // Finds out who is silent, which the desk remembers for all who ask.
  const answered = await ask(wanted, first, []);
  return Promise.all(
    answered.map(async ({ worker }): Promise<PlanTarget> => {
      const peer = peers.find(({ name }) => name === worker);
      const gone = silent.get(worker);
      if (gone || !peer) return always(gone ?? refusalOf(worker, 'it is no peer any more'));
      try {
        return await fitting(peer, question, machines, clock);
      } catch (error) {
        if (isGodwitError(error, 'API_EARLIER_VERSION')) {
          return { worker, offer: async (machine, planned) => (await ask(worker, machine, planned))[0]! };
        }
        const offer = refusalOf(worker, messageOf(error));
        if (error instanceof Late || isGodwitError(error, 'API_UNREACHABLE')) silent.set(worker, offer);
        return always(offer);
      }
    }),
  );
}

async function fitting(
  peer: Peer,
  { sourceWorker, waitMs }: PlanQuestion,
  machines: readonly PlanMachine[],
  clock: Clock,
): Promise<PlanTarget> {
  const known = new Map<PlanMachine, { room: HostRoom; refusal: string | null }>();
  for (const some of inQuestions(machines)) {
    const late = new AbortController();
    const cancel = clock.timer(waitMs, () => late.abort(new Late(waitMs)));
    const asked = peer.fit({ sourceWorker, machines: some }, { signal: late.signal });
    const { room, refusals } = await until(asked, late.signal).finally(cancel);
    for (const [index, machine] of some.entries())
      known.set(machine, { room, refusal: refusals[index] ?? null });
  }
  return {
    worker: peer.name,
    offer: async (machine, planned) => {
      const { room, refusal } = known.get(machine)!;
      return offerFrom(room, { sourceWorker, ...machine, planned }, refusal);
    },
  };
}

function inQuestions(machines: readonly PlanMachine[]): PlanMachine[][] {
  const questions: PlanMachine[][] = [];
  let bytes = 0;
  for (const machine of machines) {
    const more = JSON.stringify(machine).length;
    const last = questions.at(-1);
    if (last && last.length < MACHINES_MAX && bytes + more <= QUESTION_BYTES_MAX) {
      last.push(machine);
      bytes += more;
    } else {
      questions.push([machine]);
      bytes = more;
    }
  }
  return questions;
}

class Late extends Error {
  constructor(waitMs: number) {
    super(`nothing within ${waitMs / 1000} s`);
  }
}

function always(offer: Offer): PlanTarget {
  return { worker: offer.worker, offer: async () => offer };
}
