import type { Clock } from '../base/clock.ts';
import { systemErrorCode } from '../base/errors.ts';
import type { BlockDevice } from './block-device.ts';
import type { TraceOperation, TraceRecord } from './trace.ts';

/** A layer that tells a callback of every call when it ended. `encodeTraceRecord` makes a line of each. */
export class TraceDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly writable: boolean;
  readNow?: NonNullable<BlockDevice['readNow']>;
  extents?: NonNullable<BlockDevice['extents']>;
  readonly #inner: BlockDevice;
  readonly #clock: Clock;
  readonly #onRecord: (record: TraceRecord) => void;
  readonly #originMs: number;

  constructor(inner: BlockDevice, clock: Clock, onRecord: (record: TraceRecord) => void) {
    this.#inner = inner;
    this.#clock = clock;
    this.#onRecord = onRecord;
    this.#originMs = clock.monotonicMs();
    this.lengthBytes = inner.lengthBytes;
    this.blockBytes = inner.blockBytes;
    this.writable = inner.writable;
    if (inner.readNow) {
      this.readNow = (offsetBytes, into) => {
        const startMs = clock.monotonicMs();
        const done = inner.readNow!(offsetBytes, into);
        if (done) this.#record(startMs, 'read', offsetBytes, into.length, null);
        return done;
      };
    }
    if (inner.extents) this.extents = inner.extents.bind(inner);
  }

  read(offsetBytes: number, into: Uint8Array): Promise<void> {
    return this.#trace('read', offsetBytes, into.length, () => this.#inner.read(offsetBytes, into));
  }

  write(offsetBytes: number, from: Uint8Array): Promise<void> {
    return this.#trace('write', offsetBytes, from.length, () => this.#inner.write(offsetBytes, from));
  }

  flush(): Promise<void> {
    return this.#trace('flush', 0, 0, () => this.#inner.flush());
  }

  discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    const call = () => this.#inner.discard(offsetBytes, lengthBytes);
    return this.#trace('discard', offsetBytes, lengthBytes, call);
  }

  writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    const call = () => this.#inner.writeZeroes(offsetBytes, lengthBytes);
    return this.#trace('writeZeroes', offsetBytes, lengthBytes, call);
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  async #trace(
    operation: TraceOperation,
    offsetBytes: number,
    lengthBytes: number,
    call: () => Promise<void>,
  ): Promise<void> {
    const startMs = this.#clock.monotonicMs();
    try {
      await call();
    } catch (error) {
      this.#record(startMs, operation, offsetBytes, lengthBytes, systemErrorCode(error) ?? 'UNKNOWN');
      throw error;
    }
    this.#record(startMs, operation, offsetBytes, lengthBytes, null);
  }

  #record(
    startedAtMs: number,
    operation: TraceOperation,
    offsetBytes: number,
    lengthBytes: number,
    errorCode: string | null,
  ): void {
    const startMs = startedAtMs - this.#originMs;
    const tookMs = this.#clock.monotonicMs() - startedAtMs;
    this.#onRecord({ startMs, tookMs, operation, offsetBytes, lengthBytes, errorCode });
  }
}
