import type { Agent as HttpAgent, IncomingMessage } from 'node:http';
import { request as httpsRequest, Agent as SecureAgent } from 'node:https';
import type { Duplex } from 'node:stream';
import type { TLSSocket } from 'node:tls';
import { TIMER_MS_MAX } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf, systemErrorCode, type WireError } from '../base/errors.ts';
import { isRefusedAsLater } from '../base/later-question.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { readWireError } from '../base/read-wire-error.ts';
import { TRACEPARENT, traceparentOf } from '../base/trace-context.ts';
import { asking, type CallOptions, type Endpoint, laterParts, type Request } from '../contract/endpoint.ts';
import { EXEC_PROTOCOL } from '../contract/exec-frames.ts';
import { HEALTH, OPERATOR } from '../contract/operator.ts';
import type { ApiEvent, ExecStart } from '../contract/schemas.ts';
import { Agent, request as httpRequest } from '../sys/http.ts';
import type { TlsClient } from '../sys/tls-identity.ts';
import { ExecStream, type ExecStreamOptions } from './exec-client.ts';
import { WORKER_HEADER, wrongWorker } from './wrong-worker.ts';

/** Same as RUN_ID_HEADER of server.ts, which a client does not load: fastify is slow to import. */
const RUN_ID_HEADER = 'godwit-run-id';

/** Longest accepted reply. A worker with a thousand machines stays far below. */
const REPLY_BYTES_MAX = 64 * 1024 * 1024;

export type ApiClientOptions = {
  /**
   * `https://host:port`, or `http://host:port` for a worker without certificates. The certificate of the
   * worker must name the host.
   */
  url: string;
  token: string;
  /**
   * The worker that is meant; any other that answers is `API_WRONG_WORKER`, and does nothing. `isOld`: one of
   * an earlier version does not say its name with each answer: it is asked for it before anything is changed
   * there (`ask`), or believed. Left out: whoever is there.
   */
  worker?: { name: string; isOld: 'ask' | 'believe' };
  /** Whom to believe, and who we are. Default: the authorities that Node knows, and nobody. */
  tls?: TlsClient | undefined;
  /** For the connection and the whole reply. Default 30 s. */
  timeoutMs?: number;
  /** Instead: a call takes as long as it takes. For workers, who ask meanwhile whether the other lives. */
  patient?: true;
};

type Call = {
  query?: Readonly<Record<string, unknown>> | undefined;
  body?: unknown;
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
  runId?: string | undefined;
  /** A POST that may be sent twice. */
  idempotent?: boolean;
  /** Asks for an upgrade to godwit-exec/1, and takes over the connection where it is granted. */
  accept?: (socket: Duplex, head: Buffer) => void;
};

/**
 * A worker's API, typed: a method for each question of contract/operator.ts. Every method rejects with the
 * worker's own GodwitError, or with
 * - `API_UNREACHABLE`: no answer. `values.delivered` is false when the request certainly never reached the
 *   worker (no connection came about), and 'unknown' when it may have (the connection broke or the time was
 *   up afterwards): then only a question or an idempotent repetition tells what happened.
 * - `API_TLS_REFUSED`: the worker's certificate is not believed, or what answers does not speak TLS.
 *   `values.delivered` is false.
 * - `API_BAD_REPLY`: something answered that is not a godwit worker, or is one of another version.
 * When `signal` aborts, a call rejects with the signal's reason and its outcome is unknown.
 */
export class ApiClient extends asking({ ...HEALTH, ...OPERATOR }) {
  readonly url: string;
  readonly #base: URL;
  readonly #token: string;
  readonly #timeoutMs: number;
  readonly #tls: TlsClient | undefined;
  readonly #agent: HttpAgent;
  readonly #patient: boolean;
  readonly #meant: ApiClientOptions['worker'];
  /** The worker has said its name. */
  #named = false;
  /** Requests on their way that may change something. */
  #changes = 0;

