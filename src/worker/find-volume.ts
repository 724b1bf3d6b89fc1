import { GodwitError } from '../base/errors.ts';
import type { VolumeRecord, VolumeStore } from '../volume/index.ts';

/** By id or name. Rejects `WORKER_NOT_FOUND`. */
export async function findVolume(
  worker: { name: string; volumes: VolumeStore },
  ref: string,
): Promise<VolumeRecord> {
  const { volumes } = await worker.volumes.list();
  const byId = volumes.filter(({ id }) => id === ref);
  const newest = (records: VolumeRecord[]) =>
    records.sort((left, right) => right.generation - left.generation)[0];
  // A copy that a move left answers to its id only: its name is that of the volume that went.
  const named = volumes.filter(({ name, state }) => name === ref && state !== 'retained');
  const found = newest(byId) ?? newest(named);
  if (found) return found;
  throw new GodwitError('WORKER_NOT_FOUND', `${worker.name} knows nothing called ${ref}`, {
    values: { ref },
    nextAction: 'godwit machine list, godwit volume list and godwit runs list show what there is.',
  });
}
