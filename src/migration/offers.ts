import { GodwitError, messageOf } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import { advanced } from '../base/progress.ts';
import type { Offer, OfferRequest, Peer } from './peer.ts';

/**
 * Asks all peers (or only `wanted`) at once. A peer that does not answer counts as a refusal with that reason: one that is silent when it has been so
 * for long enough (api/peer-client.ts), one that only takes long when another has accepted and it does not follow within a moment.
 */
export async function askPeers(
  peers: readonly Peer[],
  wanted: string | null,
  request: OfferRequest,
  signal?: AbortSignal,
  graceMs: number = PATIENCE.offerGrace.ms,
): Promise<Offer[]> {
  const enough = new AbortController();
  let grace: NodeJS.Timeout | undefined;
  const asked = peers.filter((peer) => wanted === null || peer.name === wanted);
  try {
    return await Promise.all(
      asked.map(async (peer): Promise<Offer> => {
        try {
          const offer = await peer.offer(
            request,
            AbortSignal.any([enough.signal, ...(signal ? [signal] : [])]),
          );
          advanced(`answers of ${peer.name}`);
          if (offer.accepted) grace ??= setTimeout(() => enough.abort(tooSlow(graceMs)), graceMs);
          return offer;
        } catch (error) {
          return silent(peer.name, messageOf(error));
        }
      }),
    );
  } finally {
    clearTimeout(grace);
  }
}

function tooSlow(graceMs: number): Error {
  return new Error(`another worker accepted ${graceMs / 1000} s before`);
}

function silent(worker: string, why: string): Offer {
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
