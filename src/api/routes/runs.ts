import { Type } from 'typebox';
import type { RunView } from '../../journal/run.ts';
import { Receipt } from '../../receipt/envelope.ts';
import type { ApiApp } from '../app.ts';
import { redact } from '../redact.ts';
import { ForceRunRequest, Ref, RunList, RunReply, RunsQuery } from '../schemas.ts';
import type { WorkerService } from '../service.ts';
import { strict } from '../strict.ts';

const tags = ['runs'];
const params = strict(Type.Object({ id: Ref }));

/** A run as it may be shown: without the secrets in its input and output. */
export function publicRun(run: RunView): RunView {
  return { ...run, input: redact(run.input), output: redact(run.output) as Record<string, unknown> };
}

export function runRoutes(app: ApiApp, service: WorkerService): void {
  app.get(
    '/v1/runs',
    {
      schema: {
        operationId: 'listRuns',
        summary: 'Runs of the journal, newest first',
        tags,
        querystring: strict(RunsQuery),
        response: { 200: RunList },
      },
    },
    async (request) => ({ runs: (await service.listRuns(request.query)).map(publicRun) }),
  );

  app.get(
    '/v1/runs/:id',
    { schema: { operationId: 'showRun', summary: 'One run', tags, params, response: { 200: RunReply } } },
    async (request) => publicRun(await service.showRun(request.params.id)),
  );

  app.get(
    '/v1/receipts/:ref',
    {
      schema: {
        operationId: 'showReceipt',
        summary:
          'The receipt of a move (by its run) or of the latest move of a machine, signed by both workers',
        tags,
        params: strict(Type.Object({ ref: Ref })),
        response: { 200: Receipt },
      },
    },
    (request) => service.showReceipt(request.params.ref),
  );

  const verbs = [
    [
      'cancel',
      'cancelRun',
      'Undoes a run, where that is still possible',
      (id: string) => service.cancelRun(id),
    ],
    [
      'nudge',
      'nudgeRun',
      'Tries a step that waits for its next attempt now',
      (id: string) => service.nudgeRun(id),
    ],
  ] as const;
  for (const [verb, operationId, summary, act] of verbs) {
    app.post(
      `/v1/runs/:id/${verb}`,
      { schema: { operationId, summary, tags, params, response: { 200: RunReply } } },
      async (request) => publicRun(await act((request.params as { id: string }).id)),
    );
  }

  app.post(
    '/v1/runs/:id/force',
    {
      schema: {
        operationId: 'forceRun',
        summary: 'Overrides a run that nobody can help any more: undo it, let it try again, or forget it',
        tags,
        params,
        body: strict(ForceRunRequest),
        response: { 200: RunReply },
      },
    },
    async (request) => publicRun(await service.forceRun(request.params.id, request.body)),
  );
}
