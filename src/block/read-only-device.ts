import type { BlockDevice } from './block-device.ts';
import { readOnlyError } from './range.ts';

/**
 * What all devices that are only read have in common: changes reject with `BLOCK_READ_ONLY`, and there is
 * nothing to flush.
 */
export abstract class ReadOnlyDevice implements BlockDevice {
  abstract readonly lengthBytes: number;
  abstract readonly blockBytes: number;
  readonly writable = false;

  abstract read(offsetBytes: number, into: Uint8Array): Promise<void>;
  abstract close(): Promise<void>;

  async flush(): Promise<void> {}

  async write(): Promise<void> {
    throw readOnlyError();
  }

  async discard(): Promise<void> {
    throw readOnlyError();
  }

  async writeZeroes(): Promise<void> {
    throw readOnlyError();
  }
}
