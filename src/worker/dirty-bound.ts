import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PAUSE } from '../base/patience.ts';
import { Rounds } from '../base/rounds.ts';
import { boundDirtyPages, dirtyBytesMax } from '../host/write-back.ts';
import { diskReserveBytes, keptBytes } from '../volume/disk-room.ts';

export type DirtyBoundOptions = {
  /** Of the filesystem of the volumes. */
  look: () => Promise<{ totalBytes: number; availableBytes: number }>;
  /** Block devices on which filesystems of machines are mounted. */
  devices: () => Promise<readonly string[]>;
  /** Default: those of the kernel. */
  bound?: (device: string, bytesMax: number | null) => boolean;
  dirtyBytesMax?: () => number | null;
  clock: Clock;
  logger: Logger;
};

const DEVICE_BYTES_MIN = 4 * 2 ** 20;

/**
 * What a machine has in its page cache must reach its volume before that can be unmounted, also when the disk
 * below is full: through what is kept back for who leaves (volume/disk-room.ts), which is small, while the
 * kernel lets gigabytes wait. So on a disk that has no more room than what may wait, each machine may have no
 * more waiting than what is opened for it when it has stopped. Elsewhere nothing is bounded: a machine that
 * writes in bursts would wait for its disk.
 */
export class DirtyBound {
  readonly #options: Required<DirtyBoundOptions>;
  readonly #rounds: Rounds;
  /**
   * Some device may have a bound: of an earlier process of this worker, too. A device that comes has none
   * (host/losetup.ts).
   */
  #mayBeBound = true;
  #isNear = false;

  constructor(options: DirtyBoundOptions) {
    this.#options = { bound: boundDirtyPages, dirtyBytesMax, ...options };
    this.#rounds = new Rounds(options.clock, PAUSE.dirtyBound.ms, () => this.look());
  }

  start(): Promise<void> {
    return this.#rounds.start();
  }

  close(): void {
    this.#rounds.close();
  }

  /** Never rejects. */
  async look(): Promise<void> {
    const { devices, bound, logger } = this.#options;
    try {
      const bytesMax = await this.#bytesMax();
      if (bytesMax === null && !this.#mayBeBound) return;
      // At each look: what was attached since has none, and the kernel keeps a part of the memory, which
      // changes.
      for (const device of await devices()) bound(device, bytesMax);
      this.#mayBeBound = bytesMax !== null;
    } catch (error) {
      logger.warn({ reason: messageOf(error) }, 'what machines have in their page caches is not bounded now');
    }
  }

  /**
   * A device whose machine writes nothing yet: what it writes before the next look would be more than what it
   * may leave with. Asks for it only where there is a bound. Never rejects.
   */
  async cover(deviceOf: () => Promise<string | null>): Promise<void> {
    const { bound, logger } = this.#options;
    try {
      const bytesMax = await this.#bytesMax();
      const device = bytesMax === null ? null : await deviceOf();
      if (device === null) return;
      bound(device, bytesMax);
      this.#mayBeBound = true;
    } catch (error) {
      logger.warn({ reason: messageOf(error) }, 'what a machine has in its page cache is not bounded');
    }
  }

  /** Of each device now; null: it has no bound. */
  async #bytesMax(): Promise<number | null> {
    const { totalBytes, availableBytes } = await this.#options.look();
    const reserveBytes = diskReserveBytes(totalBytes);
    const roomBytes = availableBytes - reserveBytes;
    const waitingBytes = this.#options.dirtyBytesMax() ?? Number.POSITIVE_INFINITY;
    // A disk at the very edge does not change it at each look.
    this.#isNear = roomBytes < (this.#isNear ? 1.25 : 1) * waitingBytes;
    if (!this.#isNear) return null;
    const stoppedBytes = keptBytes(totalBytes, 'running') - keptBytes(totalBytes, 'stopped');
    return Math.max(DEVICE_BYTES_MIN, stoppedBytes);
  }
}
