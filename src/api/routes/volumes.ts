import { Type } from 'typebox';
import type { ApiApp } from '../app.ts';
import {
  AcceptLossRequest,
  CreateVolumeRequest,
  Empty,
  ImportVolumeRequest,
  RecoverVolumeRequest,
  Ref,
  ServeReply,
  ServeVolumeRequest,
  VolumeList,
  VolumeView,
} from '../schemas.ts';
import type { WorkerService } from '../service.ts';
import { strict } from '../strict.ts';

const tags = ['volumes'];
const params = strict(Type.Object({ ref: Ref }));

export function volumeRoutes(app: ApiApp, service: WorkerService): void {
  app.get(
    '/v1/volumes',
    {
      schema: {
        operationId: 'listVolumes',
        summary: 'Volumes of this worker',
        tags,
        response: { 200: VolumeList },
      },
    },
    async () => ({ volumes: await service.listVolumes() }),
  );

  app.post(
    '/v1/volumes',
    {
      schema: {
        operationId: 'createVolume',
        summary: 'Makes a sparse volume with a filesystem',
        tags,
        body: strict(CreateVolumeRequest),
        response: { 201: VolumeView },
      },
    },
    async (request, reply) => reply.code(201).send(await service.createVolume(request.body)),
  );

  app.post(
    '/v1/volumes/import',
    {
      schema: {
        operationId: 'importVolume',
        summary: 'Makes a volume of a disk of another system: it can be used at once, and its blocks follow',
        tags,
        body: strict(ImportVolumeRequest),
        response: { 201: VolumeView },
      },
    },
    async (request, reply) => reply.code(201).send(await service.importVolume(request.body)),
  );

  app.post(
    '/v1/volumes/:ref/recover',
    {
      schema: {
        operationId: 'recoverVolume',
        summary: 'Makes the sealed volume that a move left here a volume of its own, under another id',
        tags,
        params,
        body: strict(RecoverVolumeRequest),
        response: { 201: VolumeView },
      },
    },
    async (request, reply) =>
      reply.code(201).send(await service.recoverVolume(request.params.ref, request.body)),
  );

  app.post(
    '/v1/volumes/:ref/accept-loss',
    {
      schema: {
        operationId: 'acceptLoss',
        summary: 'Goes on with what the disk has of a volume that lost data, and that no machine runs on',
        tags,
        params,
        body: strict(AcceptLossRequest),
        response: { 200: VolumeView },
      },
    },
    (request) => service.acceptLoss(request.params.ref, request.body),
  );

  app.get(
    '/v1/volumes/:ref',
    {
      schema: {
        operationId: 'showVolume',
        summary: 'One volume',
        tags,
        params,
        response: { 200: VolumeView },
      },
    },
    (request) => service.showVolume(request.params.ref),
  );

  app.delete(
    '/v1/volumes/:ref',
    {
      schema: {
        operationId: 'destroyVolume',
        summary:
          'Destroys a volume that no machine has, and all that is on it (the kept copy of a move only with force)',
        tags,
        params,
        querystring: strict(
          Type.Object({
            force: Type.Boolean({ default: false }),
            /** The sealed copies that moves left of it here, too. */
            copies: Type.Boolean({ default: false }),
          }),
        ),
        response: { 200: Empty },
      },
    },
    async (request) => {
      await service.destroyVolume(request.params.ref, request.query);
      return {};
    },
  );

  app.post(
    '/v1/volumes/:ref/serve',
    {
      schema: {
        operationId: 'serveVolume',
        summary: 'Serves a volume that no running machine has to any NBD or iSCSI client, until it is ended',
        tags,
        params,
        body: strict(ServeVolumeRequest),
        response: { 200: ServeReply },
      },
    },
    (request) => service.serveVolume(request.params.ref, request.body),
  );

  app.delete(
    '/v1/volumes/:ref/serve',
    {
      schema: {
        operationId: 'stopServing',
        summary: 'Ends it: clients are dropped, and what they wrote is durable',
        tags,
        params,
        response: { 200: Empty },
      },
    },
    async (request) => {
      await service.stopServing(request.params.ref);
      return {};
    },
  );
}
