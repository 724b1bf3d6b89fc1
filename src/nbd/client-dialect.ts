import { BufferPool } from '../base/buffer-pool.ts';
import { type ErrorValues, GodwitError } from '../base/errors.ts';
import { readOnlyError } from '../block/range.ts';
import type {
  Ask,
  Dialect,
  Failure,
  Link,
  Piece,
  RemoteUnit,
  SessionHost,
  Zeroing,
} from '../remote/dialect.ts';
import type { RemoteOptions } from '../remote/remote-disk.ts';
import { NO_BYTES, type RequestParts } from '../remote/request.ts';
import { NbdConnection, type NbdTls } from './client-connection.ts';
import { negotiate, type RemoteExport } from './client-handshake.ts';
import { NBD, type NbdCommand, type NbdFailure, type NbdRequest, NbdSession } from './client-session.ts';
import type { NbdAddress } from './client-uri.ts';
import { protocolError } from './errors.ts';
import { ALLOCATION_STATE, COMMAND, COMMAND_FLAG, NBD_ERROR, nameOf, TRANSMISSION_FLAG } from './protocol.ts';

/** What tells an export from another. */
export type NbdIdentity = {
  lengthBytes: number;
  name: string;
  description: string;
  minimumBlockBytes: number;
};

/** What is known of an export. */
export type NbdUnit = RemoteExport & RemoteUnit;

export type NbdClientOptions = RemoteOptions & {
  address: NbdAddress;
  /** Default '': the server's default export. */
  exportName?: string;
  /** Default: off. */
  tls?: NbdTls;
  /** What the export must be, from the first connection on; anything else is `NBD_EXPORT_CHANGED`. */
  expected?: Pick<NbdIdentity, 'lengthBytes'> & Partial<NbdIdentity>;
  /**
   * Connections at once, 1 to 16, where the server allows more than one (NBD_FLAG_CAN_MULTI_CONN). Default 1.
   */
  connections?: number;
  /** Largest single READ or WRITE; longer ones are split. Default 1 MiB. */
  transferBytesMax?: number;
  /**
   * From dialling to the end of the handshake. Default 10 s; doubles, up to eight times, as long as the
   * server is silent.
   */
  handshakeTimeoutMs?: number;
  /** Silence after which the server is asked for its first block. Default 3 s. */
  keepAliveIntervalMs?: number;
  /** How long that may take while nothing else is under way. Default 5 s; doubles like the handshake's. */
  keepAliveTimeoutMs?: number;
  /**
   * How long a request may take before its connection is given up; doubles with each replay of the request.
   * Default 15 s.
   */
  requestTimeoutMs?: number;
};

/** With every default filled in. */
export type NbdDialectOptions = Required<Omit<NbdClientOptions, OfTheDisk | 'expected'>> & {
  expected: NbdClientOptions['expected'] | null;
};
type OfTheDisk = Exclude<keyof RemoteOptions, 'clock' | 'readOnly'> | 'handshakeTimeoutMs';

/** Loop devices, and every disk, have sectors of no less. */
const BLOCK_BYTES_MIN = 512;
export const BLOCK_BYTES_MAX = 4096;
const SLABS_KEPT_BYTES = 2 * 1024 * 1024;
/** What every server takes, until this one has said what it takes. */
const TRANSFER_BYTES_UNKNOWN = 64 * 1024;
/**
 * One request that carries no data: WRITE_ZEROES, TRIM, BLOCK_STATUS. Bounded, so that none of them keeps
 * others waiting for long.
 */
export const EFFECT_BYTES_MAX = 256 * 1024 * 1024;
const STATUS_BYTES_MAX = 2 * 2 ** 30;
export const DISCONNECT_TIMEOUT_MS = 1_000;
/** Flags that say what may be sent. */
const ABILITIES =
  TRANSMISSION_FLAG.readOnly |
  TRANSMISSION_FLAG.sendFlush |
  TRANSMISSION_FLAG.sendFua |
  TRANSMISSION_FLAG.sendTrim |
  TRANSMISSION_FLAG.sendWriteZeroes |
  TRANSMISSION_FLAG.canMultiConn;

/** How an export of an NBD server is reached: docs/nbd.md. */
export class NbdDialect implements Dialect<NbdUnit, NbdCommand> {
  readonly name = 'NBD';
  readonly codes = { lost: 'NBD_CONNECTION_LOST', changed: 'NBD_EXPORT_CHANGED' };
  readonly placeCount = 1;
  readonly reads = NBD.read;
  readonly writes = NBD.write;
  readonly #options: NbdDialectOptions;
  readonly #pool = new BufferPool(SLABS_KEPT_BYTES);

