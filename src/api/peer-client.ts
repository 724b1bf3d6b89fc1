import { AnswerTime } from '../base/answer-time.ts';
import type { Clock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { isLoopback } from '../base/loopback.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { whileAlive } from '../base/while-alive.ts';
import { asking, type CallOptions, type Endpoint, type Request } from '../contract/endpoint.ts';
import { PEER, type Peer, type PrepareRequest } from '../contract/peer.ts';
import type { TlsClient } from '../sys/tls-identity.ts';
import { ApiClient, DeadlineError } from './client.ts';

/** Of the questions whether a worker lives. */
const SILENT_AFTER_QUESTIONS = 3;

/** How questions reach another worker: `ApiClient` (`patient`), or what a simulation has in its place. */
export type PeerTransport = Pick<ApiClient, 'ask' | 'healthz' | 'close'>;

/**
 * Another worker, over HTTP or what a simulation has in its place. Errors are those of its transport; of an
 * `API_UNREACHABLE` the caller learns from `values.delivered` whether the other side may have acted.
 */
export class PeerClient extends asking(PEER) implements Peer {
  readonly name: string;
  readonly url: string;
  readonly #transport: PeerTransport;
  readonly #logger: Logger;
  readonly #clock: Clock;
  readonly #times: AnswerTime;
  readonly #onCalled: (question: string, durationMs: number, code: string | null) => void;

  /**
   * `floorMs`: how long an answer to "do you live?" is waited for at least. A call ends with
   * `API_UNREACHABLE` when several of them in a row stay without an answer (base/while-alive.ts), and never
   * for taking long.
   */
  constructor(options: {
    name: string;
    url: string;
    transport: PeerTransport;
    logger: Logger;
    clock: Clock;
    floorMs?: number;
    /** A question is over; `code`: of what it failed with. */
    onCalled?: (question: string, durationMs: number, code: string | null) => void;
  }) {
    super();
    this.#clock = options.clock;
    this.#times = new AnswerTime({
      floorMs: options.floorMs ?? PATIENCE.peerAnswer.ms,
      ceilingMs: PATIENCE.peerAnswerMax.ms,
    });
    this.name = options.name;
    this.url = options.url;
    this.#logger = options.logger;
    this.#transport = options.transport;
    this.#onCalled = options.onCalled ?? (() => {});
  }

  override async call(
    name: string,
    endpoint: Endpoint,
    request: Request,
    options: CallOptions,
  ): Promise<unknown> {
    if (name === 'prepare' && (request.body as PrepareRequest).volume) this.#warnInClear(request);
    const askedMs = this.#clock.monotonicMs();
    const tookMs = () => this.#clock.monotonicMs() - askedMs;
    const asked = whileAlive((signal) => this.#transport.ask(endpoint, request, { signal }), {
      who: this.name,
      ask: (signal) => this.#transport.healthz({ signal }),
      times: this.#times,
      questionsMax: SILENT_AFTER_QUESTIONS,
      pauseMs: PAUSE.peerQuestion.ms,
      silent: (ms) => new DeadlineError(`it has answered nothing for ${(ms / 1000).toFixed(1)} s`),
      clock: this.#clock,
      signal: options.signal,
    });
    const reply = await asked.catch((error: unknown) => {
      this.#onCalled(name, tookMs(), isGodwitError(error) ? error.code : 'none');
      throw error;
    });
    this.#onCalled(name, tookMs(), null);
    // Asked all the time, and answered from memory: what it takes is what an answer takes.
    if (name === 'status') this.#times.answered(tookMs());
    return reply;
  }

  #warnInClear({ parameters }: Request): void {
    if (!isInClear(this.url)) return;
    this.#logger.warn(
      { ...parameters, peer: this.name, url: this.url },
      'the secret of this move crosses the network in the clear: give the workers certificates (--tls-cert, --tls-key, --tls-ca)',
    );
  }

  /** Closes idle connections. */
  close(): void {
    this.#transport.close();
  }
}

/** Over HTTP, to a worker that says its name, or is believed. */
export function httpTransport(options: {
  name: string;
  url: string;
  token: string;
  tls?: TlsClient | undefined;
}): PeerTransport {
  const { name, ...how } = options;
  return new ApiClient({ ...how, worker: { name, isOld: 'believe' }, patient: true });
}

/** True for the URL of a worker to which tokens and secrets go over a network without TLS. Pure. */
export function isInClear(url: string): boolean {
  const { protocol, hostname } = new URL(url);
  return protocol === 'http:' && !isLoopback(hostname);
}