  constructor(options: ApiClientOptions) {
    super();
    this.#patient = options.patient === true;
    this.#meant = options.worker;
    this.url = options.url.replace(/\/+$/, '');
    const base = URL.parse(this.url);
    if (base?.protocol !== 'http:' && base?.protocol !== 'https:') {
      throw new GodwitError('API_BAD_URL', `not the URL of a worker: ${options.url}`, {
        values: { url: options.url },
        nextAction: 'Give it as https://HOST:PORT, or http://HOST:PORT where the worker has no certificate.',
      });
    }
    if (base.username !== '' || base.password !== '') {
      // It would be sent to nobody, and printed wherever the worker's URL is.
      throw new GodwitError('API_BAD_URL', `the URL of the worker at ${base.host} has a user or a password`, {
        values: { url: base.origin },
        nextAction: `Write it as ${base.origin}; workers know their operators by the token (--token-file).`,
      });
    }
    this.#base = base;
    this.#tls = options.tls;
    const keep = { keepAlive: true, maxFreeSockets: 4 };
    this.#agent = base.protocol === 'https:' ? new SecureAgent(keep) : new Agent(keep);
    this.#token = options.token;
    this.#timeoutMs = options.timeoutMs ?? PATIENCE.personAnswer.ms;
  }

  /** Something was asked that changes something, and is not answered. */
  get isChanging(): boolean {
    return this.#changes > 0;
  }

  /** Closes idle connections, so that the process can end. */
  close(): void {
    this.#agent.destroy();
  }

  override call(_name: string, endpoint: Endpoint, request: Request, options: CallOptions): Promise<unknown> {
    return this.ask(endpoint, request, options);
  }

