import { Readable } from 'node:stream';
import { Type } from 'typebox';
import type { Clock } from '../../base/clock.ts';
import { GodwitError } from '../../base/errors.ts';
import { EXEC_PROTOCOL } from '../../contract/exec-frames.ts';
import { Empty, LogsQuery, Ref } from '../../contract/schemas.ts';
import type { ApiApp } from '../app.ts';
import { ExecServer } from '../exec-server.ts';
import type { WorkerService } from '../service.ts';
import { abortOnClose, TextStream } from '../stream.ts';
import { strict } from '../strict.ts';
import { shouldUpgradeCallback, takeConnection } from '../upgrade.ts';

const tags = ['machines'];
const params = strict(Type.Object({ ref: Ref }));

/** What a machine's streams are asked with: its log, and a command's input and output. */
export function machineStreamRoutes(
  app: ApiApp,
  service: WorkerService,
  { closing, clock }: { closing: AbortSignal; clock: Clock },
): void {
  app.get(
    '/v1/machines/:ref/session',
    {
      schema: {
        operationId: 'machineSession',
        summary:
          'Upgrades the connection to godwit-exec/1: a command in a machine, with its input and output, and a terminal where one is asked for',
        tags,
        params,
        response: { 101: Empty },
      },
    },
    async (request, reply) => {
      if (!shouldUpgradeCallback(request.raw)) {
        throw new GodwitError(
          'API_INVALID_REQUEST',
          'this route answers only to an upgrade of the connection',
          {
            nextAction: `Ask with connection: Upgrade and upgrade: ${EXEC_PROTOCOL}.`,
          },
        );
      }
      const { ref } = request.params;
      reply.hijack();
      new ExecServer(takeConnection(request.raw, reply.raw, reply.getHeaders()), {
        start: (start, onOutput) => service.execStream(ref, start, onOutput),
        clock,
        closing,
      });
    },
  );

  app.get(
    '/v1/machines/:ref/logs',
    {
      schema: {
        operationId: 'machineLogs',
        summary: 'Output of a machine as plain text; with follow it goes on until the client leaves',
        tags,
        params,
        querystring: strict(LogsQuery),
        produces: ['text/plain'],
        response: { 200: TextStream },
      },
    },
    async (request, reply) => {
      const signal = abortOnClose(reply, closing);
      const log = await service.machineLogs(request.params.ref, request.query, signal);
      reply.type('text/plain; charset=utf-8');
      return reply.send(Readable.from(log, { objectMode: false }));
    },
  );
}
