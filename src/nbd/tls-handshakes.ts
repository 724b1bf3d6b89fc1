import { constants } from 'node:crypto';
import type { Socket } from 'node:net';
import { createServer, type Server, type TLSSocket, type TlsOptions } from 'node:tls';

/** Of those that are in no handshake. One a connection that is turned out for another is enough. */
const IDLE_MAX = 16;

type Idle = { server: Server; madeOf: TlsOptions };

/**
 * TLS, at the server, of connections that were accepted in the clear.
 *
 * A `tls.Server` does not say which of its connections a handshake belongs to, so one has one handshake at a
 * time here. To make one from certificate and key takes ten times as long as a client needs to ask for it, so
 * it is used again when its handshake is over, for as long as the certificates are those that it was made of.
 */
export class TlsHandshakes {
  readonly #options: () => TlsOptions;
  #idle: Idle[] = [];
  /** Servers that were made, since the beginning. */
  made = 0;

  /**
   * `options` are asked for at each handshake. TLS 1.3 or nothing, and no session that could be resumed: each
   * handshake proves the certificates of its day.
   */
  constructor(options: () => TlsOptions) {
    this.#options = options;
  }

  /**
   * `over` is called once: with the socket that decrypts, or with why there is none; `raw` is to be destroyed
   * then.
   */
  begin(raw: Socket, over: (result: TLSSocket | Error) => void): void {
    const { server, madeOf } = this.#take();
    const ends = (result: TLSSocket | Error) => {
      server.off('secureConnection', ends);
      server.off('tlsClientError', ends);
      if (this.#idle.length < IDLE_MAX) this.#idle.push({ server, madeOf });
      over(result);
    };
    server.on('secureConnection', ends);
    server.on('tlsClientError', ends);
    server.emit('connection', raw);
  }

  #take(): Idle {
    const now = this.#options();
    this.#idle = this.#idle.filter(({ madeOf }) => sameFiles(madeOf, now));
    const idle = this.#idle.pop();
    if (idle !== undefined) return idle;
    this.made += 1;
    const server = createServer({ ...now, minVersion: 'TLSv1.3', secureOptions: constants.SSL_OP_NO_TICKET });
    return { server, madeOf: now };
  }
}

function sameFiles(left: TlsOptions, right: TlsOptions): boolean {
  return left.cert === right.cert && left.key === right.key && left.ca === right.ca;
}
