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

export type ModeSenseDevice = { readOnly: boolean; blocks: number; blockBytes: number };

/**
 *   MODE SENSE(6):   0 length - 1   1 medium type   2 WP . . DPOFUA . . . .   3 block descriptor length
 *   MODE SENSE(10):  0-1 length - 2   2 medium type   3 as above   4 LONGLBA   6-7 block descriptor length
 *   then the block descriptor and the pages.
 *
 * A string instead of bytes is the sense to refuse with (a key of `SENSE`).
 */
export function modeSense(
  request: ModeSenseRequest,
  device: ModeSenseDevice,
): Buffer | 'invalidFieldInCdb' | 'savingNotSupported' {
  if (request.control === CONTROL.saved) return 'savingNotSupported';
  if (request.subpage !== 0 && request.subpage !== 0xff) return 'invalidFieldInCdb';
  const wanted =
    request.page === MODE_PAGE.all
      ? [MODE_PAGE.caching, MODE_PAGE.control, MODE_PAGE.informationalExceptions]
      : [request.page];
  const pages: Buffer[] = [];
  for (const code of wanted) {
    const page = modePage(code, device);
    if (page === null) return 'invalidFieldInCdb';
    // Nothing can be changed: the mask of changeable bits is zero.
    if (request.control === CONTROL.changeable) page.fill(0, 2);
    pages.push(page);
  }
  const descriptor = request.noBlockDescriptor ? Buffer.alloc(0) : blockDescriptor(request.longLba, device);
  const specific = (device.readOnly ? 0x80 : 0) | 0x10;
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

function modePage(code: number, device: ModeSenseDevice): Buffer | null {
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
      // 3 QUEUE ALGORITHM MODIFIER: 1, commands may be reordered
      const page = Buffer.alloc(12);
      page[0] = code;
      page[1] = 10;
      page[3] = 0x10;
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
function blockDescriptor(long: boolean, device: ModeSenseDevice): Buffer {
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
