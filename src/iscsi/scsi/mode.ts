/**
 * Mode pages (SPC-4 section 7.5, SBC-3 section 6.5).
 */
export const MODE_PAGE = { caching: 0x08, control: 0x0a, informationalExceptions: 0x1c, all: 0x3f } as const;

/** Values of PC, the page control field. */
const CONTROL = { current: 0, changeable: 1, default: 2, saved: 3 } as const;

export type ModeSenseRequest = {
  bytes: 6 | 10;
  noBlockDescriptor: boolean;
  longLba: boolean;
  control: number;
  page: number;
  subpage: number;
};

export type ModeSelectRequest = { bytes: 6 | 10; pageFormat: boolean; save: boolean };

export type ModeDevice = { readOnly: boolean; blocks: number; blockBytes: number };

/** What an initiator may change, for all of them, until the unit is reset. */
export type ModeSettings = {
  /** D_SENSE: sense data in descriptor format. */
  descriptorSense: boolean;
  /** SWP: writes are refused. */
  softwareWriteProtect: boolean;
};

export const MODE_DEFAULTS: Readonly<ModeSettings> = { descriptorSense: false, softwareWriteProtect: false };

const D_SENSE = 0x04;
const SWP = 0x08;

/**
 *   MODE SENSE(6):   0 length - 1   1 medium type   2 WP . . DPOFUA . . . .   3 block descriptor length
 *   MODE SENSE(10):  0-1 length - 2   2 medium type   3 as above   4 LONGLBA   6-7 block descriptor length
 *   then the block descriptor and the pages. MODE SELECT sends the same back, lengths zero.
 *
 * A string instead of bytes is the sense to refuse with (a key of `SENSE`).
 */
export function modeSense(
  request: ModeSenseRequest,
  device: ModeDevice,
  settings: Readonly<ModeSettings>,
): Buffer | 'invalidFieldInCdb' | 'savingNotSupported' {
  if (request.control === CONTROL.saved) return 'savingNotSupported';
  if (request.subpage !== 0 && request.subpage !== 0xff) return 'invalidFieldInCdb';
  const wanted =
    request.page === MODE_PAGE.all
      ? [MODE_PAGE.caching, MODE_PAGE.control, MODE_PAGE.informationalExceptions]
      : [request.page];
  const pages: Buffer[] = [];
  for (const code of wanted) {
    const page = modePage(code, device, request.control === CONTROL.default ? MODE_DEFAULTS : settings);
    if (page === null) return 'invalidFieldInCdb';
    pages.push(request.control === CONTROL.changeable ? changeableBits(page) : page);
  }
  const descriptor = request.noBlockDescriptor ? Buffer.alloc(0) : blockDescriptor(request.longLba, device);
  const specific = (device.readOnly || settings.softwareWriteProtect ? 0x80 : 0) | 0x10;
  const body = Buffer.concat([descriptor, ...pages]);
  if (request.bytes === 6) {
    return Buffer.concat([Buffer.from([3 + body.length, 0, specific, descriptor.length]), body]);
  }
  const header = Buffer.alloc(8);
  header.writeUInt16BE(6 + body.length, 0);
  header[3] = specific;
  header[4] = request.longLba && descriptor.length > 0 ? 1 : 0;
  header.writeUInt16BE(descriptor.length, 6);
  return Buffer.concat([header, body]);
}

/**
 * The settings after a MODE SELECT. A page must be what MODE SENSE gave but for the bits that can be changed;
 * all pages are looked at before any takes effect.
 */
