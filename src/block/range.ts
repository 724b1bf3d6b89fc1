import { GodwitError } from '../base/errors.ts';
import type { BlockDevice, Extent } from './block-device.ts';

/** What the range checks need to know of a device. */
export type Geometry = Pick<BlockDevice, 'lengthBytes' | 'blockBytes'>;

/** True when the range lies inside the device and is aligned to its blocks. An empty range is fine. */
export function rangeFits(device: Geometry, offsetBytes: number, lengthBytes: number): boolean {
  // Bit operations cut numbers to 32 bits, so alignment is taken from the low bits only, which suffices:
  // blockBytes is a power of two of at most 4096 and the ECMAScript ToInt32 keeps the low 32 bits of every
  // safe integer.
  return (
    Number.isSafeInteger(offsetBytes) &&
    Number.isSafeInteger(lengthBytes) &&
    offsetBytes >= 0 &&
    lengthBytes >= 0 &&
    offsetBytes + lengthBytes <= device.lengthBytes &&
    ((offsetBytes | lengthBytes) & (device.blockBytes - 1)) === 0
  );
}

/** Throws `BLOCK_BAD_RANGE` unless the range fits. */
export function checkRange(device: Geometry, offsetBytes: number, lengthBytes: number): void {
  if (!rangeFits(device, offsetBytes, lengthBytes)) throw badRangeError(device, offsetBytes, lengthBytes);
}

/** Throws `BLOCK_BAD_GEOMETRY` unless a device can have this length and block size. */
export function checkGeometry(device: Geometry): void {
  const { lengthBytes, blockBytes } = device;
  const blockOk = [512, 1024, 2048, 4096].includes(blockBytes);
  if (blockOk && Number.isSafeInteger(lengthBytes) && lengthBytes > 0 && lengthBytes % blockBytes === 0)
    return;
  throw new GodwitError(
    'BLOCK_BAD_GEOMETRY',
    `a device of ${lengthBytes} bytes in blocks of ${blockBytes} bytes cannot be`,
    {
      values: { lengthBytes, blockBytes },
      nextAction:
        'Give a length that is a positive multiple of the block size (512, 1024, 2048 or 4096 bytes).',
    },
  );
}

function badRangeError(device: Geometry, offsetBytes: number, lengthBytes: number): GodwitError {
  return new GodwitError(
    'BLOCK_BAD_RANGE',
    `bytes ${offsetBytes}+${lengthBytes} are not whole blocks inside a device of ${device.lengthBytes} bytes`,
    {
      values: {
        offsetBytes,
        lengthBytes,
        deviceLengthBytes: device.lengthBytes,
        blockBytes: device.blockBytes,
      },
      nextAction:
        'The caller asked for a range that the device does not have; this is a defect of the caller.',
    },
  );
}

export function closedError(): GodwitError {
  return new GodwitError('BLOCK_CLOSED', 'the device is closed', {
    nextAction: 'Open the device again; whoever closed it was done with it.',
  });
}

export function readOnlyError(): GodwitError {
  return new GodwitError('BLOCK_READ_ONLY', 'the device is read-only', {
    nextAction: 'A sealed volume takes no writes; write on the worker that owns its latest generation.',
  });
}

/**
 * Collects extents in the form that the contract asks for: in order, without gaps, neighbours of one kind
 * merged, at most `limitExtents`. Feed it pieces from left to right until `add` says that no more fits.
 */
export class ExtentList {
  readonly extents: Extent[] = [];
  readonly #limitExtents: number;

  /** `limitExtents` is 1 or more; anything else throws `BLOCK_BAD_RANGE`. */
  constructor(limitExtents: number) {
    if (!(limitExtents >= 1)) {
      throw new GodwitError('BLOCK_BAD_RANGE', `a list of ${limitExtents} extents cannot be`, {
        values: { limitExtents },
        nextAction: 'Ask for at least one extent; this is a defect of the caller.',
      });
    }
    this.#limitExtents = limitExtents;
  }

  /** False: the list is full and the piece was not taken; stop. Empty pieces are skipped. */
  add(offsetBytes: number, lengthBytes: number, kind: Extent['kind']): boolean {
    if (lengthBytes <= 0) return true;
    const last = this.extents.at(-1);
    if (last && last.kind === kind) {
      last.lengthBytes += lengthBytes;
      return true;
    }
    if (this.extents.length >= this.#limitExtents) return false;
    this.extents.push({ offsetBytes, lengthBytes, kind });
    return true;
  }
}
