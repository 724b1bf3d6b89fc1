import { createServer, type Server, type Socket } from 'node:net';
import type { TlsOptions } from 'node:tls';
import { admitSocket } from '../base/admitted-socket.ts';
import { BufferPool } from '../base/buffer-pool.ts';
import { ClientBook } from '../base/client-account.ts';
import { clientAddressOf } from '../base/client-address.ts';
import type { Clock } from '../base/clock.ts';
import { Doorkeeper, type Guest, HANDSHAKES, type Stay } from '../base/doorkeeper.ts';
import { GodwitError, isGodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { LookOut } from '../base/look-out.ts';
import { sparingLogger } from '../base/sparing-logger.ts';
import { listenAt, type NamedSocket } from '../sys/named-path.ts';
import type { TlsIdentity } from '../sys/tls-identity.ts';
import type { NbdAddress } from './client-uri.ts';
import { NbdExport, type NbdExportOptions } from './export.ts';
import { SERVER_LIMITS, type ServerLimits } from './limits.ts';
import { STRING_BYTES_MAX } from './protocol.ts';
import { ServerConnection } from './server-connection.ts';
import type { SessionStatistics } from './server-session.ts';
import { TlsHandshakes } from './tls-handshakes.ts';

export type NbdServerTls = {
  /** Nothing is told and nothing served without TLS. Default true. */
  required?: boolean;
} & (
  | {
      /** PEM. */
      certificate: string | Buffer;
      privateKey: string | Buffer;
      /**
       * PEM of the authorities that sign clients. With it, a client without a certificate of theirs is
       * refused.
       */
      clientAuthority?: string | Buffer;
    }
  /**
   * Files, each connection with what is in them then; a client without a certificate of their authority is
   * refused.
   */
  | { identity: TlsIdentity }
);

export type NbdServerOptions = {
  /**
   * TCP (port 0: the system picks one), or a unix socket, which only the owner of the process can connect to.
   */
  address: NbdAddress;
  /**
   * Of a unix socket: its owner, if not the user of this process; `own`: the path is in a folder that the
   * caller keeps for this, and only what is there is looked at (`NamedPathOptions`).
   */
  socket?: { owner?: { uid: number; gid: number }; own?: boolean };
  tls?: NbdServerTls;
  clock: Clock;
  logger: Logger;
  limits?: Partial<ServerLimits>;
  /** What clients make this process hold. Its servers share it. Default: one of its own. */
  clients?: ClientBook;
  /** For tests that look into it. */
  pool?: BufferPool;
};

export type NbdServerStatistics = SessionStatistics & { connections: number };

/** sun_path of unix(7), without its closing zero byte. */
const SOCKET_PATH_BYTES_MAX = 107;
/** The largest read from a socket outside of payloads. */
const STAGING_BYTES = 64 * 1024;
/**
 * A client that has asked for something may lose its place to another when nothing came from it for so long.
 */
const IDLE_AFTER_MS = 1_000;
/** Buffers kept for later. */
const POOL_BYTES = 32 * 1024 * 1024;

/** An NBD server: a socket with exports. docs/nbd.md says what it supports. */
export class NbdServer {
  readonly #options: NbdServerOptions;
  readonly #limits: ServerLimits;
  readonly #logger: Logger;
  readonly #server: Server;
  readonly #pool: BufferPool;
  readonly #clients: ClientBook;
  /** Those that have asked for nothing, and those that have. */
  readonly #handshakes: Doorkeeper;
  readonly #seats: Doorkeeper;
  readonly #tls: TlsHandshakes | null;
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
    this.#logger = sparingLogger(options.logger, options.clock);
    const { connectionsMax, connectionsPerAddressMax, handshakesMax, handshakesPerAddressMax } = this.#limits;
    const isUnix = 'path' in options.address;
    const { tls } = options;
    this.#tls = tls === undefined ? null : new TlsHandshakes(() => tlsOptionsOf(tls));
    this.#pool = options.pool ?? new BufferPool(POOL_BYTES);
    this.#clients = options.clients ?? new ClientBook(options.clock);
    const ofAddress = (max: number, perAddressMax: number) => (isUnix ? max : Math.min(max, perAddressMax));
    this.#handshakes = new Doorkeeper(options.clock, {
      ...HANDSHAKES,
      placesMax: handshakesMax,
      placesOfKeyMax: ofAddress(handshakesMax, handshakesPerAddressMax),
      ...(isUnix && { waitingOfKeyMax: HANDSHAKES.waitingMax }),
    });
    this.#seats = new Doorkeeper(options.clock, {
      ...HANDSHAKES,
      placesMax: connectionsMax,
      placesOfKeyMax: ofAddress(connectionsMax, connectionsPerAddressMax),
      graceMs: IDLE_AFTER_MS,
      waitMsMax: this.#limits.handshakeTimeoutMs,
      protectedMsMax: Number.POSITIVE_INFINITY,
    });
    this.#server = createServer({ pauseOnConnect: true }, (socket) => this.#accept(socket));
  }

  /**
   * Rejects with `NBD_LISTEN_FAILED`, `NBD_PATH_TOO_LONG`, `SYS_PATH_REFUSED`. A unix socket that a dead
   * process left behind is replaced; nothing else is.
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

  /** Connections that wait for a place. */
  get waiting(): number {
    return this.#handshakes.waiting + this.#seats.waiting;
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

  /**
   * Drops the connections of an export and forgets it. Resolves when its device is not in use any more. Does
   * not close the device.
   */
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
      this.#handshakes.close();
      this.#seats.close();
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
    const address = isUnix ? 'unix' : clientAddressOf(remoteAddress!);
    let connection: ServerConnection | null = null;
    const guest: Guest = {
      key: address,
      shows: () => connection?.shows() ?? 0,
      movedBytes: () => connection?.bytesRead ?? 0,
      turnOut: (reason) => (connection === null ? socket.destroy() : connection.drop(reason)),
    };
    const came = admitSocket(this.#handshakes, socket, guest, (handshake) => {
      connection = this.#begin(socket, address, handshake);
    });
    if (!came) this.#logger.warn({ peer: remoteAddress ?? null }, 'NBD: too many connections');
  }

  #begin(socket: Socket, address: string, handshake: Stay): ServerConnection {
    const { tls } = this.#options;
    const connection = new ServerConnection({
      socket,
      host: {
        exports: () => [...this.#exports.values()],
        isClosing: () => this.#closed !== null,
        tls: tls === undefined ? 'none' : (tls.required ?? true) ? 'required' : 'optional',
      },
      tls: this.#tls,
      limits: this.#limits,
      pool: this.#pool,
      clients: this.#clients,
      address,
      handshake,
      seats: this.#seats,
      clock: this.#options.clock,
      logger: this.#logger,
      statistics: this.#statistics,
      lookOut: this.#lookOut,
      staging: this.#staging,
      onBegin: (begun) => {
        for (const other of this.#connections)
          if (other !== begun && other.export === begun.export) other.dropIfHungUp();
      },
      onClose: (closed) => this.#connections.delete(closed),
    });
    this.#connections.add(connection);
    return connection;
  }
}

function tlsOptionsOf(tls: NbdServerTls): TlsOptions {
  if ('identity' in tls) return tls.identity.serverOptions();
  const { certificate, privateKey, clientAuthority } = tls;
  const own = { cert: certificate, key: privateKey };
  if (clientAuthority === undefined) return own;
  return { ...own, ca: clientAuthority, requestCert: true, rejectUnauthorized: true };
}