export function modeSelect(
  request: ModeSelectRequest,
  list: Buffer,
  device: ModeDevice,
  settings: Readonly<ModeSettings>,
): ModeSettings | 'invalidFieldInCdb' | 'invalidFieldInParameters' | 'parameterListLength' {
  if (!request.pageFormat || request.save) return 'invalidFieldInCdb';
  const next = { ...settings };
  if (list.length === 0) return next;
  const headerBytes = request.bytes === 6 ? 4 : 8;
  if (list.length < headerBytes) return 'parameterListLength';
  const long = request.bytes === 10 && (list[4]! & 1) !== 0;
  const descriptorBytes = request.bytes === 6 ? list[3]! : list.readUInt16BE(6);
  let at = headerBytes + descriptorBytes;
  if (at > list.length) return 'parameterListLength';
  if (descriptorBytes > 0) {
    // Capacity and block size are what they are. A count of zero or all ones means "as it is".
    const wanted = blockDescriptor(long, device);
    if (descriptorBytes !== wanted.length) return 'invalidFieldInParameters';
    const got = Buffer.from(list.subarray(headerBytes, at));
    const count = got.subarray(0, long ? 8 : 4);
    if (count.every((byte) => byte === 0) || count.every((byte) => byte === 0xff))
      wanted.copy(got, 0, 0, count.length);
    if (!got.equals(wanted)) return 'invalidFieldInParameters';
  }
  while (at < list.length) {
    if (at + 2 > list.length) return 'parameterListLength';
    const code = list[at]! & 0x3f;
    const isSubpage = (list[at]! & 0x40) !== 0;
    const end = at + 2 + list[at + 1]!;
    const current = isSubpage ? null : modePage(code, device, settings);
    if (current === null) return 'invalidFieldInParameters';
    if (end > list.length) return 'parameterListLength';
    const page = list.subarray(at, end);
    if (page.length !== current.length) return 'invalidFieldInParameters';
    const mask = changeableBits(current);
    for (let index = 2; index < page.length; index += 1) {
      if (((page[index]! ^ current[index]!) & ~mask[index]! & 0xff) !== 0) return 'invalidFieldInParameters';
    }
    if (code === MODE_PAGE.control) {
      next.descriptorSense = (page[2]! & D_SENSE) !== 0;
      next.softwareWriteProtect = (page[4]! & SWP) !== 0;
    }
    at = end;
  }
  return next;
}

/** The page with a 1 for each bit that MODE SELECT may change. */
function changeableBits(page: Buffer): Buffer {
  const mask = Buffer.alloc(page.length);
  page.copy(mask, 0, 0, 2);
  if (page[0] === MODE_PAGE.control) {
    mask[2] = D_SENSE;
    mask[4] = SWP;
  }
  return mask;
}

function modePage(code: number, device: ModeDevice, settings: Readonly<ModeSettings>): Buffer | null {
  switch (code) {
    case MODE_PAGE.caching: {
      // 2 WCE (bit 2): writes are durable after SYNCHRONIZE CACHE, not before.
      const page = Buffer.alloc(20);
      page[0] = code;
      page[1] = 18;
      if (!device.readOnly) page[2] = 0x04;
      return page;
    }
    case MODE_PAGE.control: {
      // 2 TST(3): 0, one task set   . . D_SENSE . .   3 QUEUE ALGORITHM MODIFIER: 1, commands may be reordered   4 SWP
      const page = Buffer.alloc(12);
      page[0] = code;
      page[1] = 10;
      if (settings.descriptorSense) page[2] = D_SENSE;
      page[3] = 0x10;
      if (settings.softwareWriteProtect) page[4] = SWP;
      return page;
    }
    case MODE_PAGE.informationalExceptions: {
      const page = Buffer.alloc(12);
      page[0] = code;
      page[1] = 10;
      return page;
    }
    default:
      return null;
  }
}

/** Short: blocks(4), reserved, block bytes(3). Long: blocks(8), reserved(4), block bytes(4). */
function blockDescriptor(long: boolean, device: ModeDevice): Buffer {
  if (long) {
    const bytes = Buffer.alloc(16);
    bytes.writeBigUInt64BE(BigInt(device.blocks), 0);
    bytes.writeUInt32BE(device.blockBytes, 12);
    return bytes;
  }
  const bytes = Buffer.alloc(8);
  bytes.writeUInt32BE(Math.min(device.blocks, 0xffffffff), 0);
  bytes.writeUIntBE(device.blockBytes, 5, 3);
  return bytes;
}
