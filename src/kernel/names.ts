/**
 * Names of a volume's device-mapper devices, from the bottom:
 *
 *     godwit-<volume>-clone   dm-clone: data file, metadata file, source
 *     godwit-<volume>         linear: over the clone, and over the data file alone once the clone is whole
 *     godwit-<volume>-crypt   dm-crypt, where the volume is encrypted
 *     godwit-<volume>-export  linear: over the data file, read-only, of an export; suspended until the seal
 *
 * A host has a volume once; two workers on one kernel cannot both have it in the kernel plane.
 */
export function mapperNames(volumeId: string): {
  clone: string;
  gate: string;
  crypt: string;
  export: string;
} {
  const base = `godwit-${volumeId}`;
  return { clone: `${base}-clone`, gate: base, crypt: `${base}-crypt`, export: `${base}-export` };
}

/** In a shim's runtime folder: what it has in the kernel, for whoever cleans up after it. Holds no secret. */
export const KERNEL_STATE_FILE = 'plane.json';

/** In the volume's folder: the metadata of dm-clone, and what it belongs to. */
export const KERNEL_FILES = { cloneMetadata: 'clone.dm', cloneBinding: 'clone.dm.json' } as const;
