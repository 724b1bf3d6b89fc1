import { type IncomingMessage, type Server, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { EXEC_PROTOCOL } from '../contract/exec-frames.ts';

/**
 * For the options of a server: a request for any other protocol is answered as if it had asked for none (RFC
 * 9110, section 7.8).
 */
export const shouldUpgradeCallback = ({ headers, method }: IncomingMessage): boolean =>
  method === 'GET' && headers.upgrade?.toLowerCase() === EXEC_PROTOCOL;

/**
 * Requests for another protocol go the way of all requests, with token, schema and limits: the handler takes
 * the connection (`takeConnection`), or the answer is an ordinary one, and the last of its connection.
 */
export function answerUpgrades(server: Server): void {
  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    if (head.length > 0) socket.unshift(head);
    const response = new ServerResponse(request);
    response.shouldKeepAlive = false;
    response.assignSocket(request.socket);
    response.once('finish', () => socket.end());
    server.emit('request', request, response);
  });
}

/**
 * Answers 101, with what headers the response has so far; the connection is the caller's. Only for requests
 * that came as an upgrade.
 */
export function takeConnection(request: IncomingMessage, response: ServerResponse, headers: object): Duplex {
  const { socket } = request;
  const lines = Object.entries({ ...headers, connection: 'Upgrade', upgrade: EXEC_PROTOCOL });
  response.detachSocket(socket);
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`,
  );
  return socket;
}
