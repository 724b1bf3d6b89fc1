import type { Clock } from '../base/clock.ts';
import type { GodwitError } from '../base/errors.ts';
import type { Failure, Session } from './dialect.ts';
import type { RemoteCommand, RemoteRequest } from './request.ts';
import { RequestQueue } from './request-queue.ts';

/** A session that is there, and what is under way on it, each request at its `position`. */
export type Carrier<Command extends RemoteCommand> = {
  readonly session: Session<Command>;
  readonly requests: RemoteRequest<Command>[];
  /** A request that lost several sessions is on it: nothing else goes there. */
  alone: boolean;
  /** Requests that were answered on it. */
  answers: number;
  /** It is over: what its wire still says counts no more. */
  over: boolean;
};

export type DispatcherOptions<Command extends RemoteCommand> = {
  clock: Clock;
  /** Requests on the wire at once, over all sessions. */
  depth: number;
  /** Resolves when the disk was looked at; rejects when it is another, after `end`. */
  look: () => Promise<void>;
  /** A request that is no look was answered well. */
  onDone: () => void;
  poisoned: (request: RemoteRequest<Command>) => GodwitError;
};

/** What the peer does not do is given up after so many times, unless the peer said that it is busy. */
const TRIES_MAX = 16;
const RETRY_MS = 100;
/** A request that lost so many sessions is sent alone … */
const LOSSES_MAX = 3;
/** … and given up when the peer has ended so many while it was alone. */
const LOSSES_ALONE_MAX = 6;

/**
 * Every request from the moment that it is made until it is settled, in one of these places:
 *
 *   queue ─→ on a carrier ─→ settled
 *     ↑          ├─(the peer puts it off)─→ put off ─→ queue
 *     └──────────┴─(its session is over)─→ queue, before all others; then, if often, alone on a carrier
 *
 * A request is settled when the wire is through with its buffer, and not before. One that was aborted is
 * settled as soon as it is on no carrier.
 */
export class Dispatcher<Command extends RemoteCommand> {
  readonly #options: DispatcherOptions<Command>;
  readonly #queue: RequestQueue<RemoteRequest<Command>>;
  readonly #carriers: Carrier<Command>[] = [];
  readonly #putOff = new Set<RemoteRequest<Command>>();
  /** Taken from the queue, and waits for a carrier without any other request. */
  #suspect: RemoteRequest<Command> | null = null;
  #inFlight = 0;
  #sent = 0;
  #ended: GodwitError | null = null;
  #trouble: GodwitError | null = null;
  readonly #moved = { bytesRead: 0, bytesWritten: 0, replayed: 0 };

  constructor(options: DispatcherOptions<Command>) {
    this.#options = options;
    this.#queue = new RequestQueue(options.depth);
  }

  /** Why requests wait although there is a session: the peer puts them off. null: they do not. */
  get trouble(): GodwitError | null {
    return this.#trouble;
  }

