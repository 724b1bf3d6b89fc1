import { geometryError } from './errors.ts';
import { headerAreaBytes } from './header-backup.ts';
import type { Luks2Header } from './header-store.ts';
import { type Kdf, type KdfLimits, kdfLimitError } from './kdf.ts';
import { CIPHER } from './metadata.ts';

/**
 * What another host must know of an encrypted volume to tell whether it could open it: plain values that
 * travel as JSON before a move, none of them secret. Two versions of cryptsetup put the data at 4 MiB and at
 * 16 MiB by default; a size that is inferred instead of told is a volume of the wrong length.
 */
export type Luks2Geometry = {
  uuid: string;
  /** Of one binary header with its JSON area. */
  headerBytes: number;
  /** Both headers and all key slots: what must be there of the header to open the volume. */
  headerAreaBytes: number;
  dataOffsetBytes: number;
  /** null: to the end of the device. */
  dataLengthBytes: number | null;
  sectorBytes: number;
  cipher: string;
  /** Of the volume key: 32 is AES-128, 64 is AES-256. */
  keyBytes: number;
  /** Those that open the volume. */
  slots: SlotGeometry[];
};

export type SlotGeometry =
  | { slot: number; kdf: 'pbkdf2'; hash: string; iterations: number }
  | { slot: number; kdf: 'argon2id' | 'argon2i'; memoryKib: number; passes: number; lanes: number };

/** What a host can open. */
export type HostCapabilities = {
  ciphers: readonly string[];
  /** The largest block that its data path takes; sectors of the encryption are no larger. */
  maxSectorBytes: number;
  kdfLimits: KdfLimits;
};

/** What the volume is expected to be, by its record. */
export type ExpectedVolume = { uuid: string; plainLengthBytes: number; deviceLengthBytes: number };

export type GeometryProblem = {
  what: 'uuid' | 'cipher' | 'sector size' | 'length' | 'key slots';
  message: string;
};

export function luks2Geometry(header: Luks2Header): Luks2Geometry {
  const { segment, slots, digest } = header.metadata;
  const opening = digest.slots.flatMap((id) => {
    const slot = slots.get(id);
    return slot ? [{ id, slot }] : [];
  });
  return {
    uuid: header.binary.uuid,
    headerBytes: header.binary.headerBytes,
    headerAreaBytes: headerAreaBytes(header),
    dataOffsetBytes: segment.offsetBytes,
    dataLengthBytes: segment.lengthBytes,
    sectorBytes: segment.sectorBytes,
    cipher: CIPHER,
    keyBytes: opening[0]?.slot.keyBytes ?? 0,
    slots: opening.map(({ id, slot }) => slotGeometry(id, slot.kdf)),
  };
}

/**
 * Length of the plaintext on a device of `deviceLengthBytes` that the segment lies on. Throws
 * `CRYPT_BAD_GEOMETRY` when the device ends before the data or in the middle of a sector: rounding would make
 * a volume of another length than the one that was written.
 */
export function plainLengthBytes(
  geometry: Pick<Luks2Geometry, 'dataOffsetBytes' | 'dataLengthBytes' | 'sectorBytes'>,
  deviceLengthBytes: number,
): number {
  const { dataOffsetBytes, dataLengthBytes, sectorBytes } = geometry;
  const spaceBytes = deviceLengthBytes - dataOffsetBytes;
  const lengthBytes = dataLengthBytes ?? spaceBytes;
  if (lengthBytes <= 0 || lengthBytes > spaceBytes || lengthBytes % sectorBytes !== 0) {
    throw geometryError('the device does not hold whole sectors of the volume', {
      deviceLengthBytes,
      dataOffsetBytes,
      sectorBytes,
    });
  }
  return lengthBytes;
}

/**
 * Why this host could not open the volume; empty when it could. Decided from values only, before anything is
 * stopped.
 */
export function assessGeometry(
  geometry: Luks2Geometry,
  host: HostCapabilities,
  expected?: ExpectedVolume,
): GeometryProblem[] {
  const problems: GeometryProblem[] = [];
  const refuse = (what: GeometryProblem['what'], message: string) => problems.push({ what, message });
  if (!host.ciphers.includes(geometry.cipher))
    refuse('cipher', `this host has no ${geometry.cipher}, only ${host.ciphers.join(', ')}`);
  if (geometry.sectorBytes > host.maxSectorBytes)
    refuse(
      'sector size',
      `the volume has sectors of ${geometry.sectorBytes} bytes, this host takes ${host.maxSectorBytes} at most`,
    );
  if (!geometry.slots.some((slot) => slotFits(slot, host.kdfLimits)))
    refuse('key slots', keySlotsMessage(geometry, host.kdfLimits));
  if (expected !== undefined) {
    if (expected.uuid !== geometry.uuid)
      refuse('uuid', `the header is that of ${geometry.uuid}, the volume is ${expected.uuid}`);
    const message = lengthProblem(geometry, expected);
    if (message !== null) refuse('length', message);
  }
  return problems;
}

function lengthProblem(geometry: Luks2Geometry, expected: ExpectedVolume): string | null {
  try {
    const found = plainLengthBytes(geometry, expected.deviceLengthBytes);
    return found === expected.plainLengthBytes
      ? null
      : `the header leaves ${found} bytes for the volume, which has ${expected.plainLengthBytes}`;
  } catch {
    return `a device of ${expected.deviceLengthBytes} bytes does not hold whole sectors behind a header of ${geometry.dataOffsetBytes}`;
  }
}

function slotFits(slot: SlotGeometry, limits: KdfLimits): boolean {
  return slotLimitError(slot, limits) === null;
}

function slotLimitError(slot: SlotGeometry, limits: KdfLimits) {
  const salt = Buffer.alloc(0);
  return kdfLimitError(
    slot.kdf === 'pbkdf2' ? { ...slot, type: slot.kdf, salt } : { ...slot, type: slot.kdf, salt },
    limits,
  );
}

function keySlotsMessage(geometry: Luks2Geometry, limits: KdfLimits): string {
  const reasons = geometry.slots.map(
    (slot) => `slot ${slot.slot}: ${slotLimitError(slot, limits)?.message ?? ''}`,
  );
  return reasons.length === 0 ? 'no key slot opens the volume' : reasons.join('; ');
}

function slotGeometry(slot: number, kdf: Kdf): SlotGeometry {
  return kdf.type === 'pbkdf2'
    ? { slot, kdf: kdf.type, hash: kdf.hash, iterations: kdf.iterations }
    : { slot, kdf: kdf.type, memoryKib: kdf.memoryKib, passes: kdf.passes, lanes: kdf.lanes };
}
