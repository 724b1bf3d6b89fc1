import { BufferPool } from '../base/buffer-pool.ts';
import { GodwitError } from '../base/errors.ts';
import { checkRange } from '../block/range.ts';
import { type ConnectWait, type ReadOptions, RemoteDisk } from '../remote/remote-disk.ts';
import { isNotTaken } from '../remote/request.ts';
import { NbdConnection, type NbdTls } from './client-connection.ts';
import {
  BLOCK_BYTES_MAX,
  DISCONNECT_TIMEOUT_MS,
  EFFECT_BYTES_MAX,
  handshakeTimeoutError,
  type NbdClientOptions,
  NbdDialect,
  type NbdUnit,
} from './client-dialect.ts';
import { list, type NbdListedExport } from './client-handshake.ts';
import { NBD, type NbdCommand } from './client-session.ts';
import { TRANSMISSION_FLAG } from './protocol.ts';

const DEFAULTS = {
  exportName: '',
  tls: { mode: 'off' } as NbdTls,
  readOnly: true,
  connections: 1,
  transferBytesMax: 1024 * 1024,
  keepAliveIntervalMs: 3_000,
  keepAliveTimeoutMs: 5_000,
  requestTimeoutMs: 15_000,
};
const HANDSHAKE_TIMEOUT_MS = 10_000;

/** An export of an NBD server as a block device. */
export class NbdClient extends RemoteDisk<NbdUnit, NbdCommand> {
  /** What the server's minimum is before it has said so. */
  readonly #minimumBlockBytesExpected: number;

  private constructor(options: NbdClientOptions) {
    const { expected = null, handshakeTimeoutMs: connectTimeoutMs = HANDSHAKE_TIMEOUT_MS } = options;
    const logger = options.logger.child({ exportName: options.exportName ?? DEFAULTS.exportName });
    const dialect = new NbdDialect({ ...DEFAULTS, ...options, expected });
    // A block size of the expected export is its own, and not the one that a device has.
    const basis = expected === null ? null : { lengthBytes: expected.lengthBytes };
    super(dialect, { ...options, logger, connectTimeoutMs, expected: basis });
    this.#minimumBlockBytesExpected = expected?.minimumBlockBytes ?? 1;
  }

  /**
   * Resolves once the export is there and checked. Network errors are tried again for `timeoutMs` (default 30
   * s) or until `signal`; a refusal rejects at once.
   */
  static async connect(options: NbdClientOptions, wait: ConnectWait = {}): Promise<NbdClient> {
    return new NbdClient(options).connected(wait);
  }

  /**
   * A device at once, connected in the background: for whoever knows what the export is and has to come up
   * while it is away. Reads wait for it.
   */
  static open(options: NbdClientOptions & { expected: { lengthBytes: number } }): NbdClient {
    return new NbdClient(options).start();
  }

  /**
   * What the server has, in its order. Rejects with the errors of a connection; `NBD_REFUSED` where the
   * server does not tell.
   */
  static listExports(
    options: Pick<NbdClientOptions, 'address' | 'tls' | 'clock'> & { timeoutMs?: number },
  ): Promise<NbdListedExport[]> {
    const tls = options.tls ?? DEFAULTS.tls;
    return new Promise((resolve, reject) => {
      const timeoutMs = options.timeoutMs ?? HANDSHAKE_TIMEOUT_MS;
      const connection = new NbdConnection<NbdListedExport[]>({
        address: options.address,
        tls,
        handshake: list({ tls: tls.mode }),
        pool: new BufferPool(0),
        onReady: (exports) => {
          cancel();
          resolve(exports);
          const cancelEnd = options.clock.timer(DISCONNECT_TIMEOUT_MS, () => connection.destroy());
          void connection.end().then(cancelEnd);
          // The server answers ABORT and hangs up; whether it does is of no interest.
          const ignore = (): void => {};
          const staging = Buffer.alloc(64);
          return { space: () => staging, landed: ignore, push: ignore };
        },
        onOver: (error) => {
          cancel();
          reject(error);
        },
      });
      const cancel = options.clock.timer(timeoutMs, () => {
        connection.destroy();
        reject(handshakeTimeoutError(options.address, timeoutMs));
      });
    });
  }

  /**
   * What the server said of the export, null until the first connection. Its blocks are of at least 512
   * bytes; of the server's minimum where that is larger, at most 4096: see `checkMutation`.
   */
  get export(): Readonly<NbdUnit> | null {
    return this.identity;
  }

  override read(offsetBytes: number, into: Uint8Array, options?: ReadOptions): Promise<void> {
    return this.#isUnaligned(offsetBytes, into.length)
      ? this.#readWidened(offsetBytes, into, options)
      : super.read(offsetBytes, into, options);
  }

  /**
   * The protocol's own TRIM: a hint after which the range reads as anything. Nothing happens where the server
   * does not know it.
   */
  async trim(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.checkMutation(offsetBytes, lengthBytes);
    if (((this.identity?.transmissionFlags ?? 0) & TRANSMISSION_FLAG.sendTrim) === 0) return;
    for (let at = 0; at < lengthBytes; at += EFFECT_BYTES_MAX) {
      const stepBytes = Math.min(EFFECT_BYTES_MAX, lengthBytes - at);
      try {
        await this.request(NBD.trim, offsetBytes + at, stepBytes);
      } catch (error) {
        if (!isNotTaken(error)) throw error;
      }
    }
  }

  /**
   * Where the server's minimum block is larger than 4096 bytes, a write that is not made of whole ones throws
   * `NBD_UNALIGNED`: to read, change and write back would undo what another client wrote in between.
   */
  protected override checkMutation(offsetBytes: number, lengthBytes: number): void {
    super.checkMutation(offsetBytes, lengthBytes);
    if (!this.#isUnaligned(offsetBytes, lengthBytes)) return;
    throw new GodwitError('NBD_UNALIGNED', 'the NBD server writes in larger blocks than this', {
      values: { offsetBytes, lengthBytes, minimumBlockBytes: this.#minimumBlockBytes },
      nextAction: 'Write whole blocks of that size, or set a smaller minimum at the server.',
    });
  }

  get #minimumBlockBytes(): number {
    return this.identity?.minimumBlockBytes ?? this.#minimumBlockBytesExpected;
  }

  /** Only where the server's minimum is above what a block device may ask for. */
  #isUnaligned(offsetBytes: number, lengthBytes: number): boolean {
    const minimumBytes = this.#minimumBlockBytes;
    return (
      minimumBytes > BLOCK_BYTES_MAX && (offsetBytes % minimumBytes !== 0 || lengthBytes % minimumBytes !== 0)
    );
  }

  async #readWidened(offsetBytes: number, into: Uint8Array, options?: ReadOptions): Promise<void> {
    checkRange(this, offsetBytes, into.length);
    const minimumBytes = this.#minimumBlockBytes;
    const start = offsetBytes - (offsetBytes % minimumBytes);
    const end = Math.min(
      this.lengthBytes,
      Math.ceil((offsetBytes + into.length) / minimumBytes) * minimumBytes,
    );
    const wide = Buffer.allocUnsafe(end - start);
    await super.read(start, wide, options);
    into.set(wide.subarray(offsetBytes - start, offsetBytes - start + into.length));
  }
}
