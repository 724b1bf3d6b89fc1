import { isIP, Socket } from 'node:net';
import { type ConnectionOptions as TlsConnectOptions, connect as tlsConnect } from 'node:tls';
import type { BufferPool } from '../base/buffer-pool.ts';
import { ChunkWriter } from '../base/chunk-writer.ts';
import { GodwitError, systemErrorCode } from '../base/errors.ts';
import { type SocketSink, socketSink } from '../base/socket-sink.ts';
import { type Handshake, HandshakeDriver } from './client-handshake.ts';
import type { NbdAddress, NbdTlsMode } from './client-uri.ts';
import { protocolError } from './errors.ts';
import { RequestWriter } from './request-writer.ts';

/** TLS 1.3 by NBD_OPT_STARTTLS. */
export type NbdTls = {
  mode: NbdTlsMode;
  /** Certificates (PEM) that the server's must come from. Default: those that Node trusts. */
  ca?: string | Buffer;
  /** Our own certificate and key (PEM), where the server asks for them. */
  certificate?: string | Buffer;
  key?: string | Buffer;
  /**
   * Name that the server's certificate must be for. Default: the host of the address, `localhost` for a Unix
   * socket.
   */
  hostname?: string;
  /** Default true. False: encrypted, but to whom is anybody's guess. */
  verifyPeer?: boolean;
};

/** Takes the bytes of a connection once the handshake is over. */
export type ByteSink = {
  space: () => Uint8Array;
  landed: (count: number) => void;
  push: (bytes: Buffer) => void;
};

export type NbdConnectionOptions<Result> = {
  address: NbdAddress;
  tls: NbdTls;
  handshake: Handshake<Result>;
  pool: BufferPool;
  /** The handshake is over; answers who takes the bytes from here on. May throw. */
  onReady: (result: Result, writer: RequestWriter) => ByteSink;
  /** The connection is over: lost, refused, or closed by the server. Called once, and not after `destroy`. */
  onOver: (error: GodwitError) => void;
};

const HANDSHAKE_STAGING_BYTES = 4 * 1024;

/** One socket: dials, drives the handshake through TLS where that is asked for, and hands the bytes on. */
export class NbdConnection<Result> {
  readonly #options: NbdConnectionOptions<Result>;
  readonly #socket: Socket;
  /** The socket, or TLS over it. */
  #stream: Socket;
  readonly #driver: HandshakeDriver<Result>;
  #writer: RequestWriter | null = null;
  #out: SocketSink | null = null;
  #sink: ByteSink | null = null;
  #over = false;

  constructor(options: NbdConnectionOptions<Result>) {
    this.#options = options;
    const staging = Buffer.allocUnsafeSlow(HANDSHAKE_STAGING_BYTES);
    // Bytes land where the session wants them: a payload in the caller's buffer, with no copy in between. A
    // socket on which TLS may begin cannot do that: it reads into buffers of its own.
    this.#socket =
      options.tls.mode === 'off'
        ? new Socket({
            onread: {
              buffer: () => this.#sink?.space() ?? staging,
              callback: (count) => {
                if (this.#sink === null) this.#bytes(staging.subarray(0, count));
                else if (!this.#over) this.#sink.landed(count);
                return true;
              },
            },
          })
        : new Socket();
    this.#stream = this.#socket;
    this.#driver = new HandshakeDriver(options.handshake, (bytes) => {
      if (this.#stream.writable) this.#stream.write(bytes);
    });
    this.#listen(this.#socket);
    if (options.tls.mode !== 'off') this.#socket.on('data', this.#onData);
    const { address } = options;
    if ('path' in address) this.#socket.connect({ path: address.path });
    else {
      this.#socket.setNoDelay(true);
      this.#socket.connect({ host: address.host, port: address.port });
    }
  }

  /** Ends the connection at once; nothing is called any more. */
  destroy(): void {
    this.#over = true;
    this.#stream.destroy();
    this.#socket.destroy();
    this.#writer?.close();
  }

  /**
   * Ends the connection when what was written has left; resolves when it is closed. Nothing is called any
   * more.
   */
  end(): Promise<void> {
    this.#over = true;
    this.#writer?.finish();
    return new Promise((resolve) => {
      if (this.#stream.destroyed) {
        resolve();
        return;
      }
      this.#stream.once('close', () => {
        this.#socket.destroy();
        resolve();
      });
      if (this.#out === null) this.#stream.end();
      else this.#out.end();
    });
  }

