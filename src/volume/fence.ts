import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import { type DataLock, lockData } from './data-lock.ts';
import { VOLUME_FILES } from './files.ts';
import type { VolumeRecord } from './record.ts';
import { readRecord } from './record-file.ts';

/**
 * Somebody who only looks whether the lock is taken holds it for a moment; another server holds it for as
 * long as it lives.
 */
const LOCK_PATIENCE_MS = PATIENCE.dataLock.ms;
const LOCK_RETRY_MS = 20;

export type FencedVolume = Pick<OpeningSpec, 'volumeId' | 'generation' | 'volumeDir' | 'lengthBytes'>;

/** What an opening is for: `write` by the owner, `export` of what the owner sealed. */
export type Purpose = 'write' | 'export';

/**
 * Takes the lock of the data file, then checks the record: in this order, because a sealer writes the record
 * first. Rejects `VOLUME_LOCKED` when another server has the volume, `VOLUME_FENCED` when the record says
 * that the opening must not be, `VOLUME_RECORD_CORRUPT`.
 */
export async function passFence(opening: FencedVolume, purpose: Purpose, clock: Clock): Promise<DataLock> {
  const lock = await takeLock(join(opening.volumeDir, VOLUME_FILES.data), clock);
  try {
    checkFence(await readRecord(opening.volumeDir), opening, purpose);
    return lock;
  } catch (error) {
    lock.release();
    throw error;
  }
}

/** Throws `VOLUME_FENCED` unless the record allows the opening. Pure. */
function checkFence(record: VolumeRecord, opening: FencedVolume, purpose: Purpose): void {
  const allowed: readonly VolumeRecord['state'][] =
    purpose === 'write' ? ['ready', 'clone'] : ['sealed', 'retained'];
  const fits = record.id === opening.volumeId && record.generation === opening.generation;
  if (fits && allowed.includes(record.state)) return;
  throw new GodwitError(
    'VOLUME_FENCED',
    `volume ${opening.volumeId} may not be opened ${purpose === 'write' ? 'for writing' : 'as an export'} at generation ` +
      `${opening.generation}: its record says ${record.state} at generation ${record.generation}`,
    {
      values: {
        volumeId: opening.volumeId,
        recordVolumeId: record.id,
        generation: opening.generation,
        recordGeneration: record.generation,
        recordState: record.state,
        purpose,
      },
      nextAction:
        purpose === 'write'
          ? 'Another worker owns the volume now, or will; start the machine there.'
          : 'Seal the volume first, or export the generation that is sealed.',
    },
  );
}

async function takeLock(path: string, clock: Clock): Promise<DataLock> {
  const deadlineMs = clock.monotonicMs() + LOCK_PATIENCE_MS;
  for (;;) {
    try {
      return lockData(path);
    } catch (error) {
      if (!isGodwitError(error, 'VOLUME_LOCKED') || clock.monotonicMs() >= deadlineMs) throw error;
    }
    await clock.sleep(LOCK_RETRY_MS);
  }
}
