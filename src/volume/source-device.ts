import type { GodwitError } from '../base/errors.ts';
import type { Extent } from '../block/block-device.ts';
import { closedError } from '../block/range.ts';
import { ReadOnlyDevice } from '../block/read-only-device.ts';
import type { CloneSource } from '../clone/fetcher.ts';

/** A remote device that connects, and connects again, by itself. */
export type Connection = CloneSource & {
  /** `connected`, or something else. */
  readonly state: string;
  /** Why the last login or connection ended; stays when there is a connection again. */
  readonly lastError: GodwitError | null;
  /** Why reads wait although there is a connection. */
  readonly trouble?: GodwitError | null;
};

export type SourceDeviceOptions = {
  lengthBytes: number;
  blockBytes: number;
  /** Makes the connection in the background. */
  open: () => Connection;
  /** Resolves when the connection is made; rejects with why it cannot be. */
  connect: () => Promise<Connection>;
};

/**
 * The source of a clone, not called before it is needed: a clone that is whole needs none, and its source may
 * be gone for ever.
 */
export class SourceDevice extends ReadOnlyDevice implements CloneSource {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly #options: SourceDeviceOptions;
  #connection: Connection | null = null;
  #closing: Promise<void> | null = null;

  constructor(options: SourceDeviceOptions) {
    super();
    this.lengthBytes = options.lengthBytes;
    this.blockBytes = options.blockBytes;
    this.#options = options;
  }

  /**
   * Why there is no connection, or why reads wait although there is one; null when they do not, or none was
   * needed.
   */
  get lastError(): string | null {
    if (this.#connection === null) return null;
    if (this.#connection.state === 'connected') return this.#connection.trouble?.message ?? null;
    return this.#connection.lastError?.message ?? null;
  }

  /** For the first attach, where a wrong source must be noticed at once. */
  async login(): Promise<void> {
    this.#connection ??= await this.#options.connect();
  }

  read(
    offsetBytes: number,
    into: Uint8Array,
    options?: { priority?: 'guest' | 'background' },
  ): Promise<void> {
    if (this.#closing !== null) return Promise.reject(closedError());
    return this.#connected().read(offsetBytes, into, options);
  }

  /** All data where the source cannot tell. */
  async extents(offsetBytes: number, lengthBytes: number, limitExtents: number): Promise<Extent[]> {
    if (this.#closing !== null) throw closedError();
    const connection = this.#connected();
    if (connection.extents) return connection.extents(offsetBytes, lengthBytes, limitExtents);
    return [{ offsetBytes, lengthBytes, kind: 'data' }];
  }

  /** Resolves at once where the connection cannot tell one source from another. */
  async vouch(): Promise<void> {
    if (this.#closing !== null) throw closedError();
    await this.#connected().vouch?.();
  }

  /** Logs out; reads that wait reject. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#connection?.close() ?? Promise.resolve();
    return this.#closing;
  }

  #connected(): Connection {
    this.#connection ??= this.#options.open();
    return this.#connection;
  }
}
