import type { Readable } from 'node:stream';
import type { FastifyReply } from 'fastify';
import { Type } from 'typebox';

/** A reply that is text to the client and a stream to its handler. */
export const TextStream = Type.Unsafe<Readable>({ type: 'string' });

/**
 * A signal that aborts when the client of this reply leaves, when the reply is over, or when the server
 * closes.
 */
export function abortOnClose(reply: FastifyReply, closing: AbortSignal): AbortSignal {
  // The end of the stream is the end of the connection: a closing server need not wait for an idle one.
  reply.header('connection', 'close');
  const left = new AbortController();
  reply.raw.once('close', () => left.abort(new Error('the client left')));
  return AbortSignal.any([left.signal, closing]);
}
