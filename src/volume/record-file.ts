import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { GodwitError, messageOf } from '../base/errors.ts';
import { VOLUME_FILES } from './files.ts';
import type { VolumeRecord } from './record.ts';

/** A record is under 1 KiB; anything larger is not one. */
const RECORD_BYTES_MAX = 64 * 1024;

const FILESYSTEMS: readonly unknown[] = ['ext4', 'xfs', 'none'] satisfies VolumeRecord['filesystem'][];
const STATES: readonly unknown[] = [
  'incoming',
  'clone',
  'ready',
  'sealed',
  'retained',
] satisfies VolumeRecord['state'][];

/** The record in a volume's folder, checked. Rejects `VOLUME_RECORD_CORRUPT`, naming the file. */
export async function readRecord(folder: string): Promise<VolumeRecord> {
  const path = join(folder, VOLUME_FILES.record);
  const text = await readText(path);
  let value: unknown;
  try {
    value = JSON.parse(text);
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

/**
 * What keeps a value from being a record of the schema `VolumeRecord`; null: nothing. Written out, because
 * the schema's own validator would take a third of a volume server's memory and half of its start; a test
 * holds the two together.
 */
export function wrongField(value: unknown): string | null {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return 'it is not an object';
  const fields = value as Record<string, unknown>;
  const integer = (field: unknown, minimum = Number.NEGATIVE_INFINITY) =>
    Number.isInteger(field) && (field as number) >= minimum;
  const checks: [name: keyof VolumeRecord, fits: boolean][] = [
    ['formatVersion', fields.formatVersion === 1],
    ['id', typeof fields.id === 'string'],
    ['name', typeof fields.name === 'string'],
    ['lengthBytes', integer(fields.lengthBytes, 4096)],
    ['filesystem', FILESYSTEMS.includes(fields.filesystem)],
    ['generation', integer(fields.generation, 1)],
    ['state', STATES.includes(fields.state)],
    ['createdAtMs', integer(fields.createdAtMs)],
    ['machineId', fields.machineId === null || typeof fields.machineId === 'string'],
    ['encryption', fields.encryption === undefined || isEncryption(fields.encryption)],
    ['destroyAfterMs', fields.destroyAfterMs === null || integer(fields.destroyAfterMs)],
  ];
  const wrong = checks.find(([, fits]) => !fits);
  return wrong ? `its ${wrong[0]} does not fit` : null;
}

function isEncryption(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  const { uuid, keyGeneration, keyVolumeId, holes, source } = value as Record<string, unknown>;
  if (typeof uuid !== 'string' || (holes !== undefined && holes !== 'none')) return false;
  if (keyGeneration !== undefined && !isGeneration(keyGeneration)) return false;
  if (!isTextOrNothing(keyVolumeId)) return false;
  if (source === undefined) return true;
  if (typeof source !== 'object' || source === null || Array.isArray(source)) return false;
  const from = source as Record<string, unknown>;
  return (
    typeof from.uuid === 'string' && isGeneration(from.keyGeneration) && isTextOrNothing(from.keyVolumeId)
  );
}

function isTextOrNothing(value: unknown): boolean {
  return value === undefined || typeof value === 'string';
}

function isGeneration(value: unknown): boolean {
  return Number.isInteger(value) && (value as number) >= 1;
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
