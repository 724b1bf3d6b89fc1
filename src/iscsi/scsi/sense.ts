/**
 * SCSI status and sense data (SAM-5 section 5.3, SPC-4 section 4.5).
 */

export const STATUS = {
  good: 0x00,
  checkCondition: 0x02,
  conditionMet: 0x04,
  busy: 0x08,
  reservationConflict: 0x18,
  taskSetFull: 0x28,
  acaActive: 0x30,
  taskAborted: 0x40,
} as const;

export const SENSE_KEY = {
  noSense: 0x0,
  recoveredError: 0x1,
  notReady: 0x2,
  mediumError: 0x3,
  hardwareError: 0x4,
  illegalRequest: 0x5,
  unitAttention: 0x6,
  dataProtect: 0x7,
  blankCheck: 0x8,
  copyAborted: 0xa,
  abortedCommand: 0xb,
  volumeOverflow: 0xd,
  miscompare: 0xe,
} as const;

/** `asc` is the additional sense code in the high byte and its qualifier in the low one. */
export type Sense = {
  key: number;
  asc: number;
  /** The INFORMATION field, 32 bits: of a miscompare, the offset in bytes of the first difference. */
  information?: number;
};

export type SenseFormat = 'fixed' | 'descriptor';

/** Every sense that we give, by what it says. SPC-4 annex D. */
export const SENSE = {
  none: { key: SENSE_KEY.noSense, asc: 0x0000 },
  becomingReady: { key: SENSE_KEY.notReady, asc: 0x0401 },
  initializingCommandRequired: { key: SENSE_KEY.notReady, asc: 0x0402 },
  writeError: { key: SENSE_KEY.mediumError, asc: 0x0c00 },
  unrecoveredReadError: { key: SENSE_KEY.mediumError, asc: 0x1100 },
  parameterListLength: { key: SENSE_KEY.illegalRequest, asc: 0x1a00 },
  invalidOpcode: { key: SENSE_KEY.illegalRequest, asc: 0x2000 },
  lbaOutOfRange: { key: SENSE_KEY.illegalRequest, asc: 0x2100 },
  invalidFieldInCdb: { key: SENSE_KEY.illegalRequest, asc: 0x2400 },
  logicalUnitNotSupported: { key: SENSE_KEY.illegalRequest, asc: 0x2500 },
  invalidFieldInParameters: { key: SENSE_KEY.illegalRequest, asc: 0x2600 },
  invalidReleaseOfReservation: { key: SENSE_KEY.illegalRequest, asc: 0x2604 },
  savingNotSupported: { key: SENSE_KEY.illegalRequest, asc: 0x3900 },
  insufficientRegistrationResources: { key: SENSE_KEY.illegalRequest, asc: 0x5504 },
  powerOnOrReset: { key: SENSE_KEY.unitAttention, asc: 0x2900 },
  resetOccurred: { key: SENSE_KEY.unitAttention, asc: 0x2903 },
  modeParametersChanged: { key: SENSE_KEY.unitAttention, asc: 0x2a01 },
  reservationsPreempted: { key: SENSE_KEY.unitAttention, asc: 0x2a03 },
  reservationsReleased: { key: SENSE_KEY.unitAttention, asc: 0x2a04 },
  registrationsPreempted: { key: SENSE_KEY.unitAttention, asc: 0x2a05 },
  targetOperatingConditionsChanged: { key: SENSE_KEY.unitAttention, asc: 0x3f00 },
  capacityChanged: { key: SENSE_KEY.unitAttention, asc: 0x2a09 },
  writeProtected: { key: SENSE_KEY.dataProtect, asc: 0x2700 },
  softwareWriteProtected: { key: SENSE_KEY.dataProtect, asc: 0x2702 },
  spaceAllocationFailed: { key: SENSE_KEY.dataProtect, asc: 0x2707 },
  protocolServiceCrcError: { key: SENSE_KEY.abortedCommand, asc: 0x4705 },
  miscompare: { key: SENSE_KEY.miscompare, asc: 0x1d00 },
} as const satisfies Record<string, Sense>;

/*
 * Fixed format, SPC-4 section 4.5.3                Descriptor format, SPC-4 section 4.5.2
 *   0      VALID 0x70                                0      0x72
 *   2      sense key                                 1      sense key
 *   3-6    INFORMATION, when VALID                   2, 3   ASC, ASCQ
 *   7      additional length: 10                     7      additional length: 0 or 12
 *   12,13  ASC, ASCQ                                 8-     descriptor: 0, 10, 0x80 (VALID), 0, INFORMATION(8)
 */
export function encodeSense(sense: Sense, format: SenseFormat = 'fixed'): Buffer {
  const { information } = sense;
  if (format === 'descriptor') {
    const bytes = Buffer.alloc(information === undefined ? 8 : 20);
    bytes[0] = 0x72;
    bytes[1] = sense.key;
    bytes.writeUInt16BE(sense.asc, 2);
    if (information !== undefined) {
      bytes[7] = 12;
      bytes[9] = 10;
      bytes[10] = 0x80;
      bytes.writeUInt32BE(information, 16);
    }
    return bytes;
  }
  const bytes = Buffer.alloc(18);
  bytes[0] = 0x70;
  bytes[2] = sense.key;
  bytes[7] = 10;
  bytes.writeUInt16BE(sense.asc, 12);
  if (information !== undefined) {
    bytes[0] |= 0x80;
    bytes.writeUInt32BE(information, 3);
  }
  return bytes;
}

/** Either format; null where it is neither. */
export function decodeSense(bytes: Uint8Array): Sense | null {
  switch ((bytes[0] ?? 0) & 0x7f) {
    case 0x70:
    case 0x71:
      if (bytes.length < 14) return null;
      return { key: bytes[2]! & 0x0f, asc: (bytes[12]! << 8) | bytes[13]! };
    case 0x72:
    case 0x73:
      if (bytes.length < 4) return null;
      return { key: bytes[1]! & 0x0f, asc: (bytes[2]! << 8) | bytes[3]! };
    default:
      return null;
  }
}

export function describeSense(sense: Sense): string {
  const key = Object.entries(SENSE_KEY).find(([, value]) => value === sense.key)?.[0] ?? String(sense.key);
  const known = Object.entries(SENSE).find(
    ([, value]) => value.key === sense.key && value.asc === sense.asc,
  )?.[0];
  return `${key} ${sense.asc.toString(16).padStart(4, '0')}${known === undefined ? '' : ` (${known})`}`;
}
