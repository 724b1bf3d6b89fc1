import { Readable } from 'node:stream';
import { Type } from 'typebox';
import type { Clock } from '../../base/clock.ts';
import { GodwitError } from '../../base/errors.ts';
import type { ApiApp } from '../app.ts';
import { EXEC_PROTOCOL } from '../exec-frames.ts';
import { ExecServer } from '../exec-server.ts';
import {
  CreateMachineRequest,
  Empty,
  ExecReply,
  ExecRequest,
  LogsQuery,
  MachineList,
  MachineView,
  MoveRequest,
  Ref,
  RunReply,
} from '../schemas.ts';
import type { WorkerService } from '../service.ts';
import { abortOnClose, TextStream } from '../stream.ts';
import { strict } from '../strict.ts';
import { shouldUpgradeCallback, takeConnection } from '../upgrade.ts';
import { publicRun } from './runs.ts';

const tags = ['machines'];
const params = strict(Type.Object({ ref: Ref }));

export function machineRoutes(
  app: ApiApp,
  service: WorkerService,
  { closing, clock }: { closing: AbortSignal; clock: Clock },
): void {
  app.get(
    '/v1/machines',
    {
      schema: {
        operationId: 'listMachines',
        summary: 'Machines of this worker',
        tags,
        response: { 200: MachineList },
      },
    },
    async () => ({ machines: await service.listMachines() }),
  );

  app.post(
    '/v1/machines',
    {
      schema: {
        operationId: 'createMachine',
        summary: 'Makes a machine and starts it',
        tags,
        body: strict(CreateMachineRequest),
        response: { 201: MachineView },
      },
    },
    async (request, reply) => reply.code(201).send(await service.createMachine(request.body)),
  );

  app.get(
    '/v1/machines/:ref',
    {
      schema: {
        operationId: 'showMachine',
        summary: 'One machine',
        tags,
        params,
        response: { 200: MachineView },
      },
    },
    (request) => service.showMachine(request.params.ref),
  );

  app.delete(
    '/v1/machines/:ref',
    {
      schema: {
        operationId: 'destroyMachine',
        summary: 'Destroys a stopped machine (a running one with force); its volume stays',
        tags,
        params,
        querystring: strict(Type.Object({ force: Type.Boolean({ default: false }) })),
        response: { 200: Empty },
      },
    },
    async (request) => {
      await service.destroyMachine(request.params.ref, request.query);
      return {};
    },
  );

  const verbs = [
    ['start', 'startMachine', 'Starts a machine', (ref: string) => service.startMachine(ref)],
    [
      'stop',
      'stopMachine',
      'Stops a machine: signal, timeout, kill',
      (ref: string) => service.stopMachine(ref),
    ],
    ['restart', 'restartMachine', 'Stops and starts a machine', (ref: string) => service.restartMachine(ref)],
  ] as const;
  for (const [verb, operationId, summary, act] of verbs) {
    app.post(
      `/v1/machines/:ref/${verb}`,
      { schema: { operationId, summary, tags, params, response: { 200: MachineView } } },
      (request) => act((request.params as { ref: string }).ref),
    );
  }

  app.post(
    '/v1/machines/:ref/exec',
    {
      schema: {
        operationId: 'execInMachine',
        summary: 'Runs a command inside a machine and answers with its output',
        tags,
        params,
        body: strict(ExecRequest),
        response: { 200: ExecReply },
      },
    },
    (request) => service.execInMachine(request.params.ref, request.body),
  );

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

  app.post(
    '/v1/machines/:ref/move',
    {
      schema: {
        operationId: 'moveMachine',
        summary: 'Starts the move of a machine to another worker; the answer is the run to watch',
        tags,
        params,
        body: strict(MoveRequest),
        response: { 202: RunReply },
      },
    },
    async (request, reply) =>
      reply.code(202).send(publicRun(await service.moveMachine(request.params.ref, request.body))),
  );
}
