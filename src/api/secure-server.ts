import type { RequestListener } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { Socket } from 'node:net';
import { PATIENCE } from '../base/patience.ts';
import { createServer as createPlainServer } from '../sys/http.ts';
import type { TlsIdentity } from '../sys/tls-identity.ts';
import type { ConnectionGuard } from './connection-guard.ts';
import { answerUpgrades, shouldUpgradeCallback } from './upgrade.ts';

export type SecureServerOptions = {
  identity: TlsIdentity;
  handler: RequestListener;
  /**
   * For requests that come in the clear: to refuse them in words, or to answer them. Their connections end
   * with the answer.
   */
  plainHandler: RequestListener;
  keepAliveTimeoutMs: number;
  guard: ConnectionGuard;
  /** When it aborts, connections on which nothing was asked yet are dropped, so that the server can close. */
  closing: AbortSignal;
};

/**
 * ContentType of a TLS record that begins a handshake (RFC 8446, section 5.1). No HTTP request begins with
 * it.
 */
const TLS_HANDSHAKE = 0x16;
/**
 * A client has so long for its first byte, then for its handshake; one in the clear for the head of its
 * request.
 */
const GREETING_TIMEOUT_MS = PATIENCE.greeting.ms;

/**
 * An HTTPS server, TLS 1.3, that asks for a client certificate and leaves it to the handler whether one is
 * needed (`certificateFlaw`): a refusal over HTTP says why, an alert of TLS does not. It tells clients that
 * speak plain HTTP by their first byte. Renewed certificates are used from the next connection on.
 */
export function createSecureServer(options: SecureServerOptions): Server {
  const { identity, closing, plainHandler } = options;
  const server = createServer(
    {
      ...identity.serverOptions(),
      // A client without one may ask what needs none.
      rejectUnauthorized: false,
      noDelay: true,
      handshakeTimeout: GREETING_TIMEOUT_MS,
      keepAliveTimeout: options.keepAliveTimeoutMs,
      shouldUpgradeCallback,
    },
    options.handler,
  );
  identity.follow(server);
  const acceptSecure = server.listeners('connection') as ((socket: Socket) => void)[];
  server.removeAllListeners('connection');

  /** Connections on which nothing was asked yet, with what drops them. */
  const waiting = new Map<Socket, NodeJS.Timeout>();
  const settle = (socket: Socket) => {
    clearTimeout(waiting.get(socket));
    waiting.delete(socket);
  };
  closing.addEventListener('abort', () => {
    for (const socket of waiting.keys()) socket.destroy();
  });
  const plain = createPlainServer({ shouldUpgradeCallback }, (request, response) => {
    settle(request.socket);
    response.shouldKeepAlive = false;
    plainHandler(request, response);
  });

  options.guard.follow(plain);
  answerUpgrades(plain);
  server.on('connection', (socket: Socket) => {
    waiting.set(
      socket,
      setTimeout(() => socket.destroy(), GREETING_TIMEOUT_MS),
    );
    socket.once('close', () => settle(socket));
    const onError = () => socket.destroy();
    socket.on('error', onError);
    socket.once('readable', () => {
      const first = socket.read() as Buffer | null;
      // The end of a connection that said nothing, too.
      if (first === null) {
        socket.destroy();
        return;
      }
      socket.off('error', onError);
      socket.unshift(first);
      if (first[0] === TLS_HANDSHAKE) {
        settle(socket);
        for (const accept of acceptSecure) accept.call(server, socket);
      } else plain.emit('connection', socket);
    });
  });
  return server;
}
