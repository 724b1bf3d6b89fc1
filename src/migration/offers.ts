import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { advanced } from '../base/progress.ts';
import { unsaidParts } from '../contract/endpoint.ts';
import { type Offer, type OfferRequest, PEER, type Peer } from '../contract/peer.ts';
import type { MoveSubject } from './source-side.ts';

/** What is asked for a machine that is to move now. */
export function offerRequest(sourceWorker: string, subject: MoveSubject): OfferRequest {
  const { placement, config, mount } = subject;
  return { sourceWorker, machine: placement, planned: [], needs: { config, ...(mount && { mount }) } };
}

export type OfferQuestion = {
  /** Only this one; null: all. */
  wanted: string | null;
  request: OfferRequest;
  signal?: AbortSignal | undefined;
  /**
   * Who has not answered by then counts as silent. Left out: as long as he lives (api/peer-client.ts), or
   * until another has accepted and a moment more.
   */
  waitMs?: number;
  /** Of questions that belong together (a plan): who was silent once is not asked again. Filled here. */
  silent?: Map<string, Offer>;
};

/** Since when, and when that was seen last, by the monotonic clock. */
type Silence = { readonly sinceMs: number; readonly seenMs: number };

/** After a silence that old it may well be back. */
const SILENCE_OLD_MS = 10_000;

/**
 * Asks peers for offers, side by side. One that does not answer counts as a refusal with that reason, and is
 * remembered: until it has answered, it is asked along, by one question at a time, and nobody waits for it
 * for longer than a moment. So a worker that hangs costs one bounded wait, whoever asks and however often.
 * Nobody asks it in between: where it was silent a while ago, the moment is some seconds.
 */
export class OfferDesk {
  readonly #peers: () => readonly Peer[];
  readonly #clock: Clock;
  readonly #graceMs: number;
  readonly #silences = new Map<string, Silence>();
  readonly #probes = new Map<string, Promise<Offer>>();
  /** What each of them said that it knows (`Endpoint.since`). */
  readonly #knows = new Map<string, readonly string[]>();

  constructor(options: { peers: () => readonly Peer[]; clock: Clock; graceMs?: number }) {
    this.#peers = options.peers;
    this.#clock = options.clock;
    this.#graceMs = options.graceMs ?? PATIENCE.offerGrace.ms;
  }

