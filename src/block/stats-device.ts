import type { Clock } from '../base/clock.ts';
import { Histogram } from '../base/histogram.ts';
import type { BlockDevice } from './block-device.ts';

/** Of one kind of call. Only calls that resolved count as `calls`, in `bytes` and in `latency`. */
class CallStatistics {
  calls = 0;
  bytes = 0;
  errors = 0;
  inFlight = 0;
  readonly latency = new Histogram();
}

export type DeviceStatistics = Readonly<
  Record<'read' | 'write' | 'flush' | 'discard' | 'writeZeroes', CallStatistics>
>;

/** A layer that counts and times what passes through it. */
export class StatsDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly writable: boolean;
  readonly statistics: DeviceStatistics = {
    read: new CallStatistics(),
    write: new CallStatistics(),
    flush: new CallStatistics(),
    discard: new CallStatistics(),
    writeZeroes: new CallStatistics(),
  };
  readNow?: NonNullable<BlockDevice['readNow']>;
  extents?: NonNullable<BlockDevice['extents']>;
  readonly #inner: BlockDevice;
  readonly #clock: Clock;

  constructor(inner: BlockDevice, clock: Clock) {
    this.#inner = inner;
    this.#clock = clock;
    this.lengthBytes = inner.lengthBytes;
    this.blockBytes = inner.blockBytes;
    this.writable = inner.writable;
    if (inner.readNow) {
      this.readNow = (offsetBytes, into) => {
        const startMs = clock.monotonicMs();
        if (!inner.readNow!(offsetBytes, into)) return false;
        const { read } = this.statistics;
        read.calls++;
        read.bytes += into.length;
        read.latency.record(clock.monotonicMs() - startMs);
        return true;
      };
    }
    if (inner.extents) this.extents = inner.extents.bind(inner);
  }

  read(offsetBytes: number, into: Uint8Array): Promise<void> {
    return this.#count(this.statistics.read, into.length, () => this.#inner.read(offsetBytes, into));
  }

  write(offsetBytes: number, from: Uint8Array): Promise<void> {
    return this.#count(this.statistics.write, from.length, () => this.#inner.write(offsetBytes, from));
  }

  flush(): Promise<void> {
    return this.#count(this.statistics.flush, 0, () => this.#inner.flush());
  }

  discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    const { discard } = this.statistics;
    return this.#count(discard, lengthBytes, () => this.#inner.discard(offsetBytes, lengthBytes));
  }

  writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    const { writeZeroes } = this.statistics;
    return this.#count(writeZeroes, lengthBytes, () => this.#inner.writeZeroes(offsetBytes, lengthBytes));
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  async #count(statistics: CallStatistics, bytes: number, call: () => Promise<void>): Promise<void> {
    const startMs = this.#clock.monotonicMs();
    statistics.inFlight++;
    try {
      await call();
      statistics.calls++;
      statistics.bytes += bytes;
      statistics.latency.record(this.#clock.monotonicMs() - startMs);
    } catch (error) {
      statistics.errors++;
      throw error;
    } finally {
      statistics.inFlight--;
    }
  }
}
