import { isGodwitError } from '../base/errors.ts';
import type { FitReply, FitRequest, Offer, OfferRequest, PeerAnswers } from '../contract/peer.ts';
import type { Journal } from '../journal/journal.ts';
import { evaluateOffer, type HostLoad, refused, roomOf } from '../migration/placement.ts';
import { readHeaderFile, type VolumeStore } from '../volume/index.ts';
import type { HostCheck } from './host-check.ts';

/** What this worker answers its peers beside the moves that come to it (migration/target-answers.ts). */
export class PlainPeerAnswers implements Pick<PeerAnswers, 'offer' | 'fit' | 'volumeHeader' | 'run'> {
  readonly #load: () => Promise<HostLoad>;
  readonly #check: HostCheck;
  readonly #volumes: VolumeStore;
  readonly #journal: Journal;

  constructor(options: {
    load: () => Promise<HostLoad>;
    check: HostCheck;
    volumes: VolumeStore;
    journal: Journal;
  }) {
    this.#load = options.load;
    this.#check = options.check;
    this.#volumes = options.volumes;
    this.#journal = options.journal;
  }

  async offer(request: OfferRequest): Promise<Offer> {
    return this.#offer(await this.#load(), request);
  }

  /** Looks at this host once for all of them. */
  async fit({ sourceWorker, machines }: FitRequest): Promise<FitReply> {
    const load = await this.#load();
    const host = { ...load, lacks: kept(load.lacks), holdsFileOf: kept(load.holdsFileOf) };
    const refusals: FitReply['refusals'] = [];
    for (const each of machines) {
      const { accepted, reason } = await this.#offer(host, { ...each, sourceWorker, planned: [] });
      refusals.push(accepted ? null : reason);
    }
    return { room: roomOf(load), refusals };
  }

  async #offer(host: HostLoad, request: OfferRequest): Promise<Offer> {
    const offer = evaluateOffer(host, request);
    const { needs, machine } = request;
    if (!offer.accepted || needs === undefined) return offer;
    const reason = await this.#check({ id: machine.machineId, name: machine.machineName }, needs);
    return reason === null ? offer : refused(offer, reason);
  }

  async volumeHeader(volumeId: string): Promise<string> {
    const { id } = await this.#volumes.get(volumeId);
    return (await readHeaderFile(this.#volumes.folder(id))).toString('base64');
  }

  async run(runId: string): Promise<{ state: string; step: string | null } | null> {
    try {
      const { state, step } = this.#journal.get(runId);
      return { state, step };
    } catch (error) {
      if (isGodwitError(error, 'JOURNAL_UNKNOWN_RUN')) return null;
      throw error;
    }
  }
}

/** That answer of a moment ago, where the same was asked. */
function kept<Asked, Answer>(ask: (asked: Asked) => Answer): (asked: Asked) => Answer {
  const answers = new Map<Asked, Answer>();
  return (asked) => {
    if (!answers.has(asked)) answers.set(asked, ask(asked));
    return answers.get(asked) as Answer;
  };
}
