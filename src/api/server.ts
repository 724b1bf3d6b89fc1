import { createHash, randomUUID, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage, RequestListener, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import fastifySwagger from '@fastify/swagger';
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import fastify, { type FastifyError, type FastifyRequest, type RouteOptions } from 'fastify';
import { Type } from 'typebox';
import { type Clock, systemClock } from '../base/clock.ts';
import { GodwitError, isGodwitError, toWireError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { isLoopback } from '../base/loopback.ts';
import { PATIENCE } from '../base/patience.ts';
import { sparingLogger } from '../base/sparing-logger.ts';
import { parseTraceparent, TRACEPARENT } from '../base/trace-context.ts';
import { HEALTH, OPERATOR } from '../contract/operator.ts';
import { PEER } from '../contract/peer.ts';
import { ErrorReply } from '../contract/schemas.ts';
import { createServer } from '../sys/http.ts';
import type { TlsIdentity } from '../sys/tls-identity.ts';
import type { ApiApp } from './app.ts';
import { API_LIMITS, type ApiExhaustion, type ApiLimits, ConnectionGuard } from './connection-guard.ts';
import { answerRoutes } from './routes/answers.ts';
import { eventRoutes } from './routes/events.ts';
import { machineStreamRoutes } from './routes/machine-streams.ts';
import { metricsRoute } from './routes/metrics.ts';
import { createSecureServer } from './secure-server.ts';
import type { WorkerService } from './service.ts';
import { statusOf } from './status.ts';
import { answerUpgrades, shouldUpgradeCallback } from './upgrade.ts';
import { validatorCompiler } from './validator.ts';
import { WORKER_HEADER, wrongWorker } from './wrong-worker.ts';

export type ApiServerOptions = {
  service: WorkerService;
  /** Bearer token that every route but /healthz and /openapi.json asks for. */
  token: string;
  logger: Logger;
  version: string;
  /**
   * The name of the worker: told in every answer, and a request that names another is refused. Left out:
   * neither.
   */
  worker?: string;
  /**
   * Serve HTTPS, and answer the calls of other workers only to those with a certificate of the same CA.
   * `optional`: answer everybody, in the clear too, while a fleet gets its certificates. null: plain HTTP.
   */
  tls?: { identity: TlsIdentity; optional: boolean } | null;
  /** Largest request body. Default 1 MiB. */
  bodyBytesMax?: number;
  limits?: Partial<ApiLimits>;
  clock?: Clock;
  /**
   * Connections were dropped or refused because there were too many: at most once in ten seconds. It is in
   * the log already.
   */
  onExhausted?: (what: ApiExhaustion) => void;
  /** An answer is out. `route`: as declared, without the names of the request, or `none`. */
  onAnswered?: (method: string, route: string, status: number, durationMs: number) => void;
};

/** Routes that answer without a token: they say nothing about machines. */
const PUBLIC_ROUTES: readonly string[] = ['/healthz', '/openapi.json'];

/** What only another worker asks; the secret of a move's grant is among it. */
const PEER_ROUTES = '/v1/rpc/';

/** Longer than any pause between two polls of a peer, so that a move does not pay for a new connection. */
const KEEP_ALIVE_TIMEOUT_MS = PATIENCE.idleConnection.ms;

/** A request that is refused may send the rest of its body for so long. */
const REFUSED_BODY_MS = PATIENCE.refusedBody.ms;

const NOTED_ADDRESSES_MAX = 1_000;

/** Names the run on whose behalf one worker asks another, so that both logs can be read side by side. */
export const RUN_ID_HEADER = 'godwit-run-id';

/**
 * The worker's HTTP server, not listening yet (`await server.listen({host, port})`, `server.close()`).
 * Closing ends the streams (events, followed logs) and lets the other requests finish.
 */
export async function createApiServer(options: ApiServerOptions): Promise<ApiApp> {
  const { service, logger } = options;
  const tokenDigest = digest(options.token);
  const closing = new AbortController();
  const clock = options.clock ?? systemClock;
  const limits = { ...API_LIMITS, ...options.limits };

  const tls = options.tls ?? null;

  const guard = new ConnectionGuard({
    limits,
    clock,
    logger,
    onExhausted: options.onExhausted ?? (() => {}),
  });
  const sparing = sparingLogger(logger, clock);
  /** Connections and requests pass the guard first. */
  const guarded = (server: Server): Server => {
    guard.guard(server);
    guard.follow(server);
    answerUpgrades(server);
    // Without a listener the error of one connection (no descriptor is left) would end the process.
    server.once('listening', () =>
      server.on('error', (error) =>
        sparing.error({ error: toWireError(error) }, 'the API could not take a connection'),
      ),
    );
    return server;
  };

  const secureServer = (handler: RequestListener, { identity, optional }: NonNullable<typeof tls>): Server =>
    createSecureServer({
      identity,
      handler,
      plainHandler: (request, response) => {
        if (optional || staysOnHost(request.socket)) handler(request, response);
        else refusePlain(request, response);
      },
      keepAliveTimeoutMs: KEEP_ALIVE_TIMEOUT_MS,
      guard,
      closing: closing.signal,
    });

  const withoutCertificate = new Set<string>();
  /**
   * Throws what `certificateError` finds; where certificates are optional it is only noted, once for each
   * address.
   */
  const checkCertificate = (socket: Socket): void => {
    const error = certificateError(socket);
    if (error === null) return;
    const remoteAddress = socket.remoteAddress ?? 'unknown';
    const fields = { remoteAddress, code: error.code, ...error.values };
    if (tls?.optional !== true) {
      logger.warn(fields, 'refused the call of another worker');
      throw error;
    }
    if (withoutCertificate.has(remoteAddress) || withoutCertificate.size >= NOTED_ADDRESSES_MAX) return;
    withoutCertificate.add(remoteAddress);
    logger.warn(fields, 'another worker asks without a good certificate, and is answered: --tls-optional');
  };

  const app = fastify({
    bodyLimit: options.bodyBytesMax ?? 1024 * 1024,
    serverFactory: (handler: RequestListener) =>
      guarded(
        tls === null
          ? createServer({ keepAliveTimeout: KEEP_ALIVE_TIMEOUT_MS, shouldUpgradeCallback }, handler)
          : secureServer(handler, tls),
      ),
    genReqId: (request) => safeId(request.headers['x-request-id']) ?? randomUUID(),
    logger: false,
    // A HEAD of a stream would never end.
    exposeHeadRoutes: false,
    // The schemas refuse what is too long, in words.
    routerOptions: { maxParamLength: 1000 },
  }).withTypeProvider<TypeBoxTypeProvider>();

  app.setValidatorCompiler(validatorCompiler);
  // Replies are made by our own code from the types of the same schemas: written as they are.
  app.setSerializerCompiler(() => (value) => JSON.stringify(value));

  app.addHook('onRoute', (route: RouteOptions) => {
    const schema = route.schema;
    if (!schema) return;
    schema.response = { ...(schema.response as object), '4xx': ErrorReply, '5xx': ErrorReply };
    if (PUBLIC_ROUTES.includes(route.url)) schema.security = [];
  });

  await app.register(fastifySwagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'godwit worker',
        version: options.version,
        description: 'Machines, volumes and moves of one worker. Times are milliseconds, sizes are bytes.',
      },
      components: { securitySchemes: { token: { type: 'http', scheme: 'bearer' } } },
      security: [{ token: [] }],
    },
  });

  app.addHook('onRequest', async (request, reply) => {
    reply.header('x-request-id', request.id);
    if (options.worker !== undefined) reply.header(WORKER_HEADER, options.worker);
    const runId = runIdOf(request);
    if (runId !== undefined) reply.header(RUN_ID_HEADER, runId);
    if (PUBLIC_ROUTES.includes(request.routeOptions.url ?? '')) return;
    if (!authorized(request.headers.authorization, tokenDigest)) throw unauthorized(request);
    guard.proven(request.raw.socket);
    const meant = request.headers[WORKER_HEADER];
    if (options.worker !== undefined && typeof meant === 'string' && meant !== options.worker)
      throw wrongWorker(meant, options.worker, `${request.protocol}://${request.host}`);
    // By the route and not by the URL, which may be written in many ways.
    const isForPeers = request.routeOptions.url?.startsWith(PEER_ROUTES) === true;
    if (tls !== null && isForPeers) checkCertificate(request.raw.socket);
  });

  app.addHook('onSend', async (request, reply) => {
    // Refused while its body still comes. Who sends it in one piece reads the answer and may go on; who drips
    // does not keep the connection.
    if (
      reply.statusCode >= 400 &&
      !(await isWhole(request.raw, Math.min(REFUSED_BODY_MS, limits.bodyTimeoutMs / 2), clock))
    )
      reply.header('connection', 'close');
    // A connection that goes idle after close() began would hold up its end until the keep-alive timeout.
    if (closing.signal.aborted) reply.header('connection', 'close');
  });

  app.addHook('onResponse', async (request, reply) => {
    options.onAnswered?.(
      request.method,
      request.routeOptions.url ?? 'none',
      reply.statusCode,
      reply.elapsedTime,
    );
    logger.debug(
      {
        requestId: request.id,
        runId: runIdOf(request),
        traceId: traceIdOf(request),
        method: request.method,
        url: request.url,
        status: reply.statusCode,
        durationMs: Math.round(reply.elapsedTime * 10) / 10,
      },
      'request answered',
    );
  });

  app.setErrorHandler((error: FastifyError | GodwitError, request, reply) => {
    const known = knownError(error);
    const wire = toWireError(known);
    const status = isGodwitError(known) ? statusOf(wire.code) : 500;
    if (status >= 500) {
      const fields = {
        requestId: request.id,
        runId: runIdOf(request),
        traceId: traceIdOf(request),
        method: request.method,
        url: request.url,
      };
      logger.error({ ...fields, code: wire.code, stack: error.stack }, wire.message);
    }
    return reply.code(status).send({ error: wire });
  });

  app.setNotFoundHandler((request, reply) => {
    const error = new GodwitError('API_NO_ROUTE', `no route ${request.method} ${request.url.split('?')[0]}`, {
      nextAction: 'See /openapi.json for the routes; both sides must be of the same godwit version.',
    });
    return reply.code(404).send({ error: error.toWire() });
  });

  app.addHook('preClose', (done) => {
    guard.close();
    closing.abort(new Error('the server closes'));
    done();
  });

  answerRoutes(app, HEALTH, { healthz: async () => ({ ok: true }) });
  answerRoutes(app, OPERATOR, service);
  answerRoutes(app, PEER, service.peers);
  machineStreamRoutes(app, service, { closing: closing.signal, clock });
  eventRoutes(app, service, closing.signal);
  metricsRoute(app, service);
  // Of all routes, so not before the first request; and made once, because everybody may ask for it, and
  // again and again.
  let description: Buffer | null = null;
  app.get(
    '/openapi.json',
    {
      schema: {
        operationId: 'openapi',
        summary: 'This description',
        tags: ['worker'],
        response: { 200: Type.Record(Type.String(), Type.Unknown()) },
      },
    },
    async (_request, reply) => {
      description ??= Buffer.from(JSON.stringify(app.swagger()));
      // Bytes that are JSON already: no serializer sees them, and the schema is only what the description
      // says of itself.
      return reply.type('application/json; charset=utf-8').send(description as never);
    },
  );
  return app;
}

