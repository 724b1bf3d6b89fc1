import { createServer, type Server, type Socket } from 'node:net';
import type { TlsOptions } from 'node:tls';
import { BufferPool } from '../base/buffer-pool.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { LookOut } from '../base/look-out.ts';
import { PeerBook } from '../base/peer-account.ts';
import { peerAddressOf } from '../base/peer-address.ts';
import { type Seat, Seats } from '../base/seats.ts';
import { Turnstile } from '../base/turnstile.ts';
import { listenAt, type NamedSocket } from '../sys/named-path.ts';
import type { NbdAddress } from './client-uri.ts';
import { NbdExport, type NbdExportOptions } from './export.ts';
import { SERVER_LIMITS, type ServerLimits } from './limits.ts';
import { STRING_BYTES_MAX } from './protocol.ts';
import { ServerConnection } from './server-connection.ts';
import type { SessionStatistics } from './server-session.ts';

export type NbdServerTls = {
  /** PEM. */
  certificate: string | Buffer;
  privateKey: string | Buffer;
  /** PEM of the authorities that sign clients. With it, a client without a certificate of theirs is refused. */
  clientAuthority?: string | Buffer;
  /** Nothing is told and nothing served without TLS. Default true. */
  required?: boolean;
};

export type NbdServerOptions = {
  /** TCP (port 0: the system picks one), or a unix socket, which only the owner of the process can connect to. */
  address: NbdAddress;
  /**
   * Of a unix socket: its owner, if not the user of this process; `own`: the path is in a folder that the caller keeps for this, and only what is there is
   * looked at (`NamedPathOptions`).
   */
  socket?: { owner?: { uid: number; gid: number }; own?: boolean };
  tls?: NbdServerTls;
  clock: Clock;
  logger: Logger;
  limits?: Partial<ServerLimits>;
  /** What peers make this process hold. Its servers share it. Default: one of its own. */
  peers?: PeerBook;
  /** For tests that look into it. */
  pool?: BufferPool;
};

export type NbdServerStatistics = SessionStatistics & { connections: number };

/** sun_path of unix(7), without its closing zero byte. */
const SOCKET_PATH_BYTES_MAX = 107;
/** The largest read from a socket outside of payloads. */
const STAGING_BYTES = 64 * 1024;
/** Of newcomers for whom others have to go. */
const ADMISSIONS_PER_SECOND = 100;
/** Buffers kept for later. */
const POOL_BYTES = 32 * 1024 * 1024;

/** An NBD server: a socket with exports. docs/nbd.md says what it supports. */
export class NbdServer {
  readonly #options: NbdServerOptions;
  readonly #limits: ServerLimits;
  readonly #logger: Logger;
  readonly #server: Server;
  readonly #pool: BufferPool;
  readonly #peers: PeerBook;
  readonly #seats: Seats;
  readonly #turnstile: Turnstile;
  readonly #waiting = new Set<Socket>();
  readonly #lookOut = new LookOut();
  readonly #staging = Buffer.allocUnsafeSlow(STAGING_BYTES);
  readonly #exports = new Map<string, NbdExport>();
  readonly #connections = new Set<ServerConnection>();
  readonly #statistics: SessionStatistics = { requests: 0, bytesRead: 0, bytesWritten: 0 };
  #named: NamedSocket | null = null;
  #closed: Promise<void> | null = null;

