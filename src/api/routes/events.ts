import { Readable } from 'node:stream';
import { PAUSE } from '../../base/patience.ts';
import type { ApiEvent } from '../../contract/schemas.ts';
import type { ApiApp } from '../app.ts';
import type { WorkerService } from '../service.ts';
import { abortOnClose, TextStream } from '../stream.ts';

/**
 * A comment line this often keeps proxies and the client's own timeout from taking a quiet stream for a dead
 * one.
 */
const HEARTBEAT_MS = PAUSE.heartbeat.ms;

export function eventRoutes(app: ApiApp, service: WorkerService, closing: AbortSignal): void {
  app.get(
    '/v1/events',
    {
      schema: {
        operationId: 'events',
        summary: 'What happens from now on, as server-sent events (WHATWG HTML, section 9.2)',
        tags: ['worker'],
        produces: ['text/event-stream'],
        response: { 200: TextStream },
      },
    },
    async (_request, reply) => {
      const signal = abortOnClose(reply, closing);
      const stream = new Readable({ read() {} });
      stream.push(': godwit\n\n');
      const heartbeat = setInterval(() => stream.push(':\n\n'), HEARTBEAT_MS);
      stream.once('close', () => clearInterval(heartbeat));
      void pump(service.events(signal), stream, signal);
      reply.type('text/event-stream').header('cache-control', 'no-store');
      return reply.send(stream);
    },
  );
}

/** Bytes that a reader may lag behind before it is cut off: it connects again, memory does not come back. */
const LAG_BYTES_MAX = 4 * 1024 * 1024;

async function pump(events: AsyncIterable<ApiEvent>, stream: Readable, signal: AbortSignal): Promise<void> {
  try {
    for await (const event of events) {
      if (signal.aborted || stream.destroyed) break;
      stream.push(`event: ${event.kind}\ndata: ${JSON.stringify(event)}\n\n`);
      if (stream.readableLength > LAG_BYTES_MAX) break;
    }
  } catch (error) {
    if (!signal.aborted) {
      stream.destroy(error as Error);
      return;
    }
  }
  stream.push(null);
}
