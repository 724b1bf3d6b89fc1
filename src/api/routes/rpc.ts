import { Type } from 'typebox';
import { HeatHint } from '../../attach/server-spec.ts';
import { GodwitError } from '../../base/errors.ts';
import {
  HandoffRequest,
  Offer,
  OfferRequest,
  PrepareRequest,
  TargetFigures,
  TargetStatus,
} from '../../migration/peer.ts';
import { Receipt } from '../../receipt/envelope.ts';
import {
  CompareReply,
  CompareRequest,
  FetchedPage,
  FiguresQuery,
  MendReply,
  MendRequest,
  ProofQuery,
  UnfetchedPage,
} from '../../receipt/proof.ts';
import type { ApiApp } from '../app.ts';
import { Ref, RunStateReply } from '../schemas.ts';
import type { WorkerService } from '../service.ts';
import { strict } from '../strict.ts';

const tags = ['worker to worker'];
const params = strict(Type.Object({ runId: Ref }));

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
          retry: 'never',
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

  const { proofs } = service;
  app.post(
    '/v1/rpc/moves/:runId/fetched',
    {
      schema: {
        operationId: 'fetchedOf',
        summary: 'What came over the wire in this move, and whether the disk still has it',
        tags,
        params,
        body: strict(ProofQuery),
        response: { 200: FetchedPage },
      },
    },
    (request) => proofs.fetched(request.params.runId, request.body),
  );

  app.post(
    '/v1/rpc/moves/:runId/unfetched',
    {
      schema: {
        operationId: 'unfetchedOf',
        summary: 'What is here though it neither came nor was written',
        tags,
        params,
        body: strict(ProofQuery),
        response: { 200: UnfetchedPage },
      },
    },
    (request) => proofs.unfetched(request.params.runId, request.body),
  );

  app.post(
    '/v1/rpc/moves/:runId/mend',
    {
      schema: {
        operationId: 'mendMove',
        summary: 'Fetch again what was wrong',
        tags,
        params,
        body: strict(MendRequest),
        response: { 200: MendReply },
      },
    },
    (request) => proofs.mend(request.params.runId, request.body),
  );

  app.post(
    '/v1/rpc/moves/:runId/compare',
    {
      schema: {
        operationId: 'compareMove',
        summary: 'What the disk has in these ranges, where nobody can tell what came',
        tags,
        params,
        body: strict(CompareRequest),
        response: { 200: CompareReply },
      },
    },
    (request) => proofs.compare(request.params.runId, request.body),
  );

  app.post(
    '/v1/rpc/moves/:runId/figures',
    {
      schema: {
        operationId: 'figuresOf',
        summary: 'The sums of this side, for the receipt',
        tags,
        params,
        body: strict(FiguresQuery),
        response: { 200: TargetFigures },
      },
    },
    (request) => proofs.figures(request.params.runId, request.body),
  );

  app.post(
    '/v1/rpc/moves/:runId/countersign',
    {
      schema: {
        operationId: 'countersign',
        summary: 'Sign the receipt, if this side finds the same',
        tags,
        params,
        body: strict(Receipt),
        response: { 200: Receipt },
      },
    },
    (request) => proofs.countersign(request.params.runId, request.body),
  );

  app.get(
    '/v1/rpc/moves/:runId/receipt',
    {
      schema: {
        operationId: 'receiptOf',
        summary: 'The receipt of this move; null while there is none',
        tags,
        params,
        response: { 200: strict(Type.Object({ receipt: Type.Union([Receipt, Type.Null()]) })) },
      },
    },
    async (request) => ({ receipt: await proofs.receipt(request.params.runId) }),
  );

  app.get(
    '/v1/rpc/volumes/:volumeId/header',
    {
      schema: {
        operationId: 'volumeHeader',
        summary: 'LUKS2 header and key slots of an encrypted volume; they open it with its passphrase only',
        tags,
        params: strict(Type.Object({ volumeId: Ref })),
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
