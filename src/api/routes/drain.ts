import type { ApiApp } from '../app.ts';
import { DrainRequest, DrainStatus, Plan, PlanQuery } from '../schemas.ts';
import type { WorkerService } from '../service.ts';
import { strict } from '../strict.ts';

const tags = ['drain'];

export function drainRoutes(app: ApiApp, service: WorkerService): void {
  app.get(
    '/v1/drain',
    {
      schema: {
        operationId: 'drainStatus',
        summary: 'Where the drain of this worker is',
        tags,
        response: { 200: DrainStatus },
      },
    },
    () => service.drainStatus(),
  );

  app.put(
    '/v1/drain',
    {
      schema: {
        operationId: 'drain',
        summary: 'Every machine shall leave this worker, and none shall come; asking again changes nothing',
        tags,
        body: strict(DrainRequest),
        response: { 200: DrainStatus },
      },
    },
    (request) => service.drain(request.body),
  );

  app.delete(
    '/v1/drain',
    {
      schema: {
        operationId: 'undrain',
        summary: 'Ends the drain: stops before the next machine, and the worker takes machines again',
        tags,
        response: { 200: DrainStatus },
      },
    },
    () => service.undrain(),
  );

  app.get(
    '/v1/plan',
    {
      schema: {
        operationId: 'plan',
        summary: 'What a drain would do now: order, targets, interruption, bytes, finish',
        tags,
        querystring: strict(PlanQuery),
        response: { 200: Plan },
      },
    },
    (request) => service.plan(request.query),
  );
}
