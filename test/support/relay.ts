import { connect, createServer, type Server, type Socket } from 'node:net';
import { reset } from './reset.ts';

/**
 * A TCP relay between two programs under test that can make trouble:
 *
 *   pass    bytes go through, each way, after `delayMs`
 *   stall   connections stay open and nothing goes through, in either direction: a half-open peer
 *   refuse  a new connection is accepted and reset at once
 *
 * and `cut` resets all connections that there are. Bytes are never lost or reordered within a connection that
 * lives.
 */
export class TcpRelay {
  readonly #server: Server;
  readonly #upstream: () => { host: string; port: number };
  readonly #sockets = new Set<Socket>();
  #mode: 'pass' | 'stall' | 'refuse' = 'pass';
  /** Added to every chunk, in either direction. */
  delayMs = 0;
  /** Sees every chunk before it goes on. */
  onBytes: (chunk: Buffer) => void = () => {};
  /** Connections accepted since the beginning. */
  accepted = 0;
  /** Bytes that came through, in both directions. */
  bytes = 0;

  /** `upstream` is asked at each connection, so that a server may come back on another port. */
  constructor(upstream: { host: string; port: number } | (() => { host: string; port: number })) {
    this.#upstream = typeof upstream === 'function' ? upstream : () => upstream;
    this.#server = createServer((client) => this.#accept(client));
  }

  async listen(host = '127.0.0.1', port = 0): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(port, host, resolve);
    });
  }

  get port(): number {
    const address = this.#server.address();
    if (typeof address !== 'object' || address === null) throw new Error('the relay does not listen');
    return address.port;
  }

  /** Lets everything through again, old connections and new ones. */
  resume(): void {
    this.#mode = 'pass';
    for (const socket of this.#sockets) socket.resume();
  }

  /** Holds back everything; new connections are accepted and hang. */
  stall(): void {
    this.#mode = 'stall';
    for (const socket of this.#sockets) socket.pause();
  }

  /** Resets every connection, and each new one until `resume`. */
  refuse(): void {
    this.#mode = 'refuse';
    this.cut();
  }

  /** Resets every connection that there is. */
  cut(): void {
    for (const socket of this.#sockets) reset(socket);
  }

  async close(): Promise<void> {
    this.cut();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #accept(client: Socket): void {
    this.accepted += 1;
    if (this.#mode === 'refuse') {
      client.on('error', () => {});
      reset(client);
      return;
    }
    const upstream = connect(this.#upstream());
    this.#join(client, upstream);
    this.#join(upstream, client);
  }

  #join(from: Socket, to: Socket): void {
    this.#sockets.add(from);
    from.setNoDelay(true);
    if (this.#mode === 'stall') from.pause();
    from.on('data', (chunk: Buffer) => {
      this.bytes += chunk.length;
      this.onBytes(chunk);
      if (this.delayMs > 0) setTimeout(() => to.writable && to.write(chunk), this.delayMs);
      else if (!to.write(chunk)) {
        from.pause();
        to.once('drain', () => {
          if (this.#mode === 'pass') from.resume();
        });
      }
    });
    from.on('error', () => {});
    from.on('end', () => setTimeout(() => to.end(), this.delayMs));
    from.on('close', () => {
      this.#sockets.delete(from);
      to.destroy();
    });
  }
}