/** Fastify's own refusals in our words; ours as they are. */
function knownError(error: FastifyError | GodwitError): Error {
  if (isGodwitError(error)) return error;
  const status = error.statusCode ?? 500;
  if (status === 413) {
    return new GodwitError('API_TOO_LARGE', 'the request body is too large', {
      nextAction: 'Send less in one request.',
      cause: error,
    });
  }
  if (status >= 400 && status < 500) {
    return new GodwitError('API_INVALID_REQUEST', error.message, {
      retry: 'never',
      nextAction: 'Correct the request; /openapi.json has the schema of every route.',
      cause: error,
    });
  }
  return error;
}

/** Reads the body of a request on, for nobody. True when it ends within `timeoutMs`. */
function isWhole(request: IncomingMessage, timeoutMs: number, clock: Clock): Promise<boolean> {
  if (request.complete) return Promise.resolve(true);
  return new Promise((resolve) => {
    const cancel = clock.timer(timeoutMs, () => resolve(request.complete));
    const done = () => {
      cancel();
      resolve(request.complete);
    };
    request.once('end', done);
    request.once('close', done);
    request.resume();
  });
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

/** Compares digests, so that the time taken says nothing about the token, not even its length. */
function authorized(header: string | undefined, tokenDigest: Buffer): boolean {
  const match = /^Bearer +(\S+) *$/i.exec(header ?? '');
  return match !== null && timingSafeEqual(digest(match[1]!), tokenDigest);
}

function unauthorized(request: FastifyRequest): GodwitError {
  const given = request.headers.authorization !== undefined;
  return new GodwitError(
    'API_UNAUTHORIZED',
    given ? 'the token is not the one of this worker' : 'no token given',
    {
      nextAction:
        'Use the token of the fleet: --token-file, GODWIT_TOKEN_FILE or the tokenFile of the fleet file.',
    },
  );
}

/** The command line on the worker's own host may go without TLS: no byte of it leaves the host. */
function staysOnHost({ remoteAddress, localAddress }: Socket): boolean {
  return remoteAddress !== undefined && (isLoopback(remoteAddress) || remoteAddress === localAddress);
}

/** `API_TLS_REQUIRED`, `API_CERTIFICATE_REQUIRED`; null: the other side has a certificate of our CA. */
function certificateError(socket: Socket): GodwitError | null {
  if (!(socket instanceof TLSSocket)) return tlsRequired();
  const given = Object.keys(socket.getPeerCertificate()).length > 0;
  if (socket.authorized && given) return null;
  const reason = given ? String(socket.authorizationError) : 'none was shown';
  return new GodwitError(
    'API_CERTIFICATE_REQUIRED',
    `this worker answers other workers only with a certificate of its CA: ${reason}`,
    {
      values: { reason },
      nextAction:
        'Start the worker that asks with --tls-cert, --tls-key and --tls-ca; both certificates must be signed by the CA that the other side has, and be valid today.',
    },
  );
}

/** The whole answer to a request in the clear. */
function refusePlain(request: IncomingMessage, response: ServerResponse): void {
  const body = JSON.stringify({ error: tlsRequired().toWire() });
  response.writeHead(statusOf('API_TLS_REQUIRED'), { 'content-type': 'application/json' });
  response.end(request.method === 'HEAD' ? undefined : body);
}

function tlsRequired(): GodwitError {
  return new GodwitError('API_TLS_REQUIRED', 'this worker speaks TLS, and was asked in the clear', {
    nextAction:
      'Write https:// in its URL (the fleet file, --url, --peer), and name the CA: --ca FILE, caFile in the fleet file, or --tls-ca of a worker.',
  });
}

/** A foreign id is only taken over when it is harmless in a header and in a log. */
function safeId(value: string | string[] | undefined): string | undefined {
  return typeof value === 'string' && /^[\w.:-]{1,100}$/.test(value) ? value : undefined;
}

function traceIdOf(request: FastifyRequest): string | undefined {
  return parseTraceparent(request.headers[TRACEPARENT])?.traceId;
}

function runIdOf(request: FastifyRequest): string | undefined {
  return safeId(request.headers[RUN_ID_HEADER]);
}
