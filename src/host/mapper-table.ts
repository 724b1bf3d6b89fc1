import { unknownOutputError } from './tools.ts';

/** Device-mapper counts in sectors of 512 bytes, whatever those of the device are. */
export const SECTOR_BYTES = 512;

/** One target that is the whole device. Paths are of block devices; lengths in sectors of 512 bytes. */
export type MapperTable =
  /** Every request fails. */
  | { target: 'error'; sectors: number }
  | { target: 'linear'; sectors: number; device: string; startSector: number }
  | {
      target: 'clone';
      sectors: number;
      metadataDevice: string;
      targetDevice: string;
      sourceDevice: string;
      /** A power of two, 8 to 2^21. */
      regionSectors: number;
      hydrating: boolean;
      hydrationThreshold: number;
      hydrationBatchRegions: number;
    }
  | {
      target: 'crypt';
      sectors: number;
      device: string;
      startSector: number;
      cipher: string;
      /** Never logged, never in argv. */
      key: Uint8Array;
      sectorBytes: number;
      allowDiscards: boolean;
    };

/**
 * The table as dmsetup reads it:
 *   error
 *   linear <device> <start>
 *   clone  <metadata> <target> <source> <region> <#features> [no_hydration] <#core> hydration_threshold N hydration_batch_size N
 *   crypt  <cipher> <key> <iv offset> <device> <start> <#options> [allow_discards] [sector_size:N]
 * Documentation/admin-guide/device-mapper/{linear,dm-clone,dm-crypt}.rst. The IV of dm-crypt counts sectors
 * of 512 bytes whatever `sectorBytes` is, as that of LUKS2 does.
 */
export function encodeMapperTable(table: MapperTable): string {
  const begin = `0 ${table.sectors} ${table.target}`;
  switch (table.target) {
    case 'error':
      return `${begin}\n`;
    case 'linear':
      return `${begin} ${table.device} ${table.startSector}\n`;
    case 'clone': {
      const devices = `${table.metadataDevice} ${table.targetDevice} ${table.sourceDevice}`;
      const features = table.hydrating ? '0' : '1 no_hydration';
      const core = `4 hydration_threshold ${table.hydrationThreshold} hydration_batch_size ${table.hydrationBatchRegions}`;
      return `${begin} ${devices} ${table.regionSectors} ${features} ${core}\n`;
    }
    case 'crypt': {
      const options = [
        ...(table.allowDiscards ? ['allow_discards'] : []),
        ...(table.sectorBytes === SECTOR_BYTES ? [] : [`sector_size:${table.sectorBytes}`]),
      ];
      const key = Buffer.from(table.key.buffer, table.key.byteOffset, table.key.byteLength).toString('hex');
      const tail = options.length === 0 ? '' : ` ${options.length} ${options.join(' ')}`;
      return `${begin} ${table.cipher} ${key} 0 ${table.device} ${table.startSector}${tail}\n`;
    }
  }
}

/** What dm-clone says of itself. */
export type CloneStatus = {
  /**
   * `failed`: the metadata is lost; `readonly`: it cannot be written, so missing regions cannot be written
   * either.
   */
  mode: 'writable' | 'readonly' | 'failed';
  metadataBlocksUsed: number;
  metadataBlocksTotal: number;
  regionSectors: number;
  regionsHydrated: number;
  regionsTotal: number;
  /** In flight. */
  regionsHydrating: number;
  hydrating: boolean;
  hydrationThreshold: number;
  hydrationBatchRegions: number;
};

/**
 * The status line of dm-clone 1.0.0 (Linux 5.4 and later), without `<start> <length> clone`:
 *   <metadata block sectors> <used>/<total> <region sectors> <hydrated>/<total> <hydrating> <#features> … <#core> … rw|ro
 * or the word `Fail`. Throws `HOST_UNKNOWN_OUTPUT`.
 */
export function parseCloneStatus(text: string): CloneStatus {
  const unknown = () => unknownOutputError('dmsetup', 'the status of a clone', text);
  if (text === 'Fail') return { ...NOTHING_KNOWN, mode: 'failed' };
  const words = text.split(' ');
  let at = 0;
  const word = (): string => {
    const next = words[at++];
    if (next === undefined) throw unknown();
    return next;
  };
  const number = (): number => {
    const next = word();
    if (!/^\d{1,15}$/.test(next)) throw unknown();
    return Number(next);
  };
  const pair = (): [number, number] => {
    const match = /^(\d{1,15})\/(\d{1,15})$/.exec(word());
    if (!match || Number(match[1]) > Number(match[2])) throw unknown();
    return [Number(match[1]), Number(match[2])];
  };
  const list = (): string[] => {
    const length = number();
    if (length > words.length - at) throw unknown();
    return Array.from({ length }, word);
  };

  number(); // metadata block size, fixed at 8 sectors
  const [metadataBlocksUsed, metadataBlocksTotal] = pair();
  const regionSectors = number();
  const [regionsHydrated, regionsTotal] = pair();
  const regionsHydrating = number();
  const features = list();
  const core = list();
  const mode = word();
  if (at !== words.length || regionsTotal === 0 || regionSectors === 0) throw unknown();
  if (mode !== 'rw' && mode !== 'ro') throw unknown();
  const coreValue = (name: string): number => {
    const value = core[core.indexOf(name) + 1];
    if (!core.includes(name) || value === undefined || !/^\d{1,15}$/.test(value)) throw unknown();
    return Number(value);
  };
  return {
    mode: mode === 'rw' ? 'writable' : 'readonly',
    metadataBlocksUsed,
    metadataBlocksTotal,
    regionSectors,
    regionsHydrated,
    regionsTotal,
    regionsHydrating,
    hydrating: !features.includes('no_hydration'),
    hydrationThreshold: coreValue('hydration_threshold'),
    hydrationBatchRegions: coreValue('hydration_batch_size'),
  };
}

const NOTHING_KNOWN: Omit<CloneStatus, 'mode'> = {
  metadataBlocksUsed: 0,
  metadataBlocksTotal: 0,
  regionSectors: 0,
  regionsHydrated: 0,
  regionsTotal: 0,
  regionsHydrating: 0,
  hydrating: false,
  hydrationThreshold: 0,
  hydrationBatchRegions: 0,
};
