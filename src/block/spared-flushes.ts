import { SharedRuns } from '../base/serial.ts';
import type { BlockDevice } from './block-device.ts';

/**
 * A device below clients who may ask for any number of flushes: each fdatasync(2) makes the disk empty its
 * cache, for which everybody on that disk waits, also where nothing was written. Here nothing is flushed that
 * nobody has changed since the last flush that succeeded, one flush runs at a time, and those that are asked
 * for meanwhile share the next.
 *
 * For one who is alone with the data: what is changed past this device is not seen. What was changed before
 * it was opened counts as not flushed: whoever served it last may have been killed.
 */
export class SparedFlushes implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly writable: boolean;
  readonly readNow?: NonNullable<BlockDevice['readNow']>;
  readonly writeNow?: NonNullable<BlockDevice['writeNow']>;
  readonly extents?: NonNullable<BlockDevice['extents']>;
  readonly #device: BlockDevice;
  readonly #flushes = new SharedRuns();
  #changed = true;

  constructor(device: BlockDevice) {
    this.#device = device;
    this.lengthBytes = device.lengthBytes;
    this.blockBytes = device.blockBytes;
    this.writable = device.writable;
    if (device.readNow) this.readNow = device.readNow.bind(device);
    if (device.extents) this.extents = device.extents.bind(device);
    if (device.writeNow) {
      this.writeNow = (offsetBytes, from) => {
        // Part of it may be written where it is not done.
        this.#changed = true;
        return device.writeNow!(offsetBytes, from);
      };
    }
  }

  read(offsetBytes: number, into: Uint8Array): Promise<void> {
    return this.#device.read(offsetBytes, into);
  }

  write(offsetBytes: number, from: Uint8Array): Promise<void> {
    return this.#change(() => this.#device.write(offsetBytes, from));
  }

  discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#change(() => this.#device.discard(offsetBytes, lengthBytes));
  }

  writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#change(() => this.#device.writeZeroes(offsetBytes, lengthBytes));
  }

  async flush(): Promise<void> {
    if (this.#changed || this.#flushes.running) await this.#flushes.run(() => this.#flushOnce());
  }

  close(): Promise<void> {
    return this.#device.close();
  }

  async #flushOnce(): Promise<void> {
    if (!this.#changed) return;
    this.#changed = false;
    try {
      await this.#device.flush();
    } catch (error) {
      this.#changed = true;
      throw error;
    }
  }

  /** Noted when it is over: a flush owes what had resolved before it was asked for, and nothing else. */
  async #change(change: () => Promise<void>): Promise<void> {
    try {
      await change();
    } finally {
      this.#changed = true;
    }
  }
}