  private constructor(options: NbdServerOptions) {
    this.#options = options;
    this.#limits = { ...SERVER_LIMITS, ...options.limits };
    this.#logger = options.logger;
    const { connectionsMax, connectionsPerAddressMax } = this.#limits;
    this.#pool = options.pool ?? new BufferPool(POOL_BYTES);
    this.#peers = options.peers ?? new PeerBook(options.clock);
    this.#turnstile = new Turnstile(options.clock, {
      perSecond: ADMISSIONS_PER_SECOND,
      waitingMax: connectionsMax,
    });
    this.#seats = new Seats({
      max: connectionsMax,
      keyMax: 'path' in options.address ? connectionsMax : Math.min(connectionsMax, connectionsPerAddressMax),
    });
    this.#server = createServer({ pauseOnConnect: true }, (socket) => this.#accept(socket));
  }

  /**
   * Rejects with `NBD_LISTEN_FAILED`, `NBD_PATH_TOO_LONG`, `SYS_PATH_REFUSED`. A unix socket that a dead process left behind is replaced; nothing else is.
   */
  static async listen(options: NbdServerOptions): Promise<NbdServer> {
    const server = new NbdServer(options);
    const path = 'path' in options.address ? options.address.path : '';
    if (Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX) {
      throw new GodwitError('NBD_PATH_TOO_LONG', `${path} is too long for a unix socket`, {
        values: { path, bytesMax: SOCKET_PATH_BYTES_MAX },
        nextAction: 'Choose a shorter path.',
      });
    }
    try {
      await server.#listen();
    } catch (error) {
      server.#server.close();
      if (isGodwitError(error, 'SYS_PATH_REFUSED')) throw error;
      throw new GodwitError('NBD_LISTEN_FAILED', `Cannot listen for NBD: ${messageOf(error)}`, {
        values: { ...options.address, systemCode: systemErrorCode(error) ?? null },
        nextAction: 'Choose an address of this host and a port, or a path, that is free.',
        cause: error,
      });
    }
    server.#server.on('error', (error) =>
      server.#logger.error({ error: messageOf(error) }, 'NBD: server error'),
    );
    return server;
  }

  /** Where it listens, with the port that the system picked. */
  get address(): NbdAddress {
    const address = this.#server.address();
    if (typeof address !== 'object' || address === null) return this.#options.address;
    return { host: address.address, port: address.port };
  }

  get connections(): number {
    return this.#connections.size;
  }

  /** Newcomers for whom others have to go. */
  get waiting(): number {
    return this.#waiting.size;
  }

  statistics(): NbdServerStatistics {
    return { ...this.#statistics, connections: this.#connections.size };
  }

  /** Throws `NBD_EXPORT_EXISTS` or `NBD_BAD_EXPORT_NAME`. The device stays the caller's. */
  addExport(options: NbdExportOptions): void {
    const { name } = options;
    if (Buffer.byteLength(name) > STRING_BYTES_MAX || name.includes('\0')) {
      throw new GodwitError('NBD_BAD_EXPORT_NAME', 'An export name has at most 4096 bytes and no NUL', {
        values: { name: name.slice(0, 100) },
        nextAction: 'Choose another name.',
      });
    }
    if (this.#exports.has(name)) {
      throw new GodwitError('NBD_EXPORT_EXISTS', 'There is an export of this name already', {
        values: { name },
        nextAction: 'Remove the other one first.',
      });
    }
    this.#exports.set(name, new NbdExport(options));
  }

  /** Drops the connections of an export and forgets it. Resolves when its device is not in use any more. Does not close the device. */
  async removeExport(name: string): Promise<void> {
    const removed = this.#exports.get(name);
    if (removed === undefined) return;
    this.#exports.delete(name);
    const users = [...this.#connections].filter((connection) => connection.export === removed);
    await Promise.all(users.map((connection) => connection.gone()));
  }

  /** Stops listening and drops every connection. Resolves when no device is in use any more. Idempotent. */
  close(): Promise<void> {
    this.#closed ??= (async () => {
      const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
      this.#turnstile.close();
      for (const socket of this.#waiting) socket.destroy();
      await Promise.all([...this.#connections].map((connection) => connection.gone()));
      await closed;
      this.#named?.remove();
    })();
    return this.#closed;
  }

  async #listen(): Promise<void> {
    const { address } = this.#options;
    if ('port' in address) {
      await this.#tryListen(() => this.#server.listen(address.port, address.host));
      return;
    }
    this.#named = await listenAt(address.path, this.#options.socket ?? {}, (path) =>
      this.#tryListen(() => this.#server.listen(path)),
    );
  }

  #tryListen(listen: () => void): Promise<void> {
    return new Promise((resolve, reject) => {
      const onListening = () => {
        this.#server.off('error', onError);
        resolve();
      };
      const onError = (error: Error) => {
        this.#server.off('listening', onListening);
        reject(error);
      };
      this.#server.once('listening', onListening);
      this.#server.once('error', onError);
      listen();
    });
  }

  #accept(socket: Socket): void {
    const { remoteAddress } = socket;
    const isUnix = 'path' in this.#options.address;
    // Of TCP without an address: gone already.
    if (this.#closed !== null || (!isUnix && remoteAddress === undefined)) {
      socket.destroy();
      return;
    }
    const key = isUnix ? 'unix' : peerAddressOf(remoteAddress!);
    if (this.#seats.hasRoom(key)) this.#begin(socket, key);
    else this.#queue(socket, key);
  }

  /** Others have to go: one after the other. */
  #queue(socket: Socket, key: string): void {
    const forget = this.#turnstile.wait(() => {
      this.#waiting.delete(socket);
      socket.off('close', left);
      if (!socket.destroyed) this.#begin(socket, key);
    });
    const left = () => {
      this.#waiting.delete(socket);
      forget?.();
    };
    if (forget === null) {
      this.#refuse(socket);
      return;
    }
    this.#waiting.add(socket);
    socket.once('close', left);
  }

  #refuse(socket: Socket): void {
    this.#logger.warn({ peer: socket.remoteAddress ?? null }, 'NBD: too many connections');
    socket.destroy();
  }

  #begin(socket: Socket, key: string): void {
    let connection: ServerConnection | null = null;
    const seat: Seat = {
      key,
      worth: () => connection?.worth() ?? null,
      evict: (reason) => connection?.drop(reason),
    };
    if (!this.#seats.take(seat)) {
      this.#refuse(socket);
      return;
    }
    const { tls } = this.#options;
    connection = new ServerConnection({
      socket,
      host: {
        exports: () => [...this.#exports.values()],
        isClosing: () => this.#closed !== null,
        tls: tls === undefined ? 'none' : (tls.required ?? true) ? 'required' : 'optional',
      },
      tls: tls === undefined ? null : tlsOptionsOf(tls),
      limits: this.#limits,
      pool: this.#pool,
      peers: this.#peers,
      address: key,
      clock: this.#options.clock,
      logger: this.#logger,
      statistics: this.#statistics,
      lookOut: this.#lookOut,
      staging: this.#staging,
      onClose: (closed) => {
        this.#seats.leave(seat);
        this.#connections.delete(closed);
      },
    });
    this.#connections.add(connection);
  }
}

function tlsOptionsOf({ certificate, privateKey, clientAuthority }: NbdServerTls): TlsOptions {
  const own = { cert: certificate, key: privateKey };
  if (clientAuthority === undefined) return own;
  return { ...own, ca: clientAuthority, requestCert: true, rejectUnauthorized: true };
}
