import type { FastifySchema } from 'fastify';
import { Type } from 'typebox';
import { GodwitError } from '../../base/errors.ts';
import {
  type Answers,
  type AnyAnswer,
  argumentsOf,
  type Conversation,
  type Endpoint,
  parametersOf,
} from '../../contract/endpoint.ts';
import { Empty } from '../../contract/schemas.ts';
import type { ApiApp } from '../app.ts';
import { strict } from '../strict.ts';
import { readyValidatorCompiler } from '../validator.ts';

/** A route for each question of a conversation, answered by the method of its name. */
export function answerRoutes<C extends Conversation>(
  app: ApiApp,
  conversation: C,
  answers: Answers<C>,
): void {
  const all = answers as unknown as Record<string, AnyAnswer>;
  for (const [name, endpoint] of Object.entries(conversation)) {
    const { method, path: url, status = 200, field, shown } = endpoint;
    app.route({
      method,
      url,
      schema: schemaOf(name, endpoint),
      // A part of what one worker asks another is asked while a machine is down.
      ...(endpoint.caller === 'worker' && { validatorCompiler: readyValidatorCompiler }),
      handler: async (request, reply) => {
        const parameters = request.params as Record<string, string>;
        checkBody(endpoint, parameters, request.body);
        const said = await all[name]!(
          ...argumentsOf(endpoint, { parameters, query: request.query, body: request.body }),
        );
        const seen = shown === undefined ? said : shown(said as never);
        reply.code(status);
        return field === undefined ? (seen ?? {}) : { [field]: seen };
      },
    });
  }
}

function schemaOf(name: string, endpoint: Endpoint): FastifySchema {
  const {
    summary,
    tag,
    parameter = Type.String(),
    query,
    body,
    reply = Empty,
    field,
    status = 200,
  } = endpoint;
  const names = parametersOf(endpoint);
  return {
    operationId: name,
    summary,
    tags: [tag],
    ...(names.length > 0 && {
      params: strict(Type.Object(Object.fromEntries(names.map((each) => [each, parameter])))),
    }),
    ...(query !== undefined && { querystring: strict(query) }),
    ...(body !== undefined && { body: strict(body) }),
    response: { [status]: field === undefined ? reply : Type.Object({ [field]: reply }) },
  };
}

/** What is said twice is said alike. */
function checkBody({ inBody }: Endpoint, parameters: Record<string, string>, body: unknown): void {
  if (inBody === undefined) return;
  const said = (body as Record<string, unknown>)[inBody];
  if (said === parameters[inBody]) return;
  throw new GodwitError('API_INVALID_REQUEST', `${inBody} in the path is not the one in the body`, {
    values: { path: parameters[inBody]!, body: String(said) },
    retry: 'never',
    nextAction: 'Send the same in both.',
  });
}
