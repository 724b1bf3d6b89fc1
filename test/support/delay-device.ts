import type { Clock } from '../../src/base/clock.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';

export type DelaySettings = {
  /** Added to every call, in ms; calls wait side by side. Default 0. */
  latencyMs?: number;
  /**
   * Reads and writes queue for this many bytes per second, one after the other as on a wire. Default: no
   * limit.
   */
  bytesPerSecond?: number;
};

/**
 * A layer that makes a device slow. `settings` may be changed at any time and holds for calls that start
 * then. There is no `readNow`: nothing is at hand without waiting.
 */
export class DelayDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly writable: boolean;
  settings: DelaySettings;
  extents?: NonNullable<BlockDevice['extents']>;
  readonly #inner: BlockDevice;
  readonly #clock: Clock;
  /** When the wire is free again, on the monotonic clock. */
  #freeAtMs = Number.NEGATIVE_INFINITY;

  constructor(inner: BlockDevice, clock: Clock, settings: DelaySettings) {
    this.#inner = inner;
    this.#clock = clock;
    this.settings = settings;
    this.lengthBytes = inner.lengthBytes;
    this.blockBytes = inner.blockBytes;
    this.writable = inner.writable;
    if (inner.extents) {
      this.extents = async (offsetBytes, lengthBytes, limitExtents) => {
        await this.#wait(0);
        return inner.extents!(offsetBytes, lengthBytes, limitExtents);
      };
    }
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    await this.#wait(into.length);
    await this.#inner.read(offsetBytes, into);
  }

  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    await this.#wait(from.length);
    await this.#inner.write(offsetBytes, from);
  }

  async flush(): Promise<void> {
    await this.#wait(0);
    await this.#inner.flush();
  }

  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#wait(0);
    await this.#inner.discard(offsetBytes, lengthBytes);
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#wait(0);
    await this.#inner.writeZeroes(offsetBytes, lengthBytes);
  }

  /** At once: calls that still wait find the inner device closed. */
  async close(): Promise<void> {
    await this.#inner.close();
  }

  async #wait(transferBytes: number): Promise<void> {
    const { latencyMs = 0, bytesPerSecond = Number.POSITIVE_INFINITY } = this.settings;
    const nowMs = this.#clock.monotonicMs();
    let readyAtMs = nowMs;
    if (transferBytes > 0 && bytesPerSecond !== Number.POSITIVE_INFINITY) {
      this.#freeAtMs = Math.max(this.#freeAtMs, nowMs) + (transferBytes / bytesPerSecond) * 1000;
      readyAtMs = this.#freeAtMs;
    }
    const delayMs = readyAtMs + latencyMs - nowMs;
    if (delayMs > 0) await this.#clock.sleep(delayMs);
  }
}
