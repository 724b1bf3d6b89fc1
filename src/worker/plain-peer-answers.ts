import { isGodwitError } from '../base/errors.ts';
import type { Offer, OfferRequest, PeerAnswers } from '../contract/peer.ts';
import type { Journal } from '../journal/journal.ts';
import { evaluateOffer, type HostLoad } from '../migration/placement.ts';
import { readHeaderFile, type VolumeStore } from '../volume/index.ts';
import type { HostCheck } from './host-check.ts';

/** What this worker answers its peers beside the moves that come to it (migration/target-answers.ts). */
export class PlainPeerAnswers implements Pick<PeerAnswers, 'offer' | 'volumeHeader' | 'run'> {
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
    const offer = evaluateOffer(await this.#load(), request);
    const { needs, machine } = request;
    if (!offer.accepted || needs === undefined) return offer;
    const reason = await this.#check({ id: machine.machineId, name: machine.machineName }, needs);
    return reason === null ? offer : { ...offer, accepted: false, score: 0, reason };
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
