import { GodwitError, messageOf } from '../base/errors.ts';
import type { Offer, OfferRequest, Peer } from './peer.ts';

const OFFER_TIMEOUT_MS = 5_000;

/** Asks all peers (or only `wanted`) at once. A peer that does not answer counts as a refusal with that reason. */
export async function askPeers(
  peers: readonly Peer[],
  wanted: string | null,
  request: OfferRequest,
  signal?: AbortSignal,
): Promise<Offer[]> {
  const timeout = AbortSignal.timeout(OFFER_TIMEOUT_MS);
  const asked = peers.filter((peer) => wanted === null || peer.name === wanted);
  return Promise.all(
    asked.map(async (peer): Promise<Offer> => {
      try {
        return await peer.offer(request, signal ? AbortSignal.any([signal, timeout]) : timeout);
      } catch (error) {
        return {
          worker: peer.name,
          accepted: false,
          reason: `does not answer: ${messageOf(error)}`,
          score: 0,
          freeMemoryBytes: 0,
          freeCpus: 0,
          freeDiskBytes: 0,
          groupMembers: 0,
        };
      }
    }),
  );
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
