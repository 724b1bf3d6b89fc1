import { GodwitError } from '../base/errors.ts';
import type { Refusal, Wanted } from '../opening/backend.ts';

/**
 * Longest volume of the kernel plane: dm-clone has a bit for each 4 KiB in the memory of the kernel, and room
 * for all of its metadata is taken when a clone is made.
 */
const LENGTH_BYTES_MAX = 16 * 2 ** 40;

/** What the kernel's devices cannot do; null: they open it. Pure. */
export function kernelCan({ kind, lengthBytes, nbd, encryption, ...rest }: Wanted): Refusal | null {
  const refuse = (reason: string, of: Refusal['of'] = 'kind'): Refusal => ({ reason, of });
  if (kind === 'serve') return refuse('is for clients of other systems, which volume servers have');
  if (lengthBytes > LENGTH_BYTES_MAX)
    return refuse('is longer than 16 TiB, which is the most that the kernel plane takes');
  if (nbd) return refuse('is an NBD socket for its guest');
  if (encryption && encryption.holes !== 'none')
    // What was never written reads as noise there.
    return refuse('was not made for dm-crypt (`volume create --dm-crypt`)', 'encryption');
  if (encryption?.source) return refuse('gets another key on its way', 'source');
  if (kind === 'import') return refuse('is made of a disk of another system', 'source');
  // The kernel's initiator and its target speak no TLS.
  if (rest.clone && 'tls' in rest.clone.source && rest.clone.source.tls)
    return refuse('has its source behind TLS', 'source');
  if (rest.export && (rest.export.tls || rest.export.grants.length !== 1))
    return refuse('is exported under TLS, or to others than one initiator');
  return null;
}

/** A spec for the kernel plane that it cannot open: its worker has chosen wrongly. */
export function refusedByKernel(volumeId: string, { reason, of }: Refusal): GodwitError {
  const message = `volume ${volumeId} ${reason}`;
  const values = { volumeId };
  const nextAction = 'Use the userspace plane for it: start the worker without --plane kernel.';
  switch (of) {
    case 'encryption':
      return new GodwitError('PLANE_NOT_FOR_DM_CRYPT', message, { values, retry: 'never', nextAction });
    case 'source':
      return new GodwitError('PLANE_SOURCE_UNSUPPORTED', message, { values, retry: 'never', nextAction });
    case 'kind':
      return new GodwitError('VOLUME_BAD_SPEC', message, { values, nextAction });
  }
}