  readonly #onData = (bytes: Buffer): void => {
    if (this.#sink === null) this.#bytes(bytes);
    else if (!this.#over) this.#sink.push(bytes);
  };

  #bytes(bytes: Buffer): void {
    if (this.#over) return;
    try {
      this.#driver.push(bytes);
      this.#next();
    } catch (error) {
      this.#fail(error);
    }
  }

  #next(): void {
    if (this.#driver.waitsFor === 'bytes') return;
    // Bytes that somebody slipped in before the encryption began must not count as bytes from inside of it;
    // and a server has nothing to say before the first request.
    if (this.#driver.restBytes > 0) throw protocolError('bytes that were not asked for');
    if (this.#driver.waitsFor === 'secure') {
      this.#secure();
      return;
    }
    this.#out = socketSink(this.#stream);
    this.#writer = new RequestWriter(new ChunkWriter(this.#out.send, this.#options.pool));
    this.#sink = this.#options.onReady(this.#driver.result, this.#writer);
  }

  #secure(): void {
    this.#socket.off('data', this.#onData);
    const { tls, address } = this.#options;
    const name = tls.hostname ?? ('host' in address ? address.host : 'localhost');
    const options: TlsConnectOptions = {
      socket: this.#socket,
      host: name,
      servername: isIP(name) === 0 ? name : '',
      minVersion: 'TLSv1.3',
      rejectUnauthorized: tls.verifyPeer !== false,
    };
    if (tls.ca !== undefined) options.ca = tls.ca;
    if (tls.certificate !== undefined) options.cert = tls.certificate;
    if (tls.key !== undefined) options.key = tls.key;
    const stream = tlsConnect(options, () => {
      if (this.#over) return;
      try {
        this.#driver.secured();
        this.#next();
      } catch (error) {
        this.#fail(error);
      }
    });
    this.#stream = stream;
    this.#listen(stream);
    stream.on('data', this.#onData);
  }

  #listen(socket: Socket): void {
    const lost = (error: Error | null): void => this.#fail(this.#lostError(error));
    socket.on('error', lost);
    socket.once('end', () => lost(null));
    socket.once('close', () => lost(null));
  }

  #fail(error: unknown): void {
    if (this.#over) return;
    const known = error instanceof GodwitError ? error : protocolError(String(error));
    this.destroy();
    this.#options.onOver(known);
  }

  #lostError(error: Error | null): GodwitError {
    const { address } = this.#options;
    const values = {
      ...('host' in address ? { host: address.host, port: address.port } : { path: address.path }),
      systemCode: systemErrorCode(error) ?? null,
    };
    if (this.#stream !== this.#socket && error !== null && isTlsError(error)) {
      return new GodwitError('NBD_TLS_FAILED', `TLS with the NBD server failed: ${error.message}`, {
        values,
        retry: 'never',
        nextAction: 'Check the certificates of both sides and the name that the server’s is for.',
        cause: error,
      });
    }
    return new GodwitError(
      'NBD_CONNECTION_LOST',
      `The connection to the NBD server is lost: ${error?.message ?? 'closed'}`,
      {
        values,
        nextAction:
          'It is made anew by itself; check the network and the host of the server if that takes long.',
        cause: error,
      },
    );
  }
}

/** Errors of OpenSSL and of the verification of certificates come from no system call. */
function isTlsError(error: Error): boolean {
  return !('syscall' in error) && systemErrorCode(error) !== 'ECONNRESET';
}