  constructor(options: NbdDialectOptions) {
    this.#options = options;
  }

  place(): Record<string, string | number> {
    return placeOf(this.#options.address);
  }

  sessionsMax(unit: NbdUnit): number {
    return has(unit, TRANSMISSION_FLAG.canMultiConn) ? this.#options.connections : 1;
  }

  // --- what the export takes

  durableWrites(unit: NbdUnit | null): NbdCommand | null {
    return has(unit, TRANSMISSION_FLAG.sendFua) ? NBD.writeDurably : null;
  }

  /** A server that knows no FLUSH says by that that it keeps nothing back. */
  flushes(unit: NbdUnit): NbdCommand | null {
    return has(unit, TRANSMISSION_FLAG.sendFlush) ? NBD.flush : null;
  }

  /**
   * By WRITE_ZEROES, which may let the server make a hole, and not by TRIM: after TRIM the range may read as
   * anything, its old content included, and by the contract of a block device it reads as zeros.
   */
  zeroes(unit: NbdUnit, mayPunch: boolean): Zeroing<NbdCommand> | null {
    if (!has(unit, TRANSMISSION_FLAG.sendWriteZeroes)) return null;
    const command = mayPunch ? NBD.makeHoles : NBD.writeZeroes;
    return { command, stepBytes: EFFECT_BYTES_MAX, payload: NO_BYTES };
  }

  /** What a server does not know is not sent to it. */
  isUnsupported(): boolean {
    return false;
  }

  writable(unit: NbdUnit | null): boolean {
    return !has(unit, TRANSMISSION_FLAG.readOnly);
  }

  transferBytesMax(unit: NbdUnit | null): number {
    if (unit === null) return Math.min(this.#options.transferBytesMax, TRANSFER_BYTES_UNKNOWN);
    const bytes = Math.min(this.#options.transferBytesMax, unit.maximumBlockBytes);
    const granuleBytes = Math.max(unit.blockBytes, unit.minimumBlockBytes);
    return Math.max(granuleBytes, bytes - (bytes % granuleBytes));
  }

  /**
   * By BLOCK_STATUS with base:allocation; all data where the server cannot tell. A hole is what the server
   * says reads as zeros; what is only not allocated may read as anything.
   */
  async pieces(
    ask: Ask<NbdCommand>,
    unit: NbdUnit,
    offsetBytes: number,
    lengthBytes: number,
  ): Promise<Piece[]> {
    if (unit.allocationContextId === null) return [{ lengthBytes, kind: 'data' }];
    const granuleBytes = Math.max(1, unit.minimumBlockBytes);
    const end = offsetBytes + Math.min(STATUS_BYTES_MAX, lengthBytes);
    const start = offsetBytes - (offsetBytes % granuleBytes);
    const stop = Math.min(unit.lengthBytes, Math.ceil(end / granuleBytes) * granuleBytes);
    // Of its own: the answer is put into it.
    const command: NbdCommand = { counts: null, type: COMMAND.blockStatus, flags: 0, extents: null };
    await ask({ command, offsetBytes: start, lengthBytes: stop - start, buffer: NO_BYTES });
    const pieces: Piece[] = [];
    let at = offsetBytes;
    let position = start;
    for (const { lengthBytes: extentBytes, state } of command.extents!) {
      position = Math.min(end, position + extentBytes);
      // A border inside of a block makes the whole block data.
      const isHole = (state & ALLOCATION_STATE.zero) !== 0;
      const border = position === end ? end : position - (position % unit.blockBytes);
      const upTo =
        isHole || position === end
          ? border
          : Math.min(end, Math.ceil(position / unit.blockBytes) * unit.blockBytes);
      if (upTo > at) {
        pieces.push({ lengthBytes: upTo - at, kind: isHole ? 'hole' : 'data' });
        at = upTo;
      }
      if (position >= end) break;
    }
    if (at === offsetBytes) pieces.push({ lengthBytes: Math.min(end - at, unit.blockBytes), kind: 'data' });
    return pieces;
  }

  // --- which export it is

  changed(seen: NbdUnit, known: NbdUnit | null): GodwitError | null {
    const { expected, readOnly } = this.#options;
    const wanted = { ...seen, ...(known ?? expected) };
    const sameBlocks =
      known === null
        ? seen.minimumBlockBytes === wanted.minimumBlockBytes
        : seen.minimumBlockBytes <= Math.max(known.blockBytes, known.minimumBlockBytes);
    const sameAccess = known === null || readOnly || this.writable(known) === this.writable(seen);
    const sameName = wanted.name === seen.name && wanted.description === seen.description;
    if (seen.lengthBytes === wanted.lengthBytes && sameBlocks && sameName && sameAccess)
      return known === null || readOnly ? null : lessDurable(seen, known);
    return new GodwitError('NBD_EXPORT_CHANGED', 'The NBD export is not the one that was expected', {
      values: {
        expectedLengthBytes: wanted.lengthBytes,
        lengthBytes: seen.lengthBytes,
        expectedName: wanted.name,
        name: seen.name,
        expectedDescription: wanted.description,
        description: seen.description,
      },
      retry: 'never',
      nextAction:
        'Nothing is read from it. Find out what is served under this name now, and connect again to the right one.',
    });
  }

  /** A flush over one of several connections is one for all only where all of them say so. */
  areAlike(one: NbdUnit, other: NbdUnit): boolean {
    const differing = one.transmissionFlags ^ other.transmissionFlags;
    return (
      (differing & ABILITIES) === 0 &&
      one.maximumBlockBytes === other.maximumBlockBytes &&
      (one.allocationContextId === null) === (other.allocationContextId === null)
    );
  }

  takes(unit: NbdUnit, { command, lengthBytes }: RequestParts<NbdCommand>): boolean {
    const isDurable = (command.flags & COMMAND_FLAG.fua) !== 0;
    if (isDurable && !has(unit, TRANSMISSION_FLAG.sendFua)) return false;
    switch (command.type) {
      case COMMAND.read:
      case COMMAND.write:
        return lengthBytes <= Math.max(unit.maximumBlockBytes, unit.blockBytes);
      case COMMAND.flush:
        return has(unit, TRANSMISSION_FLAG.sendFlush);
      case COMMAND.trim:
        return has(unit, TRANSMISSION_FLAG.sendTrim);
      case COMMAND.writeZeroes:
        return has(unit, TRANSMISSION_FLAG.sendWriteZeroes);
      case COMMAND.blockStatus:
        return unit.allocationContextId !== null;
      default:
        return true;
    }
  }

  // --- connections

  dial(_place: number, host: SessionHost<NbdUnit, NbdCommand>): Link {
    const { address, exportName, tls } = this.#options;
    const established: { session: NbdSession | null } = { session: null };
    const connection = new NbdConnection<RemoteExport>({
      address,
      tls,
      handshake: negotiate({ exportName, tls: tls.mode }),
      pool: this.#pool,
      onReady: (export_, writer) => {
        const unit = unitOf(export_);
        const session = new NbdSession({
          export: export_,
          writer,
          clock: this.#options.clock,
          keepAliveIntervalMs: this.#options.keepAliveIntervalMs,
          keepAliveTimeoutMs: this.#options.keepAliveTimeoutMs * host.patience,
          requestTimeoutMs: this.#options.requestTimeoutMs,
          onRoom: () => host.room(),
          onAnswered: (request, failure) =>
            host.answered(request, failure === null ? null : failureOf(request, failure)),
          onSent: (request) => host.sent(request),
          onOver: (error) => host.over(error),
        });
        established.session = session;
        host.ready(session, unit);
        return session;
      },
      onOver: (error) => host.over(error),
    });
    return {
      destroy: () => {
        // The session before the writer, which says of each payload that the kernel has it.
        established.session?.fail(protocolError('the connection is over'));
        connection.destroy();
      },
      leave: async () => {
        established.session?.disconnect();
        await connection.end();
      },
    };
  }

  // --- errors

  unreachable(): GodwitError {
    return new GodwitError('NBD_CONNECTION_LOST', 'The NBD server was not reached in time', {
      nextAction: 'Check the address, and that the server is up.',
    });
  }

  timedOut(_place: number, timeoutMs: number): GodwitError {
    return handshakeTimeoutError(this.#options.address, timeoutMs);
  }

  poisoned(request: NbdRequest): GodwitError {
    return requestError(request, 'The NBD server ends the connection whenever it gets this request', {
      connections: request.losses,
    });
  }

  typed(error: unknown): GodwitError {
    return error instanceof GodwitError ? error : protocolError(String(error));
  }
}

function has(unit: RemoteExport | null, flag: number): boolean {
  return unit !== null && (unit.transmissionFlags & flag) !== 0;
}

/**
 * Null, or the error of an export that promises less than it did of what was written: without FLUSH what was
 * acknowledged and kept back can never be known to be durable. FUA alone has FLUSH to stand for it.
 */
function lessDurable(seen: NbdUnit, known: NbdUnit): GodwitError | null {
  const { sendFlush, sendFua } = TRANSMISSION_FLAG;
  const misses =
    (has(known, sendFlush) && !has(seen, sendFlush)) ||
    (has(known, sendFua) && !has(seen, sendFua | sendFlush));
  if (!misses) return null;
  return new GodwitError('NBD_EXPORT_CHANGED', 'The NBD export came back without FLUSH', {
    values: { missing: 'FLUSH', expectedFlags: known.transmissionFlags, flags: seen.transmissionFlags },
    retry: 'never',
    nextAction:
      'What was written and not flushed may be lost at the server. Let it serve the export as before, and connect again.',
  });
}

/** Throws `NBD_UNSUPPORTED_EXPORT`. */
function unitOf(export_: RemoteExport): NbdUnit {
  const blockBytes = Math.min(BLOCK_BYTES_MAX, Math.max(BLOCK_BYTES_MIN, export_.minimumBlockBytes));
  if (export_.lengthBytes === 0 || export_.lengthBytes % blockBytes !== 0) {
    throw new GodwitError(
      'NBD_UNSUPPORTED_EXPORT',
      `an NBD export of ${export_.lengthBytes} bytes is not made of whole blocks`,
      {
        values: { lengthBytes: export_.lengthBytes, blockBytes },
        retry: 'never',
        nextAction:
          'Make the disk behind the export a multiple of 512 bytes long (nbdkit: --filter=truncate round-up=512).',
      },
    );
  }
  return { ...export_, blockBytes };
}

function failureOf(request: NbdRequest, failure: NbdFailure): Failure {
  // The server is on its way out; what it did not do goes to the one that comes after it.
  if (failure.error === NBD_ERROR.ESHUTDOWN) return { error: shutdownError(), again: 'nextSession' };
  const again = failure.error === NBD_ERROR.ENOMEM ? 'later' : 'no';
  return { error: errorOf(request, failure), again };
}

function errorOf(request: NbdRequest, failure: NbdFailure): GodwitError {
  const error = nameOf(NBD_ERROR, failure.error);
  if (failure.error === NBD_ERROR.ENOSPC) {
    return new GodwitError('BLOCK_NO_SPACE', 'The NBD server has no space left', {
      nextAction: 'Make space on the host of the server.',
    });
  }
  if (
    failure.error === NBD_ERROR.EPERM &&
    request.command.type !== COMMAND.read &&
    request.command.type !== COMMAND.blockStatus
  ) {
    return readOnlyError();
  }
  return requestError(request, `The NBD server failed a request (${error})`, {
    error,
    serverMessage: failure.message,
    errorOffsetBytes: failure.offsetBytes,
  });
}

function requestError(request: NbdRequest, message: string, values: ErrorValues): GodwitError {
  return new GodwitError('NBD_REQUEST_FAILED', message, {
    values: {
      request: nameOf(COMMAND, request.command.type),
      offsetBytes: request.offsetBytes,
      lengthBytes: request.lengthBytes,
      ...values,
    },
    nextAction: 'Look at the log of the server for the cause; EIO means that its disk is failing.',
  });
}

function shutdownError(): GodwitError {
  return new GodwitError('NBD_CONNECTION_LOST', 'The NBD server is shutting down', {
    nextAction: 'The connection is made anew by itself when the server is back.',
  });
}

function placeOf(address: NbdAddress): Record<string, string | number> {
  return 'host' in address ? { host: address.host, port: address.port } : { path: address.path };
}

export function handshakeTimeoutError(address: NbdAddress, timeoutMs: number): GodwitError {
  return new GodwitError('NBD_HANDSHAKE_TIMEOUT', 'The NBD server did not complete the handshake in time', {
    values: {
      ...placeOf(address),
      timeoutMs,
    },
    retry: 'later',
    nextAction: 'Check the network and the host of the server; the handshake is tried again.',
  });
}
