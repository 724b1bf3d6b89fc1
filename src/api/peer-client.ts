import type { HeatHint } from '../attach/server-spec.ts';
import { AnswerTime } from '../base/answer-time.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import { isLoopback } from '../base/loopback.ts';
import { PATIENCE } from '../base/patience.ts';
import type {
  HandoffRequest,
  Offer,
  OfferRequest,
  Peer,
  PrepareRequest,
  TargetFigures,
  TargetStatus,
} from '../migration/peer.ts';
import type { Receipt } from '../receipt/envelope.ts';
import type {
  CompareReply,
  CompareRequest,
  FetchedPage,
  FiguresQuery,
  MendReply,
  MendRequest,
  ProofQuery,
  UnfetchedPage,
} from '../receipt/proof.ts';
import type { TlsClient } from '../sys/tls-identity.ts';
import { ApiClient } from './client.ts';
import type { RunStateReply } from './schemas.ts';

/**
 * A neighbour over HTTP. Errors are those of ApiClient; of an `API_UNREACHABLE` the caller learns from `values.delivered` whether
 * the other side may have acted.
 */
export class HttpPeer implements Peer {
  readonly name: string;
  readonly url: string;
  readonly #client: ApiClient;
  readonly #logger: Logger;
  readonly #clock: Clock;
  readonly #times: AnswerTime;

  /**
   * `floorMs`: how long an answer to "do you live?" is waited for at least. A call ends with `API_UNREACHABLE` when several of them in a row
   * stay without an answer (base/while-alive.ts), and never for taking long.
   */
  constructor(options: {
    name: string;
    url: string;
    token: string;
    tls?: TlsClient | undefined;
    logger: Logger;
    clock?: Clock;
    floorMs?: number;
  }) {
    this.#clock = options.clock ?? systemClock;
    this.#times = new AnswerTime({
      floorMs: options.floorMs ?? PATIENCE.peerAnswer.ms,
      ceilingMs: PATIENCE.peerAnswerMax.ms,
    });
    this.name = options.name;
    this.url = options.url;
    this.#logger = options.logger;
    this.#client = new ApiClient({
      url: options.url,
      token: options.token,
      worker: { name: options.name, isOld: 'believe' },
      tls: options.tls,
      lives: { name: options.name, clock: this.#clock, times: this.#times },
    });
  }

  offer(request: OfferRequest, signal?: AbortSignal): Promise<Offer> {
    return this.#client.offer(request, signal);
  }

  prepare(request: PrepareRequest, signal?: AbortSignal): Promise<TargetStatus> {
    if (request.volume && isInClear(this.url)) {
      this.#logger.warn(
        { runId: request.runId, peer: this.name, url: this.url },
        'the secret of this move crosses the network in the clear: give the workers certificates (--tls-cert, --tls-key, --tls-ca)',
      );
    }
    return this.#client.prepareMove(request, signal);
  }

  async status(runId: string, signal?: AbortSignal): Promise<TargetStatus> {
    const askedMs = this.#clock.monotonicMs();
    const status = await this.#client.moveStatus(runId, signal);
    // Asked all the time, and answered from memory: what it takes is what an answer takes.
    this.#times.answered(this.#clock.monotonicMs() - askedMs);
    return status;
  }

  warm(runId: string, heat: HeatHint, signal?: AbortSignal): Promise<void> {
    return this.#client.warmMove(runId, heat, signal);
  }

  handoff(runId: string, request: HandoffRequest, signal?: AbortSignal): Promise<TargetStatus> {
    return this.#client.handoffMove(runId, request, signal);
  }

  cancel(runId: string, signal?: AbortSignal): Promise<TargetStatus> {
    return this.#client.cancelMove(runId, signal);
  }

  fetched(runId: string, query: ProofQuery, signal?: AbortSignal): Promise<FetchedPage> {
    return this.#client.fetchedOf(runId, query, signal);
  }

  unfetched(runId: string, query: ProofQuery, signal?: AbortSignal): Promise<UnfetchedPage> {
    return this.#client.unfetchedOf(runId, query, signal);
  }

  mend(runId: string, request: MendRequest, signal?: AbortSignal): Promise<MendReply> {
    return this.#client.mendMove(runId, request, signal);
  }

  compare(runId: string, request: CompareRequest, signal?: AbortSignal): Promise<CompareReply> {
    return this.#client.compareMove(runId, request, signal);
  }

  figures(runId: string, query: FiguresQuery, signal?: AbortSignal): Promise<TargetFigures> {
    return this.#client.figuresOf(runId, query, signal);
  }

  countersign(runId: string, draft: Receipt, signal?: AbortSignal): Promise<Receipt> {
    return this.#client.countersign(runId, draft, signal);
  }

  receipt(runId: string, signal?: AbortSignal): Promise<Receipt | null> {
    return this.#client.receiptOf(runId, signal);
  }

  run(runId: string, signal?: AbortSignal): Promise<RunStateReply['run']> {
    return this.#client.runState(runId, signal);
  }

  /** LUKS2 header and key slots of a volume of that worker. */
  async volumeHeader(volumeId: string, signal?: AbortSignal): Promise<Buffer> {
    return Buffer.from((await this.#client.volumeHeader(volumeId, signal)).header, 'base64');
  }

  /** Closes idle connections. */
  close(): void {
    this.#client.close();
  }
}

/** True for the URL of a worker to which tokens and secrets go over a network without TLS. Pure. */
export function isInClear(url: string): boolean {
  const { protocol, hostname } = new URL(url);
  return protocol === 'http:' && !isLoopback(hostname);
}
