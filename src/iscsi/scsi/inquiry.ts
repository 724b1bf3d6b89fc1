import { createHash } from 'node:crypto';

/**
 * INQUIRY answers (SPC-4 sections 6.4 and 7.8, SBC-3 section 6.6).
 */
export type LogicalUnitIdentity = {
  /** Printable ASCII, at most 200 characters. */
  serial: string;
  /** iSCSI name of the target. */
  targetIqn: string;
};

export type BlockLimits = {
  transferBlocksMax: number;
  transferBlocksOptimal: number;
  granularityBlocks: number;
  unmapBlocksMax: number;
  unmapDescriptorsMax: number;
  writeSameBlocksMax: number;
  /** At most 255. */
  compareAndWriteBlocksMax: number;
  /** The device can tell holes from data, so that it is reported as thin. */
  thin: boolean;
};

export const PAGE = {
  supportedPages: 0x00,
  serialNumber: 0x80,
  identification: 0x83,
  blockLimits: 0xb0,
  blockCharacteristics: 0xb1,
  logicalBlockProvisioning: 0xb2,
} as const;

const VENDOR = 'GODWIT';
const PRODUCT = 'VOLUME';
const REVISION = '1';

/**
 *   0      PERIPHERAL QUALIFIER(3) DEVICE TYPE(5): 000b 00h, or 011b 1Fh where there is no logical unit
 *   2      VERSION: SPC-4
 *   3      . . NORMACA HISUP FORMAT(4)
 *   4      ADDITIONAL LENGTH
 *   7      CMDQUE (bit 1)
 *   8-15   vendor   16-31 product   32-35 revision
 *   58-73  version descriptors: SAM-5, SPC-4, SBC-3, iSCSI
 */
export function standardInquiry(hasLogicalUnit: boolean): Buffer {
  const bytes = Buffer.alloc(96);
  bytes[0] = hasLogicalUnit ? 0x00 : 0x7f;
  bytes[2] = 0x06;
  bytes[3] = 0x12;
  bytes[4] = bytes.length - 5;
  bytes[7] = 0x02;
  bytes.write(VENDOR.padEnd(8), 8, 'latin1');
  bytes.write(PRODUCT.padEnd(16), 16, 'latin1');
  bytes.write(REVISION.padEnd(4), 32, 'latin1');
  [0x00a0, 0x0460, 0x04c0, 0x0960].forEach((version, index) => {
    bytes.writeUInt16BE(version, 58 + 2 * index);
  });
  return bytes;
}

/** A vital product data page, or null where there is none of that number. */
export function vitalProductData(
  page: number,
  identity: LogicalUnitIdentity,
  limits: BlockLimits,
): Buffer | null {
  switch (page) {
    case PAGE.supportedPages:
      return framed(page, Buffer.from(Object.values(PAGE)));
    case PAGE.serialNumber:
      return framed(page, Buffer.from(identity.serial, 'latin1'));
    case PAGE.identification:
      return framed(page, identification(identity));
    case PAGE.blockLimits: {
      // 4 WSNZ  5 max compare and write  6 optimal granularity  8 max transfer  12 optimal transfer  20 max unmap  24 max unmap descriptors
      // 28 optimal unmap granularity  32 UGAVALID, alignment  36 max write same length
      const bytes = Buffer.alloc(64);
      bytes[4] = 1;
      bytes[5] = limits.compareAndWriteBlocksMax;
      bytes.writeUInt16BE(limits.granularityBlocks, 6);
      bytes.writeUInt32BE(limits.transferBlocksMax, 8);
      bytes.writeUInt32BE(limits.transferBlocksOptimal, 12);
      if (limits.thin) {
        bytes.writeUInt32BE(limits.unmapBlocksMax, 20);
        bytes.writeUInt32BE(limits.unmapDescriptorsMax, 24);
        bytes.writeUInt32BE(limits.granularityBlocks, 28);
        bytes.writeUInt32BE(0x80000000, 32);
      }
      bytes.writeBigUInt64BE(BigInt(limits.writeSameBlocksMax), 36);
      return framed(page, bytes.subarray(4));
    }
    case PAGE.blockCharacteristics: {
      // 4-5 MEDIUM ROTATION RATE: 1, it does not rotate
      const bytes = Buffer.alloc(60);
      bytes.writeUInt16BE(1, 0);
      return framed(page, bytes);
    }
    case PAGE.logicalBlockProvisioning:
      // 5 LBPU LBPWS LBPWS10 LBPRZ(3) ANC_SUP DP   6 PROVISIONING TYPE: 2, thin
      return framed(page, Buffer.from(limits.thin ? [0, 0xe4, 0x02, 0] : [0, 0, 0, 0]));
    default:
      return null;
  }
}

/**
 * Designators: NAA locally assigned (a hash of target and serial), T10 vendor identification, SCSI name of
 * the port.
 */
function identification(identity: LogicalUnitIdentity): Buffer {
  const hash = createHash('sha256')
    .update(`${identity.targetIqn}\0${identity.serial}`)
    .digest()
    .subarray(0, 8);
  const naa = Buffer.from(hash);
  naa[0] = 0x30 | (naa[0]! & 0x0f);
  const t10 = Buffer.from(VENDOR.padEnd(8) + identity.serial, 'latin1');
  const port = `${identity.targetIqn},t,0x0001\0`;
  const portName = Buffer.alloc(Math.ceil(port.length / 4) * 4);
  portName.write(port, 'utf8');
  return Buffer.concat([
    designator(0x01, 0x03, naa),
    designator(0x02, 0x01, t10),
    // Protocol identifier iSCSI, PIV, association: target port.
    designator(0x53, 0x98, portName),
  ]);
}

/** CODE SET and protocol, then PIV, ASSOCIATION and TYPE, reserved, length, designator. */
function designator(codeSet: number, type: number, value: Buffer): Buffer {
  return Buffer.concat([Buffer.from([codeSet, type, 0, value.length]), value]);
}

/** Every page: device type, page code, length(2), contents. */
function framed(page: number, contents: Buffer): Buffer {
  const bytes = Buffer.alloc(4 + contents.length);
  bytes[1] = page;
  bytes.writeUInt16BE(contents.length, 2);
  contents.copy(bytes, 4);
  return bytes;
}