  get statistics() {
    const waiting = [...this.#queue.waiting(), ...this.#putOff];
    for (const { requests } of this.#carriers) waiting.push(...requests);
    if (this.#suspect !== null) waiting.push(this.#suspect);
    let oldestMs = Number.POSITIVE_INFINITY;
    for (const { startedMs } of waiting) oldestMs = Math.min(oldestMs, startedMs);
    return {
      connections: this.#carriers.length,
      inFlight: this.#inFlight,
      queued: this.#queue.length + this.#putOff.size + (this.#suspect === null ? 0 : 1),
      oldestWaitMs: waiting.length === 0 ? 0 : this.#options.clock.monotonicMs() - oldestMs,
      ...this.#moved,
    };
  }

  submit(request: RemoteRequest<Command>): void {
    if (this.#ended !== null) {
      request.reject(this.#ended);
      return;
    }
    this.#queue.push(request);
    this.pump();
  }

  /** The caller wants it no longer: it is taken out wherever it waits. On the wire it runs to its end. */
  withdraw(request: RemoteRequest<Command>): void {
    const { abortedWith } = request;
    const isWaiting = this.#queue.remove(request) || this.#putOff.delete(request);
    if (this.#suspect === request) {
      this.#queue.ended(request);
      this.#suspect = null;
    } else if (!isWaiting) return;
    request.reject(abortedWith?.reason);
    this.pump();
  }

  join(session: Session<Command>): Carrier<Command> {
    const carrier: Carrier<Command> = {
      session,
      requests: [],
      alone: false,
      answers: 0,
      over: false,
    };
    this.#carriers.push(carrier);
    return carrier;
  }

  /**
   * The session is over and its link destroyed: what was not answered goes again, but for a request for which
   * the peer ends each session. That one fails, by name, and the others go on.
   */
  leave(carrier: Carrier<Command>, peerEnded: boolean): void {
    carrier.over = true;
    const index = this.#carriers.indexOf(carrier);
    if (index < 0) return;
    this.#carriers.splice(index, 1);
    const again: RemoteRequest<Command>[] = [];
    const requests = carrier.requests.sort((one, other) => one.sentAs - other.sentAs);
    const alone = requests.length === 1 && peerEnded;
    this.#moved.replayed += requests.length;
    this.#inFlight -= requests.length;
    for (const request of requests) {
      this.#queue.ended(request);
      request.losses += 1;
      if (alone) request.lossesAlone += 1;
      if (request.abortedWith !== null) request.reject(request.abortedWith.reason);
      else if (request.lossesAlone < LOSSES_ALONE_MAX) again.push(request);
      else request.reject(this.#options.poisoned(request));
    }
    this.#queue.putBack(again);
    this.pump();
  }

  /** Every session is over, and what is under way goes to the next ones. */
  failSessions(error: GodwitError): void {
    for (const { session } of [...this.#carriers]) session.fail(error);
  }

  /** Nothing is taken or sent any more. Only when every link is destroyed, or has nothing under way. */
  end(error: GodwitError): void {
    if (this.#ended !== null) return;
    this.#ended = error;
    const requests = [...this.#queue.drain(), ...this.#putOff];
    if (this.#suspect !== null) requests.push(this.#suspect);
    for (const carrier of this.#carriers) {
      carrier.over = true;
      requests.push(...carrier.requests);
    }
    this.#carriers.length = 0;
    this.#putOff.clear();
    this.#suspect = null;
    this.#inFlight = 0;
    for (const request of requests) request.reject(error);
  }

  /** Each request on the carrier with the least to do. */
  pump(): void {
    while (this.#inFlight < this.#options.depth) {
      const carrier = this.#idlest();
      if (carrier === null) return;
      if (this.#suspect !== null) {
        // Nothing goes before it: so a carrier without any other request is not far.
        if (carrier.requests.length > 0) return;
        const suspect = this.#suspect;
        this.#suspect = null;
        carrier.alone = true;
        this.#send(carrier, suspect);
        continue;
      }
      const request = this.#queue.take();
      if (request === null) return;
      if (request.losses >= LOSSES_MAX) this.#suspect = request;
      else this.#send(carrier, request);
    }
  }

  #send(carrier: Carrier<Command>, request: RemoteRequest<Command>): void {
    this.#inFlight += 1;
    this.#sent += 1;
    request.begin(carrier.requests.push(request) - 1, this.#sent);
    carrier.session.send(request);
  }

  #idlest(): Carrier<Command> | null {
    let best: Carrier<Command> | null = null;
    for (const carrier of this.#carriers) {
      if (carrier.alone || carrier.over || !carrier.session.hasRoom) continue;
      if (best === null || carrier.requests.length < best.requests.length) best = carrier;
    }
    return best;
  }

  /** By the dialect. */
  answered(carrier: Carrier<Command>, request: RemoteRequest<Command>, failure: Failure | null): void {
    if (carrier.over) return;
    if (request.unsentParts > 0) {
      // The kernel still reads from the caller's buffer.
      request.early = { failure };
      return;
    }
    carrier.answers += 1;
    remove(carrier.requests, request);
    carrier.alone = false;
    this.#inFlight -= 1;
    this.#queue.ended(request);
    request.losses = 0;
    request.lossesAlone = 0;
    if (failure === null) this.#done(request);
    else this.#failed(request, failure);
  }

  /** By the dialect. */
  sent(carrier: Carrier<Command> | null, request: RemoteRequest<Command>): void {
    request.unsentParts -= 1;
    if (request.unsentParts > 0 || request.early === null || carrier === null || carrier.over) return;
    this.answered(carrier, request, request.early.failure);
    this.pump();
  }

  #done(request: RemoteRequest<Command>): void {
    if (this.#putOff.size === 0) this.#trouble = null;
    const { counts } = request.command;
    if (counts === 'read') this.#moved.bytesRead += request.lengthBytes;
    else if (counts === 'write') this.#moved.bytesWritten += request.lengthBytes;
    request.resolve();
    if (!request.isLook) this.#options.onDone();
  }

  #failed(request: RemoteRequest<Command>, { error, again, endless }: Failure): void {
    if (again === 'nextSession') {
      this.#queue.putBack([request]);
      this.failSessions(error);
      return;
    }
    request.tries += 1;
    if (again === 'no' || (endless !== true && request.tries >= TRIES_MAX)) {
      request.reject(error);
      return;
    }
    if (request.abortedWith !== null) {
      request.reject(request.abortedWith.reason);
      return;
    }
    this.#putOff.add(request);
    const goOn = (): void => {
      if (this.#putOff.delete(request)) this.submit(request);
    };
    if (again === 'afterLook' && !request.isLook) {
      this.#options.look().then(goOn, () => {}); // a disk that failed has rejected it
      return;
    }
    if (again === 'later') this.#trouble = error;
    this.#options.clock.timer(again === 'later' ? RETRY_MS : 0, goOn);
  }
}

/** In no time, however many there are: the last one takes its place. */
function remove<Command extends RemoteCommand>(
  requests: RemoteRequest<Command>[],
  request: RemoteRequest<Command>,
): void {
  const last = requests.pop()!;
  if (last === request) return;
  requests[request.position] = last;
  last.position = request.position;
}
