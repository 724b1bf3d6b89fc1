import { type Backoff, backoffMs, jittered } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import type { GodwitError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import type { Failure, Session } from './dialect.ts';
import type { RemoteCommand, RemoteRequest } from './request.ts';
import { RequestQueue } from './request-queue.ts';

/** A session that is there, and what is under way on it, each request at its `position`. */
export type Carrier<Command extends RemoteCommand> = {
  readonly session: Session<Command>;
  /** Whether the disk that it leads to takes this request. */
  readonly takes: (request: RemoteRequest<Command>) => boolean;
  readonly requests: RemoteRequest<Command>[];
  /** A request under which the peer ended several sessions is on it: nothing else goes there. */
  suspect: RemoteRequest<Command> | null;
  /** The others have waited for a suspect once: no other is kept apart on it. */
  mixed: boolean;
  cancelAlone: () => void;
  /** When it began, in numbers of sending. */
  joinedAs: number;
  /** Something was answered on it. */
  proven: boolean;
  /** Requests that were settled on it. What the peer put off, and looks, are no work that was done. */
  answers: number;
  /** It is over: what its wire still says counts no more. */
  over: boolean;
};

export type DispatcherOptions<Command extends RemoteCommand> = {
  clock: Clock;
  random: Random;
  /** Requests on the wire at once, over all sessions. */
  depth: number;
  /** Resolves when the disk was looked at; rejects when it is another, after `end`. */
  look: () => Promise<void>;
  /** A request that is no look was answered well. */
  onDone: () => void;
  poisoned: (request: RemoteRequest<Command>) => GodwitError;
  /** The disk that is there now does not take the request: it is the caller's to settle from here on. */
  notTaken: (request: RemoteRequest<Command>) => void;
};

/** What the peer does not do is given up after so many times, unless the peer said that it is busy. */
const TRIES_MAX = 16;
/** Pauses before what a peer put off is sent again: many requests wait together. */
const RETRY: Backoff = { firstMs: 100, maxMs: 1_000 };
/** A request under which the peer ended so many sessions is sent alone … */
const ENDS_MAX = 3;
/** … and given up when the peer has ended so many while it was alone. */
const ENDS_ALONE_MAX = 6;
/**
 * All others wait so long at first for one that is alone, and so long at last: it may only be one that takes
 * long.
 */
const ALONE: Backoff = { firstMs: 3_000, maxMs: 24_000 };

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
  /** With what ends the pause of each. */
  readonly #putOff = new Map<RemoteRequest<Command>, () => void>();
  /** Taken from the queue, and waits for a carrier without any other request. */
  #suspect: RemoteRequest<Command> | null = null;
  #cancelSuspect: () => void = () => {};
  /** Why each request waits that a peer did not do, or whose session ended; the first one for longest. */
  readonly #troubles = new Map<RemoteRequest<Command>, GodwitError>();
  #inFlight = 0;
  #sent = 0;
  #ended: GodwitError | null = null;
  readonly #moved = { bytesRead: 0, bytesWritten: 0, replayed: 0 };

  constructor(options: DispatcherOptions<Command>) {
    this.#options = options;
    this.#queue = new RequestQueue(options.depth);
  }

  /** Why a request that was sent before still waits. null: none does. */
  get trouble(): GodwitError | null {
    for (const error of this.#troubles.values()) return error;
    return null;
  }

  get statistics() {
    const waiting = [...this.#queue.waiting(), ...this.#putOff.keys()];
    for (const { requests } of this.#carriers) waiting.push(...requests);
    if (this.#suspect !== null) waiting.push(this.#suspect);
    let oldestMs = Number.POSITIVE_INFINITY;
    for (const { startedMs, isProbe } of waiting) if (!isProbe) oldestMs = Math.min(oldestMs, startedMs);
    return {
      connections: this.#carriers.length,
      inFlight: this.#inFlight,
      queued: this.#queue.length + this.#putOff.size + (this.#suspect === null ? 0 : 1),
      oldestWaitMs: Math.max(0, this.#options.clock.monotonicMs() - oldestMs),
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
    const isWaiting = this.#queue.remove(request) || this.#takePutOff(request);
    if (this.#suspect === request) {
      this.#queue.ended(request);
      this.#takeSuspect();
    } else if (!isWaiting) return;
    this.#reject(request, abortedWith?.reason);
    this.pump();
  }

  /**
   * A session is there. Where another one is known to answer, nothing goes on this one before `probe`, or
   * whatever it carries already, was answered: so a place that takes requests and never answers has none that
   * somebody waits for.
   */
  join(
    session: Session<Command>,
    probe: RemoteRequest<Command>,
    takes: (request: RemoteRequest<Command>) => boolean,
  ): Carrier<Command> {
    const carrier: Carrier<Command> = {
      session,
      takes,
      requests: [],
      suspect: null,
      mixed: false,
      cancelAlone: () => {},
      joinedAs: this.#sent,
      proven: false,
      answers: 0,
      over: false,
    };
    const isProbed = session.hasRoom && this.#hasProven();
    this.#carriers.push(carrier);
    if (isProbed) this.#send(carrier, probe);
    return carrier;
  }

  /**
   * The session is over and its link destroyed: what was not answered goes again, but for a request for which
   * the peer ends each session. That one fails, by name, and the others go on.
   */
  leave(carrier: Carrier<Command>, error: GodwitError, peerEnded: boolean): void {
    carrier.over = true;
    carrier.cancelAlone();
    const index = this.#carriers.indexOf(carrier);
    if (index < 0) return;
    this.#carriers.splice(index, 1);
    const again: RemoteRequest<Command>[] = [];
    const requests = carrier.requests
      .filter(({ isProbe }) => !isProbe)
      .sort((one, other) => one.sentAs - other.sentAs);
    this.#moved.replayed += requests.length;
    this.#inFlight -= requests.length;
    for (const request of requests) {
      this.#queue.ended(request);
      request.losses += 1;
      // What ends one session may end all of them, one after the other: those that there were count once.
      if (peerEnded && carrier.joinedAs >= request.endedAs) {
        request.endedAs = this.#sent;
        request.peerEnds += 1;
        if (request === carrier.suspect) request.peerEndsAlone += 1;
      }
      if (request.abortedWith !== null) this.#reject(request, request.abortedWith.reason);
      else if (request.peerEndsAlone >= ENDS_ALONE_MAX)
        this.#reject(request, this.#options.poisoned(request));
      else {
        this.#troubles.set(request, error);
        again.push(request);
      }
    }
    // A suspect goes first: on the next session nothing else is there yet.
    const isSuspect = ({ peerEnds }: RemoteRequest<Command>): boolean => peerEnds >= ENDS_MAX;
    this.#queue.putBack([...again.filter(isSuspect), ...again.filter((each) => !isSuspect(each))]);
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
    const requests = [...this.#queue.drain(), ...this.#putOff.keys()];
    for (const cancel of this.#putOff.values()) cancel();
    if (this.#suspect !== null) requests.push(this.#takeSuspect());
    for (const carrier of this.#carriers) {
      carrier.over = true;
      carrier.cancelAlone();
      requests.push(...carrier.requests);
    }
    this.#carriers.length = 0;
    this.#putOff.clear();
    this.#inFlight = 0;
    for (const request of requests) this.#reject(request, error);
  }

  /** Each request on the carrier with the least to do. */
  pump(): void {
    while (this.#inFlight < this.#options.depth) {
      const carrier = this.#idlest();
      if (carrier === null) return;
      if (this.#suspect !== null) {
        // Nothing goes before it: so a carrier without any other request is mostly not far. One suspect at
        // a time: what ends all sessions at once is one of them.
        const mustWait =
          carrier.requests.length > 0 || this.#carriers.some(({ suspect }) => suspect !== null);
        if (mustWait && !carrier.mixed) return;
        const suspect = this.#takeSuspect();
        if (this.#isNotTaken(carrier, suspect)) continue;
        if (!carrier.mixed) this.#keepApart(carrier, suspect);
        this.#send(carrier, suspect);
        continue;
      }
      const request = this.#queue.take();
      if (request === null) return;
      if (this.#isNotTaken(carrier, request)) continue;
      if (request.peerEnds >= ENDS_MAX && !carrier.mixed) this.#suspectIt(request);
      else this.#send(carrier, request);
    }
  }

  /** True: it goes another way. It was taken from the queue, and is on no carrier. */
  #isNotTaken(carrier: Carrier<Command>, request: RemoteRequest<Command>): boolean {
    if (carrier.takes(request)) return false;
    this.#queue.ended(request);
    this.#troubles.delete(request);
    this.#options.notTaken(request);
    return true;
  }

  /** It waits until a carrier has nothing else, or for as long as the others may wait for that. */
  #suspectIt(request: RemoteRequest<Command>): void {
    this.#suspect = request;
    this.#cancelSuspect = this.#options.clock.timer(ALONE.firstMs, () => {
      for (const carrier of this.#carriers) carrier.mixed = true;
      this.pump();
    });
  }

  #takeSuspect(): RemoteRequest<Command> {
    const suspect = this.#suspect!;
    this.#suspect = null;
    this.#cancelSuspect();
    return suspect;
  }

  /** Until it is settled, the session ends, or the others have waited for long enough. */
  #keepApart(carrier: Carrier<Command>, suspect: RemoteRequest<Command>): void {
    carrier.suspect = suspect;
    const limitMs = backoffMs(ALONE, suspect.acquittals + 1);
    carrier.cancelAlone = this.#options.clock.timer(limitMs, () => {
      carrier.suspect = null;
      carrier.mixed = true;
      suspect.acquittals += 1;
      suspect.peerEnds = 0;
      this.pump();
    });
  }

  #send(carrier: Carrier<Command>, request: RemoteRequest<Command>): void {
    if (!request.isProbe) this.#inFlight += 1;
    this.#sent += 1;
    request.begin(carrier.requests.push(request) - 1, this.#sent);
    carrier.session.send(request);
  }

  #hasProven(): boolean {
    return this.#carriers.some(({ proven, over }) => proven && !over);
  }

  #idlest(): Carrier<Command> | null {
    let best: Carrier<Command> | null = null;
    const others = this.#carriers.length > 1 && this.#hasProven();
    for (const carrier of this.#carriers) {
      if (carrier.suspect !== null || carrier.over || !carrier.session.hasRoom) continue;
      if (others && !carrier.proven && carrier.requests.length > 0) continue;
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
    // What sends all to the next session says that this one is over, and nothing of those beside it.
    if (failure?.again === 'nextSession') carrier.session.fail(failure.error);
    else carrier.proven = true;
    if ((failure === null || failure.again === 'no') && !request.isLook) carrier.answers += 1;
    remove(carrier.requests, request);
    if (carrier.suspect === request) {
      carrier.cancelAlone();
      carrier.suspect = null;
    }
    if (request.isProbe) return;
    this.#inFlight -= 1;
    this.#queue.ended(request);
    request.losses = 0;
    request.peerEnds = 0;
    request.peerEndsAlone = 0;
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
    this.#troubles.delete(request);
    const { counts } = request.command;
    if (counts === 'read') this.#moved.bytesRead += request.lengthBytes;
    else if (counts === 'write') this.#moved.bytesWritten += request.lengthBytes;
    request.resolve();
    if (!request.isLook) this.#options.onDone();
  }

  #failed(request: RemoteRequest<Command>, { error, again, endless }: Failure): void {
    if (again !== 'nextSession') request.tries += 1;
    if (again === 'no' || (endless !== true && request.tries >= TRIES_MAX)) {
      this.#reject(request, error);
      return;
    }
    if (request.abortedWith !== null) {
      this.#reject(request, request.abortedWith.reason);
      return;
    }
    this.#troubles.set(request, error);
    if (again === 'nextSession') {
      this.#queue.putBack([request]);
      return;
    }
    const goOn = (): void => {
      if (this.#putOff.delete(request)) this.submit(request);
    };
    if (again === 'afterLook' && !request.isLook) {
      this.#putOff.set(request, () => {});
      this.#options.look().then(goOn, () => {}); // a disk that failed has rejected it
      return;
    }
    const { clock, random } = this.#options;
    const pauseMs = again === 'later' ? jittered(backoffMs(RETRY, request.tries), random) : 0;
    this.#putOff.set(request, clock.timer(pauseMs, goOn));
  }

  /** False: it is not put off. */
  #takePutOff(request: RemoteRequest<Command>): boolean {
    this.#putOff.get(request)?.();
    return this.#putOff.delete(request);
  }

  #reject(request: RemoteRequest<Command>, error: unknown): void {
    this.#troubles.delete(request);
    request.reject(error);
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
