import { Type } from 'typebox';
import { HeatHint } from '../../attach/server-spec.ts';
import { GodwitError } from '../../base/errors.ts';
import { HandoffRequest, Offer, OfferRequest, PrepareRequest, TargetStatus } from '../../migration/peer.ts';
import type { ApiApp } from '../app.ts';
import { RunStateReply } from '../schemas.ts';
import type { WorkerService } from '../service.ts';
import { strict } from '../strict.ts';

const tags = ['worker to worker'];
const params = strict(Type.Object({ runId: Type.String({ minLength: 1, maxLength: 128 }) }));

/** What one worker asks of another during a move: migration/peer.ts over HTTP. Every route is idempotent. */
export function rpcRoutes(app: ApiApp, service: WorkerService): void {
  app.post(
    '/v1/rpc/offers',
    {
      schema: {
        operationId: 'offer',
        summary: 'Can you take this machine?',
        tags,
        body: strict(OfferRequest),
        response: { 200: Offer },
      },
    },
    (request) => service.offer(request.body),
  );

  app.put(
    '/v1/rpc/moves/:runId',
    {
      schema: {
        operationId: 'prepareMove',
        summary: 'Do everything that can be done before the stop',
        tags,
        params,
        body: strict(PrepareRequest),
        response: { 200: TargetStatus },
      },
    },
    async (request) => {
      if (request.body.runId !== request.params.runId) {
        throw new GodwitError('API_INVALID_REQUEST', 'the run id in the path is not the one in the body', {
          values: { path: request.params.runId, body: request.body.runId },
          nextAction: 'Send the same run id in both.',
        });
      }
      return service.prepareMove(request.body);
    },
  );

  app.get(
    '/v1/rpc/moves/:runId',
    {
      schema: {
        operationId: 'moveStatus',
        summary: 'Where the target is',
        tags,
        params,
        response: { 200: TargetStatus },
      },
    },
    (request) => service.moveStatus(request.params.runId),
  );

  app.put(
    '/v1/rpc/moves/:runId/heat',
    {
      schema: {
        operationId: 'warmMove',
        summary: 'What the machine will read first; a hint',
        tags,
        params,
        body: strict(HeatHint),
        response: { 200: strict(Type.Object({})) },
      },
    },
    async (request) => {
      await service.warmMove(request.params.runId, request.body);
      return {};
    },
  );

  app.post(
    '/v1/rpc/moves/:runId/handoff',
    {
      schema: {
        operationId: 'handoffMove',
        summary: 'The volume is sealed; it is yours',
        tags,
        params,
        body: strict(HandoffRequest),
        response: { 200: TargetStatus },
      },
    },
    (request) => service.handoffMove(request.params.runId, request.body),
  );

  app.post(
    '/v1/rpc/moves/:runId/cancel',
    {
      schema: {
        operationId: 'cancelMove',
        summary: 'Forget it, unless it is too late; the answer says which',
        tags,
        params,
        response: { 200: TargetStatus },
      },
    },
    (request) => service.cancelMove(request.params.runId),
  );

  app.get(
    '/v1/rpc/volumes/:volumeId/header',
    {
      schema: {
        operationId: 'volumeHeader',
        summary: 'LUKS2 header and key slots of an encrypted volume; they open it with its passphrase only',
        tags,
        params: strict(Type.Object({ volumeId: Type.String({ minLength: 1, maxLength: 128 }) })),
        response: { 200: strict(Type.Object({ header: Type.String() })) },
      },
    },
    async (request) => ({ header: await service.volumeHeader(request.params.volumeId) }),
  );

  app.get(
    '/v1/rpc/runs/:runId',
    {
      schema: {
        operationId: 'runState',
        summary: 'State of a run of this worker; null where it has none of that id',
        tags,
        params,
        response: { 200: RunStateReply },
      },
    },
    async (request) => ({ run: await service.runState(request.params.runId) }),
  );
}
