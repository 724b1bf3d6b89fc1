import { GodwitError } from '../base/errors.ts';
import type { BlockDevice } from './block-device.ts';
import { checkGeometry, checkRange, rangeFits } from './range.ts';

/**
 * A layer that shows a part of a device as a device of its own, for example what follows a LUKS2 header. The
 * checks are against the window, so nothing outside it can be reached. Closing it closes the device under it.
 */
export class WindowDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly writable: boolean;
  readNow?: NonNullable<BlockDevice['readNow']>;
  extents?: NonNullable<BlockDevice['extents']>;
  readonly #inner: BlockDevice;
  readonly #startBytes: number;

  /**
   * `startBytes` and `lengthBytes` are whole blocks of the device and lie inside it; else throws
   * `BLOCK_BAD_GEOMETRY`.
   */
  constructor(inner: BlockDevice, startBytes: number, lengthBytes: number) {
    this.#inner = inner;
    this.#startBytes = startBytes;
    this.lengthBytes = lengthBytes;
    this.blockBytes = inner.blockBytes;
    this.writable = inner.writable;
    checkGeometry(this);
    if (!rangeFits(inner, startBytes, lengthBytes)) {
      throw new GodwitError(
        'BLOCK_BAD_GEOMETRY',
        `a window at ${startBytes}+${lengthBytes} does not fit a device of ${inner.lengthBytes} bytes`,
        {
          values: { startBytes, lengthBytes, deviceLengthBytes: inner.lengthBytes },
          nextAction:
            'Compare where the data begins with the length of the device; the file may be cut short.',
        },
      );
    }
    if (inner.readNow) {
      this.readNow = (offsetBytes, into) =>
        rangeFits(this, offsetBytes, into.length) && inner.readNow!(startBytes + offsetBytes, into);
    }
    if (inner.extents) {
      this.extents = async (offsetBytes, length, limitExtents) => {
        checkRange(this, offsetBytes, length);
        const extents = await inner.extents!(startBytes + offsetBytes, length, limitExtents);
        return extents.map((extent) => ({ ...extent, offsetBytes: extent.offsetBytes - startBytes }));
      };
    }
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    checkRange(this, offsetBytes, into.length);
    return this.#inner.read(this.#startBytes + offsetBytes, into);
  }

  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    checkRange(this, offsetBytes, from.length);
    return this.#inner.write(this.#startBytes + offsetBytes, from);
  }

  async flush(): Promise<void> {
    return this.#inner.flush();
  }

  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    checkRange(this, offsetBytes, lengthBytes);
    return this.#inner.discard(this.#startBytes + offsetBytes, lengthBytes);
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    checkRange(this, offsetBytes, lengthBytes);
    return this.#inner.writeZeroes(this.#startBytes + offsetBytes, lengthBytes);
  }

  async close(): Promise<void> {
    return this.#inner.close();
  }
}
