import { Type } from 'typebox';
import type { ApiApp } from '../app.ts';
import type { WorkerService } from '../service.ts';

/** Of Prometheus's text exposition format. */
const EXPOSITION_TYPE = 'text/plain; version=0.0.4; charset=utf-8';

export function metricsRoute(app: ApiApp, service: Pick<WorkerService, 'metrics'>): void {
  app.get(
    '/metrics',
    {
      schema: {
        operationId: 'metrics',
        summary: "What this worker counts and measures, in Prometheus's text exposition format 0.0.4",
        tags: ['worker'],
        produces: ['text/plain'],
        response: { 200: Type.String() },
      },
    },
    // Bytes: text would pass the serializer, which writes JSON.
    async (_request, reply) => reply.type(EXPOSITION_TYPE).send(Buffer.from(service.metrics()) as never),
  );
}