  /** What `call` does, for any conversation that a worker answers. */
  async ask(
    endpoint: Endpoint,
    { path, parameters, query, body }: Request,
    { signal, timeoutMs = deadlineOf(endpoint, body) }: CallOptions,
  ): Promise<unknown> {
    const { method, field, idempotent = false } = endpoint;
    const asked = this.#json<Record<string, unknown>>(method, path, {
      query,
      body,
      signal,
      timeoutMs,
      runId: parameters.runId,
      idempotent,
    });
    const reply = await asked.catch((error: unknown) => {
      throw this.#ofEarlierVersion(endpoint, error) ?? error;
    });
    return field === undefined ? reply : reply[field];
  }

  /** Starts a command in a machine with its input and output on a connection of its own. */
  async execStream(
    ref: string,
    start: ExecStart,
    options: { onOutput: ExecStreamOptions['onOutput']; signal: AbortSignal },
  ): Promise<ExecStream> {
    let taken: { socket: Duplex; head: Buffer } | undefined;
    const accept = (socket: Duplex, head: Buffer) => {
      taken = { socket, head };
    };
    const path = `/v1/machines/${encodeURIComponent(ref)}/session`;
    try {
      const response = await this.#send('GET', path, { signal: options.signal, accept });
      if (taken === undefined) throw await this.#failure(response);
      return new ExecStream(taken.socket, taken.head, { url: this.url, start, onOutput: options.onOutput });
    } catch (error) {
      taken?.socket.destroy();
      throw error;
    }
  }
  /** Ends with the log; with `follow` rejects when the signal aborts (its reason) or the worker goes away. */
  async *machineLogs(
    ref: string,
    query: { lines?: number; follow?: boolean } = {},
    signal?: AbortSignal,
  ): AsyncGenerator<Buffer> {
    const path = `/v1/machines/${encodeURIComponent(ref)}/logs`;
    const response = await this.#send('GET', path, { query, signal });
    if (response.statusCode !== 200) throw await this.#failure(response);
    yield* this.#body(response, signal);
  }

  /**
   * Ends when the worker closes in good order; rejects when the signal aborts (its reason) or the worker is
   * lost.
   */
  async *events(signal?: AbortSignal): AsyncGenerator<ApiEvent> {
    const response = await this.#send('GET', '/v1/events', { signal });
    if (response.statusCode !== 200) throw await this.#failure(response);
    const decoder = new TextDecoder();
    let text = '';
    for await (const chunk of this.#body(response, signal)) {
      text += decoder.decode(chunk, { stream: true });
      if (text.length > REPLY_BYTES_MAX) throw this.#badReply('an event is too long');
      for (let end = text.indexOf('\n\n'); end !== -1; end = text.indexOf('\n\n')) {
        const data = text
          .slice(0, end)
          .split('\n')
          .filter((line) => line.startsWith('data: '))
          .map((line) => line.slice('data: '.length))
          .join('\n');
        text = text.slice(end + 2);
        if (data !== '') yield this.#parse(data) as ApiEvent;
      }
    }
  }

  async #json<Reply>(method: string, path: string, call: Call = {}): Promise<Reply> {
    if (this.#patient) return this.#exchange(method, path, call);
    const timeoutMs = call.timeoutMs ?? this.#timeoutMs;
    const deadline = new AbortController();
    const timeout = setTimeout(
      () => deadline.abort(new DeadlineError(`nothing within ${timeoutMs} ms`)),
      Math.min(timeoutMs, TIMER_MS_MAX),
    );
    const signal = call.signal ? AbortSignal.any([call.signal, deadline.signal]) : deadline.signal;
    try {
      return await this.#exchange(method, path, { ...call, signal });
    } finally {
      clearTimeout(timeout);
    }
  }

  async #exchange<Reply>(method: string, path: string, call: Call): Promise<Reply> {
    const changes = method === 'GET' ? 0 : 1;
    this.#changes += changes;
    try {
      const response = await this.#send(method, path, call);
      const status = response.statusCode ?? 0;
      if (status < 200 || status > 299) throw await this.#failure(response, call.signal);
      return this.#parse(await this.#text(response, call.signal)) as Reply;
    } finally {
      this.#changes -= changes;
    }
  }

  /** Resolves with the head of the response. */
  async #send(method: string, path: string, call: Call): Promise<IncomingMessage> {
    if (this.#meant?.isOld === 'ask' && !this.#named && method !== 'GET')
      await this.#askName(this.#meant.name);
    const response = await this.#sendAgain(method, path, call);
    try {
      this.#checkName(response.headers[WORKER_HEADER]);
    } catch (error) {
      response.destroy();
      throw error;
    }
    return response;
  }

  async #askName(meant: string): Promise<void> {
    const { name } = await this.worker();
    if (name !== meant) throw wrongWorker(meant, name, this.url);
    this.#named = true;
  }

  /** Whatever it answers: also a refusal of another worker is none of this one. */
  #checkName(name: string | string[] | undefined): void {
    if (this.#meant === undefined || typeof name !== 'string') return;
    if (name !== this.#meant.name) throw wrongWorker(this.#meant.name, name, this.url);
    this.#named = true;
  }

  async #sendAgain(method: string, path: string, call: Call): Promise<IncomingMessage> {
    try {
      return await this.#sendOnce(method, path, call, call.accept ? false : this.#agent);
    } catch (error) {
      // The worker may close an idle connection just as we use it again. What may be repeated is, on a
      // connection of its own.
      if (!(error instanceof StaleConnection)) throw error;
      if (method === 'POST' && !call.idempotent) throw this.#unreachable(error.cause, true);
      return await this.#sendOnce(method, path, call, false).catch((again: unknown) => {
        // No connection came about this time, but the worker may have had the request on the one that broke.
        throw isGodwitError(again, 'API_UNREACHABLE') ? this.#unreachable(again.cause, true) : again;
      });
    }
  }

  #sendOnce(method: string, path: string, call: Call, agent: HttpAgent | false): Promise<IncomingMessage> {
    const url = new URL(`${this.#base.pathname.replace(/\/+$/, '')}${path}`, this.#base);
    for (const [name, value] of Object.entries(call.query ?? {})) {
      if (value !== undefined) url.searchParams.set(name, String(value));
    }
    const body = call.body === undefined ? undefined : JSON.stringify(call.body);
    const headers: Record<string, string | number> = { authorization: `Bearer ${this.#token}` };
    if (this.#meant) headers[WORKER_HEADER] = this.#meant.name;
    if (call.runId !== undefined) {
      headers[RUN_ID_HEADER] = call.runId;
      headers[TRACEPARENT] = traceparentOf(call.runId);
    }
    if (body !== undefined) {
      headers['content-type'] = 'application/json';
      headers['content-length'] = Buffer.byteLength(body);
    }
    const { signal, accept } = call;
    if (accept) Object.assign(headers, { connection: 'Upgrade', upgrade: EXEC_PROTOCOL });
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(this.#aborted(signal, false));
        return;
      }
      // Nothing is written before the connection stands, so until then the worker cannot have seen the
      // request.
      let connected = false;
      let inHandshake = false;
      const onAbort = () => request.destroy(signal?.reason);
      const secure = url.protocol === 'https:';
      const send = secure ? httpsRequest : httpRequest;
      // The files of an identity may be other ones than at the last connection.
      const tls = secure ? (this.#tls?.clientOptions() ?? { minVersion: 'TLSv1.3' as const }) : {};
      const request = send(url, { method, headers, agent, ...tls }, (response) => {
        response.once('close', () => signal?.removeEventListener('abort', onAbort));
        resolve(response);
      });
      signal?.addEventListener('abort', onAbort, { once: true });
      request.once('socket', (socket) => {
        // A call that takes long sends nothing: only so does the kernel find out that the host on the other
        // side has started anew.
        if (this.#patient) socket.setKeepAlive(true, PAUSE.tcpKeepAlive.ms);
        // The connection stands when the worker has proved itself.
        const isPending = secure ? !(socket as TLSSocket).authorized : socket.connecting;
        if (!isPending) connected = true;
        else {
          socket.once('connect', () => {
            inHandshake = secure;
          });
          socket.once(secure ? 'secureConnect' : 'connect', () => {
            connected = true;
          });
        }
      });
      if (accept)
        request.once('upgrade', (response, socket, head) => {
          signal?.removeEventListener('abort', onAbort);
          accept(socket, head);
          resolve(response);
        });
      request.once('error', (error) => {
        signal?.removeEventListener('abort', onAbort);
        if (signal?.aborted) reject(this.#aborted(signal, connected));
        else if (request.reusedSocket) reject(new StaleConnection(error));
        else if (inHandshake && !connected && isTlsFailure(error)) reject(this.#tlsRefused(error));
        else reject(this.#unreachable(error, connected));
      });
      request.end(body);
    });
  }

  /** The body as it comes. */
  async *#body(response: IncomingMessage, signal: AbortSignal | undefined): AsyncGenerator<Buffer> {
    try {
      for await (const chunk of response as AsyncIterable<Buffer>) yield chunk;
    } catch (error) {
      throw signal?.aborted ? this.#aborted(signal, true) : this.#unreachable(error, true);
    }
  }

  async #text(response: IncomingMessage, signal?: AbortSignal | undefined): Promise<string> {
    const chunks: Buffer[] = [];
    let length = 0;
    for await (const chunk of this.#body(response, signal)) {
      length += chunk.length;
      if (length > REPLY_BYTES_MAX) throw this.#badReply('the reply is too long');
      chunks.push(chunk);
    }
    return Buffer.concat(chunks).toString('utf8');
  }

  #parse(text: string): unknown {
    try {
      return JSON.parse(text);
    } catch {
      throw this.#badReply('the reply is not JSON');
    }
  }

  async #failure(response: IncomingMessage, signal?: AbortSignal | undefined): Promise<GodwitError> {
    const status = response.statusCode ?? 0;
    const wire = wireErrorOf(this.#parse(await this.#text(response, signal)));
    return wire ? GodwitError.fromWire(wire) : this.#badReply(`status ${status} without a godwit error`);
  }

  /**
   * What a worker of an earlier version means that refuses what came later, the question or a part of it;
   * null: it is not that.
   */
  #ofEarlierVersion(endpoint: Endpoint, cause: unknown): GodwitError | null {
    const refused =
      isGodwitError(cause, 'API_INVALID_REQUEST') && /unknown property (\w+)/.exec(cause.message);
    const isLater = isRefusedAsLater(cause, endpoint.since);
    const part = refused ? (refused[1] ?? '') : endpoint.path;
    if (!isLater && !Object.hasOwn(laterParts(endpoint), part)) return null;
    const message = `${this.url} is of an earlier version, which does not know \`${part}\``;
    return new GodwitError('API_EARLIER_VERSION', message, {
      values: { url: this.url, part },
      retry: 'never',
      nextAction: 'Upgrade that worker, or ask without it.',
      cause,
    });
  }

  #badReply(what: string): GodwitError {
    return new GodwitError('API_BAD_REPLY', `${this.url} does not answer as a godwit worker: ${what}`, {
      values: { url: this.url, delivered: 'unknown' },
      nextAction: 'Check the URL and port, and that both sides are of the same godwit version.',
    });
  }

  /** The time was up, or the caller gave up: then its own reason comes back. */
  #aborted(signal: AbortSignal, connected: boolean): unknown {
    return signal.reason instanceof DeadlineError
      ? this.#unreachable(signal.reason, connected)
      : signal.reason;
  }

  #tlsRefused(cause: Error): GodwitError {
    const reason =
      systemErrorCode(cause) === 'EPROTO' ? cause.message : (systemErrorCode(cause) ?? cause.message);
    const text = isNotTls(cause) ? 'what answers there does not speak TLS' : cause.message;
    return new GodwitError('API_TLS_REFUSED', `no TLS connection to ${this.url}: ${text}`, {
      values: { url: this.url, delivered: false, reason },
      nextAction:
        "The worker's certificate must be signed by the CA that is given here (--ca or the caFile of the fleet file; --tls-ca of a worker), be valid today and name the host of the URL.",
      cause,
    });
  }

  #unreachable(cause: unknown, connected: boolean): GodwitError {
    const systemCode = systemErrorCode(cause) ?? null;
    const values = { url: this.url, delivered: connected ? 'unknown' : false, systemCode };
    return new GodwitError(
      'API_UNREACHABLE',
      `no answer from ${this.url}: ${systemCode ?? messageOf(cause)}`,
      {
        values,
        retry: 'later',
        nextAction: connected
          ? 'Check that its process runs (it may be stopped, or its disk hang) and the network to it. The request may have arrived: look before repeating it by hand.'
          : 'Check that the worker runs and listens there (godwit worker, or godwit dev for a fleet on this machine).',
        cause,
      },
    );
  }
}

/** Undefined: the client's own. */
function deadlineOf({ deadlineMs }: Endpoint, body: unknown): number | undefined {
  return typeof deadlineMs === 'function' ? deadlineMs(body as never) : deadlineMs;
}

/** A connection that was kept from an earlier request broke before an answer came. */
class StaleConnection extends Error {
  constructor(cause: Error) {
    super('stale connection', { cause });
  }
}

/** In the handshake, what is no error of the network is one of certificates or of TLS. */
function isTlsFailure(error: Error): boolean {
  const code = systemErrorCode(error);
  return code === 'EPROTO' || (!('syscall' in error) && code !== 'ECONNRESET');
}

function isNotTls(error: Error): boolean {
  return /WRONG_VERSION_NUMBER|wrong version number|packet length too long/i.test(
    `${systemErrorCode(error)} ${error.message}`,
  );
}

/** Why a call was ended that found nobody who answers. */
export class DeadlineError extends Error {}

function wireErrorOf(reply: unknown): WireError | null {
  return typeof reply === 'object' && reply !== null && 'error' in reply ? readWireError(reply.error) : null;
}
