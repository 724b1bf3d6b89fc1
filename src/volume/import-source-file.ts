import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { GodwitError, systemErrorCode } from '../base/errors.ts';
import type { ImportedExport, ImportedSourceSpec, ImportedUnit } from '../opening/spec.ts';
import { VOLUME_FILES } from './files.ts';

/*
 * `source.json` in the folder of an imported volume, mode 0600, there until the volume is whole:
 *
 *   {"formatVersion": 1, "location": "nbd://…", "sourceLengthBytes": 1073741824, "usedBytes": 5242880,
 *    "unit": {"serial": "…", "designators": "…"}}
 *
 * `unit` is there of iSCSI; of NBD in its place "nbdExport": {"name": "…", "description": "…",
 * "minimumBlockBytes": 1}. Both of volumes that were imported since it is kept: the disk behind the address
 * must be that one for as long as the volume is not whole.
 */

export type ImportRecord = ImportedSourceSpec & {
  /**
   * Of the source when it was looked at first: what is no hole, as far as could be told. Disk that the volume
   * will take.
   */
  usedBytes: number;
};

export function encodeImportSource(source: ImportRecord): string {
  return `${JSON.stringify({ formatVersion: 1, ...source })}\n`;
}

/**
 * Null without the file: the volume is not imported, or whole. Rejects `VOLUME_SOURCE_CORRUPT`, which does
 * not repeat what it read.
 */
export async function readImportSource(volumeDir: string): Promise<ImportRecord | null> {
  const path = join(volumeDir, VOLUME_FILES.importSource);
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return null;
    throw error;
  }
  const source = parse(text);
  if (source) return source;
  throw new GodwitError('VOLUME_SOURCE_CORRUPT', `${path} cannot be read`, {
    values: { path },
    nextAction: 'Restore the file, or destroy the volume and import it again.',
  });
}

function parse(text: string): ImportRecord | null {
  try {
    const value = JSON.parse(text) as Record<string, unknown> | null;
    const { formatVersion, location, sourceLengthBytes, usedBytes = sourceLengthBytes } = value ?? {};
    if (formatVersion !== 1 || typeof location !== 'string' || location === '') return null;
    if (!Number.isSafeInteger(sourceLengthBytes) || (sourceLengthBytes as number) < 512) return null;
    if (!Number.isSafeInteger(usedBytes) || (usedBytes as number) < 0) return null;
    const unit = value?.unit === undefined ? undefined : parseUnit(value.unit);
    if (unit === null) return null;
    const nbdExport = value?.nbdExport === undefined ? undefined : parseNbdExport(value.nbdExport);
    if (nbdExport === null) return null;
    return {
      location,
      sourceLengthBytes: sourceLengthBytes as number,
      usedBytes: usedBytes as number,
      ...(unit === undefined ? {} : { unit }),
      ...(nbdExport === undefined ? {} : { nbdExport }),
    };
  } catch {
    return null;
  }
}

function parseUnit(value: unknown): ImportedUnit | null {
  const { serial, designators } = (value ?? {}) as Record<string, unknown>;
  return typeof serial === 'string' && typeof designators === 'string' ? { serial, designators } : null;
}

function parseNbdExport(value: unknown): ImportedExport | null {
  const { name, description, minimumBlockBytes } = (value ?? {}) as Record<string, unknown>;
  if (typeof name !== 'string' || typeof description !== 'string') return null;
  if (!Number.isSafeInteger(minimumBlockBytes) || (minimumBlockBytes as number) < 1) return null;
  return { name, description, minimumBlockBytes: minimumBlockBytes as number };
}
