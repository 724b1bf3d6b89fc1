import { Type } from 'typebox';
import type { ApiApp } from '../app.ts';
import { Ref, Why, WorkerView } from '../schemas.ts';
import type { WorkerService } from '../service.ts';
import { strict } from '../strict.ts';
import { publicRun } from './runs.ts';

export function workerRoutes(app: ApiApp, service: WorkerService): void {
  app.get(
    '/healthz',
    {
      schema: {
        operationId: 'healthz',
        summary: 'Answers as soon as the worker serves',
        tags: ['worker'],
        response: { 200: Type.Object({ ok: Type.Boolean() }) },
      },
    },
    async () => ({ ok: true }),
  );

  app.get(
    '/v1/worker',
    {
      schema: {
        operationId: 'showWorker',
        summary: 'Name, capacity and neighbours of this worker',
        tags: ['worker'],
        response: { 200: WorkerView },
      },
    },
    () => service.worker(),
  );

  app.get(
    '/v1/why/:ref',
    {
      schema: {
        operationId: 'why',
        summary: 'What a machine, a volume, a run or this worker waits for, and who can clear it',
        tags: ['worker'],
        params: strict(Type.Object({ ref: Ref })),
        response: { 200: Why },
      },
    },
    async (request) => {
      const why = await service.why(request.params.ref);
      return { ...why, runs: why.runs.map(publicRun) };
    },
  );
}
