import { GodwitError } from '../base/errors.ts';

/** A target that no move can have, now or later. `what`: that which should go there. */
export function refuseTarget(
  { name, peers }: { name: string; peers: () => readonly { name: string }[] },
  target: string | null,
  what: string,
): void {
  if (target === null) return;
  if (target === name) {
    throw new GodwitError('WORKER_MOVE_TO_ITSELF', `${what} is on ${name} already`, {
      values: { worker: name },
      nextAction: 'Name another worker, or none.',
    });
  }
  const names = peers().map((peer) => peer.name);
  if (names.includes(target)) return;
  throw new GodwitError('WORKER_PEER_NOT_FOUND', `${name} knows no worker ${target}`, {
    values: { worker: target },
    nextAction: `Its peers are: ${names.join(', ') || 'none'}.`,
  });
}
