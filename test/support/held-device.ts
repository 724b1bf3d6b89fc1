import assert from 'node:assert/strict';
import type { BlockDevice } from '../../src/block/block-device.ts';

/** A device that is only read, and whose reads all wait until `release`. */
export class HeldDevice implements BlockDevice {
  readonly blockBytes = 512;
  readonly writable = false;
  /** Reads that were begun. */
  asked = 0;
  readonly #inner: BlockDevice;
  readonly #gate = Promise.withResolvers<void>();

  constructor(inner: BlockDevice) {
    this.#inner = inner;
  }

  get lengthBytes(): number {
    return this.#inner.lengthBytes;
  }

  release(): void {
    this.#gate.resolve();
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    this.asked += 1;
    await this.#gate.promise;
    await this.#inner.read(offsetBytes, into);
  }

  async write(): Promise<void> {
    assert.fail('the device is only read');
  }
  async flush(): Promise<void> {}
  async discard(): Promise<void> {
    assert.fail('the device is only read');
  }
  async writeZeroes(): Promise<void> {
    assert.fail('the device is only read');
  }
  async close(): Promise<void> {}
}
