import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { GodwitError, messageOf } from '../base/errors.ts';
import { integer, misfitOf, nullable, object, oneOf, text } from '../base/shape.ts';
import { VOLUME_FILES } from './files.ts';
import type { VolumeRecord } from './record.ts';

/** A record is under 1 KiB; anything larger is not one. */
const RECORD_BYTES_MAX = 64 * 1024;

const generation = integer(1);
const wallMs = integer(Number.MIN_SAFE_INTEGER);
/**
 * As the schema `VolumeRecord`, whose own validator would take a third of a volume server's memory and half
 * of its start; a test holds the two together.
 */
const RECORD = object(
  {
    ...{ formatVersion: integer(1, 1), id: text, name: text, lengthBytes: integer(4096), generation },
    filesystem: oneOf('ext4', 'xfs', 'none'),
    state: oneOf('incoming', 'clone', 'ready', 'sealed', 'retained'),
    ...{ createdAtMs: wallMs, machineId: nullable(text), destroyAfterMs: nullable(wallMs) },
  },
  {
    encryption: object(
      { uuid: text },
      {
        ...{ keyGeneration: generation, keyVolumeId: text, holes: oneOf('none') },
        source: object({ uuid: text, keyGeneration: generation }, { keyVolumeId: text }),
      },
    ),
  },
);

/** The record in a volume's folder, checked. Rejects `VOLUME_RECORD_CORRUPT`, naming the file. */
export async function readRecord(folder: string): Promise<VolumeRecord> {
  const path = join(folder, VOLUME_FILES.record);
  const content = await readText(path);
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch (error) {
    throw corrupt(path, 'it is not JSON', error);
  }
  const wrong = wrongField(value);
  if (wrong !== null) throw corrupt(path, wrong);
  const record = value as VolumeRecord;
  const name = basename(folder);
  if (name !== record.id && name !== `${record.id}.g${record.generation}`) {
    throw corrupt(path, `it is of volume ${record.id}`);
  }
  return record;
}

export function encodeRecord(record: VolumeRecord): string {
  return `${JSON.stringify(record, null, 2)}\n`;
}

/** What keeps a value from being a record; null: nothing. */
export function wrongField(value: unknown): string | null {
  return misfitOf(RECORD, value, 'it')?.message ?? null;
}

async function readText(path: string): Promise<string> {
  try {
    // O_NOFOLLOW: a record is a plain file of ours, never a link to somewhere else.
    const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
    try {
      const { size } = await file.stat();
      if (size > RECORD_BYTES_MAX) throw corrupt(path, `it has ${size} bytes`);
      return await file.readFile('utf8');
    } finally {
      await file.close();
    }
  } catch (error) {
    throw error instanceof GodwitError ? error : corrupt(path, messageOf(error), error);
  }
}

function corrupt(path: string, reason: string, cause?: unknown): GodwitError {
  return new GodwitError('VOLUME_RECORD_CORRUPT', `${path} is not a volume's record: ${reason}`, {
    values: { path },
    retry: 'never',
    nextAction: 'Restore the file from a backup, or move the folder away; the data beside it is untouched.',
    cause,
  });
}