  async ask({ wanted, request, signal, waitMs, silent }: OfferQuestion): Promise<Offer[]> {
    const enough = new AbortController();
    const cancels: (() => void)[] = [];
    if (waitMs !== undefined)
      cancels.push(
        this.#clock.timer(waitMs, () => enough.abort(new Error(`nothing within ${waitMs / 1000} s`))),
      );
    const accepted = () => {
      if (cancels.length > (waitMs === undefined ? 0 : 1)) return;
      cancels.push(this.#clock.timer(this.#graceMs, () => enough.abort(tooSlow(this.#graceMs))));
    };
    const asked = this.#peers().filter((peer) => wanted === null || peer.name === wanted);
    const stop = AbortSignal.any([enough.signal, ...(signal ? [signal] : [])]);
    try {
      return await Promise.all(
        asked.map(async (peer): Promise<Offer> => {
          const known = silent?.get(peer.name);
          if (known) return known;
          try {
            const silence = this.#silences.get(peer.name);
            const offer = await (silence
              ? this.#probe(peer, request, this.#momentMs(silence))
              : until(this.#offer(peer, request, stop), stop));
            this.#silences.delete(peer.name);
            advanced(`answers of ${peer.name}`);
            if (offer.accepted) accepted();
            return offer;
          } catch (error) {
            const isSilent = enough.signal.aborted || isGodwitError(error, 'API_UNREACHABLE');
            const offer = refusalOf(peer.name, isSilent ? this.#silence(peer.name, error) : messageOf(error));
            if (isSilent) silent?.set(peer.name, offer);
            return offer;
          }
        }),
      );
    } finally {
      for (const cancel of cancels) cancel();
    }
  }

  /**
   * Of one that was silent: its answer, if that comes within a moment. The question goes on, and its answer
   * ends the silence.
   */
  async #probe(peer: Peer, request: OfferRequest, momentMs: number): Promise<Offer> {
    if (this.#probes.has(peer.name)) throw stillSilent();
    const probe = this.#offer(peer, request).finally(() => this.#probes.delete(peer.name));
    this.#probes.set(peer.name, probe);
    probe.then(
      () => this.#silences.delete(peer.name),
      () => {},
    );
    const late = new AbortController();
    const cancel = this.#clock.timer(momentMs, () => late.abort(stillSilent()));
    return until(probe, late.signal).finally(cancel);
  }

  /** With all that it knows, which its answer says. */
  async #offer(peer: Peer, request: OfferRequest, signal?: AbortSignal): Promise<Offer> {
    const known = this.#knows.get(peer.name);
    try {
      const offer = this.#heard(peer, await peer.offer(request, { signal, knows: known }));
      const { knows } = offer;
      const saysMore =
        unsaidParts(PEER.offer, request, known).length > unsaidParts(PEER.offer, request, knows).length;
      if (!offer.accepted || !saysMore) return offer;
      return this.#heard(peer, await peer.offer(request, { signal, knows }));
    } catch (error) {
      if (!isGodwitError(error, 'API_INVALID_REQUEST') || !known?.length) throw error;
      // It has been replaced by an earlier version.
      this.#knows.delete(peer.name);
      return this.#offer(peer, request, signal);
    }
  }

  #heard(peer: Peer, offer: Offer): Offer {
    this.#knows.set(peer.name, offer.knows ?? []);
    return offer;
  }

  #momentMs({ seenMs }: Silence): number {
    const isOld = this.#clock.monotonicMs() - seenMs >= SILENCE_OLD_MS;
    return (isOld ? PAUSE.silentPeerLater : PAUSE.silentPeer).ms;
  }

  #silence(name: string, error: unknown): string {
    const nowMs = this.#clock.monotonicMs();
    const { sinceMs } = this.#silences.get(name) ?? { sinceMs: nowMs };
    this.#silences.set(name, { sinceMs, seenMs: nowMs });
    const forS = Math.round((nowMs - sinceMs) / 1000);
    return `${messageOf(error)}${forS > 0 ? ` (and had not ${forS} s ago)` : ''}`;
  }
}

function stillSilent(): GodwitError {
  return new GodwitError('API_UNREACHABLE', 'it was silent before, and still is', {
    values: { delivered: null },
    retry: 'later',
    nextAction: 'Look whether that worker runs, or hangs.',
  });
}

/** `work`, or the reason of `stop` when that is first; also where the work does not listen to it. */
export async function until<T>(work: Promise<T>, stop: AbortSignal): Promise<T> {
  const stopped = Promise.withResolvers<never>();
  const onAbort = () => stopped.reject(stop.reason);
  if (stop.aborted) onAbort();
  stop.addEventListener('abort', onAbort, { once: true });
  try {
    return await Promise.race([work, stopped.promise]);
  } finally {
    stop.removeEventListener('abort', onAbort);
    work.catch(() => {});
  }
}

function tooSlow(graceMs: number): Error {
  return new Error(`another worker accepted ${graceMs / 1000} s before`);
}

/** Of one that does not answer. */
export function refusalOf(worker: string, why: string): Offer {
  return {
    worker,
    accepted: false,
    reason: `does not answer: ${why}`,
    score: 0,
    freeMemoryBytes: 0,
    freeCpus: 0,
    freeDiskBytes: 0,
    groupMembers: 0,
  };
}

/** Nobody takes the machine; it stays, and this is why. */
export function noCapacity(
  machine: string,
  wanted: string | null,
  reasons: readonly { worker: string; reason: string }[],
): GodwitError {
  const nobody = wanted === null ? 'there is no other worker' : `${wanted} is not among the peers`;
  const list = reasons.map(({ worker, reason }) => `${worker} ${reason}`).join('; ') || nobody;
  return new GodwitError('MIGRATION_NO_CAPACITY', `no worker takes ${machine}: ${list}`, {
    values: { machine, wanted },
    nextAction: wanted
      ? `Leave the choice of the worker open (drop --to), or make room on ${wanted}.`
      : 'Make room on one of them, `godwit undrain` one, or add a worker; a drain goes on by itself then.',
  });
}
